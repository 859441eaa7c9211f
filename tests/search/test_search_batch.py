"""Micro-batch × accumulation × world size is the global batch, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.errors import InputError
from dsconf.search.constraints import Constraints
from dsconf.search.space import MOST_TOKENS, batches


def test_every_divisor_of_a_ranks_share_is_tried() -> None:
    assert batches(8, 2048, Constraints(global_batch=96)) == [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]


def test_without_a_global_batch_the_powers_of_two_up_to_the_token_limit() -> None:
    assert batches(8, 2048, Constraints()) == [(2**n, 1) for n in range(8)]
    assert MOST_TOKENS == 2048 * 2**7
    assert batches(8, 10**6, Constraints()) == [(1, 1)]


def test_a_given_micro_batch_fixes_the_accumulation() -> None:
    assert batches(4, 2048, Constraints(global_batch=96, micro_batch=6)) == [(6, 4)]
    assert batches(4, 2048, Constraints(micro_batch=6)) == [(6, 1)]
    assert batches(4, 2048, Constraints(micro_batch=6, accumulation=3)) == [(6, 3)]
    assert batches(4, 2048, Constraints(global_batch=96, accumulation=3)) == [(8, 3)]


@pytest.mark.parametrize(
    ("world", "global_batch", "micro", "told"),
    [
        (8, 100, None, "--global-batch-size 100 is no multiple of 8 GPUs; nearest: 96 and 104"),
        (8, 100, 3, "--global-batch-size 100 is no multiple of 8 GPUs × micro-batch 3; nearest: 96 and 120"),
        (8, 3, None, "--global-batch-size 3 is no multiple of 8 GPUs; nearest: 8"),
        (1, 7, 2, "--global-batch-size 7 is no multiple of 1 GPU × micro-batch 2; nearest: 6 and 8"),
    ],
)
def test_an_impossible_batch_names_the_nearest(world: int, global_batch: int, micro: int | None, told: str) -> None:
    with pytest.raises(InputError) as error:
        batches(world, 2048, Constraints(global_batch=global_batch, micro_batch=micro))
    assert str(error.value) == told


@given(world=st.integers(1, 64), share=st.integers(1, 2000))
def test_pairs_are_complete_and_exact(world: int, share: int) -> None:
    pairs = batches(world, 2048, Constraints(global_batch=world * share))
    assert [micro for micro, _ in pairs] == [micro for micro in range(1, share + 1) if share % micro == 0]
    assert all(micro * accumulation * world == world * share for micro, accumulation in pairs)
