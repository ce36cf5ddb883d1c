"""docs/runtimes.md is what `make runtimes-table` has found, and what is WRONG in it is refused by name."""

import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from benchmarks.runtimes import PAGE, RESULT
from benchmarks.runtimes.page import PARTLY, REFUSED, RIGHT, WRONG, load, page, verdict
from deploy_rnn.export.recurrent_nodes import RecurrentFacts
from deploy_rnn.export.runtimes import faults
from deploy_rnn.export.runtimes.faults import FAULTS, Fault
from deploy_rnn.export.runtimes.table import ONNXRUNTIME, RUNTIMES


class Cell(NamedTuple):
    """One file in one runtime. `file` has what the table of faults asks of an `OnnxFile`."""

    runtime: str
    name: str
    file: Any
    verdict: str

    def faults(self, *, wrong: bool) -> list[Fault]:
        faults = [fault for fault in FAULTS if fault.runtime == self.runtime]
        return [fault for fault in faults if fault.wrong == wrong and fault.fits(self.file)]


UPSTREAM = PAGE.parent / "upstream"
RESULTS = load()


def cells() -> list[Cell]:
    found = []
    for runtime, results in RESULTS["runtimes"].items():
        for name, facts in RESULTS["files"].items():
            file = SimpleNamespace(**facts)
            file.recurrent = RecurrentFacts(
                **{key: frozenset(types) for key, types in facts["recurrent"].items()}
            )
            found.append(Cell(runtime, name, file, verdict(results["outcomes"][name])))
    return found


CELLS = cells()


def test_the_page_is_made_from_the_results() -> None:
    assert page(RESULTS) == PAGE.read_text(encoding="utf-8"), (
        "run python -m benchmarks.runtimes.page"
    )


def test_every_runtime_has_run() -> None:
    assert set(RESULTS["runtimes"]) == {ONNXRUNTIME, *RUNTIMES}


def test_every_wrong_result_is_refused_by_name() -> None:
    wrong = [cell for cell in CELLS if cell.verdict == WRONG]
    assert wrong
    assert not [cell[:2] for cell in wrong if not cell.faults(wrong=True)]


def test_nothing_that_is_right_is_refused() -> None:
    right = [cell for cell in CELLS if cell.verdict == RIGHT]
    assert right
    refused = [cell[:2] for cell in right if cell.faults(wrong=True) or cell.faults(wrong=False)]
    assert not refused


NOT_IN_THE_TABLE = (faults.CASTS[0],)
"""Of weights in float16, which tests/export/precision has."""


@pytest.mark.parametrize(
    "fault",
    [fault for fault in faults.REFUSED if fault.reason not in NOT_IN_THE_TABLE],
    ids=lambda fault: f"{fault.runtime}: {fault.reason}",
)
def test_every_refusal_was_seen(fault: Fault) -> None:
    assert any(
        fault in cell.faults(wrong=False) and cell.verdict in (REFUSED, PARTLY) for cell in CELLS
    )


def test_every_wrong_result_has_a_script_for_its_makers() -> None:
    """`make runtimes` runs them."""
    index = UPSTREAM.with_suffix(".md").read_text(encoding="utf-8")
    scripts = {path.name for path in UPSTREAM.glob("*.py")}
    assert scripts == {fault.shown_by for fault in faults.WRONG}
    assert all(f"[{name}](upstream/{name})" in index for name in scripts)


def test_the_unrolled_form_is_right_where_docs_forms_says_so() -> None:
    for cell in CELLS:
        if cell.file.way == "unrolled, portable":
            is_right = cell.runtime != "ncnn" or cell.file.kind in ("plain", "streaming")
            assert cell.verdict == (RIGHT if is_right else REFUSED), cell[:2]


def test_no_reason_names_a_folder_of_the_machine() -> None:
    assert not re.search(r"/(?:home|root|tmp|usr|work)/", RESULT.read_text(encoding="utf-8"))
