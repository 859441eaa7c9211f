"""The buckets in which stages 1 and 2 reduce gradients: while backward runs, or after it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from dsconf.memory.zero.gradient_order import Hook, hooks
from dsconf.model.spec import Model


class Flush(NamedTuple):
    """A full bucket being reduced, in the hook of the parameter that no longer fitted."""

    layer: int
    event: int
    waiting: int
    """Elements of that parameter's gradient, still outside the bucket."""
    outside: int
    """Elements of a gradient larger than the bucket, which is reduced where it is."""
    copied: int
    """Elements flattened anew for the all-reduce: all of them when the bucket spans several owners."""
    held: bool
    """Whether this rank's gradient buffer was allocated by an earlier flush."""
    mine: int
    """Largest slice in this bucket that this rank owns, 0 if none."""
    filled: int = 0
    """Elements in the bucket."""


class Arrivals(NamedTuple):
    """The hooks of one backward as columns, in their order."""

    before: tuple[int, ...]
    """Elements of all earlier hooks, and at last of all."""
    offsets: tuple[int, ...]
    ends: tuple[int, ...]
    """One past the last element in the flat buffer."""
    numels: tuple[int, ...]


@lru_cache(maxsize=128)
def arrivals(model: Model) -> Arrivals:
    """Order and places of ``model``'s gradients."""
    order = hooks(model).order
    before = tuple(accumulate((h.numel for h in order), initial=0))
    numels = tuple(h.numel for h in order)
    return Arrivals(before, tuple(h.offset for h in order), tuple(h.offset + h.numel for h in order), numels)


def buckets(before: Sequence[int], bucket: int) -> Iterator[tuple[int, int]]:
    """First and end of each run of gradients that are reduced together, ``before`` as in ``Arrivals``.

    A gradient that is larger than the bucket is alone.
    """
    start, end = 0, len(before) - 1
    while start < end:
        stop = max(start + 1, bisect_right(before, before[start] + bucket, start) - 1)
        yield start, stop
        start = stop


class _Bucket(NamedTuple):
    """Gradients that are reduced together."""

    start: int
    """First of them in the order of backward and, in ``stop``, the one whose hook starts the reduction."""
    stop: int
    filled: int
    first: int
    """Lowest and, in ``last``, highest element of the flat buffer among them."""
    last: int


@lru_cache(maxsize=256)
def _buckets(model: Model, bucket: int) -> tuple[_Bucket, ...]:
    before, offsets, ends, _ = arrivals(model)
    return tuple(
        [
            _Bucket(i, j, before[j] - before[i], min(offsets[i:j]), max(ends[i:j]) - 1)
            for i, j in buckets(before, bucket)
        ]
    )


def flushes(
    model: Model,
    bucket: int,
    world_size: int,
    rank: int,
    straddles: bool,
    *,
    apart: bool = False,
    cast: bool = False,
) -> tuple[Flush, ...]:
    """Reductions of a backward at stage 2 that can be the highest (runtime/zero/stage_1_and_2.py:1414-1480, 1590-1726).

    Args:
        model: whose gradients.
        bucket: ``reduce_bucket_size`` in elements.
        world_size, rank: of the ZeRO group.
        straddles: a bucket with several owners is flattened anew (``reduce_scatter`` and multi-rank all-reduce).
        apart: this rank's slices go one by one into its fp32 slice, so that a bucket with two of them is flattened too.
        cast: a bucket is cast for the all-reduce, so that what counts is all that is in it.
    """
    part = partition(hooks(model).total, world_size)
    start, stop = part * rank, part * (rank + 1)
    _, offsets, ends, numels = arrivals(model)
    best: dict[int, list[Flush]] = {}
    held = False
    for place, one, flush in _reduced(model, bucket, part, straddles):
        mine = 0
        if start <= one.first and one.last < stop:
            mine = max(numels[one.start : one.stop])
        elif one.first < stop and one.last >= start:
            pieces = zip(offsets[one.start : one.stop], ends[one.start : one.stop], strict=True)
            mine = max(0, *[min(end, stop) - max(offset, start) for offset, end in pieces])
        if apart and straddles and mine and one.stop > one.start + 1:
            flush = flush._replace(copied=one.filled)
        key = 4 * place + 2 * held + (mine > 0)
        for earlier in best.get(key, ()):
            covers = earlier.copied >= flush.copied and earlier.mine >= mine and earlier.outside >= flush.outside
            if covers and (not cast or earlier.filled >= flush.filled):
                break
        else:
            best.setdefault(key, []).append(flush._replace(held=held, mine=mine))
        held = held or mine > 0
    return tuple(flush for found in best.values() for flush in found)


@lru_cache(maxsize=256)
def _reduced(model: Model, bucket: int, part: int, straddles: bool) -> tuple[tuple[int, _Bucket, Flush], ...]:
    """Each bucket as no rank's own, with the number of its place: the same for the same hook of any layer.

    Of two at one place the earlier one, in a layer higher up, has more activations beside it.
    """
    found: list[tuple[int, _Bucket, Flush]] = []
    places: dict[tuple[int, bool, bool], int] = {}
    order = hooks(model).order
    for one in _buckets(model, bucket):
        layer, event, waiting = -1, -1, 0
        if one.stop < len(order):
            waiting, _, layer, event = order[one.stop]
        place = places.setdefault((event, layer < 0, layer == model.layers), len(places))
        outside = one.filled if one.filled > bucket else 0
        copied = _copied(one, order[one.start], bucket, part) if straddles else 0
        found.append((place, one, Flush(layer, event, waiting, outside, copied, False, 0, one.filled)))
    return tuple(found)


def partition(total: int, world_size: int) -> int:
    """Elements of one rank's slice: the flat buffer is padded to 2 × world size (stage_1_and_2.py:387, 441)."""
    alignment = 2 * world_size
    return -(-total // alignment) * alignment // world_size


def _copied(one: _Bucket, hook: Hook, bucket: int, part: int) -> int:
    if one.first // part == one.last // part:
        return 0
    return one.filled if one.filled <= bucket else _sliced(hook, bucket, part)


def _sliced(hook: Hook, bucket: int, part: int) -> int:
    """A parameter larger than the bucket goes slice by slice; slices are flattened together until they exceed it."""
    most = gathered = count = 0
    at, end = hook.offset, hook.offset + hook.numel
    while at < end:
        stop = min(end, (at // part + 1) * part)
        gathered, count, at = gathered + stop - at, count + 1, stop
        if gathered > bucket or at == end:
            most = max(most, gathered if count > 1 else 0)
            gathered = count = 0
    return most


class Moved(NamedTuple):
    """One reduction of stage 1, after backward: buckets fill in registration order."""

    moved: int
    """Elements whose gradient has gone from the parameter into a bucket by then."""
    copied: int
    filled: int
    """Elements in the bucket."""


class InOrder(NamedTuple):
    """The reductions of stage 1 that can be the highest."""

    first: Moved | None
    own: Moved | None
    """The first with gradients of this rank, whose buffer is made then."""


def in_order(model: Model, bucket: int, world_size: int, rank: int) -> InOrder:
    """Stage 1's reductions (runtime/zero/stage_1_and_2.py:958-980)."""
    part = partition(hooks(model).total, world_size)
    every, begins, ends = _in_order(model, bucket, part)
    number = bisect_right(ends, part * rank)
    own = number < len(every) and begins[number] < part * (rank + 1)
    return InOrder(every[0] if every else None, every[number] if own else None)


@lru_cache(maxsize=256)
def _in_order(model: Model, bucket: int, part: int) -> tuple[tuple[Moved, ...], tuple[int, ...], tuple[int, ...]]:
    """Every bucket, and the first and the end of its elements in the flat buffer."""
    known = hooks(model)
    before = (*(offset for _, offset in known.registered), known.total)
    found: list[Moved] = []
    begins, ends = [], []
    moved = 0
    for start, stop in buckets(before, bucket):
        begin, end = before[start], before[stop]
        filled = end - begin
        moved += filled if filled <= bucket else 0
        found.append(Moved(moved, filled if begin // part != (end - 1) // part else 0, filled))
        begins.append(begin)
        ends.append(end)
    return tuple(found), tuple(begins), tuple(ends)
