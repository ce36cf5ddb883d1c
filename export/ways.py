"""`check`: which ways lead out of PyTorch for a model, why the others do not, and how fast each one runs."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from torch._inductor.utils import fresh_cache
from torch.export import Dim

from deploy_rnn.checking.example_call import Axes, ExampleCall, on_cpu
from deploy_rnn.checking.module import check_module
from deploy_rnn.checking.tolerance import Tolerance, model_precision
from deploy_rnn.checking.trials import Reference
from deploy_rnn.compilation import compile
from deploy_rnn.conversion import convert
from deploy_rnn.copying import evaluation_copy
from deploy_rnn.errors import DeployError, DynamicAxisError, ExportError
from deploy_rnn.model_errors import nothing_printed_on_error, raising_line
from deploy_rnn.packaging import aot, torchscript
from deploy_rnn.packaging.axes import DynamicCall
from deploy_rnn.packaging.package import Package, package
from deploy_rnn.packaging.trials import (
    Trial,
    example_trial,
    largest_differences,
    trials_of,
    with_least_sizes,
)
from deploy_rnn.runtime import open_session
from deploy_rnn.tensor_spec import Ranges, TensorSpec
from deploy_rnn.timing import compare

from .bare_layer import with_lengths
from .exporter import AUTO, export_onnx
from .verification.cases import example_feeds

NAMES = ("compile", ".pt2", ".pt", "native", "scan", "unrolled", "streaming")
"""The ways, in the order in which they are shown."""

Step = Callable[[str], AbstractContextManager[None]]
"""What is entered around each way, with its description: the command line shows its progress."""


@dataclass(frozen=True)
class Way:
    """One way out of PyTorch.

    Attributes:
        name: "compile", `deploy_rnn.compile`; ".pt2" or ".pt", `deploy_rnn.package`; "native", "scan" or "unrolled",
            the form of `export_onnx`; "streaming", `export_onnx(streaming=True)`.
        milliseconds: of one call with the example on the CPU; None if the model does not go this way.
        reason: why it does not, in one sentence; empty if it goes.
        message: the whole error, with what to do; empty if it goes.
        open: the axes that were tried at other sizes too, such as ("B", "T"); None where it is unknown which to try.
        fixed: the axes that another way leaves open, and this one fixes at the example's size.
        ranges: those of the open axes that may not have every size -> the sizes that they may have.
    """

    name: str
    milliseconds: float | None = None
    reason: str = ""
    message: str = ""
    open: tuple[str, ...] | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)

    @property
    def goes(self) -> bool:
        return self.milliseconds is not None

    @property
    def sizes(self) -> str:
        """Which sizes it takes, in words; empty if that is unknown."""
        if self.open is None:
            return ""
        parts = []
        without_range = [name for name in self.open if name not in self.ranges]
        if without_range:
            parts.append(f"any {' and '.join(without_range)}")
        parts += [f"{name} of {sizes}" for name, sizes in self.ranges.items()]
        parts += [f"{name}={size} only" for name, size in self.fixed.items()]
        return ", ".join(parts) or "the example's sizes only"

    def __str__(self) -> str:
        if not self.goes:
            return f"{self.name}: refused: {self.reason}"
        return ", ".join(
            filter(None, [f"{self.name}: goes", f"{self.milliseconds:.3g} ms", self.sizes])
        )


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        inputs: the example's tensors.
        milliseconds: of one call of the model itself, with the example on the CPU.
        ways: every way, in the order of `NAMES`.
    """

    inputs: tuple[TensorSpec, ...]
    milliseconds: float
    ways: tuple[Way, ...]

    def __getitem__(self, name: str) -> Way:
        """The way of that name."""
        return next(way for way in self.ways if way.name == name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ways = [asdict(way) | {"goes": way.goes} for way in self.ways]
        inputs = [vars(spec) for spec in self.inputs]
        return {"inputs": inputs, "milliseconds": self.milliseconds, "ways": ways}

    def __str__(self) -> str:
        inputs = ", ".join(str(spec) for spec in self.inputs)
        lines = [f"{inputs}: {self.milliseconds:.3g} ms in PyTorch"]
        lines += [f"  {way}" for way in self.ways]
        return "\n".join(lines)


def check(model: nn.Module, args: Any, *, kwargs: Mapping[str, Any] | None = None) -> Check:
    """Try every way out of PyTorch on a model: does it go, how fast is it, and if not, why?

    Each way is really taken, as its own function takes it: the model is compiled, packaged and exported, and what
    comes of it is compared with the model on the example and on other sizes. Everything is written to a temporary
    folder that is removed, PyTorch's compiled code too. It takes about a minute, most of it in the C++ compiler.

    Args:
        model: any module with recurrent layers, on any device; it is run on the CPU in evaluation mode, and left as it
            was.
        args: example arguments, as for `export_onnx`.
        kwargs: example keyword arguments, as for `export_onnx`.

    Returns:
        Each way, with the milliseconds of the example or the reason.

    Raises:
        ExportError: the model itself fails on the example, or returns no tensor.
        TypeError, ConversionError: a `model` or `args` that cannot be used.
    """
    return check_ways(model, args, kwargs, lambda description: nullcontext())


def check_ways(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, step: Step) -> Check:
    """`check`, with a `step` around each way."""
    model = check_module(model)
    with TemporaryDirectory() as folder:
        candidate = Candidate(model, args, kwargs, Path(folder))
        judges = candidate.judges()
        refused: dict[str, Way] = {}
        taken: dict[str, Taken] = {}
        # Compiled code goes into the folder too.
        with fresh_cache(dir=folder):
            for number, (name, judge) in enumerate(judges.items(), start=1):
                with step(f"trying {name}, {number} of {len(judges)}"):
                    try:
                        taken[name] = judge()
                    except Exception as error:  # PyTorch raises many types here
                        refused[name] = refused_way(name, error)
            with step("measuring"):
                milliseconds = _measure({"": candidate.run_itself, **_runs(taken)})
    ways = refused | {
        name: candidate.way(name, milliseconds[name], one) for name, one in taken.items()
    }
    return Check(candidate.inputs, milliseconds[""], tuple(ways[name] for name in NAMES))


@dataclass(frozen=True)
class Taken:
    """A way that a model went.

    Attributes:
        run: one call with the example.
        axes: of each tensor, the axes that were tried at other sizes; None if it is unknown which to try.
        ranges: the sizes of those axes that may not have every size.
    """

    run: Callable[[], object]
    axes: Sequence[Axes] | None
    ranges: Ranges = field(default_factory=dict)


def refused_way(name: str, error: Exception) -> Way:
    """A way that ended with an error."""
    message = str(error)
    if not isinstance(error, DeployError):
        message = f"{type(error).__name__}: {error}"
    return Way(name, reason=first_sentence(message), message=message)


def _runs(taken: Mapping[str, Taken]) -> dict[str, Callable[[], object]]:
    return {name: one.run for name, one in taken.items()}


def _measure(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    timings = compare(runs, rounds=2, calls=15, block_seconds=0.3)
    return {name: 1000 * timing.median for name, timing in timings.items()}


class Candidate:
    """A model and its example call, which are sent every way.

    Args:
        model, args, kwargs: as for `check`.
        folder: for the files.

    Attributes:
        inputs: the example's tensors.

    Raises:
        ExportError: the model fails on the example, or returns no tensor.
        TypeError: `args` that do not fit.
    """

    def __init__(
        self, model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, folder: Path
    ) -> None:
        self._given = model, args, kwargs
        self._folder = folder
        with_its_lengths = with_lengths(model, kwargs)
        # Only our layers take `lengths` by themselves.
        if with_its_lengths is not model:
            model = convert(model)
        self._model, self._call = on_cpu(model, ExampleCall.of(model, args, kwargs))
        self._reference = Reference(on_cpu(with_its_lengths, self._call)[0])
        half = self._reference.half_precision(self._call)
        self._tolerance = Tolerance(precision=model_precision(model), half=half)
        self.inputs = tuple(
            TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in zip(self._call.names, self._call.tensors, strict=True)
        )
        example_trial(self._reference, DynamicCall.of(self._model, self._call, {}))
        # Which axes a file leaves open: of each tensor, their ranges, and the size of each in the example.
        self._axes: list[Axes] | None = None
        self._ranges: Ranges = {}
        self._sizes: dict[str, int] = {}

    def judges(self) -> dict[str, Callable[[], Taken]]:
        """A function for each way, to be called in this order: the files show which axes can be open."""
        return {
            "native": partial(self.exported, "native", form="native"),
            "scan": partial(self.exported, "scan", form="scan"),
            "unrolled": partial(self.exported, "unrolled", form="unrolled"),
            "streaming": partial(self.exported, "streaming", form=AUTO, streaming=True),
            "compile": self.compiled,
            ".pt": partial(self.packaged, ".pt", torchscript.load_file),
            ".pt2": partial(self.packaged, ".pt2", aot.load_file),
        }

    def run_itself(self) -> object:
        """Call the model itself with the example."""
        return self._call.run(self._reference.model)

    def exported(self, name: str, **options: Any) -> Taken:
        """Export to ONNX."""
        model, args, kwargs = self._given
        path = self._folder / f"{name}.onnx"
        report = export_onnx(model, args, path, kwargs=kwargs, **options)
        axes = []
        # A streaming file has more inputs than the example has tensors: its states.
        for spec, tensor in zip(report.inputs, self._call.tensors, strict=False):
            names = {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
            for axis, size_name in names.items():
                self._sizes.setdefault(size_name, tensor.size(axis))
            axes.append(names)
        if self._axes is None:
            self._axes, self._ranges = axes, report.ranges
        feeds = example_feeds(report.inputs, self._call)
        return Taken(partial(open_session(path).run, None, feeds), axes, report.ranges)

    def compiled(self) -> Taken:
        """Compile, and run on the example and on another size of every axis."""
        compiled = compile(evaluation_copy(self._model))
        axes, trials = self._trials()
        try:
            with nothing_printed_on_error(), warnings.catch_warnings():
                # PyTorch's own calls of its own deprecated functions.
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", FutureWarning)
                trials[0].call.run(compiled)
        except DeployError:
            raise
        except Exception as error:  # PyTorch raises many types here
            raise _compile_error(error) from error
        largest_differences(compiled, trials, self._tolerance, "the compiled model")
        return Taken(partial(self._call.run, compiled), axes)

    def packaged(self, suffix: str, load: Callable[[Path], Callable[..., Any]]) -> Taken:
        """Package, with the axes open that a file leaves open if that is possible."""
        path = self._folder / f"model{suffix}"
        axes, ranges = self._axes, self._ranges
        attempts = [(axes, ranges)]
        # A file scripted from the model's own code has both sides of a branch, and needs no range.
        if suffix == ".pt" and ranges:
            attempts.insert(0, (axes, {}))
        if axes:
            attempts.append(([{} for _ in axes], {}))
        for number, (axes, ranges) in enumerate(attempts, start=1):
            try:
                ranges = self._package(path, axes, ranges).ranges
                break
            except DynamicAxisError:
                if number == len(attempts):
                    raise
        return Taken(partial(self._call.run, load(path)), axes, ranges)

    def way(self, name: str, milliseconds: float, taken: Taken) -> Way:
        """A way that the model went, with the sizes that it takes there."""
        if taken.axes is None:
            return Way(name, milliseconds)
        open_names: dict[str, None] = {}
        for tensor_axes in taken.axes:
            open_names |= dict.fromkeys(tensor_axes.values())
        fixed = {size: number for size, number in self._sizes.items() if size not in open_names}
        ranges = {size: taken.ranges[size] for size in open_names if size in taken.ranges}
        return Way(name, milliseconds, open=tuple(open_names), fixed=fixed, ranges=ranges)

    def _package(self, path: Path, axes: Sequence[Axes] | None, ranges: Ranges) -> Package:
        return package(
            self._model,
            self._call.bound.args,
            path,
            kwargs=self._call.bound.kwargs,
            dynamic_shapes=None if axes is None else self._shapes(axes, ranges),
        )

    def _shapes(self, axes: Sequence[Axes], ranges: Ranges) -> Any:
        """`dynamic_shapes` that opens these axes of each tensor, in their ranges."""
        dims = {name: Dim(name, min=least, max=most) for name, (least, most) in ranges.items()}
        tensor_dims = []
        for tensor_axes in axes:
            tensor_dims.append(
                {number: dims.get(name, name) for number, name in tensor_axes.items()}
            )
        return self._call.shapes(tensor_dims)

    def _trials(self) -> tuple[list[Axes] | None, list[Trial]]:
        """The example, and another size of every axis that a file leaves open; and these axes, if they are known."""
        if self._axes is not None:
            call = DynamicCall.of(self._model, self._call, self._call.shapes(self._axes))
            try:
                example, *others = trials_of(
                    self._reference, with_least_sizes(self._reference, call)
                )
            except ExportError:  # the model takes no other size
                pass
            else:
                # torch.compile compiles once more for an axis of size 1.
                others = [trial for trial in others if 1 not in trial.sizes.values()]
                return self._axes, [example, *others[:1]]
        call = DynamicCall.of(self._model, self._call, {})
        return None, [example_trial(self._reference, call)]


def _compile_error(error: Exception) -> ExportError:
    """The error of torch.compile in a sentence, with the line of the model."""
    text = str(error).strip()
    if "C++ compiler" in text:
        return ExportError("it needs a C++ compiler, such as g++, and none was found.")
    line = raising_line(error)
    start = f"{line}: torch.compile refuses this" if line else "torch.compile refuses the model"
    return ExportError(f"{start}: {type(error).__name__}: {text}")


def first_sentence(text: str) -> str:
    """Return the first sentence of a message, in one line."""
    paragraph = text.strip().partition("\n\n")[0]
    line = " ".join(paragraph.split())
    sentence = re.split(r"(?<=[^.\s]\.) (?=[A-Z`])", line, maxsplit=1)[0]
    return sentence.rstrip(".;:") + "."
