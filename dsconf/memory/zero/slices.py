"""Which gradients each rank owns at stages 1 and 2, and which ranks can be the fullest."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.reduce_buckets import partition
from dsconf.model.spec import Model

FEW = 4
"""World size up to which every rank is tried."""


class Slice(NamedTuple):
    """What one rank owns at stages 1 and 2."""

    elements: int
    """Its share of the flat buffer, padding included."""
    whole: int
    """Whole sizes of all parameters that reach into it: what its gradient buffer holds (stage_1_and_2.py:2186)."""
    largest: int
    """Largest piece of one parameter in it."""
    tensors: int


@lru_cache(maxsize=2048)
def owned(model: Model, world_size: int, rank: int) -> Slice:
    """The slice of ``rank``."""
    known = hooks(model)
    return pieces(known.registered, known.total, world_size, rank)


def pieces(registered: tuple[tuple[int, int], ...], total: int, world_size: int, rank: int) -> Slice:
    """The slice of ``rank`` of a flat buffer of ``total`` elements, filled as ``registered`` says."""
    part = partition(total, world_size)
    start, stop = part * rank, part * (rank + 1)
    whole = largest = tensors = 0
    for numel, offset in registered[max(0, bisect_right(registered, start, key=_offset) - 1) :]:
        if offset >= stop:
            break
        piece = min(offset + numel, stop) - max(offset, start)
        if piece > 0:
            whole, largest, tensors = whole + numel, max(largest, piece), tensors + 1
    return Slice(part, whole, largest, tensors)


def _offset(registered: tuple[int, int]) -> int:
    return registered[1]


@lru_cache(maxsize=64)
def _different(model: Model, world_size: int) -> frozenset[int]:
    """Ranks whose slices are all the different ones that there are: of equal slices the first and the last.

    Slices that lie inside one parameter hold as much of it, so its outermost two stand for all, and the last rank for
    those that hold padding alone. However many GPUs there are, a few ranks for each parameter are enough.
    """
    known = hooks(model)
    part = partition(known.total, world_size)
    found = {0, world_size - 1}
    for numel, offset in known.registered:
        first, last = offset // part, (offset + max(numel, 1) - 1) // part
        found.update(rank for rank in (first, first + 1, last - 1, last) if first <= rank <= last)
    return frozenset(found)


@lru_cache(maxsize=512)
def rivals(model: Model, world_size: int, in_hooks: bool, buffered: bool = True) -> tuple[int, ...]:
    """Ranks of which one is the fullest at stages 1 and 2: every one of few, of many those that none exceeds.

    Of many, another may be fuller by the one gradient that waits for its bucket.

    What counts is what the gradient buffer holds, the largest piece of one parameter in it, and how early it is made.
    Reduced in the hooks of backward (``in_hooks``), a slice higher up in the flat buffer comes first and has more
    activations beside it; after backward a lower one does, and has more gradients beside it that still wait. With the
    optimizer offloaded no buffer is made (not ``buffered``).
    """
    if world_size <= FEW:
        return tuple(range(world_size))
    best: list[tuple[int, Slice]] = []
    for rank in sorted(_different(model, world_size), reverse=in_hooks):
        one = owned(model, world_size, rank)
        if not buffered:
            one = one._replace(whole=0)
        if not any(other.whole >= one.whole and other.largest >= one.largest for _, other in best):
            best.append((rank, one))
    return tuple(dict.fromkeys((0, *(rank for rank, _ in best))))
