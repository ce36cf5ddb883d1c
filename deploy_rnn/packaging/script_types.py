"""The arguments and results of a model as TorchScript has them: their types, and the tensors within them."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from deploy_rnn.checking.structure import class_parts
from deploy_rnn.errors import ExportError
from deploy_rnn.packaging.script_values import constant_text


class Value:
    """A value that the text has a name for, in the place that it has within the results of a model."""

    def __init__(self, name: str, type_name: str) -> None:
        self.name = name
        self.type_name = type_name


def type_of(label: str, value: Any) -> str:
    """The type of an argument.

    Raises:
        ExportError: TorchScript has no such type.
    """
    if isinstance(value, Tensor):
        return "Tensor"
    if isinstance(value, Value):
        return value.type_name
    if value is None or isinstance(value, (bool, int, float, str)):
        return "None" if value is None else type(value).__name__
    if isinstance(value, tuple):
        return (
            f"Tuple[{', '.join(type_of(label, item) for item in value)}]" if value else "Tuple[()]"
        )
    if isinstance(value, list):
        return f"List[{_common_type(label, value)}]"
    if isinstance(value, dict):
        keys = {type(key).__name__ for key in value}
        if len(keys) == 1 and keys <= {"str", "int"}:
            return f"Dict[{keys.pop()}, {_common_type(label, [*value.values()])}]"
    raise ExportError(
        f"{label} has a {type(value).__name__}, for which TorchScript has no type; use tensors, or tuples, lists or "
        "dicts of one type of value."
    )


def _common_type(label: str, values: list[Any]) -> str:
    types = list(dict.fromkeys(type_of(label, value) for value in values))
    if len(types) > 1:
        raise ExportError(
            f"{label} has a list or a dict with values of several types ({', '.join(types)}), which TorchScript does "
            "not take; let a module around the model have the values as arguments, and make the list or the dict of "
            "them in its `forward`."
        )
    return types[0] if types else "Tensor"


def leaves(text: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each tensor, number or string within an argument, in the order of torch.export: -> how to get at it, itself."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(f"{text}[{key!r}]", item)
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from leaves(f"{text}[{number}]", item)
    else:
        yield text, value


def collections(text: str, value: Any) -> Iterator[tuple[str, int]]:
    """Each list and dict within an argument, whose length its type does not tell: -> how to get at it, its length."""
    if isinstance(value, dict):
        yield text, len(value)
        for key, item in value.items():
            yield from collections(f"{text}[{key!r}]", item)
    elif isinstance(value, (tuple, list)):
        if isinstance(value, list):
            yield text, len(value)
        for number, item in enumerate(value):
            yield from collections(f"{text}[{number}]", item)


def results_text(results: Any) -> str:
    """What a model returns, as an expression; a list or dict with values of several types becomes a tuple."""
    if isinstance(results, Value):
        return results.name
    parts = class_parts(results)
    if isinstance(results, Mapping) or parts is not None:
        items = dict(results) if parts is None else parts
        if _is_uniform(items):
            pairs = [f"{constant_text(key)}: {results_text(value)}" for key, value in items.items()]
            return f"{{{', '.join(pairs)}}}"
        return results_text(tuple(items.values()))
    if isinstance(results, list) and _is_uniform(results):
        return f"[{', '.join(results_text(value) for value in results)}]"
    if isinstance(results, (tuple, list)):
        # `(a,)` is a tuple of one.
        return f"({''.join(f'{results_text(value)}, ' for value in results)})"
    return constant_text(results)


def _is_uniform(results: Any) -> bool:
    """Whether TorchScript has a type for a list or a dict with these values."""
    try:
        type_of("", results)
    except ExportError:
        return False
    return bool(results)
