"""The models of a server by name: loaded, replaced while they answer, and unloaded."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy_rnn.bundle import MANIFEST, Manifest
from deploy_rnn.errors import BundleError, ClosedError, UnknownModelError

from .scheduling.limits import Limits
from .scheduling.request import Request, Response
from .scheduling.served_model import ServedModel

VERSION = "1"
"""The version of every model: a folder holds one. Clients may name it or leave it out."""

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"

STREAM_POLL_SECONDS = 0.5
"""How often a replaced model is asked whether its last stream has ended: it only delays giving back memory."""


@dataclass
class Entry:
    """A name that is or was served.

    Attributes:
        path: the bundle.
        model: what answers now; None if unloaded.
        retiring: what answered before, and still holds streams or finishes what it accepted.
        reason: why it is not loaded, or why the last attempt to replace it failed.
        loading: held while the bundle is being loaded or unloaded.
    """

    path: Path
    model: ServedModel | None = None
    retiring: list[ServedModel] = field(default_factory=list)
    reason: str = ""
    loading: threading.Lock = field(default_factory=threading.Lock)


class Repository:
    """The bundles at `path`: one bundle, one .onnx file, or a folder of bundles, each by the name of its folder.

    Thread-safe. `load` and `close` take time; everything else returns at once.

    Args:
        make: path, name -> a loaded model.
        limits: the limits that `make` gives to each model.

    Raises:
        BundleError: there is no bundle at `path`.
    """

    def __init__(
        self,
        path: str | Path,
        make: Callable[[Path, str], ServedModel],
        limits: Limits | None = None,
    ) -> None:
        self._path = Path(path)
        self._make = make
        self.limits = limits or Limits()
        self._loaded = threading.Event()
        self._closing = threading.Event()
        self._lock = (
            threading.Lock()
        )  # guards what follows, and the fields of every entry but `loading`
        self._retirements: list[threading.Thread] = []
        self._entries: dict[str, Entry] = {}
        self._discover()
        if not self._entries:
            raise BundleError(
                f"there is no bundle at {str(path)!r}; it must be a bundle, an .onnx file, or a folder of bundles."
            )

    def load_all(self) -> None:
        """Load every bundle.

        Raises:
            DeployError: a model cannot be loaded.
        """
        for name in list(self._entries):
            self.load(name)
        self._loaded.set()

    def load(self, name: str) -> None:
        """Load a model, or replace it: the new one takes over once it is ready, and the old one keeps its streams until
        they end.

        Raises:
            UnknownModelError: there is no such bundle.
            DeployError: it cannot be loaded; what was loaded before goes on.
        """
        entry = self._entry(name)
        with entry.loading:
            try:
                model = self._make(entry.path, name)
            except Exception as error:
                entry.reason = str(error)
                raise
            self._replace(entry, model)

    def unload(self, name: str) -> None:
        """Unload a model; what it has accepted is still answered.

        Raises:
            UnknownModelError: there is no such bundle.
        """
        entry = self._entry(name)
        with entry.loading:
            self._replace(entry, None, "unloaded")

    def _replace(self, entry: Entry, model: ServedModel | None, reason: str = "") -> None:
        with self._lock:
            closing = self._closing.is_set()
            if not closing:
                old = entry.model
                entry.model = model
                entry.reason = reason
                if old is not None:
                    self._retire(entry, old, keep_streams=model is not None)
        # `close` closes the models that it finds; this one came too late.
        if closing and model is not None:
            model.close()

    def _retire(self, entry: Entry, model: ServedModel, *, keep_streams: bool) -> None:
        entry.retiring.append(model)
        arguments = (entry, model, keep_streams)
        thread = threading.Thread(target=self._close_retired, args=arguments, daemon=True)
        running = [retirement for retirement in self._retirements if retirement.is_alive()]
        self._retirements = [*running, thread]
        thread.start()

    def _close_retired(self, entry: Entry, model: ServedModel, keep_streams: bool) -> None:
        if keep_streams:
            while model.statistics().streams and not self._closing.wait(STREAM_POLL_SECONDS):
                pass
        model.close()
        with self._lock:
            entry.retiring.remove(model)

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model that answers.

        Raises:
            UnknownModelError: it is not there, not loaded, or has no such version.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise self._unknown(name)
        # Read once: it may be replaced at any moment.
        model = entry.model
        if model is None:
            reason = f" ({entry.reason})" if entry.reason else ""
            raise UnknownModelError(f"unknown model: `{name}` is not loaded{reason}.")
        if version not in ("", VERSION):
            raise UnknownModelError(f"`{name}` has no version {version!r}; it has {VERSION!r}.")
        return model

    def submit(self, name: str, version: str, request: Request) -> "Future[Response]":
        """Ask the model, or, in the middle of a stream, the one that holds it.

        Raises:
            UnknownModelError: as for `model`.
            InputError, StreamError, BusyError, ClosedError: as for `ServedModel.submit`.
        """
        while True:
            model = self._holder(name, version, request)
            try:
                return model.submit(request)
            except ClosedError:
                # It may have been replaced since it was looked up; then the next one is asked.
                if self._closing.is_set() or self._holder(name, version, request) is model:
                    raise

    def _holder(self, name: str, version: str, request: Request) -> ServedModel:
        """The model that holds the stream of a request; the current one if none does, or if the stream starts."""
        current = self.model(name, version)
        sequence = request.sequence
        if sequence is None or request.start or current.holds(sequence):
            return current
        with self._lock:
            retiring = list(self._entries[name].retiring)
        for model in reversed(retiring):
            if model.holds(sequence):
                return model
        # No model holds it: the current one says so to the client.
        return current

    def models(self) -> Iterator[ServedModel]:
        """The models that answer, by name."""
        with self._lock:
            models = [entry.model for _, entry in sorted(self._entries.items())]
        return iter([model for model in models if model is not None])

    def ready(self) -> bool:
        """Whether all models have been loaded, and the server is not about to stop."""
        return self._loaded.is_set() and not self._closing.is_set()

    def stopping(self) -> bool:
        """Whether the server has been told to stop."""
        return self._closing.is_set()

    def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """Every bundle, including those that were added since; `ready`: only those that answer."""
        self._discover()
        with self._lock:
            entries = sorted(self._entries.items())
        rows = [_index_row(name, entry) for name, entry in entries]
        return [row for row in rows if row["state"] == READY or not ready]

    def drain(self) -> None:
        """From now on nothing is ready."""
        self._closing.set()

    def close(self, timeout: float | None = None) -> None:
        """Answer what was accepted, and close all models; `timeout`: seconds for each."""
        self.drain()
        with self._lock:
            models = [entry.model for entry in self._entries.values() if entry.model is not None]
            retirements = list(self._retirements)
        for model in models:
            model.close(timeout)
        for thread in retirements:
            thread.join(timeout)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            self._discover()
        if name not in self._entries:
            raise self._unknown(name)
        return self._entries[name]

    def _unknown(self, name: str) -> UnknownModelError:
        names = ", ".join(sorted(self._entries))
        return UnknownModelError(f"unknown model: `{name}` is not found; the models are {names}.")

    def _discover(self) -> None:
        """Enter the bundles that are at `path` now."""
        # The one bundle keeps the name that it had first, whatever its manifest says by now.
        if self._path in [entry.path for entry in self._entries.values()]:
            return
        for name, path in _bundles(self._path):
            with self._lock:
                self._entries.setdefault(name, Entry(path))


def _bundles(path: Path) -> Iterator[tuple[str, Path]]:
    """The names and paths of the bundles at `path`."""
    if path.is_file():
        yield path.stem, path
    elif (path / MANIFEST).is_file():
        yield Manifest.read(path).name, path
    elif path.is_dir():
        for folder in sorted(path.iterdir()):
            if (folder / MANIFEST).is_file() and not folder.name.startswith("."):
                yield folder.name, folder


def _index_row(name: str, entry: Entry) -> dict[str, Any]:
    state = UNAVAILABLE if entry.model is None else READY
    return {"name": name, "version": VERSION, "state": state, "reason": entry.reason}
