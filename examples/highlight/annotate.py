"""The standard library has hardly any annotations; today's code is full of them. Training reads each file with some."""

import random
import re

TYPES = (
    "int", "str", "float", "bool", "bytes", "object", "Any", "Path", "Tensor", "T", "Self", "np.ndarray", "nn.Module",
    "list[str]", "dict[str, int]", "tuple[int, ...]", "set[bytes]", "Sequence[float]", "Mapping[str, Any]",
    "Iterator[tuple[str, int]]", "Callable[..., None]", "Callable[[int], str]", "str | None", "int | str | None",
    "Path | str", "Optional[int]", "Union[str, bytes]", "type[Exception]", 'Literal["a", "b"]', '"Node"',
)  # fmt: skip

_DEF = re.compile(r"^(\s*def \w+\()([^():#\"'\n]*)\):", re.MULTILINE)
_ASSIGNMENT = re.compile(r"^(\s*(?:self\.)?\w+) = (?!.* = |.*[(,]$)", re.MULTILINE)


def annotate(source: str, seed: int) -> str:
    """Python source with made-up types on most one-line function heads and some assignments; one seed, one result."""
    drawn = random.Random(seed)

    def head(match: re.Match[str]) -> str:
        parameters = [_parameter(each, drawn) for each in match[2].split(",")]
        returns = f" -> {drawn.choice((*TYPES, 'None', 'None'))}" if drawn.random() < 0.8 else ""
        return f"{match[1]}{','.join(parameters)}){returns}:"

    def assignment(match: re.Match[str]) -> str:
        return f"{match[1]}: {drawn.choice(TYPES)} = " if drawn.random() < 0.1 else match[0]

    return _ASSIGNMENT.sub(assignment, _DEF.sub(head, source))


def _parameter(text: str, drawn: random.Random) -> str:
    name, equals, default = text.partition("=")
    if name.strip() in ("", "self", "cls", "*", "/") or drawn.random() < 0.2:
        return text
    return f"{name.rstrip()}: {drawn.choice(TYPES)}" + (f" = {default.strip()}" if equals else "")
