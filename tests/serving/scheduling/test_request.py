"""Requests, responses and errors can cross a process boundary."""

import pickle

import numpy as np
import pytest

from deploy_rnn import errors
from deploy_rnn.serving.scheduling.request import Request, Response


def test_a_request_is_the_same_in_another_process() -> None:
    request = Request(
        {"x": np.arange(6.0).reshape(2, 3)}, ("y",), sequence="s", start=True, timeout=2.5
    )
    received = pickle.loads(pickle.dumps(request))
    np.testing.assert_array_equal(received.inputs["x"], request.inputs["x"])
    assert vars(received) | {"inputs": None} == vars(request) | {"inputs": None}
    response = Response({"y": np.arange(4.0)}, queued=0.1, computed=0.2, rows=3)
    received = pickle.loads(pickle.dumps(response))
    np.testing.assert_array_equal(received.outputs["y"], response.outputs["y"])
    assert vars(received) | {"outputs": None} == vars(response) | {"outputs": None}


@pytest.mark.parametrize(
    "error",
    [
        errors.InputError,
        errors.StreamError,
        errors.BusyError,
        errors.DeadlineError,
        errors.ClosedError,
    ],
)
def test_an_error_is_the_same_in_another_process(error: type[errors.DeployError]) -> None:
    received = pickle.loads(pickle.dumps(error("the message.")))
    assert (type(received), str(received)) == (error, "the message.")
