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

# How often a replaced model is asked whether its last stream has ended, in seconds: it only delays giving back memory.
STREAMS_CHECKED_EVERY = 0.5


@dataclass
class Entry:
    """A name that is or was served.

    Attributes:
        path: the bundle.
        model: what answers now; None if unloaded.
        retiring: what answered before, and still holds streams or finishes what it accepted.
        reason: why it is not loaded, or why the last attempt to replace it failed.
        loading: held while a model is being made of it.
    """

    path: Path
    model: ServedModel | None = None
    retiring: list[ServedModel] = field(default_factory=list)
    reason: str = ""
    loading: threading.Lock = field(default_factory=threading.Lock)


class Repository:
    """The bundles at `path`: one bundle, one .onnx file, or a folder of bundles, each by the name of its folder.

    Thread-safe. `load` and `close` take time; everything else answers at once.

    Args:
        make: path, name -> a loaded model.
        limits: what `make` gives to each.

    Raises:
        BundleError: there is no bundle at `path`.
    """

    def __init__(
        self, path: str | Path, make: Callable[[Path, str], ServedModel], limits: Limits | None = None
    ) -> None:
        self._path, self._make, self.limits = Path(path), make, limits or Limits()
        self._lock = threading.Lock()
        self._loaded, self._closing = threading.Event(), threading.Event()
        self._retirements: list[threading.Thread] = []
        self._entries: dict[str, Entry] = {}
        self._look()
        if not self._entries:
            raise BundleError(f"{str(path)!r} has no bundle: give one, an .onnx file, or a folder of bundles.")

    def load_all(self) -> None:
        """Raises: DeployError: a model that cannot be loaded."""
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
        """What the model has accepted is still answered.

        Raises:
            UnknownModelError: there is no such bundle.
        """
        entry = self._entry(name)
        with entry.loading:
            self._replace(entry, None, "unloaded")

    def _replace(self, entry: Entry, model: ServedModel | None, reason: str = "") -> None:
        with self._lock:
            closed = self._closing.is_set()
            if not closed:
                old, entry.model, entry.reason = entry.model, model, reason
                if old is not None:
                    self._retire(entry, old, keep_streams=model is not None)
        if closed and model is not None:
            model.close()

    def _retire(self, entry: Entry, model: ServedModel, *, keep_streams: bool) -> None:
        entry.retiring.append(model)
        thread = threading.Thread(target=self._finish, args=(entry, model, keep_streams), daemon=True)
        self._retirements = [each for each in self._retirements if each.is_alive()] + [thread]
        thread.start()

    def _finish(self, entry: Entry, model: ServedModel, keep_streams: bool) -> None:
        while keep_streams and model.statistics().streams and not self._closing.wait(STREAMS_CHECKED_EVERY):
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
            raise UnknownModelError(f"unknown model: `{name}` is not found; {self._known()}")
        model = entry.model
        if model is None:
            raise UnknownModelError(f"unknown model: `{name}` is not loaded{entry.reason and f' ({entry.reason})'}.")
        if version not in ("", VERSION):
            raise UnknownModelError(f"`{name}` has no version {version!r}; it has {VERSION!r}.")
        return model

    def submit(self, name: str, version: str, request: Request) -> "Future[Response]":
        """Ask the model, or, in the middle of a stream, the one that holds it.

        Raises:
            UnknownModelError: as for `model`.
            InputError, StreamError, BusyError, ClosedError: as `Model.submit`.
        """
        while True:
            model = self._holder(name, version, request)
            try:
                return model.submit(request)
            except ClosedError:  # it was replaced in between
                if self._closing.is_set() or self._holder(name, version, request) is model:
                    raise

    def _holder(self, name: str, version: str, request: Request) -> ServedModel:
        current = self.model(name, version)
        if request.sequence is None or request.start or current.holds(request.sequence):
            return current
        with self._lock:
            retiring = list(self._entries[name].retiring)
        return next((model for model in reversed(retiring) if model.holds(request.sequence)), current)

    def models(self) -> Iterator[ServedModel]:
        """Those that answer."""
        with self._lock:
            found = [entry.model for _, entry in sorted(self._entries.items())]
        return iter([model for model in found if model is not None])

    def ready(self) -> bool:
        """Whether all models have been loaded, and the server is not about to stop."""
        return self._loaded.is_set() and not self._closing.is_set()

    def stopping(self) -> bool:
        """Whether the server has been told to stop."""
        return self._closing.is_set()

    def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """Every bundle, those that came since included; `ready`: only those that answer."""
        self._look()
        with self._lock:
            entries = sorted(self._entries.items())
        found = [_indexed(name, entry) for name, entry in entries]
        return [each for each in found if each["state"] == READY or not ready]

    def drain(self) -> None:
        """From now on nothing is ready."""
        self._closing.set()

    def close(self, timeout: float | None = None) -> None:
        """Answer what was accepted, and let go of all models."""
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
            self._look()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownModelError(f"unknown model: `{name}` is not found; {self._known()}") from None

    def _known(self) -> str:
        return f"the models are {', '.join(sorted(self._entries))}."

    def _look(self) -> None:
        """Enter the bundles that are at `path` now; a name stays, even if the one bundle is given another."""
        if self._path in [entry.path for entry in self._entries.values()]:
            return
        for name, path in _bundles(self._path):
            with self._lock:
                self._entries.setdefault(name, Entry(path))


def _bundles(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.stem, path
    elif (path / MANIFEST).is_file():
        yield Manifest.read(path).name, path
    elif path.is_dir():
        for folder in sorted(path.iterdir()):
            if (folder / MANIFEST).is_file() and not folder.name.startswith("."):
                yield folder.name, folder


def _indexed(name: str, entry: Entry) -> dict[str, Any]:
    state = UNAVAILABLE if entry.model is None else READY
    return {"name": name, "version": VERSION, "state": state, "reason": entry.reason}
