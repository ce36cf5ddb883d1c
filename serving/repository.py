"""The models of a server by name: loaded, replaced while they answer, and unloaded."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy_rnn.bundle import MANIFEST, Manifest
from deploy_rnn.errors import (
    BundleError,
    BusyError,
    ClosedError,
    StreamError,
    UnknownModelError,
)

from .loads import Loads, give_memory_back
from .scheduling.limits import Limits
from .scheduling.request import Request, Response
from .scheduling.served_model import ServedModel
from .scheduling.streams import MAX_REASONS

VERSION = "1"
"""The version of every model: a folder holds one. Clients may name it or leave it out."""

READY = "READY"
LOADING = "LOADING"
UNAVAILABLE = "UNAVAILABLE"

RESTARTED = "was started again"
"""Why a stream has ended that another model has begun anew."""

MAX_SHOWN_NAME = 200
"""Characters of a name that a client asks for, in a message."""

STREAM_POLL_SECONDS = 0.5
"""How often a replaced model is asked whether its last stream has ended: it only delays giving back memory."""


@dataclass
class Entry:
    """A name that is or was served.

    Attributes:
        path: the bundle.
        model: what answers now; None if not loaded.
        retiring: what answered before, oldest first, and still holds streams or finishes what it accepted.
        reason: why it is not loaded, or why the last attempt to replace it failed.
        ended: streams that ended with a model that was replaced or unloaded -> why; the latest of them.
        unreadable: requests for it that no protocol could read.
    """

    path: Path
    model: ServedModel | None = None
    retiring: list[ServedModel] = field(default_factory=list)
    reason: str = ""
    ended: OrderedDict[int | str, str] = field(default_factory=OrderedDict)
    unreadable: int = 0


class Repository:
    """The bundles at `path`: one bundle, one .onnx file, or a folder of bundles, each by the name of its folder.

    Thread-safe. `load`, `load_all` and `close` take time; everything else returns at once.

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
        self._loads = Loads(self._load)
        self._loaded = threading.Event()
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards what follows, and the fields of every entry
        self._retirements: list[threading.Thread] = []
        self._entries: dict[str, Entry] = {}
        self._discover()
        if not self._entries:
            raise no_bundle(self._path)

    def load_all(self) -> None:
        """Load every bundle.

        Raises:
            DeployError: a model cannot be loaded; the first by name.
            ClosedError: the server stopped first.
        """
        loads = [self.start_load(name) for name in list(self._entries)]
        for load in loads:
            load.result()
        self._loaded.set()

    def load(self, name: str) -> None:
        """`start_load`, and wait; a load that fails raises its error here."""
        self.start_load(name).result()

    def start_load(self, name: str) -> "Future[None]":
        """Begin to load a model, or to replace it: the new one takes over once it is ready, and the old one keeps its
        streams until they end.

        The bundle is read as it is now, or later: while the model is being loaded already, it is loaded once more after
        that, for all who ask meanwhile. The future gets the error if it cannot be loaded (what was loaded before goes
        on), if it is unloaded meanwhile, or if the server stops.

        Raises:
            UnknownModelError: there is no such bundle.
        """
        self._entry(name)
        return self._loads.ask(name)

    def unload(self, name: str) -> None:
        """Unload a model, and end its streams and those of the models that it replaced; what they have accepted is
        still answered. A load that has not ended is given up.

        Raises:
            UnknownModelError: there is no such bundle.
        """
        entry = self._entry(name)
        with self._lock:
            self._loads.give_up(
                name,
                UnknownModelError(f"`{name}` was unloaded before it was loaded; load it again."),
            )
            self._replace(entry, None, "unloaded")
            retiring = list(entry.retiring)
        for model in retiring:
            self._end_streams(entry, model, "was ended: its model was unloaded; start it again")

    def _made(self, path: Path, name: str) -> ServedModel:
        try:
            return self._make(path, name)
        except FileNotFoundError:
            raise BundleError(f"the bundle of `{name}` is not there any more.") from None

    def _load(self, name: str, wanted: Callable[[], bool]) -> None:
        """Load a model in the thread that is calling, and let it take over if it is still wanted."""
        entry = self._entries[name]
        try:
            model = self._made(entry.path, name)
        except Exception as error:
            with self._lock:
                if wanted():
                    entry.reason = str(error) or type(error).__name__
            raise
        with self._lock:
            takes_over = wanted()
            if takes_over:
                self._replace(entry, model, "")
        if not takes_over:
            model.close()

    def _replace(self, entry: Entry, model: ServedModel | None, reason: str) -> None:
        """Let a model take over, or none; the lock is held."""
        old = entry.model
        # First: whom the old model refuses is sent to the one that is there then.
        entry.model = model
        entry.reason = reason
        if old is not None:
            self._retire(entry, old)

    def _retire(self, entry: Entry, model: ServedModel) -> None:
        """Close a model once its streams have ended; the lock is held."""
        entry.retiring.append(model)
        # A thread keeps its arguments: the list is emptied, so that nothing holds the model in the end.
        thread = threading.Thread(target=self._release, args=(entry, [model]), daemon=True)
        running = [retirement for retirement in self._retirements if retirement.is_alive()]
        self._retirements = [*running, thread]
        thread.start()

    def _release(self, entry: Entry, models: list[ServedModel]) -> None:
        self._close_retired(entry, models.pop())
        give_memory_back()

    def _close_retired(self, entry: Entry, model: ServedModel) -> None:
        try:
            model.retire()
            self._keep_few(entry)
            while model.statistics().streams and not self._closed.wait(STREAM_POLL_SECONDS):
                pass
            model.close()
            self._remember(entry, model.ended_streams())
        finally:
            with self._lock:
                entry.retiring.remove(model)

    def _keep_few(self, entry: Entry) -> None:
        """End the streams of the oldest replaced models, if more than a few are kept for their streams."""
        with self._lock:
            retiring = list(entry.retiring)
        kept = [model for model in retiring if model.statistics().streams]
        for model in kept[: -self.limits.max_replaced]:
            reason = (
                "was ended: its model was replaced, and of replaced models only the latest "
                f"{self.limits.max_replaced} are kept for their streams; start it again"
            )
            self._end_streams(entry, model, reason)

    def _end_streams(self, entry: Entry, model: ServedModel, reason: str) -> None:
        """End all streams of a model, and remember why."""
        names = model.end_streams(reason)
        self._remember(entry, dict.fromkeys(names, reason))

    def _remember(self, entry: Entry, ended: Mapping[int | str, str]) -> None:
        """Remember why streams have ended, for clients that go on after their model has been closed."""
        with self._lock:
            for name, reason in ended.items():
                if reason != RESTARTED:
                    entry.ended[name] = reason
                    entry.ended.move_to_end(name)
            while len(entry.ended) > MAX_REASONS:
                entry.ended.popitem(last=False)

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model that answers.

        Raises:
            UnknownModelError: it is not there, not loaded, or has no such version.
            BusyError: it is being loaded.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise self._unknown(name)
        # Read once: it may be replaced at any moment.
        model = entry.model
        if model is None and name in self._loads:
            raise BusyError(f"`{name}` is being loaded; try again later.")
        if model is None:
            reason = f" ({entry.reason})" if entry.reason else ""
            raise UnknownModelError(f"unknown model: `{name}` is not loaded{reason}.")
        if version not in ("", VERSION):
            raise UnknownModelError(f"`{name}` has no version {version!r}; it has {VERSION!r}.")
        return model

    def submit(self, name: str, version: str, request: Request) -> "Future[Response]":
        """Ask the model, or, in the middle of a stream, the one that holds it.

        Raises:
            UnknownModelError, BusyError: as for `model`.
            StreamError: the stream has ended together with its model.
            InputError, StreamError, BusyError, ClosedError: as for `ServedModel.submit`.
        """
        while True:
            model = self._holder(name, version, request)
            try:
                future = model.submit(request)
            except ClosedError:
                # It may have been replaced since it was looked up; then the next one is asked.
                if self._closing.is_set() or self._holder(name, version, request) is model:
                    raise
            else:
                if request.sequence is not None and request.start:
                    self._end_elsewhere(self._entries[name], model, request.sequence)
                return future

    def count_unreadable(self, name: str) -> None:
        """Count a request for a model that was not given to it, since a protocol could not read it."""
        with self._lock:
            self._entries[name].unreadable += 1

    def unreadable(self) -> dict[str, int]:
        """Name of each model that answers -> how many requests for it could not be read."""
        with self._lock:
            entries = sorted(self._entries.items())
            return {name: entry.unreadable for name, entry in entries if entry.model is not None}

    def _holder(self, name: str, version: str, request: Request) -> ServedModel:
        """The model that holds the stream of a request; the current one if none does, or if the stream begins anew."""
        current = self.model(name, version)
        sequence = request.sequence
        begins = request.start and not self.limits.refuse_restart
        if sequence is None or begins or current.holds(sequence):
            return current
        entry = self._entries[name]
        with self._lock:
            retiring = list(entry.retiring)
        for model in reversed(retiring):
            if model.holds(sequence):
                return model
        reason = entry.ended.get(sequence)
        if reason is not None and not request.start:
            raise StreamError(f"stream {sequence!r} {reason}.")
        # No model holds it: the current one says so to the client.
        return current

    def _end_elsewhere(self, entry: Entry, model: ServedModel, sequence: int | str) -> None:
        """`model` has begun a stream: an earlier one of its name, which a replaced model holds, has ended."""
        with self._lock:
            entry.ended.pop(sequence, None)
            others = [retiring for retiring in entry.retiring if retiring is not model]
        for other in others:
            other.end_streams(RESTARTED, sequence)

    def models(self) -> Iterator[ServedModel]:
        """The models that answer, by name."""
        with self._lock:
            models = [entry.model for _, entry in sorted(self._entries.items())]
        return iter([model for model in models if model is not None])

    def replaced(self) -> dict[str, list[ServedModel]]:
        """Name -> the models that were replaced or unloaded, and still hold streams or answer what they accepted."""
        with self._lock:
            return {name: list(entry.retiring) for name, entry in sorted(self._entries.items())}

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
        rows = [_index_row(name, entry, name in self._loads) for name, entry in entries]
        return [row for row in rows if row["state"] == READY or not ready]

    def drain(self) -> None:
        """From now on nothing is ready, and loads that have not ended are given up."""
        self._closing.set()
        self._loads.close()

    def wait_for_loads(self, seconds: float) -> bool:
        """Wait until no model is being loaded, for at most `seconds`; return whether none is."""
        return self._loads.wait(seconds)

    def close(self, timeout: float | None = None) -> None:
        """Answer what was accepted, and close all models; `timeout`: seconds for all of them together."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        self.drain()
        # Until now, streams of replaced models went on like all others.
        self._closed.set()
        with self._lock:
            models = [entry.model for entry in self._entries.values() if entry.model is not None]
            retirements = list(self._retirements)
        for model in models:
            model.close(_seconds_until(ends_at))
        for thread in retirements:
            thread.join(_seconds_until(ends_at))

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            self._discover()
        if name not in self._entries:
            raise self._unknown(name)
        return self._entries[name]

    def _unknown(self, name: str) -> UnknownModelError:
        names = ", ".join(sorted(self._entries))
        asked = name[:MAX_SHOWN_NAME]
        return UnknownModelError(f"unknown model: `{asked}` is not found; the models are {names}.")

    def _discover(self) -> None:
        """Enter the bundles that are at `path` now."""
        # The one bundle keeps the name that it had first, whatever its manifest says by now.
        if self._path in [entry.path for entry in self._entries.values()]:
            return
        try:
            bundles = list(find_bundles(self._path))
        except BundleError:
            # The folder is being replaced, or is gone: what was known of it stays.
            if not self._entries:
                raise
            return
        for name, path in bundles:
            with self._lock:
                self._entries.setdefault(name, Entry(path))


def _seconds_until(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - time.monotonic())


def find_bundles(path: Path) -> Iterator[tuple[str, Path]]:
    """The names and paths of the bundles at `path`. What may not be looked at, such as `lost+found`, is none.

    Raises:
        BundleError: the folder at `path` cannot be read, or the bundle there has a name that HTTP cannot carry.
    """
    if _is_file(path):
        yield _sendable(path.stem), path
    elif _is_file(path / MANIFEST):
        yield _checked_name(Manifest.read(path).name, path), path
    elif path.is_dir():
        for folder in _folders(path):
            if _is_file(folder / MANIFEST) and not folder.name.startswith("."):
                yield _sendable(folder.name), folder


def no_bundle(path: Path) -> BundleError:
    """What is wrong with a path at which `find_bundles` finds none."""
    return BundleError(
        f"there is no bundle at {str(path)!r}; it must be a bundle, an .onnx file, or a folder of bundles."
    )


def _checked_name(name: str, path: Path) -> str:
    """
    Raises:
        BundleError: a client could not name it in a path of HTTP.
    """
    if "/" in name:
        raise BundleError(
            f"{str(path)!r} has the name {name[:MAX_SHOWN_NAME]!r} in its manifest; must be one without '/', which no "
            "path of HTTP can carry."
        )
    return name


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise BundleError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # of a folder that others may not enter
        return False


def _sendable(name: str) -> str:
    """A name that a protocol can carry: bytes of a file name that are not UTF-8 become such as "\\xff"."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _index_row(name: str, entry: Entry, loading: bool) -> dict[str, Any]:
    state = UNAVAILABLE
    reason = entry.reason
    if entry.model is not None:
        state = READY
    elif loading:
        state = LOADING
        reason = ""
    return {"name": name, "version": VERSION, "state": state, "reason": reason}
