"""docs/models.md is what benchmarks/results/zoo.json says; the zoo itself is run by `make zoo`."""

import re

import pytest

from zoo import PAGE, RESULT, ROOT
from zoo.models import MODELS
from zoo.page import WAYS, counts, load, page, reason_of, verdict


def test_the_page_is_made_from_the_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(load()) == text, f"{PAGE.name} differs from {RESULT.name}; run python -m zoo.page"


def test_every_package_is_pinned() -> None:
    lines = (ROOT / "zoo" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {_normal(line.partition("==")[0]): line.partition("==")[2] for line in lines[1:]}
    for model in load()["models"].values():
        assert pins[_normal(model["package"])] == model["version"], model["package"]


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_no_message_has_a_folder_of_this_machine() -> None:
    assert not re.search(r"/(?:home|root|tmp|usr)/", RESULT.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, "not run"),
        ({"goes": True}, "ok"),
        (
            {"goes": False, "message": "`rnn` is bidirectional, and cannot stream."},
            "not applicable",
        ),
        ({"goes": False, "message": "m.onnx is not the model."}, "refused"),
    ],
)
def test_the_verdict_of_a_cell(cell: dict[str, object] | None, expected: str) -> None:
    assert verdict(cell) == expected


def test_a_small_page() -> None:
    cells = {way: {"goes": True, "open": ["B"], "fixed": {}, "ranges": {}} for way in WAYS}
    cells[".pt"] = {
        "goes": False,
        "error": "ExportError",
        "message": "TorchScript | refuses\nit. PyTorch says: no",
    }
    model = {"package": "a", "version": "1", "title": "A", "about": "a layer", "cells": cells}
    result = {"machine": {"cpu": "a", "cores": 2}, "models": {"a": model, "b": model}}
    text = page(result)
    assert "| **a** A: a layer | B | ok | ok |" in text
    assert "no [1](#why-not)" in text
    assert text.count("1. TorchScript \\| refuses it.\n") == 1
    assert counts(result) == "2 models of 1 packages, 22 cells: 20 ok (91 %), 2 refused (9 %)."


def test_a_reason_is_one_line() -> None:
    assert reason_of("a <b>\n c") == "a &lt;b> c"


def test_the_goal_is_met() -> None:
    """At least 30 models of 15 packages, and four cells in five that go or cannot be."""
    models = load()["models"]
    assert set(models) == set(MODELS)
    assert len(models) >= 30
    assert len({model["package"] for model in models.values()}) >= 15
    verdicts = [verdict(model["cells"].get(way)) for model in models.values() for way in WAYS]
    good = verdicts.count("ok") + verdicts.count("not applicable")
    assert good >= 0.8 * len(verdicts)
