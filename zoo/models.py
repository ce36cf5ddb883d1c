"""The models of the zoo: one function each, named as in `make zoo MODELS=name`.

A model of yours is one more function with `@model`. Models are made as their packages make them, with random weights
unless the package's wheel carries some. Where a default is large, the sizes are smaller, which changes no cell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Exhibit:
    """A model, and the example arguments it is called with."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """How to make a model, and what the page says of it.

    Attributes:
        package: its name on the package index.
        title: the class, as the package calls it.
        about: what it is, in a few words.
        make: imports the package and makes the model.
    """

    package: str
    title: str
    about: str
    make: Callable[[], Exhibit]

    @property
    def name(self) -> str:
        return self.make.__name__


MODELS: dict[str, Entry] = {}
"""Every model, by name."""

Make = Callable[[], Exhibit]


def model(package: str, title: str, about: str) -> Callable[[Make], Make]:
    """Put a model into the zoo."""

    def register(make: Make) -> Make:
        MODELS[make.__name__] = Entry(package, title, about, make)
        return make

    return register


# Speech


@model("resemblyzer", "VoiceEncoder", "three-layer LSTM, trained weights from the wheel")
def voice_encoder() -> Exhibit:
    from resemblyzer import VoiceEncoder

    return Exhibit(VoiceEncoder("cpu", verbose=False), (torch.rand(2, 20, 40),))


@model("coqui-tts", "LSTMSpeakerEncoder", "LSTMs with projections")
def speaker_encoder() -> Exhibit:
    from TTS.encoder.models.lstm import LSTMSpeakerEncoder

    encoder = LSTMSpeakerEncoder(16, proj_dim=8, lstm_dim=12)
    return Exhibit(encoder, (torch.rand(2, 16, 20),))


@model("coqui-tts", "tacotron.EncoderCBHG", "banks of convolutions and a bidirectional GRU")
def cbhg() -> Exhibit:
    from TTS.tts.layers.tacotron.tacotron import CBHG

    bank = CBHG(16, K=4, conv_bank_features=16, conv_projections=[16, 16],
                highway_features=16, gru_features=16)  # fmt: skip
    return Exhibit(bank, (torch.rand(2, 16, 12),))


@model("coqui-tts", "tacotron2.Encoder", "convolutions and a packed bidirectional LSTM")
def coqui_tacotron2_encoder() -> Exhibit:
    from TTS.tts.layers.tacotron.tacotron2 import Encoder

    return Exhibit(Encoder(16), (torch.rand(2, 16, 12), torch.tensor([12, 7])))


@model("torchaudio", "DeepSpeech", "linear layers and a bidirectional ReLU RNN")
def deep_speech() -> Exhibit:
    from torchaudio.models import DeepSpeech

    return Exhibit(DeepSpeech(8, n_hidden=16, n_class=6), (torch.rand(2, 1, 12, 8),))


@model("torchaudio", "Tacotron2's encoder", "convolutions and a packed bidirectional LSTM")
def tacotron2_encoder() -> Exhibit:
    from torchaudio.models.tacotron2 import _Encoder

    return Exhibit(_Encoder(16, 3, 5), (torch.rand(2, 16, 12), torch.tensor([12, 7])))


@model("torchaudio", "WaveRNN", "an upsampled spectrogram and two GRUs")
def wave_rnn() -> Exhibit:
    from torchaudio.models import WaveRNN

    network = WaveRNN(
        [2, 2], 8, 4, n_res_block=1, n_rnn=12, n_fc=12, n_freq=6, n_hidden=8, n_output=8
    )
    return Exhibit(network, (torch.rand(2, 1, 4 * 8), torch.rand(2, 1, 6, 12)))


@model("torchaudio", "RNNT's predictor", "LSTMs with layer norms, stepped in a Python loop")
def rnnt_predictor() -> Exhibit:
    from torchaudio.models.rnnt import _Predictor

    predictor = _Predictor(10, 8, symbol_embedding_dim=6, num_lstm_layers=1, lstm_hidden_dim=8,
                           lstm_layer_norm=True)  # fmt: skip
    return Exhibit(predictor, (torch.randint(10, (2, 6)), torch.tensor([6, 4])))


@model("speechbrain", "CRDNN", "convolutions with pooling, a bidirectional LiGRU, linear layers")
def crdnn() -> Exhibit:
    from speechbrain.lobes.models.CRDNN import CRDNN

    network = CRDNN(input_shape=(2, 12, 16), cnn_channels=(4, 4), cnn_blocks=2, rnn_layers=1,
                    rnn_neurons=8, dnn_blocks=1, dnn_neurons=8)  # fmt: skip
    return Exhibit(network, (torch.rand(2, 12, 16),))


@model("speechbrain", "CRDNN with an LSTM", "the same with rnn_class=LSTM")
def crdnn_lstm() -> Exhibit:
    from speechbrain.lobes.models.CRDNN import CRDNN
    from speechbrain.nnet.RNN import LSTM

    network = CRDNN(input_shape=(2, 12, 16), cnn_channels=(4, 4), cnn_blocks=2, rnn_class=LSTM,
                    rnn_layers=1, rnn_neurons=8, dnn_blocks=1, dnn_neurons=8)  # fmt: skip
    return Exhibit(network, (torch.rand(2, 12, 16),))


@model("speechbrain", "nnet.RNN.GRU", "a bidirectional GRU with relative lengths")
def speechbrain_gru() -> Exhibit:
    from speechbrain.nnet.RNN import GRU

    layer = GRU(8, input_shape=(2, 12, 6), num_layers=2, bidirectional=True)
    return Exhibit(layer, (torch.rand(2, 12, 6),))


@model("speechbrain", "MetricGAN's EnhancementGenerator", "a packed bidirectional LSTM, a mask")
def metric_gan() -> Exhibit:
    from speechbrain.lobes.models.MetricGAN import EnhancementGenerator

    return Exhibit(EnhancementGenerator(), (torch.rand(2, 10, 257), torch.tensor([1.0, 0.6])))


@model("speechbrain", "RNNLM", "a language model: an embedding, LSTMs, linear layers")
def rnn_lm() -> Exhibit:
    from speechbrain.lobes.models.RNNLM import RNNLM

    network = RNNLM(10, embedding_dim=6, rnn_neurons=8, dnn_neurons=8)
    return Exhibit(network, (torch.randint(10, (2, 9)),))


@model("pyannote.audio", "PyanNet", "SincNet and a bidirectional LSTM on a waveform")
def pyannet() -> Exhibit:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    network = PyanNet(lstm={"hidden_size": 8}, linear={"hidden_size": 8})
    network.specifications = Specifications(
        problem=Problem.MULTI_LABEL_CLASSIFICATION, resolution=Resolution.FRAME, duration=1.0,
        classes=["a", "b"],
    )  # fmt: skip
    network.build()
    return Exhibit(network, (torch.rand(2, 1, 8000),))


@model("silero-vad", "the .jit of the wheel", "a TorchScript file, trained")
def silero_vad() -> Exhibit:
    from silero_vad import load_silero_vad

    return Exhibit(load_silero_vad(), (torch.rand(1, 512), 16000))


# Music and sound


@model("openunmix", "OpenUnmix", "a spectrogram, three bidirectional LSTMs, a mask")
def open_unmix() -> Exhibit:
    from openunmix.model import OpenUnmix

    return Exhibit(OpenUnmix(16, 2, hidden_size=12), (torch.rand(2, 2, 16, 10),))


@model("openunmix", "OpenUnmix, unidirectional", "the causal model, for streams")
def open_unmix_causal() -> Exhibit:
    from openunmix.model import OpenUnmix

    return Exhibit(
        OpenUnmix(16, 2, hidden_size=12, unidirectional=True), (torch.rand(2, 2, 16, 10),)
    )


@model("demucs", "BLSTM", "a bidirectional LSTM over channels, with a skip")
def demucs_blstm() -> Exhibit:
    from demucs.demucs import BLSTM

    return Exhibit(BLSTM(8, layers=2, skip=True), (torch.rand(2, 8, 12),))


@model("demucs", "Demucs", "strided convolutions around a bidirectional LSTM")
def demucs() -> Exhibit:
    from demucs.demucs import Demucs

    network = Demucs(["a", "b"], audio_channels=1, channels=4, depth=2, dconv_mode=0, resample=False,
                     lstm_layers=1, normalize=False)  # fmt: skip
    return Exhibit(network, (torch.rand(2, 1, 340),))


@model("encodec", "SEANetEncoder", "strided convolutions with weight norm, two LSTMs")
def encodec_encoder() -> Exhibit:
    from encodec.modules import SEANetEncoder

    encoder = SEANetEncoder(n_filters=4, dimension=8, ratios=[2, 2], causal=True)
    return Exhibit(encoder, (torch.rand(2, 1, 64),))


@model("encodec", "SEANetDecoder", "two LSTMs, transposed convolutions with weight norm")
def encodec_decoder() -> Exhibit:
    from encodec.modules import SEANetDecoder

    decoder = SEANetDecoder(n_filters=4, dimension=8, ratios=[2, 2], causal=True)
    return Exhibit(decoder, (torch.rand(2, 8, 10),))


@model("denoiser", "Demucs", "speech enhancement: strided convolutions around a causal LSTM")
def denoiser_demucs() -> Exhibit:
    from denoiser.demucs import Demucs

    network = Demucs(hidden=4, depth=2, resample=1, normalize=False)
    return Exhibit(network, (torch.rand(2, 1, 340),))


@model("transformers", "EncodecEncoder", "Hugging Face's EnCodec: convolutions, two LSTMs")
def transformers_encodec() -> Exhibit:
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecEncoder

    config = EncodecConfig(num_filters=4, hidden_size=8, upsampling_ratios=[2, 2])
    return Exhibit(EncodecEncoder(config), (torch.rand(2, 1, 64),))


@model("asteroid", "DPRNNTasNet", "dual-path bidirectional LSTMs over folded chunks")
def dprnn() -> Exhibit:
    from asteroid.models import DPRNNTasNet

    network = DPRNNTasNet(2, n_filters=8, bn_chan=8, hid_size=8, chunk_size=6, n_repeats=1)
    return Exhibit(network, (torch.rand(2, 200),))


@model("asteroid", "LSTMTasNet", "a gated encoder and stacked LSTMs on a waveform")
def lstm_tasnet() -> Exhibit:
    from asteroid.models import LSTMTasNet

    network = LSTMTasNet(2, n_filters=8, hid_size=8, n_layers=1)
    return Exhibit(network, (torch.rand(2, 160),))


@model(
    "piano_transcription_inference",
    "AcousticModelCRnn8Dropout",
    "convolutions, a bidirectional GRU",
)
def piano_acoustic() -> Exhibit:
    from piano_transcription_inference.models import AcousticModelCRnn8Dropout

    return Exhibit(AcousticModelCRnn8Dropout(8, 128, 0.01), (torch.rand(1, 1, 8, 16),))


# Text


@model("stanza", "CharacterLanguageModel", "characters, a packed LSTM with trained first states")
def char_language_model() -> Exhibit:
    from stanza.models.common.char_model import CharacterLanguageModel
    from stanza.models.common.vocab import CharVocab

    args = {"char_emb_dim": 6, "char_hidden_dim": 8, "char_num_layers": 1, "char_dropout": 0.1,
            "char_unit_dropout": 0.0, "char_rec_dropout": 0.0}  # fmt: skip
    network = CharacterLanguageModel(args, {"char": CharVocab(list("abcabc"))})
    return Exhibit(network, (torch.randint(3, (2, 9)), torch.tensor([9, 5])))


@model("stanza", "Tokenizer", "characters, packed bidirectional LSTMs, one over the other")
def stanza_tokenizer() -> Exhibit:
    from stanza.models.tokenization.model import Tokenizer

    args = {"feat_dim": 3, "rnn_layers": 1, "conv_res": None, "use_mwt": True, "hierarchical": True,
            "tok_noise": 0.0, "hier_invtemp": 0.5}  # fmt: skip
    network = Tokenizer(args, 12, 6, 8, 0.0, 0.0)
    inputs = (torch.randint(1, 12, (2, 9)), torch.rand(2, 9, 3), torch.tensor([9, 5]))
    return Exhibit(network, inputs)


@model("stanza", "LangIDBiLSTM", "characters, a bidirectional LSTM, the language")
def lang_id() -> Exhibit:
    from stanza.models.langid.model import LangIDBiLSTM

    letters = {letter: number for number, letter in enumerate(["<PAD>", "<UNK>", *"abcdef"])}
    network = LangIDBiLSTM(letters, {"en": 0, "fr": 1}, 2, 6, 8)
    return Exhibit(network, (torch.randint(8, (2, 10)),))


@model("stanza", "HighwayLSTM", "packed bidirectional LSTMs with gated skips")
def highway_lstm() -> Exhibit:
    from stanza.models.common.hlstm import HighwayLSTM

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = HighwayLSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True,
                                    highway_func=torch.tanh)  # fmt: skip

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            return pad_packed_sequence(self.lstm(packed, lengths)[0], batch_first=True)[0]

    return Exhibit(Padded(), (torch.rand(2, 9, 6), torch.tensor([9, 5])))


@model("fastai", "AWD_LSTM language model", "weight drop; its kept state is reset before each call")
def awd_lstm() -> Exhibit:
    from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
    from fastai.text.models.core import get_language_model

    config = awd_lstm_lm_config | {"emb_sz": 6, "n_hid": 8, "n_layers": 2}
    network = get_language_model(AWD_LSTM, 20, config)

    class Reset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, tokens: Tensor) -> Any:
            self.network.reset()
            return self.network(tokens)[0]

    return Exhibit(Reset(), (torch.randint(20, (2, 9)),))


@model("flair", "LanguageModel", "characters, an LSTM with states that come and go")
def flair_language_model() -> Exhibit:
    import transformers

    # flair 0.15.1 imports this name, which transformers 5 no longer has, and its language model does not use it.
    transformers.LayoutLMv2FeatureExtractor = None
    from flair.data import Dictionary
    from flair.models import LanguageModel

    letters = Dictionary()
    for letter in "abcdef":
        letters.add_item(letter)
    network = LanguageModel(letters, True, hidden_size=8, nlayers=1, embedding_size=6)
    # Its characters are time-major, and its states are a pair.
    states = (torch.rand(1, 2, 8), torch.rand(1, 2, 8))
    return Exhibit(network, (torch.randint(6, (9, 2)), states))


# Printed text


@model("easyocr", "vgg_model.Model", "reads lines of text: convolutions, two bidirectional LSTMs")
def easyocr_crnn() -> Exhibit:
    from easyocr.model.vgg_model import Model

    # The second argument of `forward` is not used.
    return Exhibit(Model(1, 16, 8, 10), (torch.rand(2, 1, 32, 48), None))


@model("python-doctr", "CRNN, exportable", "reads words: a VGG network, bidirectional LSTMs")
def doctr_crnn() -> Exhibit:
    from doctr.models.recognition import crnn_vgg16_bn

    network = crnn_vgg16_bn(pretrained=False, pretrained_backbone=False, exportable=True)
    return Exhibit(network, (torch.rand(2, 3, 32, 64),))


# Time series


@model("darts", "RNNModel's network", "an LSTM and a linear layer, the last step")
def darts_rnn() -> Exhibit:
    from darts.models.forecasting.rnn_model import _RNNModule

    network = _RNNModule(
        "LSTM", input_size=2, hidden_dim=8, num_layers=2, target_size=2, nr_params=1, dropout=0.0,
        input_chunk_length=8, output_chunk_length=1, train_sample_shape=None,
    )  # fmt: skip

    return _darts_forecast(network)


@model("darts", "BlockRNNModel's network", "a GRU and linear layers, a block of forecasts")
def darts_block_rnn() -> Exhibit:
    from darts.models.forecasting.block_rnn_model import _BlockRNNModule

    network = _BlockRNNModule(
        "GRU", input_size=2, hidden_dim=8, num_layers=1, num_layers_out_fc=[8], target_size=2,
        future_cov_dim=0, nr_params=1, dropout=0.0, activation="ReLU", input_chunk_length=8,
        output_chunk_length=3, train_sample_shape=None,
    )  # fmt: skip

    return _darts_forecast(network)


def _darts_forecast(network: nn.Module) -> Exhibit:
    from darts.utils.data.torch_datasets.utils import PLModuleInput

    class Forecast(nn.Module):
        """`forward` with a tensor in place of its dataclass."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, past: Tensor) -> Any:
            return self.network(PLModuleInput(past_target=past)).prediction

    return Exhibit(Forecast(), (torch.rand(2, 8, 2),))


@model("neuralforecast", "LSTM", "an LSTM over the window, and an MLP for the horizon")
def neuralforecast_lstm() -> Exhibit:
    from neuralforecast.models import LSTM

    network = LSTM(h=3, input_size=9, encoder_hidden_size=8, decoder_hidden_size=8)
    batch = {
        "insample_y": torch.rand(2, 9, 1),
        "futr_exog": None,
        "hist_exog": None,
        "stat_exog": None,
    }
    return Exhibit(network, (batch,))


@model("neuralhydrology", "CudaLSTM", "rainfall and runoff: forcings by name, an LSTM, a head")
def cuda_lstm() -> Exhibit:
    return Exhibit(_hydrology_model("cudalstm"), (_basin(),))


@model("neuralhydrology", "EALSTM", "a cell whose input gate is static, stepped in a Python loop")
def ea_lstm() -> Exhibit:
    return Exhibit(_hydrology_model("ealstm"), (_basin(),))


def _hydrology_model(name: str) -> nn.Module:
    from neuralhydrology.modelzoo import get_model
    from neuralhydrology.utils.config import Config

    settings = {
        "model": name, "head": "regression", "hidden_size": 8, "output_dropout": 0.0,
        "dynamic_inputs": ["rain", "temperature"], "static_attributes": ["area", "slope"],
        "target_variables": ["runoff"], "use_basin_id_encoding": False, "seq_length": 12,
        "output_activation": "linear", "predict_last_n": 1,
    }  # fmt: skip
    network: nn.Module = get_model(Config(settings))
    return network


def _basin() -> dict[str, Any]:
    """Two rows of twelve days."""
    forcings = {name: torch.rand(2, 12, 1) for name in ("rain", "temperature")}
    return {"x_d": forcings, "x_s": torch.rand(2, 2)}


@model("tsai", "LSTM_FCN", "an LSTM beside convolutions over the same series")
def lstm_fcn() -> Exhibit:
    from tsai.models.RNN_FCN import LSTM_FCN

    network = LSTM_FCN(3, 2, shuffle=False, hidden_size=8, conv_layers=[4, 8, 4])
    return Exhibit(network, (torch.rand(2, 3, 12),))


@model("tsai", "MGRU_FCN", "a GRU beside convolutions with squeeze and excite")
def mgru_fcn() -> Exhibit:
    from tsai.models.RNN_FCN import MGRU_FCN

    network = MGRU_FCN(3, 2, shuffle=False, hidden_size=8, conv_layers=[16, 16, 4])
    return Exhibit(network, (torch.rand(2, 3, 12),))


@model("pytorch-forecasting", "LSTM", "a subclass of nn.LSTM that takes rows of length 0")
def forecasting_lstm() -> Exhibit:
    from pytorch_forecasting.models.nn.rnn import LSTM

    return Exhibit(LSTM(3, 8, num_layers=2, batch_first=True), (torch.rand(2, 9, 3),))


@model(
    "pytorch-forecasting",
    "TemporalFusionTransformer",
    "variable selection, LSTMs as encoder and decoder, attention",
)
def temporal_fusion_transformer() -> Exhibit:
    import pandas
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet

    days = list(range(30))
    table = pandas.DataFrame(
        {
            "day": days * 2,
            "series": ["a"] * 30 + ["b"] * 30,
            "value": torch.rand(60).tolist(),
        }
    )
    data = TimeSeriesDataSet(
        table, time_idx="day", target="value", group_ids=["series"], max_encoder_length=8,
        max_prediction_length=3, time_varying_unknown_reals=["value"],
        time_varying_known_reals=["day"], static_categoricals=["series"],
    )  # fmt: skip
    network = TemporalFusionTransformer.from_dataset(
        data, hidden_size=8, attention_head_size=2, hidden_continuous_size=4
    )
    batch, _ = next(iter(data.to_dataloader(train=False, batch_size=2)))
    return Exhibit(network, (batch,))


@model(
    "gluonts",
    "TemporalFusionTransformer",
    "variable selection, LSTMs as encoder and decoder, attention",
)
def gluonts_tft() -> Exhibit:
    from gluonts.torch.model.tft.module import TemporalFusionTransformerModel

    network = TemporalFusionTransformerModel(
        8, 3, d_hidden=8, d_var=8, num_heads=2, c_feat_dynamic_cat=[2], d_past_feat_dynamic_real=[1],
        c_past_feat_dynamic_cat=[2],
    )  # fmt: skip
    inputs = network.describe_inputs(2)
    examples = [torch.zeros(one.shape, dtype=one.dtype) for one in inputs.data.values()]
    past = torch.rand(2, 8) + 1
    return Exhibit(network, (past, torch.ones(2, 8), *examples[2:]))


@model(
    "gluonts", "DeepARModel", "lags, scaling, a two-layer LSTM, the parameters of a distribution"
)
def deep_ar() -> Exhibit:
    from gluonts.torch.model.deepar.module import DeepARModel

    network = DeepARModel(
        "D", context_length=8, prediction_length=1, hidden_size=8, lags_seq=[1, 2, 3]
    )
    inputs = network.describe_inputs(2)
    examples = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in inputs.data.items()}
    for name in ("past_target", "past_observed_values"):
        examples[name] = torch.rand(inputs.data[name].shape) + 1

    class Unrolled(nn.Module):
        """The network up to the parameters of its distribution: `forward` draws samples."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(
            self,
            static_cat: Tensor,
            static_real: Tensor,
            past_time: Tensor,
            past_target: Tensor,
            past_observed: Tensor,
            future_time: Tensor,
        ) -> Any:
            return self.network.unroll_lagged_rnn(
                static_cat, static_real, past_time, past_target, past_observed, future_time
            )

    return Exhibit(Unrolled(), tuple(examples.values()))


# Reinforcement learning


@model("sb3-contrib", "RecurrentActorCriticPolicy", "an LSTM for the actor, one for the critic")
def recurrent_ppo() -> Exhibit:
    import gymnasium
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    box = gymnasium.spaces.Box(-1.0, 1.0, (4,))
    policy = RecurrentActorCriticPolicy(
        box, gymnasium.spaces.Discrete(3), lambda _: 1e-3, lstm_hidden_size=8
    )

    class Actor(nn.Module):
        """`forward` with its states as tensors, and the best action."""

        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, observation: Tensor, h0: Tensor, c0: Tensor, starts: Tensor) -> Any:
            features = self.policy.extract_features(observation)
            latent, states = self.policy._process_sequence(
                features, (h0, c0), starts, self.policy.lstm_actor
            )
            latent = self.policy.mlp_extractor.forward_actor(latent)
            return self.policy.action_net(latent), states

    state = torch.rand(1, 2, 8)
    return Exhibit(Actor(), (torch.rand(2, 4), state, state.clone(), torch.zeros(2)))


@model("torchrl", "LSTM", "an LSTM written in Python, for vmap")
def torchrl_lstm() -> Exhibit:
    from torchrl.modules.tensordict_module.rnn import LSTM

    state = torch.rand(2, 2, 8)
    return Exhibit(LSTM(4, 8, num_layers=2), (torch.rand(2, 6, 4), (state, state.clone())))


@model("pfrl", "RecurrentSequential", "packed sequences through a sequence of layers")
def recurrent_sequential() -> Exhibit:
    import pfrl

    layers = pfrl.nn.RecurrentSequential(nn.Linear(4, 6), nn.ReLU(), nn.LSTM(6, 8), nn.Linear(8, 2))

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths)
            return pad_packed_sequence(self.layers(packed, None)[0])[0]

    return Exhibit(Rows(), (torch.rand(9, 2, 4), torch.tensor([9, 5])))


# Graphs, and other networks


@model(
    "torch-geometric",
    "JumpingKnowledge, lstm",
    "a bidirectional LSTM over the layers of a graph network",
)
def jumping_knowledge() -> Exhibit:
    from torch_geometric.nn import JumpingKnowledge

    layers = [torch.rand(10, 4) for _ in range(3)]
    return Exhibit(JumpingKnowledge("lstm", 4, 3), (layers,))


@model("torch-geometric", "LSTMAggregation", "the neighbours of each node as a sequence")
def lstm_aggregation() -> Exhibit:
    from torch_geometric.nn.aggr import LSTMAggregation

    kwargs = {"dim_size": 3, "max_num_elements": 4}
    index = torch.tensor([0, 0, 1, 1, 1, 2])
    return Exhibit(LSTMAggregation(4, 8), (torch.rand(6, 4), index), kwargs)


@model("ncps", "CfC", "a closed-form continuous-time cell, stepped in a Python loop")
def cfc() -> Exhibit:
    from ncps.torch import CfC

    return Exhibit(CfC(4, 8), (torch.rand(2, 6, 4),))


@model("ncps", "LTC", "a liquid time-constant cell, stepped in a Python loop")
def ltc() -> Exhibit:
    from ncps.torch import LTC

    return Exhibit(LTC(4, 6), (torch.rand(2, 5, 4),))
