"""Made-up type annotations for the training data.

The standard library has hardly any annotations, while today's code is full of them.
"""

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
    """Add made-up types to most one-line function heads and some assignments; equal seeds give equal results."""
    random_state = random.Random(seed)

    def annotate_head(match: re.Match[str]) -> str:
        parameters = [
            _annotate_parameter(parameter, random_state) for parameter in match[2].split(",")
        ]
        returns = ""
        if random_state.random() < 0.8:
            returns = f" -> {random_state.choice((*TYPES, 'None', 'None'))}"
        return f"{match[1]}{','.join(parameters)}){returns}:"

    def annotate_assignment(match: re.Match[str]) -> str:
        if random_state.random() < 0.1:
            return f"{match[1]}: {random_state.choice(TYPES)} = "
        return match[0]

    with_heads = _DEF.sub(annotate_head, source)
    return _ASSIGNMENT.sub(annotate_assignment, with_heads)


def _annotate_parameter(text: str, random_state: random.Random) -> str:
    name, equals, default = text.partition("=")
    if name.strip() in ("", "self", "cls", "*", "/") or random_state.random() < 0.2:
        return text
    annotated = f"{name.rstrip()}: {random_state.choice(TYPES)}"
    return f"{annotated} = {default.strip()}" if equals else annotated
