"""The options that `export_onnx` and `export_bundle` share: the same names and defaults, written once."""

import inspect
from dataclasses import asdict

import pytest

from deploy_rnn.errors import ExportError
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.export.options import ExportOptions


@pytest.mark.parametrize("function", [export_onnx, export_bundle])
def test_both_functions_take_every_option_with_its_default(function: object) -> None:
    assert callable(function)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
    }
    options = asdict(ExportOptions())
    assert {name: defaults.get(name, "missing") for name in options} == options


def test_the_two_functions_differ_where_their_files_do() -> None:
    options = set(asdict(ExportOptions()))
    shared = {"model", "args", "kwargs"}
    assert set(inspect.signature(export_onnx).parameters) - options == {
        *shared,
        "path",
        "form",
        "require_provider",
    }
    assert set(inspect.signature(export_bundle).parameters) - options == {
        *shared,
        "folder",
        "forms",
        "buckets",
        "name",
    }


def test_an_unknown_way_to_end_rows_is_refused() -> None:
    with pytest.raises(
        ExportError, match=r"`row_ends` \(='masked'\) must be 'sequence_lens' or 'held'"
    ):
        ExportOptions(row_ends="masked")
