"""`scan`: a loop over time that stays a loop in compiled code and in files, whatever its step computes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch._subclasses.fake_tensor import is_fake
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deploy_rnn.errors import ExportError
from deploy_rnn.nn.scan import never, symbols, traced_scan

_IN_STEP: ContextVar[bool] = ContextVar("in_step", default=False)


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    states: Any,
    inputs: Any = None,
    *,
    length: int | None = None,
) -> tuple[Any, Any]:
    """Call `step` at each time step: it takes the states and the input of the step, and returns new states and outputs.

    The same as this loop, and differentiable like it:

        for t in range(T):
            states, output = step(states, inputs[t])
            outputs.append(output)
        return states, torch.stack(outputs)

    But `torch.compile` and `package` keep it a loop, so that one compilation or file serves every T, and `export_onnx`
    writes an ONNX `Scan`. The step may use what is around it: modules, and tensors such as the memory of an attention.
    In place of a branch on values it has `torch.where`; a row that has ended can keep its states so (docs/loops.md).
    With gradients, `torch.compile` writes out the steps, and compiles again for every other T; from the ninth T on,
    `deploy_rnn.compile` runs them uncompiled.

    Args:
        step: a function of (states, slices) that returns (states, outputs). New states have the structure, shapes and
            dtypes of the old. Outputs are a tensor, a tuple, list or dict of tensors, or None. It changes nothing in
            place.
        states: the first states: a tensor, or a tuple, list or dict of tensors of any dtype.
        inputs: what is walked over: tensors (T, ...) in a structure of the same kind; `slices` has a tensor (...) of
            each. None for a loop that feeds itself: `slices` is then None.
        length: T; required without inputs.

    Returns:
        The last states, and the outputs of all steps: each tensor (...) becomes (T, ...), None stays None.

    Raises:
        TypeError: a state or an input that is not a tensor; a step that does not return two values; a `length` that is
            not a whole number.
        ValueError: no states; T is 0, or not the same for all inputs; no `length` and no inputs; new states of another
            structure, shape or dtype than the old.
    """
    sequences, input_spec = pytree.tree_flatten(inputs)
    first_states, state_spec = pytree.tree_flatten(states)
    if inputs is None:
        sequences = []
    _check_tensors("states", first_states)
    _check_tensors("inputs", sequences)
    steps = _number_of_steps(sequences, length)

    def flat_step(
        old_states: Sequence[Tensor], slices: Sequence[Tensor]
    ) -> tuple[list[Tensor], Any]:
        step_inputs = None if inputs is None else pytree.tree_unflatten(list(slices), input_spec)
        result = step(pytree.tree_unflatten(list(old_states), state_spec), step_inputs)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"`step` must return two values, (states, outputs), got {_kind(result)}."
            )
        new_states, new_spec = pytree.tree_flatten(result[0])
        if new_spec != state_spec:
            raise ValueError(
                f"`step` must return states of the structure that it gets, {_kind(states)} of {len(first_states)} "
                f"tensors; got {_kind(result[0])} of {len(new_states)}."
            )
        _check_states(old_states, new_states)
        return new_states, result[1]

    is_dynamo = torch.compiler.is_dynamo_compiling()
    if is_dynamo:
        keeps_loop = not torch.is_grad_enabled()
    else:
        _note(sequences, first_states)
        keeps_loop = torch.compiler.is_exporting() and not _is_written_out(steps)
    if keeps_loop and steps != 1:
        last_states, outputs = _kept_loop(flat_step, first_states, sequences, steps)
    elif is_dynamo:
        last_states, outputs = _python_loop(flat_step, first_states, sequences, steps)
    else:
        with _flag(_IN_STEP):
            last_states, outputs = _python_loop(flat_step, first_states, sequences, steps)
    return pytree.tree_unflatten(last_states, state_spec), outputs


FlatStep = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[list[Tensor], Any]]


class LoopSizes(NamedTuple):
    """What one call of `scan` gets; the sizes are symbols while a model is traced.

    Attributes:
        steps: T; None for a loop that feeds itself.
        state: of the first state.
    """

    steps: Any
    state: tuple[Any, ...]

    @property
    def batch(self) -> Any:
        """The first axis of the state; the second of a state (L, B, H), whose first is a number. None for a state of no
        axes."""
        if len(self.state) != 3:
            return self.state[0] if self.state else None
        first, second, _ = self.state
        # A state (B, T, H) has something for each step. Sizes that are numbers may be equal by chance.
        is_steps = _is_open(self.steps) and str(second) == str(self.steps)
        return first if _is_open(first) or is_steps else second


_NOTED: ContextVar[list[LoopSizes] | None] = ContextVar("noted", default=None)


@contextmanager
def noted_loops() -> Iterator[list[LoopSizes]]:
    """A list that gets the sizes of each call of `scan` that is not within the step of another."""
    sizes: list[LoopSizes] = []
    token = _NOTED.set(sizes)
    try:
        yield sizes
    finally:
        _NOTED.reset(token)


def _note(sequences: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    noted = _NOTED.get()
    if noted is None or in_step():
        return
    steps: Any = sequences[0].size(0) if sequences else None
    noted.append(LoopSizes(steps, tuple(states[0].shape)))


def _is_open(size: Any) -> bool:
    """Whether a size is a symbol, and has not turned out to have one value."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def in_step() -> bool:
    """Whether this is called by the step of a loop; not known to torch.compile."""
    return _IN_STEP.get()


def _is_written_out(steps: Any) -> bool:
    """Whether torch.export writes out every step: of a loop within the step of another, whose number is known.

    Raises:
        ExportError: it is not known.
    """
    if in_step() and isinstance(steps, torch.SymInt):
        raise ExportError(
            "a `scan` within the step of another needs a fixed number of steps in a file: it is written out there. "
            "Leave that axis out of `dynamic_shapes`, or make one loop of both."
        )
    return in_step()


def _python_loop(
    flat_step: FlatStep, states: list[Tensor], sequences: Sequence[Tensor], steps: int
) -> tuple[list[Tensor], Any]:
    rows = [sequence.unbind(0) for sequence in sequences]
    collected: list[list[Any]] = []
    spec: Any = None
    for t in range(steps):
        states, outputs = flat_step(states, [row[t] for row in rows])
        leaves, new_spec = pytree.tree_flatten(outputs)
        if spec is None:
            spec = new_spec
            _check_tensors("outputs", [leaf for leaf in leaves if leaf is not None])
        elif new_spec != spec:
            raise ValueError(
                f"`step` must return outputs of one structure at every step; step {t} differs from the first."
            )
        collected.append(leaves)
    stacked = []
    for number, first in enumerate(collected[0]):
        of_steps = [leaves[number] for leaves in collected]
        stacked.append(None if first is None else torch.stack(of_steps))
    return states, pytree.tree_unflatten(stacked, spec)


def _kept_loop(
    flat_step: FlatStep, states: list[Tensor], sequences: list[Tensor], steps: int
) -> tuple[list[Tensor], Any]:
    """The same with PyTorch's `scan` operator, whose pitfalls `deploy_rnn.nn.scan` describes."""
    number_of_inputs = len(sequences)
    if not sequences:
        # The operator needs something to walk over.
        sequences = [torch.arange(steps, device=states[0].device)]
    first_slices = [sequence[0] for sequence in sequences[:number_of_inputs]]
    captured: list[Tensor] = []
    # What the step returns, and in a graph of torch.export also what it uses.
    if torch.compiler.is_dynamo_compiling():
        _, outputs = flat_step(states, first_slices)
    else:
        # Nothing of this call is to be in the graph.
        with _flag(_IN_STEP), disable_proxy_modes_tracing():
            # Others than the first states, which a step can also use as what they are.
            given_states = [state.view_as(state) for state in states]
            noted = _Captured([*given_states, *first_slices])
            with noted:
                _, outputs = flat_step(given_states, first_slices)
        captured = noted.tensors
    leaves, spec = pytree.tree_flatten(outputs)
    are_tensors = [leaf is not None for leaf in leaves]
    _check_tensors("outputs", [leaf for leaf in leaves if leaf is not None])

    def body(
        old_states: Sequence[Tensor], slices: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Copies, since the operator refuses a tensor that it has given, or that is returned twice."""
        new_states, outputs = flat_step(old_states, slices[:number_of_inputs])
        tensors = [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None]
        return [_copy(state) for state in new_states], [_copy(tensor) for tensor in tensors]

    if torch.compiler.is_dynamo_compiling():
        first_states = [_own_buffer(state, [*sequences, *states]) for state in states]
        # Copies, since the operator refuses two inputs in one memory: the step may use what it walks over, too.
        walked = [_copy(sequence) for sequence in sequences]
        sized = [state.new_empty(()).expand(state.shape) for state in states]
        last_states, stacked = traced_scan(body, first_states, walked, sized=sized)
    else:
        last_states, stacked = _exported(body, states, sequences, captured)
    of_tensors = iter(stacked)
    all_leaves = [next(of_tensors) if is_tensor else None for is_tensor in are_tensors]
    return list(last_states), pytree.tree_unflatten(all_leaves, spec)


def _exported(
    body: Callable[..., tuple[list[Tensor], list[Tensor]]],
    states: list[Tensor],
    sequences: list[Tensor],
    captured: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """In the graph of torch.export: the operator itself, which is given everything that its body uses."""
    number_of_states = len(states)
    end_of_slices = number_of_states + len(sequences)

    def flat_body(*args: Any) -> list[Tensor]:
        # After the captured tensors there are the sizes.
        given = args[end_of_slices:][: len(captured)]
        replaced = {id(tensor): new for tensor, new in zip(captured, given, strict=True)}
        with _flag(_IN_STEP), _Substituted(replaced):
            new_states, tensors = body(
                list(args[:number_of_states]), list(args[number_of_states:end_of_slices])
            )
        return [*new_states, *tensors]

    inits = [_with_known_sizes(_copy(state)) for state in states]
    walked = [_with_known_sizes(sequence) for sequence in sequences]
    # A tensor that no module registers, such as a weight in a dict, is a constant, and becomes one of the graph.
    used = [_with_known_sizes(tensor if is_fake(tensor) else tensor.clone()) for tensor in captured]
    given = _in_memory_apart([*walked, *used])
    walked, used = given[: len(walked)], given[len(walked) :]
    sizes: list[Any] = []
    for tensor in (*inits, *walked, *used):
        sizes += tensor.shape
    results = list(scan_op(flat_body, inits, walked, (*used, *symbols(sizes))))
    return results[:number_of_states], results[number_of_states:]


def _in_memory_apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, with a copy of each that shares its memory with one before it, as the parts of a `chunk` do: the
    operator refuses them."""
    apart: list[Tensor] = []
    for tensor in tensors:
        is_shared = any(
            torch._C._is_alias_of(tensor, other)  # type: ignore[attr-defined]
            for other in apart
        )
        apart.append(_copy(tensor) if is_shared else tensor)
    return apart


def _with_known_sizes(tensor: Tensor) -> Tensor:
    """The same tensor, with a number for each unknown size that has turned out to have one value."""
    sizes: list[Any] = list(tensor.shape)
    for axis, size in enumerate(sizes):
        number = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else None
        if number is not None:
            sizes[axis] = number
    is_known = all(isinstance(size, int) for size in tensor.shape)
    return tensor if is_known else tensor.view(sizes)


class _Captured(TorchFunctionMode):
    """Notes the tensors that a function uses without having been given them, or having made them.

    Attributes:
        tensors: in the order of their use, each once.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        # By id, with the tensor itself, whose id is then no other's.
        self._known = {id(tensor): tensor for tensor in known}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in _tensors((args, kwargs)):
            if id(leaf) not in self._known:
                self._known[id(leaf)] = leaf
                self.tensors.append(leaf)
        result = func(*args, **kwargs)
        for leaf in _tensors(result):
            self._known[id(leaf)] = leaf
        return result


class _Substituted(TorchFunctionMode):
    """Puts other tensors in the place of some, by their ids, wherever a function uses them."""

    def __init__(self, replaced: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._replaced = replaced

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda tensor: self._replaced.get(id(tensor), tensor), (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _flag(flag: ContextVar[bool]) -> Iterator[None]:
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _own_buffer(state: Tensor, data: Sequence[Tensor]) -> Tensor:
    """A first state that the compiler does not take for a constant: see `zeros` of `deploy_rnn.nn.scan`."""
    if state.dtype is torch.bool:
        return torch.logical_or(state, never(data[0]))
    return _copy(state + never(data[0]).to(state.dtype))


def _number_of_steps(sequences: Sequence[Tensor], length: Any) -> Any:
    """T, from the inputs or the length."""
    if length is not None and (isinstance(length, bool) or not hasattr(length, "__index__")):
        raise TypeError(f"`length` must be a whole number, got {length!r}.")
    if length is None and not sequences:
        raise ValueError("`scan` needs `inputs`, or a `length` for a loop that feeds itself.")
    for sequence in sequences:
        if sequence.dim() == 0:
            raise ValueError(
                "`inputs` must have the steps as their first axis; got a tensor of no axes."
            )
        if length is None:
            length = sequence.size(0)
        elif sequence.size(0) != length:
            raise ValueError(
                f"`inputs` must have as many steps as each other and as `length`: got {length} and {sequence.size(0)}."
            )
    if length <= 0:
        raise ValueError(f"`scan` needs at least one step, got {length}.")
    return length


def _check_tensors(name: str, leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"`{name}` must be tensors, got {_kind(leaf)}.")
    if name == "states" and not leaves:
        raise ValueError("`states` must have at least one tensor.")


def _check_states(old_states: Sequence[Tensor], new_states: Sequence[Any]) -> None:
    for number, (old, new) in enumerate(zip(old_states, new_states, strict=True)):
        if not isinstance(new, Tensor):
            raise TypeError(f"`step` must return tensors as states, got {_kind(new)}.")
        if new.dtype != old.dtype or new.dim() != old.dim() or new.shape != old.shape:
            raise ValueError(
                f"`step` must return states of the shapes and dtypes that it gets; state {number} was "
                f"{_described(old)} and became {_described(new)}."
            )


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _kind(value: Any) -> str:
    return type(value).__name__
