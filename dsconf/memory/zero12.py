"""Moments of ZeRO stages 1 and 2 (DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, Z12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.memory.activations import Activations
from dsconf.memory.hooks import Flush, flushes, in_order, partition
from dsconf.memory.moments import (
    Alive,
    Bytes,
    Kind,
    Live,
    Place,
    Step,
    at_hook,
    common,
    embedding_gradient,
    forward,
    in_layer,
    live_at_hooks,
    loss_gradient,
    place,
    tiled_loss,
)
from dsconf.memory.muon import Part, iteration, parts
from dsconf.memory.optimizers import temporaries
from dsconf.memory.states import bucket_widths, compact, reduces_in_hooks
from dsconf.model.spec import Model

FEW = 4
"""Reductions beside own gradients up to which each is looked at for a ceiling."""
NOBODY = -1
"""A rank without a slice: it sees the reductions that all ranks have, and none of gradients of its own."""

HELD = common("gradients", "reduce bucket")
"""Gradients of earlier micro-batches, and the bucket."""
OWNED = common("gradients", "reduce bucket", "gradients")
"""And the rank's own gradients, once some have been reduced."""

_ACTIVATIONS = ("saved activations", "tied embedding gradient", "newest gradient")
_HOOK = (*HELD.held, *_ACTIVATIONS)
_HEAD = Kind(
    "backward",
    "in the output projection",
    (*HELD.held, "saved activations", "newest gradient", "tied embedding gradient"),
)
_REDUCING = Kind("backward", "reducing a bucket", (*_HOOK, "reduce copy", "fp32 gradient", "gradients"))
_KEEPING = Kind("backward", "keeping the own gradients", (*_HOOK, "gradients", "fp64 gradient for the norm"))
_WAITING = ("reduce bucket", "gradients still to reduce")
_FIRST = Kind("backward", "reducing the first bucket", (*_WAITING, "reduce copy"))
_FIRST_OWN = Kind("backward", "reducing the first bucket", (*_WAITING, "gradients"))
_OWN = Kind("backward", "keeping the own gradients", (*_WAITING, "gradients"))
_MUON = Kind("backward", "Muon's updates", ("reduce bucket", "gradients", "Muon updates", "Newton-Schulz iteration"))
_NORM = Kind("step", "gradient norm", ("gradients", "Muon updates", "fp64 gradient for the norm"))
_CAST = Kind("step", "flatten and cast", ("gradients", "Muon updates", "flat gradient", "fp32 gradient"))
_STEP = Kind("step", "optimizer", ("gradients", "fp32 gradient", "optimizer temporaries"))


def moments(step: Step, rank: int) -> list[Alive]:
    """Forward, backward and optimizer step of one rank."""
    groups = parts(step.model, step.settings.optimizer, step.world_size, rank)
    bucket, own = _bucket(step), _own(step, groups)
    early = _held_before(step, bucket, own)
    return [
        *_until_reduced(step, early, bucket),
        *_reduced(step, rank, (early[0], bucket), own),
        *_optimizer(step, groups, bucket, own),
    ]


def alike(settings: Settings) -> bool:
    """Whether ranks differ in nothing but the gradients that they own: not with Muon, nor with an fp32 slice."""
    return settings.optimizer != "muon" and not compact(settings)


def ceilings(step: Step, ranks: Sequence[int]) -> list[int]:
    """For each of ``ranks``, which are ``alike``, bytes that none of its moments exceeds; quicker than the moments."""
    settings, width, bucket = step.settings, step.width, _bucket(step)
    early = _held_before(step, bucket, own=0)
    before = _most(_until_reduced(step, early, bucket))
    again = step.accumulating and settings.stage == 2  # earlier micro-batches have left own gradients already
    reduced = _in_hooks if reduces_in_hooks(settings) else _at_the_end
    elements = partition(step.known.total, step.world_size)
    flat, gradient = width.model * elements, width.master * elements
    stepping = gradient + _temporaries(step)
    groups = [parts(step.model, settings.optimizer, step.world_size, rank) for rank in ranks]
    owns = [_own(step, one) for one in groups]
    found = []
    for own, (one,), backward in zip(owns, groups, reduced(step, ranks, owns, (early[0], bucket)), strict=True):
        highest = max(before, backward) + own * again
        norm = 8 * one.slice.largest
        if settings.offload_optimizer == "none":
            highest = max(highest, own + norm, own + flat + gradient, stepping)
        found.append(highest if settings.offload_optimizer == "none" else highest + norm)
    return found


def _in_hooks(step: Step, ranks: Sequence[int], owns: Sequence[int], held: tuple[int, int]) -> list[int]:
    """What all ranks hold while buckets are reduced, and on top a rank's own gradients where it can have some."""
    act, seen_by, beside = step.act, _seen_by(step), sum(held)
    live, every = live_at_hooks(act), seen_by(NOBODY).every
    standing = _standing(act, every, live)
    keeping, reducing = max(standing), _most_beside(standing, every)
    inside = sum(in_layer(step, HELD, act.layers - 1, (0, 0))[1])
    embedding = sum(embedding_gradient(step, HELD, (0, 0))[1])
    found = []
    for rank, own in zip(ranks, owns, strict=True):
        seen = seen_by(rank)
        beside_own = reducing  # of many reductions one is as high as any rank's
        if len(seen.held) <= FEW:
            beside_own = _most_beside(_standing(act, seen.held, live), seen.held) if seen.held else 0
        most = max(reducing, own + beside_own, own + keeping, embedding + own * seen.early)
        found.append(beside + (max(most, own + inside) if seen.inside >= 0 else most))
    return found


def _most_beside(standing: Sequence[int], found: Sequence[_Reduction]) -> int:
    return max([size + one.beside for size, one in zip(standing, found, strict=True)])


def _at_the_end(step: Step, ranks: Sequence[int], owns: Sequence[int], held: tuple[int, int]) -> list[int]:
    """The first bucket, and what waits when the first bucket with gradients of the rank is reduced."""
    bucket, settings, width = held[1], step.settings, step.width.model
    first, full = _most(_reduced_at_the_end(step, NOBODY, bucket, own=0)), bucket + width * step.known.total
    found = []
    for rank, own in zip(ranks, owns, strict=True):
        mine = in_order(step.model, settings.reduce_bucket_size, step.world_size, rank).own
        found.append(max(first, full - width * mine.moved + own) if mine else first)
    return found


def _most(moments: Sequence[Alive]) -> int:
    return max([sum(sizes) for _, sizes in moments])


def _bucket(step: Step) -> int:
    """The reduce bucket, twice with ``overlap_comm``; made in the first hook of a backward (Z12:3256-3278)."""
    settings = step.settings
    if not settings.contiguous_gradients and settings.offload_optimizer == "none":
        return 0
    size = sum(bucket_widths(settings, step.width, step.model)) * settings.reduce_bucket_size
    return 2 * size if settings.overlap_comm else size


def _own(step: Step, groups: tuple[Part, ...]) -> int:
    """Gradients of every parameter that reaches into the rank's slice, whole (Z12:2184-2194); or its fp32 slice."""
    apart = compact(step.settings)
    if step.settings.offload_optimizer != "none" and not apart:
        return 0
    width = step.width.model
    return sum([4 * one.slice.elements if apart and not one.muon else width * one.slice.whole for one in groups])


def _held_before(step: Step, bucket: int, own: int) -> tuple[int, int]:
    """Gradients that earlier micro-batches left and the bucket, if they are alive through the next forward."""
    if not step.accumulating:
        return 0, 0
    if step.settings.stage == 2:
        return own, 0
    return step.width.model * step.known.total, bucket


def _until_reduced(step: Step, early: tuple[int, int], bucket: int) -> list[Alive]:
    """Up to the first gradients that are reduced: of ranks that held as much ``early``, one has what the other has."""
    layers, held = step.act.layers, (early[0], bucket)
    at_loss = held if step.act.shards_gradient else early
    moments = [*forward(step, HELD, early), *tiled_loss(step, HELD, held), loss_gradient(step, HELD, at_loss)]
    if reduces_in_hooks(step.settings):
        return [*moments, *_in_the_head(step, held), in_layer(step, HELD, layers - 1, held)]
    if step.accumulating:
        return [*moments, in_layer(step, HELD, layers - 1, held), embedding_gradient(step, HELD, held)]
    # Stage 1: whole gradients stay until backward is over, then go bucket by bucket (Z12:958-980, 2284-2295).
    known, width = step.known, step.width.model
    for layer in (layers - 1, 0):
        above = width * (known.head + (layers - 1 - layer) * known.layer)
        moments.append(in_layer(step, HELD, layer, (above, bucket), hoarded=True))
    others = width * (known.total - known.embedding)
    return [*moments, embedding_gradient(step, HELD, (others, bucket))]


def _reduced(step: Step, rank: int, held: tuple[int, int], own: int) -> list[Alive]:
    if reduces_in_hooks(step.settings):
        return _reduced_in_hooks(step, rank, held, own)
    return _reduced_at_the_end(step, rank, held[1], own)


def _reduced_in_hooks(step: Step, rank: int, held: tuple[int, int], own: int) -> list[Alive]:
    """Buckets are reduced as they fill; stage 2, and stage 1 with overlap_comm in the last micro-batch."""
    settings, act, found = step.settings, step.act, _seen_by(step)(rank)
    own = 0 if compact(settings) and held[0] else own
    live, bottom, each = live_at_hooks(act), act.bottom, act.layer
    heights = [
        bottom + level * each + live[part][event] + newest + beside + (own if holds else 0)
        for (part, level, event), newest, beside, holds, _ in found.every
    ]
    top = found.every[heights.index(max(heights))]
    copies = step.width.model * top.flush.copied + _cast(step) * top.flush.filled
    sizes = (copies, top.beside - copies, own if top.holds else 0)
    moments: list[Alive] = [(_REDUCING, (*held, *at_hook(act, top.place, live), top.newest, *sizes))]
    if found.mine:
        norm = 8 if settings.offload_optimizer != "none" else 0
        standing = _standing(act, found.mine, live)
        heights = [size + norm * one.flush.mine for size, one in zip(standing, found.mine, strict=True)]
        top = found.mine[heights.index(max(heights))]
        moments.append((_KEEPING, (*held, *at_hook(act, top.place, live), top.newest, own, norm * top.flush.mine)))
    if found.inside >= 0:
        moments.append(in_layer(step, OWNED, found.inside, (*held, own)))
    moments.append(embedding_gradient(step, OWNED, (*held, own if found.early else 0)))
    return moments


def _standing(act: Activations, found: Sequence[_Reduction], live: Live) -> list[int]:
    """Activations and the newest gradient at each of ``found``; ``live`` as ``live_at_hooks`` has it."""
    bottom, each = act.bottom, act.layer
    return [bottom + level * each + live[part][event] + newest for (part, level, event), newest, _, _, _ in found]


def _seen_by(step: Step) -> Callable[[int], _Reductions]:
    """The reductions of a backward as a rank sees them."""
    settings, width = step.settings, step.width.model
    straddles = settings.reduce_scatter and settings.multi_rank_bucket_allreduce
    apart, cast = compact(settings), _cast(step)
    return partial(_reductions, step.model, settings.reduce_bucket_size, step.world_size, straddles, apart, width, cast)


class _Reduction(NamedTuple):
    """One bucket being reduced, in bytes."""

    place: Place
    newest: int
    """A parameter larger than the bucket stays outside it, as its own gradient (Z12:1443-1449)."""
    beside: int
    """Copies of the bucket, and the slice in fp32."""
    holds: bool
    """Whether the rank's own gradients are there."""
    flush: Flush


class _Reductions(NamedTuple):
    """The reductions of one backward, as one rank sees them."""

    every: tuple[_Reduction, ...]
    mine: tuple[_Reduction, ...]
    """Those with gradients of this rank."""
    inside: int
    """Highest layer in whose backward such a one runs, -1 if in none."""
    early: bool
    """Whether such a one runs before backward reaches the embedding."""
    held: tuple[_Reduction, ...]
    """Those while gradients of this rank are there."""


@lru_cache(maxsize=1024)
def _reductions(
    model: Model, bucket: int, world_size: int, straddles: bool, apart: bool, width: int, cast: int, rank: int
) -> _Reductions:
    every, layers = [], model.layers
    slice_width = 4 if apart and not cast else 0
    for one in flushes(model, bucket, world_size, rank, straddles, apart=apart, cast=cast > 0):
        # The fp32 slice is there before its first gradients are reduced, and each is cast for it (Z12:1290-1326).
        beside = width * one.copied + cast * one.filled + slice_width * one.mine
        holds = one.held or (apart and one.mine > 0)
        newest = width * (one.waiting + one.outside)
        every.append(_Reduction(place(one.layer, one.event, layers), newest, beside, holds, one))
    mine = tuple(one for one in every if one.flush.mine)
    return _Reductions(
        every=tuple(every),
        mine=mine,
        inside=max((one.flush.layer for one in mine if one.flush.layer < layers), default=-1),
        early=any(one.flush.layer >= 0 for one in mine),
        held=tuple(one for one in every if one.holds),
    )


def _in_the_head(step: Step, held: Bytes) -> list[Alive]:
    """Hooks of the output projection and final norm, the first of which makes the bucket beside all activations.

    The hook of a bias comes while the weight's gradient of the same operation still waits for its own.
    """
    found = step.known.above
    if not found:
        return []
    act, width = step.act, step.width.model
    most = max([act.head_live[hook.event] + width * hook.numel for hook in found])
    return [(_HEAD, (*held, act.kept, most, act.tied))]


def _cast(step: Step) -> int:
    """Bytes an element of the copy in the collective's type, 0 where that is the bucket's (Z12:1706-1715)."""
    width = step.width
    return 0 if width.communicate == width.model else width.communicate


def _reduced_at_the_end(step: Step, rank: int, bucket: int, own: int) -> list[Alive]:
    """The first bucket, and the first that holds gradients of this rank: what waits only gets less."""
    settings, width, full = step.settings, step.width.model, step.width.model * step.known.total
    first, mine = in_order(step.model, settings.reduce_bucket_size, step.world_size, rank)
    moments: list[Alive] = []
    if first is not None and first is not mine:
        copied = first.copied if settings.reduce_scatter else 0
        moments.append((_FIRST, (bucket, full - width * first.moved, width * copied + _cast(step) * first.filled)))
    if mine is not None:
        kind = _FIRST_OWN if mine is first else _OWN
        moments.append((kind, (bucket, full - width * mine.moved, own)))
    return moments


def _temporaries(step: Step) -> int:
    """What the optimizer makes for its step: the same on every rank, and in DeepSpeed's Muon nothing."""
    if step.settings.optimizer == "muon":
        return 0
    return temporaries(step.settings, step.width.master * partition(step.known.total, step.world_size))


def _optimizer(step: Step, groups: tuple[Part, ...], bucket: int, own: int) -> list[Alive]:
    """Gradient norm in fp64, then group by group flatten, cast, step (Z12:2648-2690, 3080-3140)."""
    if step.settings.offload_optimizer != "none":
        return []
    made = _temporaries(step)
    updates = 0
    moments: list[Alive] = []
    if step.settings.optimizer == "muon":
        # Whole matrices made when backward is over, the bucket not yet released (Z12:1020-1061, 2869-2890).
        updates = sum([step.width.model * one.slice.whole for one in groups if one.muon])
        scratch = iteration(step.model, step.width.model) if groups[0].muon else 0
        moments.append((_MUON, (bucket, own, updates, scratch)))
    moments.append((_NORM, (own, updates, 8 * max([one.slice.largest for one in groups]))))
    for number, one in enumerate(groups):
        flat, cast, gradient = _one_group(step, one)
        # The buffer of the gradients goes with the last group that it serves, Muon's updates with Muon's group.
        after = own if number + 1 < len(groups) else 0
        moments += [(_CAST, (own, updates, flat, cast)), (_STEP, (after, gradient, made))]
        updates = 0
    return moments


def _one_group(step: Step, one: Part) -> tuple[int, int, int]:
    """The slice's gradient flattened, its cast to the master's type, and what the step then works on."""
    width, elements = step.width, one.slice.elements
    # Muon's group keeps whole gradients even where the others have a flat fp32 slice (Z12:1259-1266).
    straight = compact(step.settings) and not one.muon
    flat = 0 if straight or one.slice.tensors == 1 else width.model * elements
    gradient = width.master * elements
    return flat, 0 if (4 if straight else width.model) == width.master else gradient, gradient
