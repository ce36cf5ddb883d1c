"""deploy-rnn: take a trained recurrent PyTorch network into production.

Names are loaded when first used, so that `import deploy_rnn.serving` brings in neither torch nor onnx. The same goes
for `deploy_rnn.export` and `deploy_rnn.serving`, which are there after `import deploy_rnn`.
"""

from importlib import metadata
from typing import TYPE_CHECKING

from deploy_rnn.errors import DeployError
from deploy_rnn.lazy import lazy_names

if TYPE_CHECKING:
    import deploy_rnn.export as export
    import deploy_rnn.serving as serving
    from deploy_rnn.compilation import compile
    from deploy_rnn.conversion import convert
    from deploy_rnn.export.ways import Check, check
    from deploy_rnn.nn.cells import Cell
    from deploy_rnn.nn.gru import GRU
    from deploy_rnn.nn.loops import scan
    from deploy_rnn.nn.lstm import LSTM
    from deploy_rnn.nn.recurrent import Recurrent
    from deploy_rnn.nn.rnn import RNN
    from deploy_rnn.nn.single_step import GRUCell, LSTMCell, RNNCell
    from deploy_rnn.packaging.package import Package, package

__all__ = [
    "GRU", "LSTM", "RNN", "Cell", "Check", "DeployError", "GRUCell", "LSTMCell", "Package", "RNNCell", "Recurrent",
    "__version__", "check", "compile", "convert", "export", "package", "scan", "serving",
]  # fmt: skip

__version__ = metadata.version("deploy-rnn")
__getattr__ = lazy_names(
    __name__,
    {
        "Cell": "nn.cells",
        "Check": "export.ways",
        "GRU": "nn.gru",
        "GRUCell": "nn.single_step",
        "LSTM": "nn.lstm",
        "LSTMCell": "nn.single_step",
        "RNN": "nn.rnn",
        "RNNCell": "nn.single_step",
        "Recurrent": "nn.recurrent",
        "check": "export.ways",
        "compile": "compilation",
        "convert": "conversion",
        "Package": "packaging.package",
        "package": "packaging.package",
        "scan": "nn.loops",
    },
    "torch",
    other_extras=dict.fromkeys(("Check", "check"), "export,onnxruntime"),
    subpackages=("export", "serving"),
)


def __dir__() -> list[str]:
    return sorted(__all__)
