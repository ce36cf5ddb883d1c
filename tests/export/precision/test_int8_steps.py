"""Products of eight bits in steps that users have written: cells of their own, loops, cells of torch.nn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.functional import layer_norm

import deploy_rnn
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.errors import VerificationError
from deploy_rnn.export import export_onnx, verify
from deploy_rnn.export.capture.captured import CapturedModel
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.export.options import ExportOptions
from deploy_rnn.export.precision.reference import Int8Reference
from deploy_rnn.export.precision.scope import Int8Scope
from deploy_rnn.export.saving import save
from deploy_rnn.export.verification.int8_integers import (
    FileIntegers,
    integer_faults,
    scope_faults,
)
from deploy_rnn.runtime import open_session


def minimal_gated(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Two products with parts of one weight, and with unlike rows."""
    w_f, w_n = weights[0].chunk(2, -1)
    x_f, x_n = projected.chunk(2, -1)
    f = torch.sigmoid(x_f + torch.bmm(states[0], w_f))
    n = torch.tanh(x_n + torch.bmm(f * states[0], w_n))
    return [torch.lerp(states[0], n, f)]


class MinimalGated(deploy_rnn.Recurrent):
    cell = deploy_rnn.Cell(minimal_gated, gates=2)


def norm_peephole(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """A layer norm, peepholes, a projection of the cell's own: a matrix among its parameters."""
    h, c = states
    w_hh, gain, peephole, w_out = weights
    total = layer_norm(torch.baddbmm(projected, h, w_hh), [projected.size(-1)]) * gain
    i, f, g, o = total.chunk(4, -1)
    c = torch.sigmoid(f + peephole * c) * c + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(torch.matmul(c, w_out)), c]


class NormPeephole(deploy_rnn.LSTM):
    cell = deploy_rnn.Cell(
        norm_peephole,
        gates=4,
        states=2,
        parameters={
            "gain": lambda size: (4 * size,),
            "peephole": lambda size: (size,),
            "out": lambda size: (size, size),
        },
        initial={"gain": 1.0},
    )


def late_bias(projected: Tensor, states: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    w_hh, b_hh = weights
    return [torch.tanh(projected + torch.bmm(states[0], w_hh) + b_hh)]


class LateBias(deploy_rnn.Recurrent):
    cell = deploy_rnn.Cell(late_bias, bias_in_step=True)


class OwnCells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gated = MinimalGated(3, 5, 2, bidirectional=True)
        self.norm = NormPeephole(3, 4)
        self.late = nn.ModuleList([LateBias(3, 4), LateBias(3, 4, bias=False)])

    def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        results = [self.gated(x)[0], self.norm(x, None, lengths)[0]]
        return results + [layer(x)[0] for layer in self.late]


class Decoder(nn.Module):
    """A loop with a cell, a linear layer, a layer of one step, and products of parts of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.layer = nn.GRU(4, 4)
        self.mix = nn.Parameter(torch.randn(4, 8) / 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        def step(
            states: tuple[Tensor, Tensor], row: Tensor
        ) -> tuple[tuple[Tensor, Tensor], Tensor]:
            h, c = self.cell(row, states)
            attended = torch.bmm(h.unsqueeze(1), memory).squeeze(1)
            h = torch.tanh(attended @ self.mix[:, :4] + self.layer(h.unsqueeze(0))[0][0])
            return (h, c), self.out(h)

        memory = x.new_ones(x.size(1), 4, 4)
        zeros = x.new_zeros(x.size(1), 4)
        states, outputs = deploy_rnn.scan(step, (zeros, zeros), x)
        # The same weight outside of the loop, and one that no step has.
        return [outputs, self.out(states[0]) + nn.functional.linear(states[0], self.mix[:2, 4:])]


class PythonLoop(nn.Module):
    """Two cells; torch.onnx leaves the transposition of a weight as large as the first's to the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRUCell(3, 64)
        self.second = nn.RNNCell(64, 4)
        self.before = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(1), 64)
        state = x.new_zeros(x.size(1), 4)
        x = self.before(x)
        outputs = []
        for t in range(x.size(0)):
            h = self.first(x[t], h)
            state = self.second(h, state)
            outputs.append(state)
        return torch.stack(outputs)


def call_of(model: nn.Module, steps: int, batch: int) -> tuple[Tensor, ...]:
    x = torch.randn(steps, batch, 3)
    if isinstance(model, OwnCells):
        return x, torch.arange(batch) % steps + 1
    return (x,)


@pytest.mark.parametrize(
    ("cls", "forms", "products", "of_states"),
    [
        (OwnCells, ["scan", "unrolled"], 4 * 3 + 3 + 2 + 2, 4 * 2 + 2 + 1 + 1),
        (Decoder, ["scan", "unrolled"], 2 + 1 + 2 + 1 + 1, 1 + 1 + 2 + 1 + 1),
        # The input of the second cell is the state of the first.
        (PythonLoop, ["scan"], 4, 2),
    ],
)
def test_a_file_is_its_simulation(
    cls: type[nn.Module], forms: list[str], products: int, of_states: int, tmp_path: Path
) -> None:
    """products, of_states: of the file in form "scan", with `int8_products` "all" and "state"."""
    torch.manual_seed(0)
    model = cls().eval()
    is_dynamic = "unrolled" not in forms
    options = ExportOptions(precision="int8")
    args = call_of(model, 3, 2)
    captured = CapturedModel.of(model, args, None, options, dynamic_time=is_dynamic)
    sizes = [(3, 2), (1, 1), (7, 3)] if is_dynamic else [(3, 1), (3, 4)]
    for scope, count in ((Int8Scope(), products), (Int8Scope(products="state"), of_states)):
        metadata = replace(captured.metadata, int8_products=scope.products)
        source = replace(captured, metadata=metadata)
        for form in forms:
            path = tmp_path / f"{form}.onnx"
            save(source.written(form, max_nodes=5000), path)
            check_simulation(path, model, scope, sizes)
        assert OnnxFile.read(tmp_path / "scan.onnx").node_types["MatMulInteger"] == count


def check_simulation(
    path: Path, model: nn.Module, scope: Int8Scope, sizes: list[tuple[int, int]]
) -> None:
    session = open_session(path, threads=1)
    names = [value.name for value in session.get_inputs()]
    integers = FileIntegers.read(path)
    reference = Int8Reference(model, scope)
    reference.rounds_as(integers.weights)
    for steps, batch in sizes:
        args = call_of(model, steps, batch)
        outputs = session.run(None, dict(zip(names, map(Tensor.numpy, args), strict=True)))
        call = ExampleCall.of(model, args)
        simulated = reference.outputs(call)
        for output, expected, exact in zip(outputs, simulated, call.run(model), strict=True):
            np.testing.assert_allclose(output, expected.numpy(), atol=2e-6)
            # Something was rounded, unless it is the first state, which is 0.
            least = -1.0 if steps == 1 and not scope.rounds_inputs else 1e-5
            assert least < np.abs(output - exact.numpy()).max() < 0.1
    assert not list(integer_faults(integers, reference.weights))
    assert not list(scope_faults(integers, scope, reference.cells))


@pytest.mark.filterwarnings("ignore:.* PyTorch writes out the loop:UserWarning")
@pytest.mark.parametrize("model", [MinimalGated(3, 4), PythonLoop()])
def test_one_level_is_found(model: nn.Module, tmp_path: Path) -> None:
    model.eval()
    x = torch.randn(3, 2, 3)
    path = tmp_path / "m.onnx"
    export_onnx(model, x, path, form="unrolled", precision="int8", max_error=0.05, sizes=(2,))
    file = onnx.load(path)
    tensor = next(
        item
        for item in file.graph.initializer
        if item.data_type == onnx.TensorProto.INT8 and list(item.dims) == [4, 4]
    )
    array = numpy_helper.to_array(tensor).copy()
    array[1, 2] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(file, path)
    with pytest.raises(VerificationError, match=r"a column of `.*int8`, or its scale, is not that"):
        verify(path, model, x, sizes=(2,))


class Inputs(nn.Module):
    """A loop that multiplies its input and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(3, 4) / 2)
        self.state = nn.Parameter(torch.randn(4, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            new = torch.tanh(row @ self.input + h @ self.state)
            return new, new

        return deploy_rnn.scan(step, x.new_zeros(x.size(1), 4), x)[1]


@pytest.mark.filterwarnings("ignore:.* PyTorch writes out the loop:UserWarning")
@pytest.mark.parametrize(
    ("model", "form", "reasons"),
    [
        (
            nn.GRU(3, 4),
            "unrolled",
            {"state": "a column of `.*weight_ih.int8`, or its scale, is not", "all": "differs by"},
        ),
        (
            PythonLoop(),
            "unrolled",
            {
                "state": "a column of `.*weight_ih.*`, or its scale, is not that",
                "all": "all products are of eight bits, and a step multiplies by a weight in float32",
            },
        ),
        (
            Inputs(),
            "scan",
            {
                "state": "products of states alone are of eight bits, and `.*input.*` multiplies none",
                "all": "all products are of eight bits, and a step multiplies by a weight in float32",
            },
        ),
    ],
    ids=["layer", "cells", "loop"],
)
def test_a_file_that_says_something_else_is_found(
    model: nn.Module, form: str, reasons: dict[str, str], tmp_path: Path
) -> None:
    """reasons: what the file says -> what is found."""
    x = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1))
    options = ExportOptions(precision="int8")
    captured = CapturedModel.of(model.eval(), (x,), None, options, dynamic_time=form == "scan")
    path = tmp_path / "m.onnx"
    for told, reason in reasons.items():
        written = "all" if told == "state" else "state"
        for metadata in (written, told):
            noted = replace(captured.metadata, int8_products=written)
            save(replace(captured, metadata=noted).written(form, max_nodes=5000), path)
            file = onnx.load(path)
            [entry] = [
                item for item in file.metadata_props if item.key == "deploy_rnn.int8_products"
            ]
            entry.value = metadata
            onnx.save(file, path)
            if metadata == written:
                verify(path, model, x, sizes=(2,), long_steps=None)
                continue
            with pytest.raises(VerificationError, match=rf"m\.onnx is not the model: .*{reason}"):
                verify(path, model, x, sizes=(2,), long_steps=None)
