"""docs/runtimes.md, made from benchmarks/results/runtimes.json: `python -m benchmarks.runtimes.page`."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.reporting.text import machine_line
from deploy_rnn.files import replace_file

from . import PAGE, RESULT
from .files import FAMILIES, HIGHLIGHTER_WAYS, KINDS, WAYS

RIGHT, REFUSED, WRONG, PARTLY = "right", "refused", "**WRONG**", "partly"

HEAD = """# Runtimes: which one takes which file

{files} files were written in `export_onnx`'s forms, and run in {runtimes} runtimes: {inputs:,} runs. Every output was
compared with PyTorch's as [the check](verification.md) does it. The files are four families (RNN with tanh and relu,
GRU, LSTM), each as a plain layer, as a tagger (tokens to scores, whose final states nobody uses), with lengths (all of
these have two layers of two directions), and streaming (two layers, states in and out); and the
[highlighter](../examples/highlight). `make runtimes-table` installs the runtimes, runs all of it again, and writes this
page.

**right**: in every run. **refused**: the runtime says that it cannot, which costs time only. **WRONG**: other numbers,
and no error. **partly**: right at some sizes, refused at others. A cell that names no family is for all four.

`native, held` is form `native` with [row_ends="held"](forms.md#lengths-in-form-native). `portable` files were written
with [portable=True](forms.md#for-runtimes-of-fewer-operators).

**Every WRONG of this page is refused by name** before a run, by `export_onnx(..., runtime=...)` and `verify`, with what
to use instead, and shown by `deploy-rnn inspect` ([faults.py](../export/runtimes/faults.py)); a test holds the page
against that table, and that nothing which is right here is refused. `verify` finds what else may be wrong.
[Wrong results, for their makers](upstream.md) has a script for each.

{machine}
"""

Outcome = Mapping[str, Any]


def load() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return result


def write_page() -> None:
    text = page(load())
    replace_file(PAGE, lambda new: new.write_text(text, encoding="utf-8"))


def verdict(outcome: Outcome) -> str:
    """One word for a file in a runtime."""
    if outcome["wrong"]:
        return WRONG
    if outcome["refused"]:
        return PARTLY if outcome["right"] else REFUSED
    return RIGHT


def page(result: Mapping[str, Any]) -> str:
    runtimes = result["runtimes"]
    head = HEAD.format(
        files=len(result["files"]),
        runtimes=len(runtimes),
        inputs=len(runtimes) * sum(facts["cases"] for facts in result["files"].values()),
        machine=machine_line(dict(result)),
    )
    parts = [head, summary(result)]
    for name, runtime in runtimes.items():
        parts.append(section(name, runtime, result["files"]))
    return "\n".join(parts)


def summary(result: Mapping[str, Any]) -> str:
    """A row for each runtime: what it does with each way to write a file, plain and with lengths."""
    lines = [f"| runtime | {' | '.join(WAYS)} | highlighter |", f"|---|{'---|' * (len(WAYS) + 1)}"]
    for name, runtime in result["runtimes"].items():
        cells = []
        for way in WAYS:
            verdicts = [
                verdict(runtime["outcomes"][file])
                for file, facts in result["files"].items()
                if facts["way"] == way and facts["family"] in FAMILIES
            ]
            cells.append(_counted(verdicts))
        verdicts = [
            verdict(runtime["outcomes"][file])
            for file, facts in result["files"].items()
            if facts["family"] == "highlighter"
        ]
        title = f"[{runtime['title']}](#{name}) {runtime['version']}"
        lines.append(f"| {title} | {' | '.join(cells)} | {_counted(verdicts)} |")
    return "\n".join(
        [
            "## At a glance",
            "",
            "Files that are right, of all; and how many are WRONG.",
            "",
            *lines,
            "",
        ]
    )


def _counted(verdicts: list[str]) -> str:
    wrong = verdicts.count(WRONG)
    text = f"{verdicts.count(RIGHT)} of {len(verdicts)}"
    return f"{text}, **{wrong} WRONG**" if wrong else text


def section(name: str, runtime: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    lines = [f'<a id="{name}"></a>', "", f"## {runtime['title']} {runtime['version']}", ""]
    lines += [f"| form | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    notes: list[str] = []
    for way in WAYS:
        cells = []
        for kind in KINDS:
            outcomes = {
                facts["family"]: runtime["outcomes"][file]
                for file, facts in files.items()
                if (facts["way"], facts["kind"]) == (way, kind) and facts["family"] in FAMILIES
            }
            cells.append(_cell(outcomes, notes))
        lines.append(f"| {way} | {' | '.join(cells)} |")
    highlighter = []
    for way in HIGHLIGHTER_WAYS:
        outcome = runtime["outcomes"][f"highlighter-plain-{way}"]
        highlighter.append(f"{way} {_with_note(verdict(outcome), outcome, notes)}")
    lines += ["", f"The highlighter: {', '.join(highlighter)}.", ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join([*lines, ""])


def _cell(outcomes: Mapping[str, Outcome], notes: list[str]) -> str:
    """The verdicts of the families, those that share one joined."""
    if not outcomes:
        return "as native"
    groups: dict[str, list[str]] = {}
    for family, outcome in outcomes.items():
        groups.setdefault(_with_note(verdict(outcome), outcome, notes), []).append(family)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(families)} {text}" for text, families in groups.items())


def _with_note(text: str, outcome: Outcome, notes: list[str]) -> str:
    """The verdict, and the number of its reason."""
    reason = outcome["reason"].replace("|", "\\|").replace("<", "&lt;")
    if text == RIGHT or not reason:
        return text
    # The amount differs from file to file, and the largest is of no interest.
    if text == WRONG:
        return text
    if reason not in notes:
        notes.append(reason)
    return f"{text} ({notes.index(reason) + 1})"


if __name__ == "__main__":
    write_page()
