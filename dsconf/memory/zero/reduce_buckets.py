"""The buckets in which stages 1 and 2 reduce gradients: while backward runs, or after it.

Line references are to runtime/zero/stage_1_and_2.py of DeepSpeed 0.19.8.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from dsconf.memory.zero.gradient_order import Hook, hooks
from dsconf.model.spec import Model


class Bucketing(NamedTuple):
    """How the gradients of ``model`` are put into buckets."""

    model: Model
    size: int
    """``reduce_bucket_size`` in elements."""
    world_size: int
    """Of the ZeRO group."""
    spans_owners: bool
    """A bucket with several owners is flattened anew (``reduce_scatter`` and multi-rank all-reduce)."""
    flat_fp32_slice: bool = False
    """A rank's pieces go one by one into its fp32 slice, so that a bucket with two of them is flattened too."""
    is_cast: bool = False
    """A bucket is cast for the all-reduce, so that what counts is all that is in it."""


class BucketReduction(NamedTuple):
    """A full bucket being reduced, in the hook of the parameter that no longer fitted."""

    layer: int
    event: int
    unreduced_elements: int
    """Elements of that parameter's gradient, still outside the bucket."""
    outside: int
    """Elements of a gradient larger than the bucket, which is reduced where it is."""
    copied: int
    """Elements flattened anew for the all-reduce: all of them when the bucket spans several owners."""
    filled: int
    """Elements in the bucket."""
    hook: str
    """Name of the parameter that no longer fitted, empty at the end of backward."""


class SeenByRank(NamedTuple):
    """A reduction as one rank sees it."""

    reduction: BucketReduction
    copied: int
    """As in the reduction, or all of the bucket where this rank flattens its pieces."""
    own_buffer_exists: bool
    """Whether this rank's gradient buffer was made by an earlier reduction."""
    largest_own_piece: int
    """Elements of the largest piece of a gradient in this bucket that this rank owns, 0 if none."""


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
    """Return order and places of ``model``'s gradients."""
    order = hooks(model).order
    before = tuple(accumulate((h.numel for h in order), initial=0))
    numels = tuple(h.numel for h in order)
    return Arrivals(before, tuple(h.offset for h in order), tuple(h.offset + h.numel for h in order), numels)


def runs(before: Sequence[int], bucket: int) -> Iterator[tuple[int, int]]:
    """Yield first and end of each run of gradients that are reduced together, ``before`` as in ``Arrivals``.

    A gradient that is larger than the bucket is alone.
    """
    start, end = 0, len(before) - 1
    while start < end:
        stop = max(start + 1, bisect_right(before, before[start] + bucket, start) - 1)
        yield start, stop
        start = stop


@lru_cache(maxsize=256)
def runs_in_backward(model: Model, bucket: int) -> tuple[tuple[int, int], ...]:
    """Return the ``runs`` of ``model``'s gradients as they arrive."""
    return tuple(runs(arrivals(model).before, bucket))


class Bucket(NamedTuple):
    """Gradients that are reduced together, as no rank's own."""

    start: int
    """First of them in the order of backward and, in ``stop``, the one whose hook starts the reduction."""
    stop: int
    first: int
    """Lowest and, in ``last``, highest element of the flat buffer among them."""
    last: int
    place: int
    """A number for the same hook of any layer."""
    reduction: BucketReduction


@lru_cache(maxsize=1024)
def reductions_in_hooks(buckets: Bucketing, rank: int) -> tuple[SeenByRank, ...]:
    """Return the reductions of a backward that can be the highest for ``rank`` (1414-1480, 1590-1726).

    Of two at one place the earlier one, in a layer higher up, has more activations beside it.
    """
    part = partition(hooks(buckets.model).total, buckets.world_size)
    start, stop = part * rank, part * (rank + 1)
    _, offsets, ends, numels = arrivals(buckets.model)
    best: dict[int, list[SeenByRank]] = {}
    exists = False
    for first_hook, next_hook, first, last, place, reduction in buckets_in_hooks(buckets):
        largest, copied = 0, reduction.copied
        if start <= first and last < stop:
            largest = max(numels[first_hook:next_hook])
        elif first < stop and last >= start:
            spans = zip(offsets[first_hook:next_hook], ends[first_hook:next_hook], strict=True)
            largest = max(0, *[min(end, stop) - max(offset, start) for offset, end in spans])
        if buckets.flat_fp32_slice and buckets.spans_owners and largest and next_hook > first_hook + 1:
            copied = reduction.filled
        key = 4 * place + 2 * exists + (largest > 0)
        for other, other_copied, _, other_largest in best.get(key, ()):
            covers = other_copied >= copied and other_largest >= largest and other.outside >= reduction.outside
            if covers and (not buckets.is_cast or other.filled >= reduction.filled):
                break
        else:
            best.setdefault(key, []).append(SeenByRank(reduction, copied, exists, largest))
        exists = exists or largest > 0
    return tuple([seen for found in best.values() for seen in found])


def buckets_in_hooks(buckets: Bucketing) -> tuple[Bucket, ...]:
    """Return every bucket of a backward, in order."""
    part = partition(hooks(buckets.model).total, buckets.world_size)
    return _buckets_in_hooks(buckets.model, buckets.size, part, buckets.spans_owners)


@lru_cache(maxsize=256)
def _buckets_in_hooks(model: Model, size: int, part: int, spans_owners: bool) -> tuple[Bucket, ...]:
    found: list[Bucket] = []
    places: dict[tuple[int, bool, bool], int] = {}
    order = hooks(model).order
    before, offsets, ends, _ = arrivals(model)
    for start, stop in runs_in_backward(model, size):
        layer, event, unreduced, name = -1, -1, 0, ""
        if stop < len(order):
            unreduced, _, layer, event, name = order[stop]
        place = places.setdefault((event, layer < 0, layer == model.layers), len(places))
        filled, first, last = before[stop] - before[start], min(offsets[start:stop]), max(ends[start:stop]) - 1
        copied = 0
        if spans_owners and first // part != last // part:
            copied = filled if filled <= size else _flattened_slices(order[start], size, part)
        reduction = BucketReduction(
            layer=layer,
            event=event,
            unreduced_elements=unreduced,
            outside=filled if filled > size else 0,
            copied=copied,
            filled=filled,
            hook=name,
        )
        found.append(Bucket(start, stop, first, last, place, reduction))
    return tuple(found)


def partition(total: int, world_size: int) -> int:
    """Return the elements of one rank's slice: the flat buffer is padded to 2 × world size (387, 441)."""
    alignment = 2 * world_size
    return -(-total // alignment) * alignment // world_size


def _flattened_slices(hook: Hook, bucket: int, part: int) -> int:
    """Return the most that is flattened: a parameter larger than the bucket goes slice by slice; slices are flattened
    together until they exceed it."""
    largest = gathered = count = 0
    offset, end = hook.offset, hook.offset + hook.numel
    while offset < end:
        stop = min(end, (offset // part + 1) * part)
        gathered, count, offset = gathered + stop - offset, count + 1, stop
        if gathered > bucket or offset == end:
            largest = max(largest, gathered if count > 1 else 0)
            gathered = count = 0
    return largest


class StageOneBucket(NamedTuple):
    """One reduction of stage 1, after backward: buckets fill in registration order."""

    moved: int
    """Elements whose gradient has gone from the parameter into a bucket by then."""
    copied: int
    filled: int
    """Elements in the bucket."""
    largest_own_piece: int = 0
    """As in ``SeenByRank``, where all pieces are asked for."""


class AfterBackward(NamedTuple):
    """The reductions of stage 1 that can be the highest: what waits only gets less."""

    first: StageOneBucket | None
    own: tuple[StageOneBucket, ...]
    """Those with gradients of this rank, whose buffer the first of them makes, as long as the pieces get larger."""


@lru_cache(maxsize=1024)
def reductions_after_backward(buckets: Bucketing, rank: int, *, all_pieces: bool) -> AfterBackward:
    """Return stage 1's reductions (958-980); without ``all_pieces`` of this rank's no more than the first."""
    known = hooks(buckets.model)
    part = partition(known.total, buckets.world_size)
    start, stop = part * rank, part * (rank + 1)
    every, begins = _in_registration_order(buckets.model, buckets.size, part)
    largest: dict[int, int] = {}
    for parameter in range(max(0, bisect_right(known.offsets, start) - 1), len(known.offsets)):
        numel, offset = known.registered[parameter]
        if offset >= stop:
            break
        piece = min(offset + numel, stop) - max(offset, start)
        if piece > 0:
            number = bisect_right(begins, offset) - 1
            if not all_pieces:
                return AfterBackward(every[0], (every[number],))
            largest[number] = max(largest.get(number, 0), piece)
    own: list[StageOneBucket] = []
    for number, piece in largest.items():
        if piece > (own[-1].largest_own_piece if own else 0):
            own.append(every[number]._replace(largest_own_piece=piece))
    return AfterBackward(every[0] if every else None, tuple(own))


@lru_cache(maxsize=256)
def _in_registration_order(model: Model, size: int, part: int) -> tuple[tuple[StageOneBucket, ...], tuple[int, ...]]:
    """Return every bucket, and the first of its elements in the flat buffer."""
    known = hooks(model)
    before = (*known.offsets, known.total)
    found: list[StageOneBucket] = []
    begins: list[int] = []
    moved = 0
    for start, stop in runs(before, size):
        begin, end = before[start], before[stop]
        filled = end - begin
        moved += filled if filled <= size else 0
        found.append(StageOneBucket(moved, filled if begin // part != (end - 1) // part else 0, filled))
        begins.append(begin)
    return tuple(found), tuple(begins)
