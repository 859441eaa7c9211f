"""Which gradients each rank owns at stages 1 and 2, and which ranks can be the fullest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.reduce_buckets import partition
from dsconf.model.spec import Model


class Slice(NamedTuple):
    """What one rank owns at stages 1 and 2."""

    elements: int
    """Its share of the flat buffer, padding included."""
    whole: int
    """Whole sizes of all parameters that reach into it: what its gradient buffer holds (stage_1_and_2.py:2186)."""
    largest: int
    """Largest piece of one parameter in it."""
    tensors: int


class Piece(NamedTuple):
    """What a rank owns of one parameter."""

    number: int
    """Of the parameter, in the order of the flat buffer."""
    numel: int
    """Of all of it."""
    elements: int


@lru_cache(maxsize=2048)
def owned(model: Model, world_size: int, rank: int) -> Slice:
    """Return the slice of ``rank``."""
    known = hooks(model)
    return slice_of(known.registered, known.total, world_size, rank)


def slice_of(registered: tuple[tuple[int, int], ...], total: int, world_size: int, rank: int) -> Slice:
    """Return the slice of ``rank`` of a flat buffer of ``total`` elements, filled as ``registered`` says."""
    whole = largest = tensors = 0
    for piece in pieces(registered, total, world_size, rank):
        whole, largest, tensors = whole + piece.numel, max(largest, piece.elements), tensors + 1
    return Slice(partition(total, world_size), whole, largest, tensors)


def pieces(registered: tuple[tuple[int, int], ...], total: int, world_size: int, rank: int) -> Iterator[Piece]:
    """Yield what ``rank`` owns, parameter by parameter, as ``slice_of``."""
    part = partition(total, world_size)
    start, stop = part * rank, part * (rank + 1)
    for number in range(max(0, bisect_right(registered, start, key=_offset) - 1), len(registered)):
        numel, offset = registered[number]
        if offset >= stop:
            break
        elements = min(offset + numel, stop) - max(offset, start)
        if elements > 0:
            yield Piece(number, numel, elements)


def _offset(registered: tuple[int, int]) -> int:
    return registered[1]


def distinct_ranks(registered: tuple[tuple[int, int], ...], total: int, world_size: int) -> frozenset[int]:
    """Return ranks whose slices are all the different ones that there are: of equal slices the first and the last.

    Slices that lie inside one parameter hold as much of it, so its outermost two stand for all, and the last rank for
    those that hold padding alone. However many GPUs there are, a few ranks for each parameter are enough.
    """
    part = partition(total, world_size)
    found = {0, world_size - 1, min(-(-total // part) if part else 0, world_size - 1)}
    for numel, offset in registered:
        first, last = offset // part, (offset + max(numel, 1) - 1) // part
        found.update(rank for rank in (first, first + 1, last - 1, last) if first <= rank <= last)
    return frozenset(found)
