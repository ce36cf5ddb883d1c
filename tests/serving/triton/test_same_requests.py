"""The real Triton is the oracle of the protocol: both servers get the same requests, and docs/serving.md has every
difference. `make triton` installs Triton and runs these tests."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import ROOT
from tests.serving.triton.addresses import Addresses
from tests.serving.triton.requests import INPUT, REQUESTS, Answer

pytestmark = pytest.mark.triton

PAGE = ROOT / "docs" / "serving.md"
FAULTS = ("500", "INTERNAL", "UNKNOWN")


def rows(table: str) -> Iterator[tuple[str, ...]]:
    """A request and the other cells, of a table between `<!-- NAME -->` and `<!-- /NAME -->`."""
    text = PAGE.read_text(encoding="utf-8")
    lines = (
        text.partition(f"<!-- {table} -->")[2]
        .partition(f"<!-- /{table} -->")[0]
        .strip()
        .splitlines()
    )
    for line in lines[2:]:
        requests, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for request in requests.split("; "):
            yield request.replace("`", ""), *cells


STATUSES = {request: tuple(cells) for request, *cells in rows("triton_statuses")}
"""Request -> Triton's status, ours and why."""
FIELDS = {request: tuple(cells) for request, *cells in rows("triton_fields")}
"""Request -> the fields that only Triton's answer has, and those that only ours has."""


@pytest.mark.parametrize("name", REQUESTS)
def test_both_say_the_same_or_the_page_says_what_differs(
    name: str, triton: Addresses, ours: Addresses
) -> None:
    theirs, own = REQUESTS[name](triton), REQUESTS[name](ours)
    same = (theirs.status, theirs.status)
    expected = STATUSES.get(name.replace("`", ""), same)[:2]
    assert (theirs.status, own.status) == expected, f"{theirs.message} / {own.message}"
    assert own.good or own.message
    if theirs.good and own.good:
        compare(name, theirs, own)


def compare(name: str, theirs: Answer, own: Answer) -> None:
    only_theirs, only_ours = FIELDS.get(name, ("", ""))
    if only_theirs != "*":
        assert sorted(set(theirs.fields) - set(own.fields)) == names(only_theirs)
    assert sorted(set(own.fields) - set(theirs.fields)) == names(only_ours)
    if theirs.outputs is not None:
        assert own.outputs is not None
        assert own.outputs.keys() == theirs.outputs.keys()
        for output, array in own.outputs.items():
            np.testing.assert_allclose(array, theirs.outputs[output], atol=1e-5)


def names(cell: str) -> list[str]:
    return sorted(cell.replace("`", "").split(", ")) if cell else []


def test_both_give_the_answer_of_pytorch(layer: nn.GRU, triton: Addresses, ours: Addresses) -> None:
    expected = layer(torch.from_numpy(INPUT))[0].detach().numpy()
    for addresses in (triton, ours):
        outputs = REQUESTS["JSON"](addresses).outputs
        assert outputs is not None
        np.testing.assert_allclose(outputs["output"], expected, atol=1e-5)


def test_what_the_page_lists_is_a_difference() -> None:
    known = {name.replace("`", "") for name in REQUESTS}
    assert STATUSES.keys() | FIELDS.keys() <= known
    for request, (theirs, own, why) in STATUSES.items():
        assert theirs != own, request
        assert why, request


def test_ours_is_at_least_as_strict() -> None:
    """It never blames itself, and answers what Triton refuses only where the page says that this is more."""
    for request, (theirs, own, why) in STATUSES.items():
        assert own not in FAULTS, request
        if theirs not in ("200", "OK") and own in ("200", "OK"):
            assert why.startswith("more:"), request
