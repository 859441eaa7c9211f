"""A sweep is one recommendation after the other, with what they have in common worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
from search_fakes import FAKES

import dsconf
from dsconf.cluster.read import LARGEST
from dsconf.errors import InputError
from dsconf.search.sweep import Sweep, read_sizes, sweep

WORDS = {"params": "1B", "gpu": "a100-80gb", "tokens": "20B", "price": 2.0, "tools": FAKES}


@cache
def found() -> Sweep:
    return sweep("16,8,4,8", **WORDS)


@pytest.mark.parametrize("gpus", ["16,8,4,8", [4, 8, 16], (16, 4, 8), "4, 8, 16 "])
def test_numbers_come_once_and_fewest_first(gpus: str | Iterable[int]) -> None:
    assert read_sizes(gpus) == (4, 8, 16)


def test_each_row_is_the_recommendation_of_its_own() -> None:
    for row in found().rows:
        alone = dsconf.recommend(gpus=row.gpus, **WORDS)
        assert row.found.recommended is not None
        assert alone.recommended is not None
        assert row.found.recommended.settings == alone.recommended.settings
        assert row.found.recommended.workload == alone.recommended.workload
        assert row.tokens_per_second == alone.recommended.tokens_per_second
        assert row.found.cost == alone.cost
        assert row.found.changes == ()


def test_efficiency_time_and_money_by_hand() -> None:
    first = found().rows[0]
    for row in found().rows:
        assert row.efficiency == pytest.approx(row.tokens_per_second / row.gpus / (first.tokens_per_second / 4))
        hours = 20e9 / row.tokens_per_second / 3600
        assert row.found.cost == pytest.approx((hours, hours * row.gpus, 2 * hours * row.gpus))


def test_the_fastest_has_most_tokens_and_the_cheapest_most_from_each_gpu() -> None:
    """The small speed model scales without loss, so all cost the same, and of those the largest is the quickest."""
    costs = [row.found.cost.price for row in found().rows if row.found.cost is not None and row.found.cost.price]
    assert costs == pytest.approx([costs[0]] * 3)
    assert (found().fastest, found().cheapest) == (16, 16)
    waiting = sweep([1, 4, 8], params="125M", gpu="rtx-4090", seq_len=128, global_batch_size=64)
    assert (waiting.fastest, waiting.cheapest) == (8, 1)
    assert [row.efficiency > 0.9 for row in waiting.rows if row.efficiency is not None] == [True, False, False]


def test_numbers_on_which_nothing_fits_stay_in_the_list() -> None:
    mixed = sweep([1, 8], params="13B", gpu_memory="40GiB", offload="none", tools=FAKES)
    assert [row.found.recommended is None for row in mixed.rows] == [True, False]
    assert [row.efficiency for row in mixed.rows] == [None, 1.0]
    assert (mixed.fastest, mixed.cheapest, len(mixed.fitting)) == (8, 8, 1)
    assert mixed.rows[0].found.why[0].code == "nothing_fits"
    assert len(mixed.rows[0].found.why) == 1, "the other rows are the remedies"
    nothing = sweep([1, 2], params="70B", gpu_memory="16GiB", offload="none", tools=FAKES)
    assert (nothing.fastest, nothing.cheapest, nothing.fitting) == (None, None, ())


@pytest.mark.parametrize("gpus", ["8,x", "8,,16", "", "0,8", [8, -1], [8.5], "8;16"])
def test_a_number_that_is_none_is_named(gpus: str | list[int]) -> None:
    with pytest.raises(InputError, match=r"^--gpus: .* is not a number of GPUs, nor several such as 8,16,32$"):
        sweep(gpus, params="1B")


def test_the_words_are_those_of_recommend() -> None:
    with pytest.raises(TypeError, match="no_such_word"):
        sweep([8], params="1B", no_such_word=1)
    with pytest.raises(InputError, match="--price needs --tokens"):
        sweep([8], params="1B", price=2)
    with pytest.raises(InputError, match="at least one"):
        sweep([], params="1B")


def test_a_number_that_no_cluster_has_is_refused_before_anything_is_read() -> None:
    assert read_sizes([8, LARGEST]) == (8, LARGEST)
    for gpus in ([8, LARGEST + 1], f"8,{LARGEST + 1}", LARGEST + 1):
        with pytest.raises(InputError, match=rf"^--gpus: {LARGEST + 1} is more than {LARGEST}, "):
            sweep(gpus, params="1B")
