"""The whole path in one command: a trained torch.nn.RNN model is compiled, exported, checked, and run by onnxruntime.

`deploy-rnn demo FILE` highlights any Python file, and shows every way to run the model side by side.
"""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

import deploy_rnn
from deploy_rnn.bundle import Graph
from deploy_rnn.checking.tolerance import Expected, Tolerance, difference
from deploy_rnn.console import step
from deploy_rnn.errors import DeployError
from deploy_rnn.export import Manifest, export_bundle
from deploy_rnn.files import replace_file
from deploy_rnn.serving import Engine
from deploy_rnn.timing import compare

from . import screen
from .model import WINDOW, encode, join, load, windows
from .screen import Result

SAMPLE = Path(__file__).with_name("sample.py")

BATCH = 64
"""The most windows in one run; a longer file takes several runs of about equal size."""

ROUNDS = 3
MOST_CALLS = 15
TIMING_SECONDS = 3.0
"""How many rounds, and calls in each, are timed; fewer calls where they would take longer than this altogether."""

FORMS = ("native", "scan", "unrolled")
"""The unrolled graph comes last: its labels are those that are shown."""

SERVED_PAGE = Path(__file__).with_name("page")

Reader = Callable[[np.ndarray], np.ndarray]
"""Windows (B, T) int64 -> scores (B, T, labels)."""


class Unusable(DeployError):
    """FILE is not Python source in UTF-8, or a folder cannot be written."""


def run(
    file: Path | None,
    folder: Path,
    *,
    as_json: bool = False,
    console: Console | None = None,
    started: float | None = None,
    busy: float | None = None,
) -> None:
    """Highlight `file` (None: a short sample) in every way there is, and print how they did.

    Writes to `folder`: a bundle of graphs, the coloured file as a page, and the page that a server of the bundle shows.

    Args:
        file: Python source in UTF-8.
        folder: is made if it is missing.
        as_json: print the result as JSON, and nothing else.
        console: where to print.
        started: `time.perf_counter()` when the demo began to load, for its first line; now, by default.
        busy: the processes that want a core, on average over the last minute; by default the system is asked.

    Raises:
        Unusable: `file` is missing, empty, binary or not UTF-8; `folder` cannot be made.
        DeployError: the export failed its check, or a runtime disagrees with torch.nn.RNN.
    """
    started = time.perf_counter() if started is None else started
    file = file or SAMPLE
    console = console or Console(quiet=as_json)
    source = read(file)
    _make_folder(folder)
    all_windows = windows(encode(source))
    runs = -(-len(all_windows) // BATCH)  # rounded up
    batches = np.array_split(all_windows, runs)
    bundle = folder / "highlight"

    model = load()
    _show_step(
        console, started, "loaded a trained highlighter: a 2-layer bidirectional torch.nn.RNN"
    )
    readers: dict[str, Reader | str] = {"torch.nn.RNN": _torch_reader(model)}
    with _step(console, "compiling it", "compiled it"):
        readers["deploy_rnn, compiled"] = _compiled_reader(model, batches[0])
    with _step(
        console,
        "exporting it to ONNX and checking the files",
        f"exported it to ONNX in {len(FORMS)} forms, and compared each with PyTorch",
    ):
        manifest = export_bundle(
            model, torch.from_numpy(batches[0]), bundle, buckets=[batches[0].shape[1]]
        )
    graphs = _graphs(manifest)
    started = time.perf_counter()
    with step(f"reading {file.name}"):
        for name, graph in graphs.items():
            readers[name] = _engine_reader(bundle / graph.file)
        exact_reader = _torch_reader(copy.deepcopy(model).double())
        results, labels = contest(readers, exact_reader, batches, len(source))
    for name, graph in graphs.items():
        results[name] = replace(results[name], nodes=graph.nodes)
    ways = sum(result.missing is None for result in results.values())
    _show_step(
        console, started, f"ran it in {ways} ways: {screen.describe_labels(results, len(source))}"
    )
    _write_page(folder, source, labels)
    copy_served_page(folder)

    disturbance = screen.disturbance(results, _ask_load() if busy is None else busy)
    if as_json:
        summary = _summary(file, source, batches, results, bundle, manifest, disturbance)
        print(json.dumps(summary, indent=2))
    else:
        _show(console, source, labels, results, len(batches[0]), disturbance)
        unrolled = bundle / graphs["onnxruntime, unrolled"].file
        _show_next(console, folder, unrolled)
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


def _graphs(manifest: Manifest) -> dict[str, Graph]:
    """The graph of each form, by its name in the table."""
    by_form = {graph.form: graph for graph in manifest.graphs}
    return {f"onnxruntime, {form}": by_form[form] for form in FORMS}


def _engine_reader(file: Path) -> Reader:
    engine = Engine(file)

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
    runs = {name: partial(reader, batches[0]) for name, reader in available.items()}
    timings = compare(runs, rounds=ROUNDS, calls=_affordable_calls(runs))

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


def _affordable_calls(runs: Mapping[str, Callable[[], object]]) -> int:
    """How many calls of each fit into `TIMING_SECONDS`; two at least."""
    started = time.perf_counter()
    for call in runs.values():
        call()
    seconds = time.perf_counter() - started
    return min(MOST_CALLS, max(2, int(TIMING_SECONDS / (ROUNDS * seconds))))


def _read_all(reader: Reader, batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([reader(batch) for batch in batches])


def _check_agreement(results: Mapping[str, Result]) -> None:
    for name, result in results.items():
        if result.allowed_share is not None and result.allowed_share > 1:
            raise DeployError(
                f"{name} differs from torch.nn.RNN by {result.difference:.1e}, {result.allowed_share:.0f} times what "
                "is allowed."
            )


def _show(
    console: Console,
    source: str,
    labels: np.ndarray,
    results: Mapping[str, Result],
    batch: int,
    disturbance: str | None,
) -> None:
    """The coloured file, the table, and what the reader should know about them."""
    text = source.rstrip("\n")
    console.print()
    console.print(screen.coloured(text, labels[: len(text)]))
    console.print()
    console.print(screen.table(results, batch, with_speed=disturbance is None))
    for name, result in results.items():
        if result.missing:
            console.print(f"{name}: {result.missing}", highlight=False, soft_wrap=True)
    if disturbance:
        console.print(disturbance, style="bold", highlight=False, soft_wrap=True)


def _show_next(console: Console, folder: Path, unrolled: Path) -> None:
    """What was written, and what to type."""
    pages = f"{folder / 'highlighted.html'}, {folder / 'highlight' / 'report.html'}"
    console.print()
    console.print(f"Pages: {pages}. Next:", highlight=False, soft_wrap=True)
    for command in screen.next_commands(folder, unrolled):
        console.print(f"  {command}", style="bold", highlight=False, soft_wrap=True)


def _write_page(folder: Path, source: str, labels: np.ndarray) -> None:
    """Write the coloured file as an HTML page."""
    text = screen.page(source, labels)
    replace_file(folder / "highlighted.html", lambda path: path.write_text(text, encoding="utf-8"))


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
    disturbance: str | None,
) -> dict[str, object]:
    return {
        "file": str(file),
        "characters": len(source),
        "windows_per_run": len(batches[0]),
        "characters_per_window": WINDOW,
        "threads": torch.get_num_threads(),
        "disturbance": disturbance,
        "results": {name: asdict(result) for name, result in results.items()},
        "bundle": str(bundle),
        "graphs": [asdict(graph) for graph in manifest.graphs],
    }


def _ask_load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@contextmanager
def _step(console: Console, doing: str, done: str) -> Iterator[None]:
    """Show a spinner and the seconds during a step, and a line with its time after it."""
    started = time.perf_counter()
    with step(doing):
        yield
    _show_step(console, started, done)


def _show_step(console: Console, started: float, done: str) -> None:
    seconds = time.perf_counter() - started
    console.print(f"{seconds:6.1f} s  {done}", highlight=False, soft_wrap=True)
