"""A model that fails, draws random numbers or keeps a state between its calls is told apart before anything is made."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_rnn import convert
from deploy_rnn.checking.example_call import ExampleCall
from deploy_rnn.checking.module import check_module
from deploy_rnn.checking.two_calls import check_two_calls
from deploy_rnn.errors import ConversionError, ExportError


class Model(nn.Module):
    """A GRU, and a function of the module and its input in the place of a forward."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.function = forward
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def check(model: nn.Module, x: Tensor = X) -> None:
    check_two_calls(model, ExampleCall.of(model, x))


def message(model: nn.Module, x: Tensor = X) -> str:
    torch.manual_seed(0)
    with pytest.raises(ExportError) as raised:
        check(model, x)
    return str(raised.value)


def dropout(self: Any, x: Tensor) -> Any:
    return self.rnn(F.dropout(x, 0.5, training=True))[0]


def noise(self: Any, x: Tensor) -> Any:
    output = self.rnn(x)[0]
    return output + 0.01 * torch.randn_like(output)


def random_h0(self: Any, x: Tensor) -> Any:
    return self.rnn(x, torch.empty(1, x.size(0), 4).normal_())[0]


def sampled(self: Any, x: Tensor) -> Any:
    return torch.multinomial(self.rnn(x)[0][:, -1].softmax(1), 40, replacement=True)


def monte_carlo(self: Any, x: Tensor) -> Any:
    self.drop.train()
    return self.drop(self.rnn(x)[0])


def seldom(self: Any, x: Tensor) -> Any:
    """Changes the outputs of one call in two."""
    return self.rnn(x)[0] + (torch.rand(()) > 0.5)


@pytest.mark.parametrize("forward", [dropout, noise, random_h0, sampled, monte_carlo, seldom])
def test_the_line_that_draws_is_named(forward: Any) -> None:
    text = message(Model(forward))
    number = forward.__code__.co_firstlineno
    assert text.startswith(f"{__file__}:")
    assert number < int(text.removeprefix(f"{__file__}:").partition(":")[0]) < number + 4
    assert "draws random numbers here" in text
    assert "other numbers at each call" in text
    assert ("`drop` is in training mode" in text) == (forward is monte_carlo)


@pytest.mark.parametrize(
    ("draw", "source"),
    [
        (lambda self, x: self.rnn(x)[0] + random.random(), "Python's `random`"),
        (lambda self, x: self.rnn(x)[0] + float(np.random.rand()), "`numpy.random`"),
    ],
)
def test_other_random_numbers_are_named(draw: Any, source: str) -> None:
    assert f"draws random numbers from {source}" in message(Model(draw))


def test_the_random_numbers_of_the_process_stay_as_they_were() -> None:
    model = Model(
        lambda self, x: self.rnn(x)[0] + random.random() + np.random.rand() + torch.rand(())
    )
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    with pytest.raises(ExportError):
        check(model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), repr(np.random.get_state()))


def test_what_is_drawn_and_does_not_matter_is_not_refused() -> None:
    def unused(self: Any, x: Tensor) -> Any:
        torch.rand(3)
        return self.rnn(x)[0]

    check(Model(unused))
    check(Model(lambda self, x: self.drop(self.rnn(x)[0])).train())


def attribute(self: Any, x: Tensor) -> Any:
    output, self.h = self.rnn(x, self.h)
    return output


def buffer(self: Any, x: Tensor) -> Any:
    output, h = self.rnn(x, self.h)
    self.h.copy_(h)
    return output


def last_of_many(self: Any, x: Tensor) -> Any:
    """The state has no influence left after 200 steps; in a file for any number, it has."""
    output, self.h = self.rnn(x, self.h)
    return output[:, -1]


def in_a_dict(self: Any, x: Tensor) -> Any:
    output, self.h["h"] = self.rnn(x, self.h.get("h"))
    return output


def in_an_object(self: Any, x: Tensor) -> Any:
    output, self.h.value = self.rnn(x, self.h.value)
    return output


def counted(self: Any, x: Tensor) -> Any:
    self.h += 1
    return self.rnn(x)[0] * self.h


def context(self: Any, x: Tensor) -> Any:
    """Puts the last step of the call before in front."""
    longer = torch.cat([self.h, x], 1)
    self.h = x[:, -1:]
    return self.rnn(longer)[0]


@pytest.mark.parametrize(
    ("forward", "state"),
    [
        (attribute, None),
        (buffer, torch.zeros(1, 2, 4)),
        (in_a_dict, {}),
        (in_an_object, SimpleNamespace(value=None)),
        (counted, 0),
        (context, torch.zeros(2, 1, 3)),
    ],
)
def test_a_state_between_calls_is_named(forward: Any, state: Any) -> None:
    text = message(Model(forward, h=state))
    assert text.startswith("the model keeps a state between its calls, and a file cannot: `h` ")
    assert "Let `forward` take the state as an argument and return its new value" in text


def test_a_state_in_a_part_has_its_path() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Model(buffer, h=torch.zeros(1, 2, 4)))
    assert "`1.h` changes" in message(model)


def test_a_state_in_a_parameter_is_named() -> None:
    state = nn.Parameter(torch.zeros(1, 2, 4), requires_grad=False)
    model = Model(buffer)
    model.h = state
    assert "`h` changes" in message(model)
    assert not state.any()


def test_a_state_that_fades_within_the_example_is_found() -> None:
    model = Model(last_of_many, h=torch.zeros(1, 2, 4))
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(0.01)
    assert "`h` changes from call to call, and the outputs depend on it" in message(
        model, torch.randn(2, 200, 3)
    )


def test_a_second_call_that_fails_is_a_state() -> None:
    def once(self: Any, x: Tensor) -> Any:
        if self.h:
            raise ValueError("used up")
        self.h = True
        return self.rnn(x)[0]

    assert "`h` changes from call to call, and a second call fails" in message(Model(once, h=False))


def counting(self: Any, x: Tensor) -> Any:
    self.h += 1
    return self.rnn(x)[0]


def remembering(self: Any, x: Tensor) -> Any:
    """Keeps its last output for whoever wants to see it, and does not read it."""
    output, self.h = self.rnn(x)
    return output


def caching(self: Any, x: Tensor) -> Any:
    if self.h is None:
        self.h = torch.linspace(0, 1, x.size(1))[:, None]
    return self.rnn(x + self.h)[0]


def restarting(self: Any, x: Tensor) -> Any:
    self.h = torch.zeros(1, x.size(0), 4)
    output, self.h = self.rnn(x, self.h)
    return output


@pytest.mark.parametrize(
    ("forward", "state"),
    [
        (counting, torch.zeros((), dtype=torch.long)),
        (counting, torch.zeros(1)),
        (counting, 0),
        (remembering, None),
        (caching, None),
        (restarting, None),
    ],
)
def test_what_does_not_touch_the_outputs_is_not_refused(forward: Any, state: Any) -> None:
    model = Model(forward, h=state)
    check(model)
    now = model.h
    assert now is state


def test_a_model_that_changes_its_inputs_gives_one_answer() -> None:
    def scaled(self: Any, x: Tensor) -> Any:
        return self.rnn(x.mul_(2))[0]

    x = X.clone()
    check(Model(scaled), x)
    assert torch.equal(x, X)


def test_a_model_that_fails_says_so_with_its_line() -> None:
    def wrong(self: Any, x: Tensor) -> Any:
        return self.rnn(x.transpose(1, 2))[0]

    text = message(Model(wrong))
    line = wrong.__code__.co_firstlineno + 1
    assert text == (
        f"{__file__}:{line}: `return self.rnn(x.transpose(1, 2))[0]`: the model itself fails on its arguments: "
        "RuntimeError: input.size(-1) must be equal to input_size. Expected 3, got 5"
    )


def test_a_global_state_is_neither() -> None:
    calls: list[int] = []

    def stepping(self: Any, x: Tensor) -> Any:
        calls.append(1)
        return self.rnn(x)[0] + len(calls)

    assert "look for a global variable" in message(Model(stepping))


GRU = nn.GRU(3, 4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (None, TypeError, "got None; a function that builds the model may lack its `return`."),
        ("m.pt", TypeError, "got str, which is not loaded here; for a file of weights, build the"),
        (Path("m.pt"), TypeError, "Path, which is not loaded here; for a file of weights, build"),
        (len, TypeError, "got builtin_function_or_method; give a module whose `forward` does that"),
        (lambda x: x, TypeError, "got function; give a module whose `forward` does that"),
        (GRU.forward, TypeError, "got the method `forward` of GRU; give that GRU itself."),
        (nn.GRU, TypeError, "got the class GRU; give an instance of it."),
        (GRU.state_dict(), TypeError, "got OrderedDict, such as a file of weights has; build the"),
        ({"weight": 1}, TypeError, "got dict, such as a file of weights has; build the model in"),
        ([GRU], TypeError, "got list; give one module, whose `forward` calls the others."),
        (torch.zeros(2), TypeError, "got a Tensor; give the model first, then its example `args`."),
        (onnx.ModelProto(), TypeError, "got an onnx ModelProto; give the PyTorch model that it"),
        (object(), TypeError, "got object; give the model itself."),
    ],
)
def test_what_is_not_a_module_is_named(model: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        check_module(model)
    assert text in str(raised.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_scripted_model_is_named() -> None:
    with pytest.raises(ConversionError, match="`model` is a TorchScript module"):
        check_module(torch.jit.script(nn.Linear(3, 4)))
    with pytest.raises(ConversionError, match="`model` is a TorchScript module"):
        convert(torch.jit.script(GRU))
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 4)), file)
    file.seek(0)
    borrowed = nn.Module()
    borrowed.forward = torch.jit.load(file).forward
    with pytest.raises(TypeError, match="`model` has a `forward` without Python source"):
        ExampleCall.of(borrowed, torch.zeros(2, 3))


def test_an_exported_program_is_named() -> None:
    program = torch.export.export(nn.Linear(3, 4), (torch.zeros(2, 3),))
    with pytest.raises(TypeError, match="got an ExportedProgram; give the module"):
        check_module(program)
    with pytest.raises(TypeError, match="of an ExportedProgram, in which a layer is an operator"):
        convert(program.module())
