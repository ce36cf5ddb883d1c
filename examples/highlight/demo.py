"""The whole path in one command: a trained torch.nn.RNN model is compiled, exported, checked, and run by onnxruntime.

`deploy-rnn demo FILE` highlights any Python file, and shows the three ways to run the model side by side.
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
"""The most windows in one run; a longer file takes several runs of about equal size."""

STYLES = {
    "space": "", "operator": "white", "name": "default", "call": "bright_blue", "definition": "bold yellow",
    "keyword": "bold magenta", "number": "cyan", "string": "green", "comment": "italic bright_black",
}  # fmt: skip

CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {
    127: "\u2421"
}
"""Control characters -> visible symbols. The characters themselves would shift the colours, or command the terminal."""

SERVED_PAGE = Path(__file__).with_name("page")

Reader = Callable[[np.ndarray], np.ndarray]
"""Windows (B, T) int64 -> scores (B, T, labels)."""


class Unusable(DeployError):
    """FILE is not Python source in UTF-8, or a folder cannot be written."""


@dataclass(frozen=True)
class Result:
    """How one way of running the model did.

    Attributes:
        seconds: the time of one run.
        difference: the largest difference from torch.nn.RNN's scores.
        allowed_share: the largest difference as a share of what docs/verification.md allows; above 1 is a failure.
        labels_changed: how many characters of the file got another label.
        missing: why it could not run; everything else is None then.
    """

    seconds: Timing | None = None
    difference: float | None = None
    allowed_share: float | None = None
    labels_changed: int | None = None
    missing: str | None = None


def run(
    file: Path | None, folder: Path, *, as_json: bool = False, console: Console | None = None
) -> None:
    """Highlight `file` (None: this one) with every runtime, and print how they did.

    Writes to `folder`: a bundle of graphs, the coloured file as a page, and the page that a server of the bundle shows.

    Raises:
        Unusable: `file` is missing, empty, binary or not UTF-8; `folder` cannot be made.
        DeployError: the export failed its check, or a runtime disagrees with torch.nn.RNN.
    """
    file = file or Path(__file__)
    console = console or Console(quiet=as_json)
    source = read(file)
    _make_folder(folder)
    all_windows = windows(encode(source))
    runs = -(-len(all_windows) // BATCH)  # rounded up
    batches = np.array_split(all_windows, runs)

    model = load()
    readers: dict[str, Reader | str] = {"torch.nn.RNN": _torch_reader(model)}
    with _step(console, "compiling"):
        readers["deploy_rnn, compiled"] = _compiled_reader(model, batches[0])
    with _step(console, "exporting to ONNX and checking"):
        bundle = folder / "highlight"
        manifest = export_bundle(
            model, torch.from_numpy(batches[0]), bundle, buckets=[batches[0].shape[1]]
        )
        readers["onnxruntime, unrolled"] = _engine_reader(bundle, manifest)
    with _step(console, f"reading {file.name}"):
        exact_reader = _torch_reader(copy.deepcopy(model).double())
        results, labels = contest(readers, exact_reader, batches, len(source))
    page = write(folder, source, labels)
    copy_served_page(folder)

    if as_json:
        print(json.dumps(_summary(file, source, batches, results, bundle, manifest), indent=2))
    else:
        console.print(coloured(source, labels))
        console.print(table(results, len(batches[0])))
        for written in (*sorted(bundle.iterdir()), page):
            console.print(f"{written}  {written.stat().st_size / 1e3:,.0f} kB", highlight=False)
    _check_agreement(results)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Unusable(f"cannot make the folder {str(folder)!r}: {reason}.") from None


def read(file: Path) -> str:
    """The text of a Python file, with line ends as "\\n"."""
    if file.exists() and not file.is_file():
        file_type = "folder" if file.is_dir() else "device or pipe"
        raise Unusable(f"cannot read {str(file)!r}: it is a {file_type}.")
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Unusable(f"cannot read {str(file)!r}: {reason}.") from None
    if b"\0" in data:
        raise Unusable(f"{str(file)!r} is binary, or UTF-16; give Python source in UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise Unusable(
            f"{str(file)!r} is not UTF-8 (byte {byte:#04x} at {error.start}); convert it to UTF-8 first."
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


def _compiled_reader(model: nn.Module, batch: np.ndarray) -> Reader | str:
    """A reader that is already compiled, or the reason why this machine cannot compile."""
    reader = _torch_reader(deploy_rnn.compile(model))
    try:
        reader(batch)
    except Exception as error:
        # A machine without a compiler can still run the rest of the demo.
        if "C++ compiler" not in str(error):
            raise
        return "needs a C++ compiler, such as g++"
    return reader


def _engine_reader(bundle: Path, manifest: Manifest) -> Reader:
    unrolled = next(graph.file for graph in manifest.graphs if graph.form == "unrolled")
    engine = Engine(bundle / unrolled)

    def reader(batch: np.ndarray) -> np.ndarray:
        scores: np.ndarray = engine.run({"characters": batch})["output"]
        return scores

    return reader


def contest(
    readers: Mapping[str, Reader | str],
    exact_reader: Reader,
    batches: list[np.ndarray],
    length: int,
) -> tuple[dict[str, Result], np.ndarray]:
    """Run and time every reader: -> how each did compared with the first, and the last one's labels (length,).

    Args:
        readers: name -> a reader, or the reason why there is none.
        exact_reader: the first reader in float64. How far rounding moves the first is part of what passes.
    """
    results = {
        name: Result(missing=reader) for name, reader in readers.items() if isinstance(reader, str)
    }
    available = {name: reader for name, reader in readers.items() if not isinstance(reader, str)}
    scores = {name: _read_all(reader, batches) for name, reader in available.items()}
    labels = {name: join(scores[name], length) for name in available}
    timings = compare({name: partial(reader, batches[0]) for name, reader in available.items()})

    first = next(iter(available))
    allowed = Tolerance().allowed(Expected.of(scores[first], _read_all(exact_reader, batches)))
    for name in available:
        differences = difference(scores[first], scores[name])
        results[name] = Result(
            seconds=timings[name],
            difference=float(differences.max()),
            allowed_share=float((differences / allowed).max()),
            labels_changed=int((labels[name] != labels[first]).sum()),
        )
    last = list(available)[-1]
    return {name: results[name] for name in readers}, labels[last]


def _read_all(reader: Reader, batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([reader(batch) for batch in batches])


def _check_agreement(results: Mapping[str, Result]) -> None:
    for name, result in results.items():
        if result.allowed_share is not None and result.allowed_share > 1:
            raise DeployError(
                f"{name} differs from torch.nn.RNN by {result.difference:.1e}, {result.allowed_share:.0f} times what "
                "is allowed."
            )


def coloured(source: str, labels: np.ndarray) -> Text:
    """The file, each character in the style of its label."""
    text = Text(source.translate(CONTROL_PICTURES), no_wrap=False)
    label_changes = (np.flatnonzero(np.diff(labels)) + 1).tolist()
    edges = [0, *label_changes, len(source)]
    for start, end in itertools.pairwise(edges):
        text.stylize(STYLES[LABELS[labels[start]]], start, end)
    return text


def table(results: Mapping[str, Result], batch: int) -> Table:
    """The readers side by side."""
    columns = Table(
        title=f"{batch} windows of {WINDOW} characters in one run, {torch.get_num_threads()} threads"
    )
    columns.add_column("")
    for heading in ("median time", "speed", "largest difference", "labels changed"):
        columns.add_column(heading, justify="right")
    first = next(iter(results.values())).seconds
    for name, result in results.items():
        if result.seconds is None or first is None:
            columns.add_row(name, result.missing, "", "", "")
            continue
        columns.add_row(
            name,
            f"{result.seconds.median * 1e3:.1f} ms",
            f"{first.median / result.seconds.median:.2f}x",
            f"{result.difference:.1e}",
            str(result.labels_changed),
        )
    return columns


def write(folder: Path, source: str, labels: np.ndarray) -> Path:
    """Write the coloured file as an HTML page, and return its path."""
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
    """Show a spinner during a step, and print its time after it."""
    started = time.perf_counter()
    with console.status(f"{what} ..."):
        yield
    console.print(f"[green]done[/] {what}, {time.perf_counter() - started:.1f} s", highlight=False)
