"""What a report says beyond right or wrong: where in time, how fast, on what; and its page."""

import copy
import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import deploy_rnn
from deploy_rnn.checking.tolerance import Tolerance
from deploy_rnn.errors import ProviderError, VerificationError
from deploy_rnn.export import Report, export_onnx, reports_html, verify
from deploy_rnn.export.verification import on_onnxruntime
from deploy_rnn.export.verification.plots import WIDTH, error_over_time
from deploy_rnn.export.verification.provenance import Provenance
from deploy_rnn.export.verification.report import Comparison, ErrorOverTime
from deploy_rnn.runtime import CPU, CUDA, RanNode, placement


def over_time(report: Report) -> dict[tuple[str, str], int]:
    """(case, output) -> steps"""
    return {(curve.case, curve.output): curve.steps for curve in report.over_time}


class Scores(nn.Module):
    """Batch, steps, input size and number of scores are the same in the tests, so that no size tells which is which."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 5, batch_first=True)
        self.score = nn.Linear(5, 5)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(x * mask.unsqueeze(2))
        return h_n[0], self.score(output).transpose(1, 2)  # (B, H), (B, C, T)


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output: Tensor = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=x.size(1)
        )[0]
        return output


@pytest.mark.parametrize("form", ["unrolled", "native"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_time_axis_of_a_layer_is_known_for_any_sizes(
    form: str, batch_first: bool, tmp_path: Path
) -> None:
    """T, B, the input size and the layers times the directions are all 4."""
    layer = nn.RNN(4, 4, 2, bidirectional=True, batch_first=batch_first)
    report = export_onnx(
        layer, (torch.randn(4, 4, 4), torch.randn(4, 4, 4)), tmp_path / "a.onnx", form=form
    )
    steps = over_time(report)
    assert {output for _, output in steps} == {"output"}
    assert steps["example", "output"] == 4
    examples = [comparison for comparison in report.comparisons if comparison.case == "example"]
    compared = next(comparison for comparison in examples if comparison.optimized)
    curve = next(curve for curve in report.over_time if curve.case == "example")
    assert max(curve.errors) == compared.max_abs_error
    assert set(curve.allowed) == {1e-5}


@pytest.mark.parametrize(("form", "steps"), [("unrolled", {5}), ("scan", {1, 3, 5, 7, 200})])
def test_the_time_axis_of_a_model_is_known_for_any_sizes(
    form: str, steps: set[int], tmp_path: Path
) -> None:
    report = export_onnx(
        Scores(), (torch.randn(5, 5, 5), torch.rand(5, 5)), tmp_path / "a.onnx", form=form
    )
    curves = over_time(report)
    assert {output for _, output in curves} == {"output_1"}
    assert set(curves.values()) == steps


def test_the_time_axis_of_a_model_that_packs_is_known(tmp_path: Path) -> None:
    lengths = torch.tensor([2, 4, 1])
    report = export_onnx(
        Packs(), (torch.randn(3, 4, 3), lengths), tmp_path / "a.onnx", form="native"
    )
    assert over_time(report)["long, T=200", "output"] == 200
    report = export_onnx(
        Packs(), (torch.randn(3, 4, 3), lengths), tmp_path / "a.onnx", form="unrolled"
    )
    assert over_time(report)["example", "output"] == 4


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_first_wrong_step_is_named(batch_first: bool, tmp_path: Path) -> None:
    layer = nn.RNN(3, 8, batch_first=batch_first)
    path = tmp_path / "a.onnx"
    x = torch.randn(7, 7, 3)
    export_onnx(layer, x, path, form="unrolled")
    plant(path, lambda graph: setattr(writing(graph, "rnn0.l0f.h3"), "op_type", "Softsign"))
    with pytest.raises(
        VerificationError, match=r"first at time step 3 \(the first is 0\), index \["
    ) as raised:
        verify(path, layer, x)
    report = raised.value.report
    assert report is not None
    wrong = [comparison for comparison in report.failures if comparison.output == "output"]
    assert len(wrong) == 8
    for comparison in wrong:
        assert comparison.first_bad is not None
        assert comparison.first_bad_step == comparison.first_bad[1 if batch_first else 0] == 3
    assert {curve.first_bad for curve in report.over_time} == {3}
    states = next(comparison for comparison in report.failures if comparison.output == "h_n")
    assert states.first_bad_step is None
    assert "first at index [0, " in str(states)
    assert "wrong from step 3<" in report.to_html()


def test_the_first_wrong_step_is_named_where_one_row_is_wrong_before_the_others(
    tmp_path: Path,
) -> None:
    """The first wrong element in the order of memory is at step 5, of row 0; row 1 is wrong at step 2."""

    layer = nn.RNN(3, 4, batch_first=True)
    x = torch.randn(2, 6, 3)
    path = tmp_path / "a.onnx"
    export_onnx(layer, x, path, dynamic_shapes={}, form="unrolled")

    def wrong(graph: onnx.GraphProto) -> None:
        fault = torch.zeros(2, 6, 4)
        fault[0, 5] = 1.0
        fault[1, 2:] = 0.5
        writing(graph, "output").output[0] = "right"
        graph.initializer.append(numpy_helper.from_array(fault.numpy(), "fault"))
        graph.node.append(onnx.helper.make_node("Add", ["right", "fault"], ["output"]))

    plant(path, wrong)
    with pytest.raises(
        VerificationError, match=r"first at time step 2 \(the first is 0\), index \[1, 2, 0\]"
    ):
        verify(path, layer, x)


def test_the_worst_state_is_reported_with_the_first_wrong_step_of_the_output(
    tmp_path: Path,
) -> None:
    layer = nn.LSTM(3, 8)
    x = torch.randn(5, 2, 3)
    path = tmp_path / "a.onnx"
    export_onnx(layer, x, path, form="unrolled")

    def wrong(graph: onnx.GraphProto) -> None:
        writing(graph, "h_n").input[0] = "rnn0.l0f.c4"
        writing(graph, "rnn0.l0f.tanh4").op_type = "Softsign"

    plant(path, wrong)
    message = r"`h_n` differs by .* first at index \[0, .*; `output` from time step 4 \(the first is 0\)\.$"
    with pytest.raises(VerificationError, match=message):
        verify(path, layer, x)


def writing(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if name in node.output)


def plant(path: Path, fault: Callable[[onnx.GraphProto], Any]) -> None:
    model = onnx.load(path)
    fault(model.graph)
    onnx.save(model, path)


class Limited(nn.Module):
    """Takes 10 steps at most; or any number, with states that double at each."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, nonlinearity="relu")
        self.most = most
        if most is None:
            with torch.no_grad():
                self.rnn.weight_hh_l0.copy_(2 * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.most is not None and not torch.compiler.is_exporting() and x.size(0) > self.most:
            raise ValueError("too long")
        output: Tensor = self.rnn(x)[0]
        return output


@pytest.mark.parametrize(
    ("most", "why"),
    [
        (
            10,
            r"200 steps: the model refuses T=200: \S+test_report.py:\d+: `raise .*`: ValueError: too long",
        ),
        (None, "not finite"),
    ],
)
def test_a_long_case_that_the_model_cannot_have_is_left_out(
    most: int | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    model = Limited(most)
    x = torch.randn(4, 2, 3)
    report = export_onnx(model, x, path, form="scan")
    assert {"long" in comparison.case for comparison in report.comparisons} == {False}
    assert len(report.left_out) == 1
    assert re.search(why, report.left_out[0])
    assert f"  left out: {report.left_out[0]}" in str(report).splitlines()
    assert verify(path, model, x, long_steps=None).left_out == ()
    assert ("long, T=9", "output") in over_time(verify(path, model, x, long_steps=9))


def test_a_long_case_of_which_rounding_leaves_nothing_is_left_out(tmp_path: Path) -> None:
    """Weights that make the net chaotic: after 200 steps float32 and float64 have nothing in common."""
    layer = nn.RNN(3, 32)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(8)
    report = export_onnx(layer, torch.randn(4, 2, 3), tmp_path / "a.onnx", form="native")
    assert len(report.left_out) == 1
    assert re.fullmatch(
        r"200 steps: PyTorch's own `output` is \S+ from float64\.", report.left_out[0]
    )


def test_an_example_of_many_steps_is_long_enough(tmp_path: Path) -> None:
    report = export_onnx(nn.RNN(3, 4), torch.randn(200, 2, 3), tmp_path / "a.onnx", form="native")
    assert over_time(report)["example", "output"] == 200
    assert report.left_out == ()
    assert {"long" in comparison.case for comparison in report.comparisons} == {False}


def test_lengths_of_another_sequence_than_the_long_one(tmp_path: Path) -> None:
    """The second sequence cannot be longer than the example's, in PyTorch."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.GRU(3, 4, batch_first=True)
            self.packs = Packs()

        def forward(self, x: Tensor, y: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            if not torch.compiler.is_exporting() and y.size(1) > 7:
                raise ValueError("too long")
            return self.plain(x)[0], self.packs(y, lengths)

    args = torch.randn(2, 5, 3), torch.randn(2, 7, 3), torch.tensor([7, 3])
    report = export_onnx(Two(), args, tmp_path / "a.onnx", form="native")
    curves = over_time(report)
    assert curves["long, T=200", "output_0"] == 200
    assert ("long, T=200", "output_1") not in curves


def test_an_error_that_only_many_steps_show_is_found(tmp_path: Path) -> None:
    """A time axis that is dynamic up to 50 steps; beyond, the output is cut."""
    layer = nn.RNN(3, 4)
    x = torch.randn(4, 2, 3)
    path = tmp_path / "a.onnx"
    export_onnx(layer, x, path, form="native")

    def wrong(graph: onnx.GraphProto) -> None:
        last = writing(graph, "output")
        last.output[0] = "whole"
        ends = [
            numpy_helper.from_array(torch.tensor([n]).numpy(), name)
            for name, n in (("from", 50), ("to", 10**6))
        ]
        graph.initializer.extend(
            [*ends, numpy_helper.from_array(torch.tensor([0]).numpy(), "axis")]
        )
        graph.initializer.append(numpy_helper.from_array(torch.tensor([0]).numpy(), "first"))
        graph.node.extend([
            onnx.helper.make_node("Slice", ["whole", "first", "from", "axis"], ["head"]),
            onnx.helper.make_node("Slice", ["whole", "from", "to", "axis"], ["tail"]),
            onnx.helper.make_node("Neg", ["tail"], ["turned"]),
            onnx.helper.make_node("Concat", ["head", "turned"], ["output"], axis=0),
        ])  # fmt: skip

    plant(path, wrong)
    with pytest.raises(
        VerificationError, match=r"first at time step 50 \(the first is 0\), .* long, T=200"
    ):
        verify(path, layer, x)
    assert verify(path, layer, x, long_steps=None).failures == ()


@pytest.mark.parametrize("steps", [0, 2.5])
def test_a_number_of_steps_below_one_or_fractional_is_refused(steps: Any, tmp_path: Path) -> None:
    layer = nn.RNN(3, 4)
    x = torch.randn(4, 2, 3)
    export_onnx(layer, x, tmp_path / "a.onnx", form="unrolled")
    with pytest.raises(
        ValueError, match=rf"`long_steps` \(={steps}\) must be a whole number from 1, or None"
    ):
        verify(tmp_path / "a.onnx", layer, x, long_steps=steps)


def test_it_says_how_long_a_run_took_and_what_ran_it(tmp_path: Path) -> None:
    layer = nn.RNN(3, 4, 2, bidirectional=True)
    x = torch.randn(4, 2, 3)
    path = tmp_path / "a.onnx"
    report = export_onnx(layer, x, path, form="native")
    assert report.latency[CPU].keys() == {"example", "long, T=200"}
    assert all(milliseconds > 0 for milliseconds in report.latency[CPU].values())
    assert re.search(r"\n    \S+ ms on example; \S+ ms on long, T=200\n", str(report))
    assert report.placement[CPU].nodes.keys() == {CPU}
    assert report.placement[CPU].nodes[CPU]["RNN"] == report.op_types["RNN"] == 2
    assert report.placement[CPU].copies == 0
    assert report.versions["onnxruntime"] == onnxruntime.__version__
    assert sum(report.op_types.values()) == report.nodes
    loaded = json.loads(report.to_json())
    assert loaded["placement"][CPU]["nodes"][CPU]["RNN"] == 2
    assert loaded["over_time"][0]["case"] == "example"


class Best(nn.Module):
    """The number of the best class at each step: whole numbers, which must be equal."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output.argmax(2)


def test_equal_whole_numbers_use_nothing_of_what_is_allowed(tmp_path: Path) -> None:
    report = export_onnx(Best(), torch.randn(4, 2, 3), tmp_path / "a.onnx", form="unrolled")
    assert {comparison.used for comparison in report.comparisons} == {0.0}
    assert "at most 0% of what is allowed" in str(report)


def test_the_copies_of_the_model_in_one_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in evaluation mode and one in float64; nothing else needs weights of its own."""
    layer = nn.GRU(3, 4)
    x = torch.randn(4, 2, 3)
    path = tmp_path / "a.onnx"
    export_onnx(layer, x, path, form="scan")
    copied: list[type] = []

    def count(module: nn.Module, memo: Any = None) -> nn.Module:
        copied_module = deepcopy(module, memo)
        pairs = zip(module.parameters(), copied_module.parameters(), strict=True)
        if any(parameter is not original for original, parameter in pairs):
            copied.append(type(module))
        return copied_module

    monkeypatch.setattr(copy, "deepcopy", count)
    report = verify(path, layer, x)
    assert ("long, T=200", "output") in over_time(report)
    assert copied == [nn.GRU, nn.GRU]


def test_a_loop_counts_its_nodes_once(tmp_path: Path) -> None:
    layer = nn.RNN(3, 4)
    path = tmp_path / "a.onnx"
    report = export_onnx(layer, torch.randn(9, 2, 3), path, form="scan")
    assert report.placement[CPU].nodes[CPU]["FusedGemm"] == report.op_types["Tanh"] == 1
    feeds = {"input": torch.randn(9, 2, 3).numpy()}
    assert placement(path, CPU, feeds)[CPU] < 9 + report.nodes


def test_the_provider_that_is_required(tmp_path: Path) -> None:
    layer = nn.RNN(3, 4)
    x = torch.randn(4, 2, 3)
    path = tmp_path / "a.onnx"
    assert (
        export_onnx(layer, x, path, require_provider=CPU, form="unrolled").providers[CPU]
        == "checked"
    )
    before = path.read_bytes()
    with pytest.raises(
        ProviderError,
        match=r"`require_provider` \(='NoProvider'\): this onnxruntime .* has no NoProvider",
    ):
        verify(path, layer, x, require_provider="NoProvider")
    if not torch.cuda.is_available():
        with pytest.raises(
            ProviderError,
            match=r"`require_provider` \(='CUDAExecutionProvider'\): there is no CUDA device",
        ):
            export_onnx(layer, x, path, form="native", require_provider=CUDA)
        assert path.read_bytes() == before


def test_nodes_that_are_left_to_another_provider_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.RNN(3, 4)
    x = torch.randn(4, 2, 3)
    path = tmp_path / "a.onnx"
    export_onnx(layer, x, path, form="unrolled")
    ran = [RanNode("mine", "Gemm", CPU, False), RanNode("copy", "MemcpyToHost", CPU, False)]
    ran += [RanNode("shape", "Concat", "Other", True)]
    monkeypatch.setattr(on_onnxruntime, "ran_nodes", lambda session: ran)
    report = verify(
        path, layer, x, require_provider=CPU
    )  # what only computes sizes may run elsewhere
    assert (
        str(report.placement[CPU])
        == "2 nodes on CPUExecutionProvider, 1 nodes on Other; 1 copies between devices"
    )
    ran += [RanNode(f"left{number}", "Tanh", "Other", False) for number in range(7)]
    verify(path, layer, x)
    with pytest.raises(
        ProviderError,
        match=r"it left 7 of 10 nodes to another provider: `left0` \(Tanh, Other\), .* and 2 m",
    ):
        verify(path, layer, x, require_provider=CPU)


def test_shape_arithmetic_is_told_from_the_rest(tmp_path: Path) -> None:
    """Whole numbers of one axis are sizes; floats, and whole numbers of two axes, are data."""
    inputs = [
        onnx.helper.make_tensor_value_info(f"in{number}", *spec)
        for number, spec in enumerate(SPECS)
    ]
    outputs = [
        onnx.helper.make_tensor_value_info(f"out{number}", *spec)
        for number, spec in enumerate(SPECS)
    ]
    nodes = [
        onnx.helper.make_node("Add", [f"in{n}", f"in{n}"], [f"out{n}"], name=f"add{n}")
        for n in range(len(SPECS))
    ]
    graph = onnx.helper.make_graph(nodes, "adds", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(
        onnx.helper.make_model(graph, ir_version=10, opset_imports=opset), tmp_path / "a.onnx"
    )
    session = on_onnxruntime.open_session(tmp_path / "a.onnx", profile_to=tmp_path)
    feeds = {
        f"in{n}": np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(dtype))
        for n, (dtype, shape) in enumerate(SPECS)
    }
    session.run(None, feeds)
    assert {node.name: node.only_sizes for node in on_onnxruntime.ran_nodes(session)} == {
        "add0": True, "add1": True, "add2": False, "add3": False,
    }  # fmt: skip


SPECS = [
    (onnx.TensorProto.INT64, [3]),
    (onnx.TensorProto.INT64, []),
    (onnx.TensorProto.INT64, [3, 3]),
    (onnx.TensorProto.FLOAT, [3]),
]


class Page(HTMLParser):
    """What is in a page: its tags, and that each one is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [str(value) for name, value in attrs if name in ("src", "href", "action")]
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_stands_alone_and_says_what_the_report_says(tmp_path: Path) -> None:
    report = export_onnx(nn.GRU(3, 4), torch.randn(4, 2, 3), tmp_path / "a.onnx", form="native")
    html = report.to_html()
    page = Page(html)
    assert page.open == []
    assert page.outside == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert page.tags.count("svg") == 2  # over time, latency
    assert page.tags.count("polyline") == 4  # the example and the long case, and what is allowed
    text = " ".join("".join(page.text).split())
    for phrase in (
        f"✓ PASS: {len(report.comparisons)} comparisons", "dynamic: T, B", "long, T=200", "1 GRU", "Error of output",
        f"onnxruntime {onnxruntime.__version__}", "0 copies between devices", "Ran on", "CPU, example, T=4",
    ):  # fmt: skip
        assert phrase in text
    assert ("CUDAExecutionProvider: not checked" in text) == (CUDA not in report.placement)


def test_a_name_is_never_markup(tmp_path: Path) -> None:
    name = "<b>&\"'"
    report = export_onnx(
        nn.RNN(3, 4),
        torch.randn(4, 2, 3),
        tmp_path / "<i>.onnx",
        input_names=["<u>"],
        output_names=[name, "h"],
        form="unrolled",
    )
    page = Page(reports_html([report, report], "<script>"))
    assert page.open == []
    assert not {"b", "u", "script"} & set(page.tags)
    assert any("<i>.onnx" in text for text in page.text)
    assert any(name in text for text in page.text)
    assert any("<u>: float32" in text for text in page.text)


def test_a_page_of_several_files_has_them_side_by_side(tmp_path: Path) -> None:
    layer = nn.RNN(3, 4)
    x = torch.randn(4, 2, 3)
    reports = [
        export_onnx(layer, x, tmp_path / f"{form}.onnx", form=form)
        for form in ("unrolled", "native")
    ]
    page = Page(reports_html(reports, "a bundle"))
    text = " ".join(page.text)
    assert page.open == []
    assert "Side by side" in text
    # The list of files, the table, the latency of the example, size, nodes, the heading.
    assert page.text.count("unrolled: unrolled.onnx") == 6
    assert page.text.count("native: native.onnx") == 7  # the latency of the long case too
    assert page.outside == ["#file1", "#file2"]
    assert page.ids == ["file1", "file2"]
    total = sum(len(report.comparisons) for report in reports)
    assert f"✓ PASS: all 2 files agree with the PyTorch model, in {total} comparisons" in text
    # What is the same for all files is said once.
    assert page.text.count(reports[0].tolerance) == page.text.count(reports[0].machine) == 1
    other = replace(reports[1], machine="another machine")
    html = reports_html([reports[0], other], "a bundle")
    page = Page(html)
    assert page.text.count(reports[0].machine) == page.text.count("another machine") == 1
    assert html.index('id="file1"') < html.index(reports[0].machine) < html.index('id="file2"')
    assert html.index('id="file2"') < html.index("another machine")
    assert page.text.count(reports[0].tolerance) == 1
    failed = replace(
        reports[1], comparisons=(wrong_comparison(reports[1]), *reports[1].comparisons)
    )
    text = " ".join(Page(reports_html([reports[0], failed], "a bundle")).text)
    assert "✗ FAIL: 1 of 2 files differ from the PyTorch model: native.onnx" in text
    unchecked = replace(reports[0], comparisons=())
    text = " ".join(Page(reports_html([unchecked, reports[1]], "a bundle")).text)
    assert "NOT CHECKED: 1 of 2 files: unrolled.onnx" in text
    assert "all 2 files" not in text
    with pytest.raises(ValueError, match="`reports` is empty"):
        reports_html([], "nothing")


def wrong_comparison(report: Report) -> Comparison:
    return replace(report.comparisons[0], difference=1.0, allowed=1e-5, first_bad=(0, 0, 0))


def test_a_report_says_when_where_and_of_what_it_is(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    report = export_onnx(
        Scores(), (torch.randn(5, 4, 5), torch.rand(5, 4)), tmp_path / "a.onnx", form="unrolled"
    )
    date = datetime.fromisoformat(report.date)
    assert date.tzinfo is not None
    assert abs((date - before).total_seconds()) < 600
    assert report.model == "Scores with rnn: GRU(5, 5); 210 weights"
    assert report.versions.keys() == {"deploy-rnn", "python", "torch", "onnx", "onnxruntime"}
    assert " core" in report.machine
    fields = json.loads(report.to_json())
    for name in ("date", "machine", "model", "tolerance", "versions"):
        assert fields[name] == getattr(report, name)
    fixed = replace(report, date="2026-11-03T07:05:15+00:00")
    text = " ".join("".join(Page(fixed.to_html()).text).split())
    for phrase in ("3 November 2026, 07:05 UTC", report.machine, report.model, report.tolerance):
        assert phrase in text


class Wrapper(nn.Module):
    """Has the attributes of a layer, but is none; and its repr is of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.num_layers = 2
        self.encoder = nn.ModuleDict({"rnn": nn.GRU(3, 4, 2, bidirectional=True)})

    def __repr__(self) -> str:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("model", "described"),
    [
        (nn.LSTM(3, 4, proj_size=2), "LSTM(3, 4); 120 weights"),
        (deploy_rnn.RNN(3, 4, 2), "RNN(3, 4), 2 layers; 76 weights"),
        (nn.Linear(3, 4), "Linear; 16 weights"),
        (
            nn.Sequential(nn.GRU(3, 4), nn.RNN(3, 4)),
            "Sequential with 0: GRU(3, 4); 1: RNN(3, 4); 144 weights",
        ),
        (Wrapper(), "Wrapper with encoder.rnn: GRU(3, 4), 2 layers, bidirectional; 552 weights"),
        (nn.Tanh(), "Tanh; 0 weights"),
    ],
    ids=["bare", "ours", "no layer", "two layers", "wrapper", "no weights"],
)
def test_what_a_model_is(model: nn.Module, described: str) -> None:
    assert Provenance.of(model).model == described


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [
        (Tolerance(1e-4), "Every number may differ by 0.0001."),
        (Tolerance(1e-4, 0.01), "Every number may differ by 0.0001 plus 0.01 of its size."),
        (Tolerance(rtol=0.01), "Every number may differ by 0.01 of its size."),
        (Tolerance(0), "Every number must be equal."),
    ],
)
def test_a_tolerance_in_words(tolerance: Tolerance, words: str) -> None:
    assert str(tolerance) == words


def test_the_default_tolerance_in_words_has_its_figures() -> None:
    words = str(Tolerance(precision="float64"))
    assert words.startswith(
        "Every number may differ by 1e-09, or by 1e-09 of its size where it is larger than 1"
    )
    assert "10 times its distance from float64, at most 1%" in words
    assert "must be equal" in words


def test_columns_of_numbers_are_aligned_right(tmp_path: Path) -> None:
    report = export_onnx(nn.RNN(3, 4), torch.randn(4, 2, 3), tmp_path / "a.onnx", form="native")
    html = reports_html([report, report], "a bundle")
    tables = re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    for table in tables:
        rows = [
            re.findall(r"<t[hd]( class=\"right\")?>(.*?)</t[hd]>", row)
            for row in table.split("\n")
            if row
        ]
        for column in zip(*rows, strict=True):
            cells = [re.sub(r"<[^>]*>", "", content) for _, content in column]
            numbers = [cell for cell in cells if re.fullmatch(r"[\d.,]+(e[-+]\d+)?( %)?", cell)]
            is_right = {bool(attribute) for attribute, _ in column}
            assert is_right == {bool(numbers)}, cells


def test_the_page_of_a_failure_says_so_even_if_it_is_infinite(tmp_path: Path) -> None:
    layer = nn.RNN(3, 8)
    x = torch.randn(7, 2, 3)
    path = tmp_path / "a.onnx"
    export_onnx(layer, x, path, form="unrolled")

    def wrong(graph: onnx.GraphProto) -> None:
        node = writing(graph, "rnn0.l0f.h3")
        node.op_type = "Log"

    plant(path, wrong)
    with pytest.raises(VerificationError) as raised:
        verify(path, layer, x)
    assert raised.value.report is not None
    page = Page(raised.value.report.to_html())
    text = " ".join(page.text)
    assert page.open == []
    assert "✗ FAIL: 16 of 16 comparisons" in text
    assert "✗ ∞" in text
    assert "wrong from step 3" in text


def test_a_plot_looks_for_the_first_wrong_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search looks at every step: once for each step would be quadratic."""
    searches: list[int] = []
    original = ErrorOverTime.first_bad.fget
    assert original is not None

    def search(curve: ErrorOverTime) -> int | None:
        searches.append(curve.steps)
        return original(curve)

    monkeypatch.setattr(ErrorOverTime, "first_bad", property(search))
    error_over_time([ErrorOverTime("example", "output", (1e-6,) * 500, (1e-5,) * 500)])
    assert len(searches) <= 3


@pytest.mark.parametrize(
    ("errors", "allowed"),
    [
        ([0.0, 1e-7, 1e-6], [1e-5] * 3),
        ([0.0], [0.0]),
        ([1e-7], [1e-5]),
        ([1e-7, float("inf"), 1e300], [1e-5, 1e-4, 1e-4]),
        ([1e-6] * 500, [1e-6] * 500),
    ],
)
def test_a_plot_stays_within_its_picture(errors: list[float], allowed: list[float]) -> None:
    svg = error_over_time([ErrorOverTime("example", "output", tuple(errors), tuple(allowed))])
    height = float(svg.partition(f"0 0 {WIDTH} ")[2].partition('"')[0])
    lines = [line.split() for line in re.findall(r'points="([^"]*)"', svg)]
    assert len(lines) == 2  # allowed, errors
    for points in lines:
        assert len(points) == max(2, len(errors))
        for x, y in (map(float, point.split(",")) for point in points):
            assert 0 < x < WIDTH
            assert 0 < y < height
    worse = [step for step in range(len(errors)) if errors[step] > allowed[step]]
    assert ("wrong from step 1<" in svg) == bool(worse)
