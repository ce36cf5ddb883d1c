"""One model sent every way: `python -m zoo.judges NAME FILE WAY ...` writes what came of it as JSON."""

import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from deploy_rnn import convert
from deploy_rnn.checking.module import check_module
from deploy_rnn.checking.tolerance import difference
from deploy_rnn.copying import evaluation_copy
from deploy_rnn.errors import VerificationError
from deploy_rnn.export import export_bundle, export_onnx
from deploy_rnn.export.verification.cases import example_feeds
from deploy_rnn.export.verification.report import Report
from deploy_rnn.export.ways import Candidate, Taken, refused_way
from deploy_rnn.files import replace_file
from deploy_rnn.packaging.axes import DynamicCall
from deploy_rnn.packaging.trials import Trial, largest_differences, trials_of, with_least_sizes
from deploy_rnn.serving import Engine
from deploy_rnn.tensor_spec import TensorSpec

from . import ROOT
from .models import MODELS, Exhibit

OPERATORS: list[torch.library.Library] = []
"""Kept, because operators end with their library."""

FILES = ("native", "scan", "unrolled")


class ZooCandidate(Candidate):
    """Goes every way of `deploy-rnn check`, and those that `check` leaves out."""

    def __init__(self, exhibit: Exhibit, folder: Path) -> None:
        super().__init__(exhibit.model, exhibit.args, exhibit.kwargs, folder)
        self._exhibit = exhibit
        self._file: Report | Exception | None = None

    def judges(self) -> dict[str, Callable[[], Taken]]:
        ways = super().judges()
        files = {name: ways.pop(name) for name in FILES}
        return {
            **files,
            "convert": self.converted,
            "auto": self.auto,
            "Engine": self.engine,
            "bundle": self.bundle,
            **ways,
        }

    @property
    def has_axes(self) -> bool:
        """Whether it is known which axes can be open."""
        return bool(self._axes is not None)

    def converted(self) -> Taken:
        """Convert, and run on the example and on other sizes."""
        converted = convert(evaluation_copy(self._model))
        largest_differences(converted, self._sizes_tried(), self._tolerance, "the converted model")
        return self._taken(partial(self._call.run, converted))

    def auto(self) -> Taken:
        """Export to ONNX in the fastest form."""
        one = self._exhibit
        try:
            self._file = export_onnx(one.model, one.args, self._auto_path, kwargs=one.kwargs)
        except Exception as error:  # PyTorch raises many types here
            self._file = error
            raise
        return self._taken(self.run_itself)

    def engine(self) -> Taken:
        """Run that file in the engine, at the example's and at other sizes."""
        file = self._auto_file()
        return self._served(Engine(self._auto_path), file)

    def bundle(self) -> Taken:
        """Write a bundle, and run it in the engine at the example's and at other sizes."""
        one = self._exhibit
        path = Path(self._folder, "bundle")
        export_bundle(one.model, one.args, path, kwargs=one.kwargs)
        file = self._auto_file()
        return self._served(Engine(path), file)

    def _auto_file(self) -> Report:
        """Raises: the error of `auto`: without its file there is nothing to serve."""
        if isinstance(self._file, Exception):
            raise self._file
        return self._file

    @property
    def _auto_path(self) -> Path:
        return Path(self._folder, "auto.onnx")

    def _taken(self, run: Callable[[], object]) -> Taken:
        return Taken(run, self._axes, self._ranges)

    def _sizes_tried(self) -> list[Trial]:
        """The example, and random inputs of other sizes of each axis that a file leaves open."""
        axes = self._axes or [{} for _ in self._call.tensors]
        call = DynamicCall.of(self._model, self._call, self._shapes(axes, self._ranges))
        return list(trials_of(self._reference, with_least_sizes(self._reference, call)))

    def _served(self, engine: Engine, file: Report) -> Taken:
        """Compare; the tensors of a bundle are batch-first, whatever their layout is in the file."""
        for trial in self._sizes_tried():
            feeds = example_feeds(file.inputs, trial.call)
            inputs = {
                spec.name: _moved(feeds[spec.name], own, spec)
                for own, spec in zip(file.inputs, engine.inputs, strict=True)
            }
            answers = engine.run(inputs)
            outputs = [
                _moved(answers[spec.name], spec, own)
                for own, spec in zip(file.outputs, engine.outputs, strict=True)
            ]
            self._compare(trial, outputs)
        return self._taken(self.run_itself)

    def _compare(self, trial: Trial, outputs: Sequence[np.ndarray]) -> None:
        """Raise VerificationError unless these are PyTorch's outputs."""
        for number, (expected, output) in enumerate(zip(trial.expected, outputs, strict=True)):
            where = f"the engine's output {number} on {trial.label}"
            if output.shape != expected.values.shape:
                raise VerificationError(
                    f"{where} is {output.shape}, PyTorch gives {expected.values.shape}."
                )
            differences = difference(expected.values, output)
            if (differences > self._tolerance.allowed(expected)).any():
                raise VerificationError(f"{where} differs by {differences.max():.1e}.")


def _moved(values: np.ndarray, source: TensorSpec, target: TensorSpec) -> np.ndarray:
    """Values in the layout of `source`, in that of `target`: batch and steps may be other axes."""
    names = [name for name in target.shape if isinstance(name, str) and name in source.shape]
    old = [source.shape.index(name) for name in names]
    return np.moveaxis(values, old, [target.shape.index(name) for name in names])


def cells_of(
    exhibit: Exhibit, wanted: Sequence[str], found: Callable[[str, dict[str, Any]], None]
) -> None:
    """Send a model these ways; `found` is told of each as soon as it is known."""
    with TemporaryDirectory() as folder:
        try:
            check_module(exhibit.model)
            candidate = ZooCandidate(exhibit, Path(folder))
        except Exception as error:  # the model's own code can raise anything
            for name in wanted:
                found(name, _refused(name, error))
            return
        for name, judge in candidate.judges().items():
            # The first file shows which axes can be open, and the one of "auto" is run by others.
            if (
                name in wanted
                or (name in FILES and not candidate.has_axes)
                or (name == "auto" and {"Engine", "bundle"} & set(wanted))
            ):
                cell = _cell(candidate, name, judge)
                if name in wanted:
                    found(name, cell)


def _cell(candidate: ZooCandidate, name: str, judge: Callable[[], Taken]) -> dict[str, Any]:
    try:
        way = candidate.way(name, 0.0, judge())
    except Exception as error:  # PyTorch raises many types here
        return _refused(name, error)
    fields = asdict(way)
    return {"goes": True} | {key: fields[key] for key in ("open", "fixed", "ranges")}


def _refused(name: str, error: Exception) -> dict[str, Any]:
    message = _portable(refused_way(name, error).message)
    return {"goes": False, "error": type(error).__name__, "message": message}


def _portable(message: str) -> str:
    """Without the folders of this machine."""
    return re.sub(r"/\S*/(?:site-packages|python3\.\d+)/", "", message).replace(f"{ROOT}/", "")


def define_operators_of_torchvision() -> None:
    """Let torchvision be imported without its compiled part, which on the package index is for CUDA."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    OPERATORS.append(library)


def main() -> None:
    name, path, *wanted = sys.argv[1:]
    warnings.simplefilter("ignore")
    define_operators_of_torchvision()
    torch.manual_seed(0)
    cells: dict[str, Any] = {}

    def found(way: str, cell: dict[str, Any]) -> None:
        cells[way] = cell
        print(f"  {way:<10} {'ok' if cell['goes'] else cell['message'][:160]}", flush=True)
        replace_file(Path(path), lambda new: new.write_text(json.dumps(cells), encoding="utf-8"))

    cells_of(MODELS[name].make(), wanted, found)


if __name__ == "__main__":
    main()
