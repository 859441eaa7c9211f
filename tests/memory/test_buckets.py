"""How stage 3 fills and reduces its bucket, against a walk gradient by gradient."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from small_models import models, tiny

from dsconf.memory.zero.gradient_order import Hook, hooks
from dsconf.memory.zero.subgroups import BucketScatter, bucket_scatters
from dsconf.model.spec import Model

WORLDS = st.integers(1, 9)
BUCKETS = st.integers(1, 400)


def slow(model: Model, bucket: int, world_size: int) -> list[BucketScatter]:
    """DeepSpeed's loop (stage3.py: reduce_independent_p_g_buckets_and_remove_grads) with lists of gradients.

    A bucket is flattened with every gradient padded to the ranks, unless one gradient divides evenly. A gradient larger
    than the bucket is not copied into it and so is there besides.
    """
    found: list[BucketScatter] = []
    inside: list[Hook] = []

    def reduce(layer: int, event: int, waiting: int) -> None:
        padded = sum(-(-hook.numel // world_size) * world_size for hook in inside)
        as_it_is = len(inside) == 1 and inside[0].numel % world_size == 0
        outside = sum(hook.numel for hook in inside if hook.numel > bucket)
        filled = sum(hook.numel for hook in inside)
        found.append(BucketScatter(layer, event, waiting, (0 if as_it_is else padded) + outside, filled, outside))
        inside.clear()

    for hook in hooks(model).order:
        if inside and sum(one.numel for one in inside) + hook.numel > bucket:
            reduce(hook.layer, hook.event, hook.numel)
        inside.append(hook)
    reduce(-1, -1, 0)
    return found


def fast(model: Model, bucket: int, world_size: int) -> list[BucketScatter]:
    """Without the names of parameters, which the walk does not know."""
    return [scatter._replace(hook="") for scatter in bucket_scatters(model, bucket, world_size)]


def test_by_hand() -> None:
    """Two ranks, one layer, bucket 100: head 40, norm 4, down 24, up 24 (92); gate 24 waits and all 92 are flattened.

    Then gate, norm 4, o, v, k, q of 16 (92); the first norm of 4 still fits (96), the embedding of 40 waits; and at the
    end the embedding alone, which divides by two and is reduced as it is.
    """
    expected = [BucketScatter(0, 2, 24, 92, 92), BucketScatter(-1, 0, 40, 96, 96), BucketScatter(-1, -1, 0, 0, 40)]
    assert slow(tiny(layers=1), 100, 2) == expected
    assert set(fast(tiny(layers=1), 100, 2)) == set(expected)


def test_padding_and_a_gradient_larger_than_the_bucket() -> None:
    """Three ranks, bucket 30: the head's 40 stays as it is, and is flattened in 42 because 40 does not divide."""
    assert slow(tiny(layers=1), 30, 3)[0] == BucketScatter(1, 1, 4, 42 + 40, 40, 40)
    assert BucketScatter(1, 1, 4, 42 + 40, 40, 40) in fast(tiny(layers=1), 30, 3)


@given(models(), BUCKETS, WORLDS)
def test_every_reduction_is_one_of_the_slow_walk(model: Model, bucket: int, world_size: int) -> None:
    assert set(fast(model, bucket, world_size)) <= set(slow(model, bucket, world_size))


def _no_less(rival: BucketScatter, one: BucketScatter, layers: int) -> bool:
    same_part = rival.layer == one.layer or (layers > rival.layer >= one.layer >= 0)
    place = (rival.event == one.event and same_part) or (one.layer, one.event) == (-1, -1)
    return place and rival.unreduced_elements >= one.unreduced_elements and rival.copied >= one.copied


@given(models(), BUCKETS, WORLDS)
@example(tiny(3, 300, 4, 6), 50, 8)
def test_no_reduction_that_could_be_the_highest_is_left_out(model: Model, bucket: int, world_size: int) -> None:
    found = fast(model, bucket, world_size)
    for one in slow(model, bucket, world_size):
        assert any(_no_less(rival, one, model.layers) for rival in found), one
