"""Speed against memory: the front is what nothing beats, and the short list is part of it."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dsconf.search.rank import LESS, pareto, spread


def point(memory: int, speed: int, fits: str = "yes", engine: str = "deepspeed", low: bool = False) -> Any:
    return SimpleNamespace(
        estimate=SimpleNamespace(process_bytes=memory),
        tokens_per_second=float(speed),
        fits=fits,
        settings=SimpleNamespace(engine=engine, bf16_optimizer_states=low),
    )


def figures(points: Any) -> list[tuple[int, float]]:
    return [(one.estimate.process_bytes, one.tokens_per_second) for one in points]


def test_what_is_slower_and_larger_is_not_on_the_front() -> None:
    points = [point(70, 100), point(60, 90), point(65, 80), point(40, 90), point(30, 20), point(30, 10)]
    assert figures(pareto(points)) == [(70, 100), (40, 90), (30, 20)]


def test_what_does_not_fit_and_torch_ddp_are_left_out() -> None:
    points = [point(90, 200, fits="no"), point(80, 150, engine="ddp"), point(70, 100)]
    assert figures(pareto(points)) == [(70, 100)]


def test_a_tight_fit_counts_only_where_nothing_has_headroom() -> None:
    tight = point(80, 150, fits="tight")
    assert figures(pareto([tight, point(70, 100)])) == [(70, 100)]
    assert figures(pareto([tight, point(90, 200, fits="no")])) == [(80, 150)]
    assert pareto([point(1, 1, fits="no")]) == ()


def test_states_in_bf16_count_only_where_nothing_fits_without_them() -> None:
    low = [point(20, 150, low=True), point(10, 100, low=True)]
    assert figures(pareto([*low, point(70, 100)])) == [(70, 100)]
    assert figures(pareto([*low, point(70, 200, fits="no")])) == [(20, 150), (10, 100)]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40))
def test_the_front_is_what_no_other_point_beats(pairs: list[tuple[int, int]]) -> None:
    naive = {
        (memory, speed)
        for memory, speed in pairs
        if not any((m <= memory and s >= speed) and (m, s) != (memory, speed) for m, s in pairs)
    }
    front = figures(pareto(point(*pair) for pair in pairs))
    assert set(front) == naive
    assert front == sorted(naive, key=lambda pair: -pair[1])


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=60))
def test_the_short_list_begins_with_the_fastest_and_gets_a_tenth_smaller_each_time(
    pairs: list[tuple[int, int]],
) -> None:
    front = pareto(point(*pair) for pair in pairs)
    shown = spread(front)
    assert shown[0] is front[0]
    assert all(one in front for one in shown)
    sizes = [one.estimate.process_bytes for one in shown]
    assert all(small <= LESS * large for large, small in pairwise(sizes))
    for one in front:
        assert any(kept.estimate.process_bytes <= one.estimate.process_bytes / LESS for kept in shown)
