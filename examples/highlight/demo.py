"""The whole path on one file: a trained torch.nn.RNN model, compiled, exported, checked, and run by onnxruntime.

`deploy-rnn demo FILE` reads any Python file and shows it in colour, with the three ways to run the model side by side.
"""

import copy
import io
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

import deploy_rnn
from deploy_rnn.checking.tolerance import Expected, Tolerance, difference
from deploy_rnn.errors import DeployError
from deploy_rnn.export import Manifest, export_bundle
from deploy_rnn.serving import Engine
from deploy_rnn.timing import Timing, compare

from .labels import LABELS
from .model import WINDOW, encode, join, load, windows

BATCH = 64
"""Windows in one run; a longer file takes several runs of equal size."""

STYLES = {
    "space": "", "operator": "white", "name": "default", "call": "bright_blue", "definition": "bold yellow",
    "keyword": "bold magenta", "number": "cyan", "string": "green", "comment": "italic bright_black",
}  # fmt: skip

CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {127: "\u2421"}
"""Control characters as pictures of themselves: they would move the colours, or command the terminal."""

SERVED_PAGE = Path(__file__).with_name("page")

Reader = Callable[[np.ndarray], np.ndarray]
"""Windows (B, T) int64 -> scores (B, T, labels)."""


class Unusable(DeployError):
    """A FILE that is not Python source in UTF-8, or a folder that cannot be written."""


@dataclass(frozen=True)
class Result:
    """How one way of running the model did; `missing` says why it could not run.

    Attributes:
        seconds: one run over `windows` windows.
        difference: the largest from torch.nn.RNN's scores.
        allowed_share: the same as a share of what passes, by the rule of docs/verification.md; above 1 is a failure.
        labels_changed: characters of the file that got another label.
    """

    seconds: Timing | None = None
    difference: float | None = None
    allowed_share: float | None = None
    labels_changed: int | None = None
    missing: str | None = None


def run(file: Path | None, folder: Path, *, as_json: bool = False, console: Console | None = None) -> None:
    """Read `file` (None: this one) with every runtime; print, and write to `folder` a bundle of graphs, the file in
    colour as a page, and the page of a server of the bundle.

    Raises:
        Unusable: `file` is missing, empty, binary or not UTF-8; `folder` cannot be made.
        DeployError: the export failed its check, or a runtime disagrees with torch.nn.RNN.
    """
    file = Path(__file__) if file is None else file
    source = read(file)
    console = console or Console(quiet=as_json)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"cannot make the folder {str(folder)!r}: {(error.strerror or str(error)).lower()}.") from None
    parts = windows(encode(source))
    batches = np.array_split(parts, -(-len(parts) // BATCH))
    model = load()
    readers: dict[str, Reader | str] = {"torch.nn.RNN": _torch_reader(model)}
    exact = _torch_reader(copy.deepcopy(model).double())
    with _step(console, "compiling"):
        readers["deploy_rnn, compiled"] = _compiled(model, batches[0])
    with _step(console, "exporting to ONNX and checking"):
        bundle = folder / "highlight"
        manifest = export_bundle(model, torch.from_numpy(batches[0]), bundle, buckets=[batches[0].shape[1]])
        engine = Engine(bundle / next(graph.file for graph in manifest.graphs if graph.form == "unrolled"))
        readers["onnxruntime, unrolled"] = lambda batch: engine.run({"characters": batch})["output"]
    with _step(console, f"reading {file.name}"):
        results, labels = contest(readers, exact, batches, len(source))
    page = write(folder, source, labels)
    copy_served_page(folder)
    if as_json:
        print(json.dumps(_summary(file, source, batches, results, bundle, manifest), indent=2))
    else:
        console.print(coloured(source, labels))
        console.print(table(results, len(batches[0])))
        for made in (*sorted(bundle.iterdir()), page):
            console.print(f"{made}  {made.stat().st_size / 1e3:,.0f} kB", highlight=False)
    _agree(results)


def read(file: Path) -> str:
    """The text of a Python file, with line ends as "\\n"."""
    if file.exists() and not file.is_file():
        raise Unusable(f"cannot read {str(file)!r}: it is a {'folder' if file.is_dir() else 'device or pipe'}.")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise Unusable(f"cannot read {str(file)!r}: {(error.strerror or str(error)).lower()}.") from None
    if b"\0" in data:
        raise Unusable(f"{str(file)!r} is binary, or UTF-16; give Python source in UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(
            f"{str(file)!r} is not UTF-8 (byte {data[error.start]:#04x} at {error.start}); convert it to UTF-8 first."
        ) from None
    if not text.strip():
        raise Unusable(f"{str(file)!r} is empty; give a file with Python source.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _torch_reader(model: nn.Module) -> Reader:
    def reader(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores: np.ndarray = model(torch.from_numpy(batch)).numpy()
            return scores

    return reader


def _compiled(model: nn.Module, batch: np.ndarray) -> Reader | str:
    """A reader that has compiled itself, or the reason why this machine cannot."""
    reader = _torch_reader(deploy_rnn.compile(model))
    try:
        reader(batch)
    except Exception as error:
        if "C++ compiler" not in str(error):
            raise
        return "needs a C++ compiler, such as g++"
    return reader


def contest(
    readers: Mapping[str, Reader | str], exact: Reader, batches: list[np.ndarray], length: int
) -> tuple[dict[str, Result], np.ndarray]:
    """Run and time every reader: -> how each did beside the first, and the labels (length,) that the last one found.

    `exact` is the first in float64: how far rounding moves it is part of what passes.
    """
    able = {name: reader for name, reader in readers.items() if not isinstance(reader, str)}
    scores = {name: _read_all(reader, batches) for name, reader in able.items()}
    labels = {name: join(each, length) for name, each in scores.items()}
    times = compare({name: partial(reader, batches[0]) for name, reader in able.items()})
    truth = next(iter(scores))
    expected = Expected.of(scores[truth], _read_all(exact, batches))
    allowed = Tolerance().allowed(expected)
    results: dict[str, Result] = {}
    for name, reader in readers.items():
        if isinstance(reader, str):
            results[name] = Result(missing=reader)
            continue
        apart = difference(scores[truth], scores[name])
        changed = int((labels[name] != labels[truth]).sum())
        results[name] = Result(times[name], float(apart.max()), float((apart / allowed).max()), changed)
    return results, list(labels.values())[-1]


def _read_all(reader: Reader, batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([reader(batch) for batch in batches])


def _agree(results: Mapping[str, Result]) -> None:
    for name, result in results.items():
        if result.allowed_share is not None and result.allowed_share > 1:
            raise DeployError(
                f"{name} differs from torch.nn.RNN by {result.difference:.1e}, {result.allowed_share:.0f} times what "
                "is allowed."
            )


def coloured(source: str, labels: np.ndarray) -> Text:
    """The file, each character in the style of its label."""
    text = Text(source.translate(CONTROLS), no_wrap=False)
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(source)]
    for start, end in itertools.pairwise(edges):
        text.stylize(STYLES[LABELS[labels[start]]], start, end)
    return text


def table(results: Mapping[str, Result], batch: int) -> Table:
    """The readers side by side."""
    made = Table(title=f"{batch} windows of {WINDOW} characters in one run, {torch.get_num_threads()} threads")
    made.add_column("")
    for heading in ("median time", "speed", "largest difference", "labels changed"):
        made.add_column(heading, justify="right")
    first = next(iter(results.values())).seconds
    for name, result in results.items():
        if result.seconds is None or first is None:
            made.add_row(name, result.missing, "", "", "")
            continue
        made.add_row(
            name,
            f"{result.seconds.median * 1e3:.1f} ms",
            f"{first.median / result.seconds.median:.2f}x",
            f"{result.difference:.1e}",
            str(result.labels_changed),
        )
    return made


def write(folder: Path, source: str, labels: np.ndarray) -> Path:
    """The coloured file as a page; returns the page."""
    recorder = Console(record=True, file=io.StringIO(), width=120)
    recorder.print(coloured(source, labels))
    page = folder / "highlighted.html"
    recorder.save_html(str(page))
    return page


def copy_served_page(folder: Path) -> Path:
    """The page for `deploy-rnn serve --page`: it colours what is typed, by a served model."""
    return Path(shutil.copytree(SERVED_PAGE, folder / "highlighter", dirs_exist_ok=True))


def _summary(
    file: Path,
    source: str,
    batches: list[np.ndarray],
    results: Mapping[str, Result],
    bundle: Path,
    manifest: Manifest,
) -> dict[str, object]:
    return {
        "file": str(file),
        "characters": len(source),
        "windows_per_run": len(batches[0]),
        "threads": torch.get_num_threads(),
        "results": {name: asdict(result) for name, result in results.items()},
        "bundle": str(bundle),
        "graphs": [asdict(graph) for graph in manifest.graphs],
    }


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    """A spinner while it lasts, a line with the time after it."""
    started = time.perf_counter()
    with console.status(f"{what} ..."):
        yield
    console.print(f"[green]done[/] {what}, {time.perf_counter() - started:.1f} s", highlight=False)
