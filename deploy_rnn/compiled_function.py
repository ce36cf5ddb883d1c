"""`CompiledFunction`: one graph for each kind of call, each compared with the model at its first call."""

import copy
import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.fx.experimental import _config as shape_config

from deploy_rnn.compiled_checks import ExpectedCall, check_gradients
from deploy_rnn.errors import CompilationError
from deploy_rnn.model_errors import warn_user

Backend = Callable[[torch.fx.GraphModule, Sequence[Any]], Callable[..., Any]]
"""Compiles a graph of torch.compile."""


class CompiledFunction:
    """A function compiled in one graph for each kind of call, as far as torch's limit on compilations goes.

    A kind of call is, for example, one row without gradients and with states. Of kinds beyond the limit, calls run
    uncompiled.

    Args:
        function: what is compiled.
        backend: compiles a graph.
        checked_by: the model that the function calls, to compare the first call of each graph with; None for no
            comparison.
    """

    def __init__(
        self, function: Callable[..., Any], backend: Backend, checked_by: nn.Module | None = None
    ) -> None:
        self._model = checked_by
        self._compile_graph = backend
        # A kind of call is compiled and compared by one thread, while others wait for it.
        self._lock = threading.RLock()
        self._thread = _OfThread()
        function = _with_code_of_its_own(self._refusing(function))
        self._compiled = torch.compile(
            function, fullgraph=True, dynamic=True, backend=self._compile_graph_unproven
        )
        # The same, but what is not compiled yet runs uncompiled.
        self._compiled_so_far = torch._dynamo.run(function)
        self._limit_reached = 0
        self._has_fixed_numbers = False

    def _refusing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which torch.compile reads; it refuses to run uncompiled where that is not wanted."""
        thread = self._thread

        def refusing(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling() and thread.only_proven:
                raise _NotCompiledYetError
            return function(*args, **kwargs)

        return refusing

    def _compile_graph_unproven(
        self, graph: torch.fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        if self._model is None:
            return self._compile_graph(graph, example_inputs)
        # What compiles it may change it.
        kept = copy.deepcopy(graph) if torch.is_grad_enabled() else None
        return _Graph(self._compile_graph(graph, example_inputs), kept, self._thread).run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Where it is compiled, this takes less time than to ask torch.compile, which prepares for compiling each time.
        is_known = True
        try:
            return self._call_proven(args, kwargs)
        except _NotCompiledYetError:
            is_known = False
        except _NotProvenYetError:
            pass
        if not is_known and self._is_at_limit():
            return self._compiled_so_far(*args, **kwargs)
        with self._lock:
            try:
                # Another thread may have compiled it in the meantime.
                return self._call_proven(args, kwargs)
            except (_NotCompiledYetError, _NotProvenYetError):
                pass
            return self._first_call(args, kwargs)

    def _call_proven(self, args: Any, kwargs: Any) -> Any:
        """Run a call by a graph that has been compared, or else raise one of the two errors below."""
        self._thread.only_proven = True
        try:
            return self._compiled_so_far(*args, **kwargs)
        finally:
            self._thread.only_proven = False

    def _first_call(self, args: Any, kwargs: Any) -> Any:
        """Compile a kind of call, and compare it."""
        _refuse_saved_tensors_hooks()
        if self._model is None:
            return self._compile(args, kwargs)
        expected = ExpectedCall(self._model, args, kwargs)
        self._thread.graphs = []
        result = self._compile(args, kwargs)
        # None beyond the limit, or where torch.compile is switched off.
        graphs = self._thread.graphs
        if graphs:
            try:
                expected.compare(self._model, args, kwargs, result)
            except CompilationError as error:
                for graph in graphs:
                    graph.refusal = str(error)
                raise
        for graph in graphs:
            graph.is_proven = True
        return result

    def _is_at_limit(self) -> bool:
        return torch._dynamo.config.recompile_limit <= self._limit_reached

    def _compile(self, args: Any, kwargs: Any) -> Any:
        if self._is_at_limit():
            return self._compiled_so_far(*args, **kwargs)
        try:
            return self._compile_within_limit(args, kwargs)
        except FailOnRecompileLimitHit:
            limit = self._limit_reached = torch._dynamo.config.recompile_limit
            warn_user(
                f"torch.compile has compiled this model for {limit} kinds of calls, which is its limit. Calls of "
                "other kinds run uncompiled: other dtypes, with or without gradients, states or lengths, one step "
                "or one row; in some models, every other number of steps. For more kinds, set "
                "torch._dynamo.config.recompile_limit."
            )
        return self._compiled_so_far(*args, **kwargs)

    def _compile_within_limit(self, args: Any, kwargs: Any) -> Any:
        # A hook that comes or goes later makes another kind of call.
        with NO_DUCK_SHAPES, torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            if not self._has_fixed_numbers:
                try:
                    return self._compiled(*args, **kwargs)
                except Exception as error:
                    # A loop of `scan` takes no number that is to be any, as are those that a module within it has, such
                    # as the eps of a norm: the code is then for the numbers of the call.
                    if "torch.SymFloat" not in str(error):
                        raise
                    self._has_fixed_numbers = True
            with torch._dynamo.config.patch(specialize_float=True):
                return self._compiled(*args, **kwargs)


def _refuse_saved_tensors_hooks() -> None:
    """Refuse to compile where hooks on what a backward pass needs are active: torch.compile fails, or they count twice.

    Raises:
        CompilationError: they are.
    """
    if torch.is_grad_enabled() and torch._C._autograd._top_saved_tensors_default_hooks(True):
        raise CompilationError(
            "the first call of a kind, which compiles, is within hooks on saved tensors, such as those of "
            "torch.utils.checkpoint with `use_reentrant=False`; call the model once outside of them, with gradients, "
            "and with arguments of the same kind."
        )


class _NotCompiledYetError(Exception):
    """A call of a kind for which there is no graph yet."""


class _NotProvenYetError(Exception):
    """A call of a kind whose graph has not been compared yet."""


class _OfThread(threading.local):
    """What a thread is doing.

    Attributes:
        only_proven: whether it wants nothing but graphs that have been compared.
        graphs: those it has run that have not been compared.
    """

    only_proven = False

    def __init__(self) -> None:
        self.graphs: list[_Graph] = []


class _Graph:
    """The compiled code of one kind of call, which nobody gets to run before it was compared, or after it was wrong.

    Attributes:
        is_proven: whether it was compared, and is right.
        refusal: why every call of it is refused; None if it has not been found wrong.

    Args:
        compiled: the code.
        graph: what it was made from, if it has gradients to compare.
        thread: the state of the thread that runs it.
    """

    def __init__(
        self, compiled: Callable[..., Any], graph: torch.fx.GraphModule | None, thread: _OfThread
    ) -> None:
        self.is_proven = False
        self.refusal: str | None = None
        self._compiled = compiled
        self._graph = graph
        self._thread = thread

    def run(self, *inputs: Any) -> Any:
        if not self.is_proven:
            self._begin_first_run(inputs)
        return self._compiled(*inputs)

    def _begin_first_run(self, inputs: Sequence[Any]) -> None:
        if self.refusal is not None:
            raise CompilationError(self.refusal)
        if self._thread.only_proven:
            raise _NotProvenYetError
        if self._graph is not None:
            try:
                check_gradients(self._graph, self._compiled, inputs)
            except CompilationError as error:
                self.refusal = str(error)
                raise
            self._graph = None
        self._thread.graphs.append(self)


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; torch.compile's limit on compilations is one for all functions that share their code."""
    code = function.__code__.replace()
    copied = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


class _NoDuckShapes:
    """While it is entered, torch.compile does not assume that sizes are one size because its first call has them equal.

    Otherwise T=5, B=5 compiles once, and T=5, B=7 again. It is a setting of the process, hence the count: several
    threads may be inside, and the last to leave restores the setting that was there before the first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads_inside = 0
        self._previous_setting = True

    def __enter__(self) -> None:
        with self._lock:
            if self._threads_inside == 0:
                self._previous_setting = shape_config.use_duck_shape
                shape_config.use_duck_shape = False
            self._threads_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads_inside -= 1
            if self._threads_inside == 0:
                shape_config.use_duck_shape = self._previous_setting


NO_DUCK_SHAPES = _NoDuckShapes()
