"""Which ranks can be the fullest at stages 1 and 2, without looking at the moments of any.

Ranks differ in their slices of the flat buffer. Each moment grows with what a slice holds (``_Owner.figures``), with
how early the rank's first gradients are reduced, when more activations or gradients are beside them, and in some
settings with the rank's piece of the bucket that is reduced. A rank that another one exceeds in all of these cannot be
fuller.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.zero.gradient_order import hooks
from dsconf.memory.zero.muon import owned_slices, param_groups
from dsconf.memory.zero.reduce_buckets import Bucketing, arrivals, buckets_in_hooks, runs
from dsconf.memory.zero.slices import distinct_ranks, pieces
from dsconf.model.spec import Model

FEW = 4
"""World size up to which every rank is tried."""
_NEVER = 1 << 60


class Sharing(NamedTuple):
    """What decides how ranks differ."""

    buckets: Bucketing
    optimizer: str
    in_hooks: bool
    """Buckets are reduced while backward runs, not after it."""
    offloaded: bool
    """The optimizer is on the host, and with it what belongs to its step."""
    width: int
    """Bytes of an element of the model."""

    @property
    def counts_pieces(self) -> bool:
        """Whether a rank's piece of the bucket counts.

        An offloaded rank takes the norm of each piece in fp64 as it comes; a flat fp32 slice takes a cast of it.
        """
        return self.offloaded or self.buckets.flat_fp32_slice


def fullest_rank_candidates(sharing: Sharing) -> tuple[int, ...]:
    """Return ranks of which one is the fullest: every one of few, of many those that none exceeds."""
    if sharing.buckets.world_size <= FEW:
        return tuple(range(sharing.buckets.world_size))
    if not sharing.in_hooks and not sharing.counts_pieces:
        # Then the first gradients come the earlier the lower the rank is, however large the bucket is.
        sharing = sharing._replace(buckets=sharing.buckets._replace(size=0))
    return _candidates(sharing)


@lru_cache(maxsize=512)
def _candidates(sharing: Sharing) -> tuple[int, ...]:
    buckets = sharing.buckets
    owners = _owners(sharing._replace(buckets=buckets._replace(size=0, spans_owners=False, is_cast=False)))
    found = {0}
    if not sharing.offloaded or buckets.flat_fp32_slice:
        found |= _exceeded_by_none(sharing, owners)
    if sharing.counts_pieces:
        found |= _largest_pieces(sharing, owners)
    return tuple(sorted(found, key=lambda rank: (rank > 0, -rank if sharing.in_hooks else rank)))


class _Owner(NamedTuple):
    """One rank."""

    rank: int
    figures: tuple[int, ...]
    """What makes its gradient buffer, its states and the temporaries of its step larger."""
    hooks: tuple[int, ...]
    """Numbers of its gradients in the order of backward."""


class _LargestPiece(NamedTuple):
    """Of one parameter, among the ranks with the same figures."""

    elements: int
    rank: int
    figures: tuple[int, ...]


class _Owners(NamedTuple):
    """The ranks that differ from others."""

    contenders: tuple[_Owner, ...]
    """Those that none exceeds in its figures and in how early it comes, whatever the size of the bucket."""
    largest: dict[int, list[_LargestPiece]]
    """By the number of the parameter in the flat buffer."""


@lru_cache(maxsize=64)
def _owners(sharing: Sharing) -> _Owners:
    """List the ranks that differ; ``sharing`` with buckets of no size: this is the same for all."""
    model, world_size, in_hooks = sharing.buckets.model, sharing.buckets.world_size, sharing.in_hooks
    known = hooks(model)
    ranks = distinct_ranks(known.registered, known.total, world_size)
    if sharing.optimizer == "muon":
        for group in param_groups(model):
            ranks |= distinct_ranks(group.registered, group.total, world_size)
    by_offset = {hook.offset: number for number, hook in enumerate(known.order)}
    owners: list[_Owner] = []
    largest: dict[int, list[_LargestPiece]] = {}
    for rank in sorted(ranks, reverse=in_hooks):
        figures = _figures(sharing, rank)
        numbers: list[int] = []
        for piece in pieces(known.registered, known.total, world_size, rank):
            offset = known.offsets[piece.number]
            if offset in by_offset:  # else its gradient never arrives
                numbers.append(by_offset[offset])
            others = largest.setdefault(piece.number, [])
            if not any(other.elements >= piece.elements and other.figures == figures for other in others):
                others.append(_LargestPiece(piece.elements, rank, figures))
        owners.append(_Owner(rank, figures, tuple(sorted(numbers))))
    return _Owners(tuple(_contenders(owners, len(known.head_hooks), in_hooks)), largest)


def _figures(sharing: Sharing, rank: int) -> tuple[int, ...]:
    """Return what makes the rank's own gradients, its states and each moment of its step larger, in bytes."""
    buckets, width = sharing.buckets, sharing.width
    groups = owned_slices(buckets.model, sharing.optimizer, buckets.world_size, rank)
    counted = [part.slice.whole for part in groups if part.muon or not buckets.flat_fp32_slice]
    if sharing.offloaded:
        return (width * sum(counted),) if buckets.flat_fp32_slice else ()
    own, matrices = width * sum(counted), width * sum([part.slice.whole for part in groups if part.muon])
    # Muon's momentum lies twice from step to step, and in the step its updates besides.
    in_step = own + 3 * matrices
    flat = [width * part.slice.elements * (part.slice.tensors > 1) for part in groups]
    norm = 8 * max([part.slice.largest for part in groups])
    return own, matrices, in_step + norm, in_step + flat[0], own + 2 * matrices + flat[-1]


def _contenders(owners: Iterable[_Owner], head_hooks: int, in_hooks: bool) -> Iterable[_Owner]:
    """Leave out what another exceeds: of those without gradients of the head, which may be reduced within the head."""
    kept: list[tuple[int, _Owner]] = []
    for owner in owners:
        below_the_head = owner.hooks[bisect_left(owner.hooks, head_hooks) :]
        first = (below_the_head[0] if below_the_head else _NEVER) if in_hooks else owner.rank
        in_head = in_hooks and len(below_the_head) < len(owner.hooks)
        if in_head or not any(at <= first and _none_less(other.figures, owner.figures) for at, other in kept):
            kept.append((first, owner))
    return [owner for _, owner in kept]


def _exceeded_by_none(sharing: Sharing, owners: _Owners) -> set[int]:
    if not sharing.in_hooks:
        return {owner.rank for owner in owners.contenders}
    every = buckets_in_hooks(sharing.buckets)
    starts, layers = [bucket.start for bucket in every], sharing.buckets.model.layers
    below_the_head = next((bucket.start for bucket in every if bucket.reduction.layer < layers), _NEVER)
    arrivals: list[tuple[int, int, _Owner]] = []
    for owner in owners.contenders:
        below = bisect_left(owner.hooks, below_the_head)
        # The first bucket with its gradients, and the first of those that are reduced below the head.
        first = bisect_right(starts, owner.hooks[0]) if owner.hooks else _NEVER
        second = bisect_right(starts, owner.hooks[below]) if below < len(owner.hooks) else _NEVER
        arrivals.append((first, second, owner))
    kept: list[tuple[int, _Owner]] = []
    for _, second, owner in sorted(arrivals, key=lambda arrival: arrival[:2]):
        if not any(at <= second and _none_less(other.figures, owner.figures) for at, other in kept):
            kept.append((second, owner))
    return {owner.rank for _, owner in kept}


def _none_less(figures: Sequence[int], others: Sequence[int]) -> bool:
    return all(more >= less for more, less in zip(figures, others, strict=True))


def _largest_pieces(sharing: Sharing, owners: _Owners) -> set[int]:
    """List the ranks of which a bucket holds so much that none has more in one that is as high."""
    kept: dict[int, list[tuple[int, ...]]] = {}
    found: set[int] = set()
    for place, sizes, numbers in _buckets(sharing):
        largest: dict[tuple[int, ...], tuple[int, int]] = {}
        for number in numbers:
            for elements, rank, figures in owners.largest.get(number, ()):
                if elements > largest.get(figures, (0, 0))[0]:
                    largest[figures] = elements, rank
        rivals = kept.setdefault(place, [])
        for figures, (elements, rank) in largest.items():
            all_of_it = (elements, *sizes, *figures)
            if not any(_none_less(rival, all_of_it) for rival in rivals):
                rivals.append(all_of_it)
                found.add(rank)
    return found


def _buckets(sharing: Sharing) -> Iterable[tuple[int, tuple[int, ...], Iterable[int]]]:
    """Yield, of each bucket, the earlier and so the higher first: its place, what else is larger in it, and its
    parameters."""
    buckets, known = sharing.buckets, hooks(sharing.buckets.model)
    if not sharing.in_hooks:
        for start, stop in runs((*known.offsets, known.total), buckets.size):
            yield 0, (), range(start, stop)
        return
    numbers = _numbers_in_order(buckets.model)
    for bucket in buckets_in_hooks(buckets):
        made, several = bucket.reduction, bucket.stop > bucket.start + 1
        sizes: tuple[int, ...] = (made.outside + made.unreduced_elements,)
        if buckets.flat_fp32_slice:  # else what is flattened or cast is so for all ranks
            sizes += (made.copied, made.filled, several)
        yield bucket.place, sizes, numbers[bucket.start : bucket.stop]


@lru_cache(maxsize=128)
def _numbers_in_order(model: Model) -> tuple[int, ...]:
    """Return the numbers of the parameters in the flat buffer, in the order of their hooks."""
    by_offset = {offset: number for number, offset in enumerate(hooks(model).offsets)}
    return tuple([by_offset[offset] for offset in arrivals(model).offsets])
