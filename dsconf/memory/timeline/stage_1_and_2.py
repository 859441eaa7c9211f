"""Moments of ZeRO stages 1 and 2 (DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, Z12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.memory.autograd.figures import Activations
from dsconf.memory.timeline.common import (
    Alive,
    Bytes,
    Frame,
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
from dsconf.memory.timeline.resident import bucket_widths
from dsconf.memory.zero.muon import Part, iteration, parts
from dsconf.memory.zero.optimizer_states import temporaries
from dsconf.memory.zero.reduce_buckets import Flush, flushes, in_order, partition
from dsconf.memory.zero.slices import rivals
from dsconf.memory.zero.wrapper import compact, reduces_in_hooks
from dsconf.model.spec import Model

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
    frame = step.frame
    groups = parts(step.model, step.settings.optimizer, step.world_size, rank)
    bucket, own = _bucket(frame), _own(frame, groups)
    early = _held_before(step, bucket, own)
    return [
        *_until_reduced(step, early, bucket),
        *_reduced(step, rank, (early[0], bucket), own),
        *_optimizer(frame, groups, bucket, own),
    ]


def alike(settings: Settings) -> bool:
    """Whether ranks differ in nothing but the gradients that they own: not with Muon, nor with an fp32 slice."""
    return settings.optimizer != "muon" and not compact(settings)


def full_ranks(frame: Frame) -> tuple[int, ...]:
    """The ranks of which one is the fullest."""
    settings = frame.settings
    buffered = settings.offload_optimizer == "none" or compact(settings)
    return rivals(frame.model, frame.world_size, reduces_in_hooks(settings), buffered)


class _Rise(NamedTuple):
    """A moment of one rank's backward: where it is says its activations."""

    part: int
    """As ``Place``; or the last, ``_OTHERS``, where ``event`` 0 is inside a layer and 1 the embedding's gradient."""
    level: int
    event: int
    num_bytes: int
    """Beside activations and what all ranks hold."""
    number: int
    """Of the rank, counted downwards from 0: of moments that are as large that of the first rank is the greatest."""


_OTHERS = 3


class _Outline(NamedTuple):
    """What can be the highest moment of any rank, for every batch; ranks are numbered as in ``_Rise``."""

    ranks: tuple[int, ...]
    left: tuple[int, int]
    """Most gradients of its own that a rank keeps from earlier micro-batches at stage 2, and its number."""
    rises: tuple[_Rise, ...]
    without: tuple[int, int]
    """Bytes and rank of the highest moment that has no activations."""


def fullest(step: Step) -> tuple[int, int]:
    """The highest moment of all ranks, which are ``alike``, and the first rank that has it: bytes beside what stays."""
    frame, act = step.frame, step.act
    outline = _outline(frame, step.accumulating and step.settings.stage == 2)
    bucket = _bucket(frame)
    early = _held_before(step, bucket, own=0)
    left, number = outline.left
    found = [outline.without, (_most(_until_reduced(step, early, bucket)) + left, number)]
    if outline.rises:
        held, bottom, each = early[0] + bucket, act.bottom, act.layer
        others = [in_layer(step, HELD, 0, (0, 0)), embedding_gradient(step, HELD, (0, 0))]
        live = (*live_at_hooks(act), [sum(sizes) - bottom for _, sizes in others])
        found += [
            (held + bottom + level * each + live[part][event] + size, number)
            for part, level, event, size, number in outline.rises
        ]
    highest, number = max(found)
    return highest, outline.ranks[-number]


@lru_cache(maxsize=1024)
def _outline(frame: Frame, again: bool) -> _Outline:
    """``again``: earlier micro-batches have left each rank's own gradients."""
    settings, bucket, ranks = frame.settings, _bucket(frame), full_ranks(frame)
    seen_by, in_hooks = _seen_by(frame), reduces_in_hooks(settings)
    norm = 8 if settings.offload_optimizer != "none" else 0
    rises: list[_Rise] = []
    left, without = [], []
    for number, rank in enumerate(ranks):
        groups = parts(frame.model, settings.optimizer, frame.world_size, rank)
        own = _own(frame, groups)
        left.append((own * again, -number))
        others = _optimizer(frame, groups, bucket, own)
        if in_hooks:
            rises += _rises(seen_by(rank), own, own * again, norm, -number)
        else:
            others += _reduced_at_the_end(frame, rank, bucket, own)
        without.append((_most(others) if others else 0, -number))
    return _Outline(ranks, max(left), _highest(rises), max(without))


def _rises(seen: _Reductions, own: int, left: int, norm: int, number: int) -> Iterator[_Rise]:
    """The moments of one rank that ``_reduced_in_hooks`` chooses from."""
    for one in seen.every:
        yield _Rise(*one.place, one.newest + one.beside + left + own * one.holds, number)
    for one in seen.mine:
        yield _Rise(*one.place, one.newest + left + own + norm * one.flush.mine, number)
    if seen.inside >= 0:
        yield _Rise(_OTHERS, seen.inside, 0, left + own, number)
    yield _Rise(_OTHERS, 0, 1, left + own * seen.early, number)


def _highest(rises: Iterable[_Rise]) -> tuple[_Rise, ...]:
    """Those that can be the highest, or the first of the highest, whatever a layer keeps."""
    found: dict[tuple[int, int], list[_Rise]] = {}
    for one in sorted(rises, key=lambda one: (one.level, one.num_bytes, one.number), reverse=True):
        before = found.setdefault((one.part, one.event), [])
        if not any((other.num_bytes, other.number) >= (one.num_bytes, one.number) for other in before):
            before.append(one)
    return tuple([one for some in found.values() for one in some])


def _most(moments: Sequence[Alive]) -> int:
    return max([sum(sizes) for _, sizes in moments])


def _bucket(frame: Frame) -> int:
    """The reduce bucket, twice with ``overlap_comm``; made in the first hook of a backward (Z12:3256-3278)."""
    settings = frame.settings
    if not settings.contiguous_gradients and settings.offload_optimizer == "none":
        return 0
    size = sum(bucket_widths(settings, frame.width, frame.model)) * settings.reduce_bucket_size
    return 2 * size if settings.overlap_comm else size


def _own(frame: Frame, groups: tuple[Part, ...]) -> int:
    """Gradients of every parameter that reaches into the rank's slice, whole (Z12:2184-2194); or its fp32 slice."""
    apart = compact(frame.settings)
    if frame.settings.offload_optimizer != "none" and not apart:
        return 0
    width = frame.width.model
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
    return _reduced_at_the_end(step.frame, rank, held[1], own)


def _reduced_in_hooks(step: Step, rank: int, held: tuple[int, int], own: int) -> list[Alive]:
    """Buckets are reduced as they fill; stage 2, and stage 1 with overlap_comm in the last micro-batch."""
    settings, act, found = step.settings, step.act, _seen_by(step.frame)(rank)
    own = 0 if compact(settings) and held[0] else own
    live, bottom, each = live_at_hooks(act), act.bottom, act.layer
    heights = [
        bottom + level * each + live[part][event] + newest + beside + (own if holds else 0)
        for (part, level, event), newest, beside, holds, _ in found.every
    ]
    top = found.every[heights.index(max(heights))]
    copies = step.width.model * top.flush.copied + _cast(step.frame) * top.flush.filled
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


def _seen_by(frame: Frame) -> Callable[[int], _Reductions]:
    """The reductions of a backward as a rank sees them."""
    settings = frame.settings
    straddles = settings.reduce_scatter and settings.multi_rank_bucket_allreduce
    sizes = (settings.reduce_bucket_size, frame.world_size, straddles, compact(settings), frame.width.model)
    return partial(_reductions, frame.model, *sizes, _cast(frame))


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


def _cast(frame: Frame) -> int:
    """Bytes an element of the copy in the collective's type, 0 where that is the bucket's (Z12:1706-1715)."""
    width = frame.width
    return 0 if width.communicate == width.model else width.communicate


def _reduced_at_the_end(frame: Frame, rank: int, bucket: int, own: int) -> list[Alive]:
    """The first bucket, and the first that holds gradients of this rank: what waits only gets less."""
    settings, width, full = frame.settings, frame.width.model, frame.width.model * frame.known.total
    first, mine = in_order(frame.model, settings.reduce_bucket_size, frame.world_size, rank)
    moments: list[Alive] = []
    if first is not None and first is not mine:
        copied = first.copied if settings.reduce_scatter else 0
        moments.append((_FIRST, (bucket, full - width * first.moved, width * copied + _cast(frame) * first.filled)))
    if mine is not None:
        kind = _FIRST_OWN if mine is first else _OWN
        moments.append((kind, (bucket, full - width * mine.moved, own)))
    return moments


def _temporaries(frame: Frame) -> int:
    """What the optimizer makes for its step: the same on every rank, and in DeepSpeed's Muon nothing."""
    if frame.settings.optimizer == "muon":
        return 0
    return temporaries(frame.settings, frame.width.master * partition(frame.known.total, frame.world_size))


def _optimizer(frame: Frame, groups: tuple[Part, ...], bucket: int, own: int) -> list[Alive]:
    """Gradient norm in fp64, then group by group flatten, cast, step (Z12:2648-2690, 3080-3140)."""
    if frame.settings.offload_optimizer != "none":
        return []
    made = _temporaries(frame)
    updates = 0
    moments: list[Alive] = []
    if frame.settings.optimizer == "muon":
        # Whole matrices made when backward is over, the bucket not yet released (Z12:1020-1061, 2869-2890).
        updates = sum([frame.width.model * one.slice.whole for one in groups if one.muon])
        scratch = iteration(frame.model, frame.width.model) if groups[0].muon else 0
        moments.append((_MUON, (bucket, own, updates, scratch)))
    moments.append((_NORM, (own, updates, 8 * max([one.slice.largest for one in groups]))))
    for number, one in enumerate(groups):
        flat, cast, gradient = _one_group(frame, one)
        # The buffer of the gradients goes with the last group that it serves, Muon's updates with Muon's group.
        after = own if number + 1 < len(groups) else 0
        moments += [(_CAST, (own, updates, flat, cast)), (_STEP, (after, gradient, made))]
        updates = 0
    return moments


def _one_group(frame: Frame, one: Part) -> tuple[int, int, int]:
    """The slice's gradient flattened, its cast to the master's type, and what the step then works on."""
    width, elements = frame.width, one.slice.elements
    # Muon's group keeps whole gradients even where the others have a flat fp32 slice (Z12:1259-1266).
    straight = compact(frame.settings) and not one.muon
    flat = 0 if straight or one.slice.tensors == 1 else width.model * elements
    gradient = width.master * elements
    return flat, 0 if (4 if straight else width.model) == width.master else gradient, gradient
