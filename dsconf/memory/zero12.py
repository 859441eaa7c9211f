"""Moments of ZeRO stages 1 and 2 (DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, Z12)."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.memory.hooks import Flush, flushes, hooks, in_order
from dsconf.memory.muon import Part, iteration, parts
from dsconf.memory.optimizers import temporaries
from dsconf.memory.states import Terms, bucket_widths, compact, reduces_in_hooks
from dsconf.memory.timeline import (
    Sketch,
    Step,
    at_hook,
    embedding_gradient,
    forward,
    in_layer,
    live_at_hook,
    start_of_backward,
    tiled_loss,
)


def moments(step: Step) -> Iterator[Sketch]:
    """Forward, backward and optimizer step of one rank."""
    early = _held_before(step)
    yield from forward(step, early)
    yield from tiled_loss(step, early if early and step.settings.stage == 1 else (*early, *_bucket(step)))
    yield start_of_backward(step, early)
    settings = step.settings
    if reduces_in_hooks(settings):
        yield from _reduced_in_hooks(step, early)
    else:
        yield from _reduced_at_the_end(step, early)
    if settings.optimizer == "muon" and settings.offload_optimizer == "none":
        yield _orthogonalized(step)
    if settings.offload_optimizer == "none":
        yield from _optimizer(step)


def _bucket(step: Step) -> Terms:
    """The reduce bucket, twice with ``overlap_comm``; made in the first hook of a backward (Z12:3256-3278)."""
    if not step.settings.contiguous_gradients and step.settings.offload_optimizer == "none":
        return ()
    size = sum(bucket_widths(step.settings, step.width, step.model)) * step.settings.reduce_bucket_size
    return (("reduce bucket", 2 * size if step.settings.overlap_comm else size),)


def _own(step: Step) -> Terms:
    """Gradients of every parameter that reaches into the rank's slice, whole (Z12:2184-2194); or its fp32 slice."""
    if step.settings.offload_optimizer != "none" and not compact(step.settings):
        return ()
    size, apart = 0, compact(step.settings)
    for one in parts(step.model, step.settings.optimizer, step.world_size, step.rank):
        size += 4 * one.slice.elements if apart and not one.muon else step.width.model * one.slice.whole
    return (("gradients", size),)


def _held_before(step: Step) -> Terms:
    """Gradients that earlier micro-batches left, alive through the next forward."""
    if not step.accumulating:
        return ()
    if step.settings.stage == 2:
        return _own(step)
    full = step.width.model * hooks(step.model).total
    return (("gradients", full), *_bucket(step))


def _reduced_in_hooks(step: Step, early: Terms) -> Iterator[Sketch]:
    """Buckets are reduced as they fill; stage 2, and stage 1 with overlap_comm in the last micro-batch."""
    settings, model, width = step.settings, step.model, step.width.model
    bucket = () if early and settings.stage == 1 else _bucket(step)
    straddles = settings.reduce_scatter and settings.multi_rank_bucket_allreduce
    offloaded = settings.offload_optimizer != "none"
    own = () if compact(step.settings) and early else _own(step)
    layers = step.act.layers
    yield from _in_the_head(step, (*early, *bucket))
    yield in_layer(step, layers - 1, (*early, *bucket))
    apart, cast = compact(settings), _cast(step)
    found = flushes(
        model, settings.reduce_bucket_size, step.world_size, step.rank, straddles, apart=apart, cast=cast > 0
    )

    def height(flush: Flush) -> int:
        return live_at_hook(step, flush.layer, flush.event) + width * (flush.waiting + flush.outside)

    def waiting(flush: Flush) -> Terms:
        # A parameter larger than the bucket stays outside it, as its own gradient (Z12:1443-1449).
        newest = width * (flush.waiting + flush.outside)
        return (*early, *bucket, *at_hook(step, flush.layer, flush.event), ("newest gradient", newest))

    own_bytes = sum(size for _, size in own)
    slice_width = 4 if apart and not cast else 0

    def beside(flush: Flush) -> int:
        # The fp32 slice is there before its first gradients are reduced, and each is cast for it (Z12:1290-1326).
        held = own_bytes if flush.held or (apart and flush.mine) else 0
        return held + width * flush.copied + cast * flush.filled + slice_width * flush.mine

    def reducing(flush: Flush) -> Terms:
        copies = (("reduce copy", width * flush.copied + cast * flush.filled),)
        slice_ = (("fp32 gradient", slice_width * flush.mine),) if slice_width else ()
        return (*copies, *slice_, *(own if flush.held or (apart and flush.mine) else ()))

    reduced = max(found, key=lambda f: height(f) + beside(f))
    yield Sketch("backward", "reducing a bucket", (*waiting(reduced), *reducing(reduced)))
    mine = [flush for flush in found if flush.mine]
    if mine:
        kept = max(mine, key=lambda f: height(f) + (8 * f.mine if offloaded else 0))
        norm = (("fp64 gradient for the norm", 8 * kept.mine),) if offloaded else ()
        yield Sketch("backward", "keeping the own gradients", (*waiting(kept), *own, *norm))
    inner = [flush.layer for flush in mine if 0 <= flush.layer < layers]
    if inner:
        yield in_layer(step, max(inner), (*early, *bucket, *own))
    early_own = own if any(flush.layer >= 0 for flush in mine) else ()
    yield embedding_gradient(step, (*early, *bucket, *early_own), hooks(model).embedding)


def _in_the_head(step: Step, held: Terms) -> Iterator[Sketch]:
    """Hooks of the output projection and final norm, the first of which makes the bucket beside all activations.

    The hook of a bias comes while the weight's gradient of the same operation still waits for its own.
    """
    found = hooks(step.model).above
    if not found:
        return
    act, width = step.act, step.width.model
    most = max(act.head_live[hook.event] + width * hook.numel for hook in found)
    terms = (*held, ("saved activations", act.kept), ("newest gradient", most))
    yield Sketch("backward", "in the output projection", (*terms, ("tied embedding gradient", act.tied)))


def _cast(step: Step) -> int:
    """Bytes an element of the copy in the collective's type, 0 where that is the bucket's (Z12:1706-1715)."""
    width = step.width
    return 0 if width.communicate == width.model else width.communicate


def _orthogonalized(step: Step) -> Sketch:
    """Muon's updates are made when backward is over, the reduce bucket not yet released (Z12:1020-1061)."""
    groups = parts(step.model, "muon", step.world_size, step.rank)
    scratch = ("Newton-Schulz iteration", iteration(step.model, step.width.model) if groups[0].muon else 0)
    return Sketch("backward", "Muon's updates", (*_bucket(step), *_own(step), *_updates(step, groups), scratch))


def _reduced_at_the_end(step: Step, early: Terms) -> Iterator[Sketch]:
    """Stage 1: whole gradients stay until backward is over, then go bucket by bucket (Z12:958-980, 2284-2295)."""
    width, known, layers = step.width.model, hooks(step.model), step.act.layers
    full = width * known.total
    bucket = _bucket(step)
    if early:
        yield in_layer(step, layers - 1, early)
        yield embedding_gradient(step, early, hooks(step.model).embedding)
    else:
        for layer in (layers - 1, 0):
            above = width * (known.head + (layers - 1 - layer) * known.layer)
            yield in_layer(step, layer, (("gradients", above), *bucket), hoarded=True)
        others = full - width * hooks(step.model).embedding
        yield embedding_gradient(step, (("gradients", others), *bucket), hooks(step.model).embedding)
    yield from _buckets_in_order(step, full)


def _buckets_in_order(step: Step, full: int) -> Iterator[Sketch]:
    """The first bucket, and the first that holds gradients of this rank: what waits only gets less."""
    settings, width = step.settings, step.width.model
    bucket = _bucket(step)
    found = in_order(step.model, settings.reduce_bucket_size, step.world_size, step.rank)
    for name, one in (("reducing the first bucket", found.first), ("keeping the own gradients", found.own)):
        if one is None:
            continue
        waiting = (("gradients still to reduce", full - width * one.moved),)
        if one is found.own:
            yield Sketch("backward", name, (*bucket, *waiting, *_own(step)))
        else:
            copied = one.copied if settings.reduce_scatter else 0
            copy = (("reduce copy", width * copied + _cast(step) * one.filled),)
            yield Sketch("backward", name, (*bucket, *waiting, *copy))


def _optimizer(step: Step) -> Iterator[Sketch]:
    """Gradient norm in fp64, then group by group flatten, cast, step (Z12:2648-2690, 3080-3140)."""
    groups = parts(step.model, step.settings.optimizer, step.world_size, step.rank)
    largest = max(one.slice.largest for one in groups)
    own = _own(step)
    held = (*own, *_updates(step, groups))
    yield Sketch("step", "gradient norm", (*held, ("fp64 gradient for the norm", 8 * largest)))
    for number, one in enumerate(groups):
        # The buffer of the gradients goes with the last group that it serves, Muon's updates with Muon's group.
        after = own if number + 1 < len(groups) else ()
        yield from _one_group(step, one, held, after)
        held = own


def _one_group(step: Step, one: Part, held: Terms, after: Terms) -> Iterator[Sketch]:
    width, elements = step.width, one.slice.elements
    straight = _compact(step, one)
    flat = 0 if straight or one.slice.tensors == 1 else width.model * elements
    cast = 0 if (4 if straight else width.model) == width.master else width.master * elements
    yield Sketch("step", "flatten and cast", (*held, ("flat gradient", flat), ("fp32 gradient", cast)))
    gradient = width.master * elements
    made = 0 if one.muon or step.settings.optimizer == "muon" else temporaries(step.settings, gradient)
    terms = (*after, ("fp32 gradient", gradient), ("optimizer temporaries", made))
    yield Sketch("step", "optimizer", terms)


def _compact(step: Step, one: Part) -> bool:
    """Muon's group keeps whole gradients even where the others have a flat fp32 slice (Z12:1259-1266)."""
    return compact(step.settings) and not one.muon


def _updates(step: Step, groups: tuple[Part, ...]) -> Terms:
    """Muon's updates, whole matrices made at the end of backward (Z12:2869-2890)."""
    size = sum(step.width.model * one.slice.whole for one in groups if one.muon)
    return (("Muon updates", size),) if size else ()
