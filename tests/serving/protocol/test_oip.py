"""Descriptions of a model in Triton's words."""

from math import inf
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict

from deploy_rnn.serving.grpc.messages import CLASSES
from deploy_rnn.serving.protocol import oip
from deploy_rnn.serving.scheduling.limits import Limits


def test_limits_beyond_what_a_configuration_can_say(sum_model: Any, folder: Path) -> None:
    model = sum_model(folder / "sum", "sum")
    model.max_batch = 10**12
    limits = Limits(max_wait=inf, stream_idle=1e300, max_streams=10**12)
    config = oip.model_config(model, limits)
    assert config["max_batch_size"] == 2**31 - 1
    batching = config["sequence_batching"]
    assert batching["max_sequence_idle_microseconds"] == 2**63 - 1
    assert batching["oldest"] == {
        "max_candidate_sequences": 2**31 - 1,
        "max_queue_delay_microseconds": 2**63 - 1,
    }
    ParseDict({"config": config}, CLASSES["ModelConfigResponse"]())
