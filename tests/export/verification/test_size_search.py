"""Sizes that a model refuses, and what is tried in their place."""

from collections.abc import Callable

import pytest

from deploy_rnn.export.verification.size_search import RefusedError, Sizes, SizeSearch


def search(example: Sizes, takes: Callable[[Sizes], bool]) -> SizeSearch[dict[str, int]]:
    def run(sizes: Sizes) -> dict[str, int]:
        if not takes(sizes):
            raise RefusedError(f"no {dict(sizes)}", "m.py:1 ValueError")
        return dict(sizes)

    return SizeSearch(example, run)


def test_what_the_model_takes_is_run_as_it_was_asked() -> None:
    sizes = search({"B": 2, "T": 6}, lambda _: True)
    assert list(sizes.at({"B": 1, "T": 3})) == [{"B": 1, "T": 3}]
    assert list(sizes.at({"B": 1, "T": 3})) == []
    assert list(sizes.at_another_size("T")) == []
    assert (sizes.refused, sizes.unchanged) == ({}, {})


def test_the_size_to_blame_is_replaced_and_the_others_are_kept() -> None:
    sizes = search({"B": 2, "T": 32}, lambda sizes: sizes["T"] >= 4)
    ran = list(sizes.at({"B": 1, "T": 3}))
    assert ran == [{"B": 1, "T": 32}, {"B": 2, "T": 6}, {"B": 1, "T": 6}]
    assert sizes.refused == {"T=3": "no {'B': 2, 'T': 3}"}


def test_sizes_that_are_refused_only_together() -> None:
    sizes = search({"B": 2, "T": 6}, lambda sizes: sizes["B"] * sizes["T"] != 3)
    assert list(sizes.at({"B": 1, "T": 3})) == [{"B": 1, "T": 6}, {"B": 2, "T": 3}]
    assert sizes.refused == {"B=1, T=3": "no {'B': 1, 'T': 3}"}


@pytest.mark.parametrize(
    ("takes", "found"),
    [
        (lambda size: size % 8 == 0, 256),
        (lambda size: size >= 100, 129),
        (lambda size: size % 128 == 0, 256),
        (lambda size: size in (64, 128), 64),
    ],
)
def test_larger_smaller_and_aligned_sizes_are_tried(
    takes: Callable[[int], bool], found: int
) -> None:
    sizes = search({"T": 128}, lambda sizes: takes(sizes["T"]))
    ran = [result["T"] for size in (1, 3, 7) for result in sizes.at({"T": size})]
    ran += [result["T"] for result in sizes.at_another_size("T")]
    assert found in ran
    assert sizes.unchanged == {}


def test_axes_that_must_grow_together() -> None:
    """Samples, and frames of four samples."""
    sizes = search({"B": 2, "S": 24, "F": 6}, lambda sizes: sizes["S"] == 4 * sizes["F"])
    ran = list(sizes.at({"B": 1, "S": 3, "F": 7}))
    ran += [result for name in ("B", "S", "F") for result in sizes.at_another_size(name)]
    assert ran == [{"B": 1, "S": 24, "F": 6}, {"B": 2, "S": 48, "F": 12}]
    assert list(sizes.refused) == ["S=3", "F=7"]


def test_an_axis_without_a_second_size() -> None:
    calls: list[Sizes] = []

    def takes(sizes: Sizes) -> bool:
        calls.append(sizes)
        return sizes["T"] == 6

    sizes = search({"B": 2, "T": 6}, takes)
    ran = [result for size in (1, 3, 7) for result in sizes.at({"B": size, "T": size})]
    ran += list(sizes.at_another_size("T"))
    assert {result["T"] for result in ran} == {6}
    assert sizes.unchanged == {"T": "T other than 6: no {'B': 1, 'T': 1}"}
    assert len(calls) < 30
