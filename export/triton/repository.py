"""`write_triton_model`: a bundle becomes a model of a Triton repository, or a new version of one."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy_rnn.bundle import Graph, Manifest, checked_manifest
from deploy_rnn.errors import ExportError
from deploy_rnn.files import replace_file
from deploy_rnn.plain_files import is_plain
from deploy_rnn.runtime import CPU, open_session
from deploy_rnn.serving.engine.batch_engine import BatchEngine
from deploy_rnn.serving.engine.opening import open_model

from .comparison import compare
from .config import BACKENDS, ONNXRUNTIME, PYTHON, Config, State, is_unchanged, written_digest
from .graph import MODEL_FILE, name_states, write_graph

CONFIG_FILE = "config.pbtxt"
PYTHON_ROWS = 128
"""Rows that Triton hands over at a time; deploy-rnn makes runs of them."""
ONNXRUNTIME_ROWS = 32
"""Rows of a run."""


def write_triton_model(
    bundle: str | Path,
    repository: str | Path,
    *,
    name: str | None = None,
    backend: str = PYTHON,
    precision: str | None = None,
) -> Path:
    """Write a bundle to a model repository of Triton, as a new model or as the next version of one.

    Every tensor is batch-first, `(B, T, ...)`, states `(B, ...)`, as deploy-rnn serves them itself. What is written
    appears whole or not at all, and other models stay as they are. A config.pbtxt that was edited stays, too, while the
    inputs and outputs are the same.

    Args:
        bundle: a folder that `export_bundle` wrote.
        repository: the folder of the repository; made if it is missing.
        name: of the model; None for the bundle's.
        backend: "python": deploy-rnn runs in Triton's Python backend, whose Python needs `deploy-rnn[onnxruntime]`;
            rows of unlike length share runs. "onnxruntime": Triton runs one graph of the bundle, the quickest for any
            number of steps; requests of the same number of steps share runs, and Triton carries the states of a
            streaming model. The graph is compared with the bundle.
        precision: of the graphs, such as "int8", which the bundle must have; None for the only one.

    Returns:
        The folder of the version, REPOSITORY/NAME/1 or the next number.

    Raises:
        BundleError: `bundle` is not one; it lacks `precision`, or has several and none is named.
        ExportError: the bundle cannot be run in this way; or the model exists, its inputs or outputs are others now,
            and its config.pbtxt is not as deploy-rnn wrote it.
        FileExistsError: REPOSITORY/NAME is something else than a model.
        FileNotFoundError: the folder around `repository` does not exist.
    """
    if backend not in BACKENDS:
        raise ExportError(f"`backend` (={backend!r}) must be {' or '.join(map(repr, BACKENDS))}.")
    source = Path(bundle)
    manifest = checked_manifest(source)
    title = name or manifest.name
    repository = check_repository(repository, title)
    engine = BatchEngine(open_model(source, CPU, None, precision))
    is_new = not repository.exists()
    repository.mkdir(exist_ok=True)
    try:
        # On the same file system, so that it can be moved.
        with TemporaryDirectory(prefix=".", dir=repository) as folder:
            version = Path(folder) / "version"
            version.mkdir()
            if backend == PYTHON:
                config = _write_python(source, manifest, title, engine, version)
            else:
                config = _write_onnxruntime(source, manifest, title, engine, version)
            return _move_in(version, config.text(), repository / title)
    except BaseException:
        if is_new:
            repository.rmdir()
        raise


def check_repository(repository: str | Path, name: str) -> Path:
    """Check that a model of this name can be written, and return the path of the repository.

    Raises: as for `write_triton_model`.
    """
    if not is_plain(name):
        raise ExportError(f"`name` (={name!r}) must be the plain name of a folder.")
    repository = Path(repository)
    if not repository.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"the folder around {str(repository)!r} does not exist; make it first."
        )
    if repository.exists() and not repository.is_dir():
        raise FileExistsError(f"{str(repository)!r} is not a folder; give that of a repository.")
    target = repository / name
    is_model = (target / CONFIG_FILE).is_file()
    if target.exists() and not is_model:
        raise FileExistsError(
            f"{str(target)!r} exists and has no {CONFIG_FILE}; give another name, or remove it."
        )
    return repository


def _write_python(
    source: Path, manifest: Manifest, name: str, engine: BatchEngine, version: Path
) -> Config:
    model_file = Path(__file__).with_name("python_model.py")
    shutil.copyfile(model_file, version / "model.py")
    shutil.copytree(source, version / "bundle")
    rows = _most_rows(engine, PYTHON_ROWS)
    precision = engine.precision if len(manifest.precisions) > 1 else None
    return Config(name, PYTHON, engine.signature, rows, precision=precision)


def _write_onnxruntime(
    source: Path, manifest: Manifest, name: str, engine: BatchEngine, version: Path
) -> Config:
    signature = engine.signature
    rows = _most_rows(engine, ONNXRUNTIME_ROWS) if engine.rows_are_independent() else 0
    if signature.states and not rows:
        raise ExportError(
            f"{str(source)!r} has states, and its rows affect each other; Triton's onnxruntime backend runs chunks of "
            f"several sequences together. Use the backend {PYTHON!r}."
        )
    states: Sequence[State] = name_states(signature)
    graph = _quickest([row for row in manifest.graphs if row.precision == engine.precision])
    write_graph(source / graph.file, signature, states, version)
    for report in ("report.html", "report.json"):
        shutil.copyfile(source / report, version / report)
    session = open_session(version / MODEL_FILE)
    compare(session, engine, states, graph)
    shapes = {}
    if graph.steps is not None:
        shapes = {
            tensor.name: tuple(tensor.shape)
            for tensor in (*session.get_inputs(), *session.get_outputs())
        }
    return Config(name, ONNXRUNTIME, signature, rows, states, shapes)


def _most_rows(engine: BatchEngine, most: int) -> int:
    """Rows that Triton may put together; 0 if a tensor has no dynamic batch axis."""
    if engine.signature.batch_axis is None:
        if engine.signature.states:
            raise ExportError(
                "the model has states, and a batch of fixed size; Triton puts sequences together along a dynamic batch "
                "axis. Export it with one, such as --dynamic input:0=B."
            )
        return 0
    return min(most, engine.most_rows or most)


def _quickest(rows: Sequence[Graph]) -> Graph:
    """The quickest graph for any number of steps, or the only one."""
    for_any_steps = [graph for graph in rows if graph.steps is None]
    graphs = for_any_steps or rows
    if not for_any_steps and len(graphs) > 1:
        steps = ", ".join(str(graph.steps) for graph in graphs)
        raise ExportError(
            f"the bundle has graphs for {steps} steps, and none for any number; Triton's onnxruntime backend takes one "
            "graph. Export a bundle with one."
        )
    return min(graphs, key=lambda graph: graph.milliseconds)


def _move_in(version: Path, config: str, model: Path) -> Path:
    """Move a version to its model, which may be new, and return where it is now."""
    if not model.exists():
        new_model = version.with_name("model")
        new_model.mkdir()
        (new_model / CONFIG_FILE).write_text(config, encoding="utf-8")
        version.rename(new_model / "1")
        new_model.rename(model)
        return model / "1"
    path = model / CONFIG_FILE
    old = path.read_text(encoding="utf-8")
    is_same = written_digest(old) == written_digest(config)
    if not (is_same or is_unchanged(old)):
        raise ExportError(
            f"{str(path)!r} is not as deploy-rnn wrote it, and the model has other inputs, outputs or another backend "
            "now; change the file by hand, give another name, or remove the folder."
        )
    numbers = [int(folder.name) for folder in model.iterdir() if folder.name.isdecimal()]
    target = model / str(max(numbers, default=0) + 1)
    version.rename(target)
    if not is_same:
        replace_file(path, lambda temporary: temporary.write_text(config, encoding="utf-8"))
    return target
