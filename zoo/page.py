"""docs/models.md, made from benchmarks/results/zoo.json: `python -m zoo.page`."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.reporting.text import machine_line
from deploy_rnn.files import replace_file

from . import PAGE, RESULT

WAYS = {
    "convert": "convert",
    "compile": "compile",
    "unrolled": "unrolled",
    "scan": "scan",
    "native": "native",
    "auto": "auto",
    "bundle": "bundle",
    "Engine": "Engine",
    ".pt2": ".pt2",
    ".pt": ".pt",
    "streaming": "stream",
}
"""Each way, and its column."""

NOT_APPLICABLE = (
    "is bidirectional, and cannot stream",
    "there is no recurrent layer",
    "form 'native' has no",
)
"""Parts of the reasons why a model cannot go a way, by its nature or by the format's."""

SUMMARY = {
    "auto": "are exported to ONNX, and right at other batch sizes and lengths.",
    "compile": "go through `deploy_rnn.compile`.",
    ".pt2": "become a `.pt2` file, which runs without Python.",
    ".pt": "become a `.pt` file: TorchScript, from the model's code, or from its graph where that is refused.",
    "streaming": "become a streaming file, of those that read from left to right.",
}
"""The ways at the top of the page."""

LONGEST = 420
"""Letters of a reason on the page; the JSON has all of it."""

Cell = Mapping[str, Any]


def load() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return result


def write_page() -> None:
    text = page(load())
    replace_file(PAGE, lambda new: new.write_text(text, encoding="utf-8"))


def verdict(cell: Cell | None) -> str:
    """What a cell says: "ok", "refused", "not applicable", or "not run"."""
    if cell is None:
        return "not run"
    if cell["goes"]:
        return "ok"
    reasons = [part for part in NOT_APPLICABLE if part in cell["message"]]
    return "not applicable" if reasons else "refused"


class Notes:
    """Reasons, numbered in the order in which they come; equal ones share a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        """The number of a reason, as a link to it."""
        number = self._numbers.setdefault(reason, len(self._numbers) + 1)
        return f"[{number}](#why-not)"

    def __str__(self) -> str:
        return "\n".join(f"{number}. {reason}" for reason, number in self._numbers.items())


def reason_of(message: str) -> str:
    """A refusal as the page shows it: one line, shortened where it is long."""
    line = " ".join(message.split())
    line = re.split(r" PyTorch says: ", line)[0]
    # One reason for all models, whatever they call their layer.
    line = re.sub(r"^`\S+` (?=is bidirectional, and cannot stream)", "A layer ", line)
    if len(line) > LONGEST:
        # What others print can be pages; our advice ends the message.
        line = f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 3 :].partition(' ')[2]}"
    # Markdown would take these as its own.
    return line.replace("<", "&lt;").replace("|", "\\|")


def page(result: dict[str, Any]) -> str:
    notes = Notes()
    rows = [_row(model, notes) for model in result["models"].values()]
    header = ["model", "open", *WAYS.values()]
    rule = ["---"] * len(header)
    table = "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])
    machine = machine_line(result).replace("Measured", "Run")
    return TEMPLATE.format(
        summary=summary(result),
        counts=counts(result),
        table=table,
        packages=_packages(result),
        commits=_commits(result),
        notes=notes,
        machine=machine,
    )


def summary(result: Mapping[str, Any]) -> str:
    """How many models go the ways that most people want, as a list."""
    models = result["models"].values()
    lines = []
    for way, words in SUMMARY.items():
        verdicts = Counter(verdict(model["cells"].get(way)) for model in models)
        possible = len(models) - verdicts["not applicable"]
        lines.append(f"- {verdicts['ok']} of {possible} {words}")
    return "\n".join(lines)


def counts(result: Mapping[str, Any]) -> str:
    """How many models and cells there are, in a sentence."""
    models = result["models"].values()
    packages = {model["package"] for model in models}
    verdicts = [verdict(model["cells"].get(way)) for model in models for way in WAYS]
    parts = []
    for name in ("ok", "refused", "not applicable", "not run"):
        if name in verdicts:
            number = verdicts.count(name)
            parts.append(f"{number} {name} ({100 * number / len(verdicts):.0f} %)")
    cells = f"{len(verdicts)} cells: {', '.join(parts)}"
    return f"{len(models)} models of {len(packages)} packages, {cells}."


def _row(model: Mapping[str, Any], notes: Notes) -> list[str]:
    cells = model["cells"]
    title = f"**{model['package']}** {model['title']}: {model['about']}"
    return [title, _open_axes(cells), *(_text(cells.get(way), notes) for way in WAYS)]


def _open_axes(cells: Mapping[str, Cell]) -> str:
    """The axes that a file leaves open."""
    for way in ("scan", "native", "unrolled"):
        cell = cells.get(way)
        if cell and cell["goes"] and cell["open"] is not None:
            return ", ".join(cell["open"]) or "none"
    return ""


def _text(cell: Cell | None, notes: Notes) -> str:
    kind = verdict(cell)
    if cell is None:
        return "?"
    if kind == "ok":
        return "ok"
    sign = "-" if kind == "not applicable" else "no"
    return f"{sign} {notes.mark(reason_of(cell['message']))}"


def _commits(result: Mapping[str, Any]) -> str:
    """How many cells come from which commit of the library, the most first."""
    commits = Counter(
        cell.get("commit", "an unknown one")
        for model in result["models"].values()
        for cell in model["cells"].values()
    )
    return ", ".join(f"{commit} ({count} cells)" for commit, count in commits.most_common())


def _packages(result: Mapping[str, Any]) -> str:
    versions = {model["package"]: model["version"] for model in result["models"].values()}
    return ", ".join(f"{name} {versions[name]}" for name in sorted(versions, key=str.lower))


TEMPLATE = """\
# Models that were tried

Is it for you? These are models of public packages, as their authors ship them, sent every way out of PyTorch:

{summary}

{counts} Where a model is refused, it is with a reason and before anything is written: no cell is a wrong number.
Models are chosen for being used, not for passing, and none is left out because it fails.

`make zoo` installs the packages at the pinned versions, runs every model in a process of its own, and writes this page
from `benchmarks/results/zoo.json`. Nothing on it is written by hand.

- **ok**: it went, and gave PyTorch's numbers on the example and at other sizes of every axis that is open.
- **no**: it was refused, and no file was left. The number leads to the message.
- **-**: there is no such thing for this model, for the reason at the number.
- **?**: not run yet; `make zoo` runs what is missing.
- **open** has the axes that a file leaves dynamic: B is the batch, T the steps. `unrolled` always fixes T.

`deploy-rnn check` tries the same on a model of yours.

{table}

## The columns

| column | what is done |
|---|---|
| convert, compile | `deploy_rnn.convert` and `deploy_rnn.compile`, called on the example and on other sizes |
| unrolled, scan, native, auto | `export_onnx` in that form, with its check |
| bundle | `export_bundle`, and each answer of an `Engine` on it |
| Engine | the file of `auto` in an `Engine`, at other B and T than the example's |
| .pt2, .pt | `package`, with its check |
| stream | `export_onnx(streaming=True)`, which is run in random chunks, too |

## How it was done

**Sizes.** A model is made by its package's own class or function, with random weights unless the wheel carries some.
Where the default is large, it has fewer units and layers. Some rows are a part of a larger model, such as its encoder,
and some have a few lines around them that take tensors where the package takes something else. The example has one to
three rows of 5 to 20 steps, or a waveform of 64 to 8,000 samples. [zoo/models.py]({source}) has each.

**Numbers.** Every output is compared with PyTorch's, element by element: the difference may be 1e-5 of its size
(absolute below 1), or ten times PyTorch's own distance from float64 where that is more.
[When is a file correct?](verification.md) says why.

**A model of yours.** Add one function to [zoo/models.py]({source}) that returns the model and example arguments,
with `@model(package, title, about)` above it, and its package to `zoo/requirements.txt`. `make zoo MODELS=name` runs
that one.

**Versions.** The library at the commits {commits}: a model is run again where a change of the library concerns it.
Packages: {packages}. {machine}

## Why not?

The messages, as they are printed, some shortened where `[...]` stands.

{notes}
""".replace("{source}", "../zoo/models.py")


if __name__ == "__main__":
    write_page()
