"""Moments of ZeRO stages 1 and 2; line references are to runtime/zero/stage_1_and_2.py of DeepSpeed 0.19.8."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.timeline.common import (
    AT_A_SHARD,
    AT_THE_EMBEDDING,
    AT_THE_GRADIENT_OF_THE_LOSS,
    AT_THE_LOSS,
    EMBEDDING,
    FORWARD,
    FREED,
    HEAD_HOOK,
    INSIDE_A_LAYER,
    KEPT,
    LAYER,
    LOSS,
    LOSS_GRADIENT,
    LOSS_SHARD,
    NOWHERE,
    Frame,
    Label,
    Place,
    Rise,
    in_layer,
    place_of_hook,
    rise,
)
from dsconf.memory.timeline.resident import bucket_widths
from dsconf.memory.zero.muon import OwnedSlice, newton_schulz_iteration, owned_slices
from dsconf.memory.zero.optimizer_states import optimizer_temporaries
from dsconf.memory.zero.reduce_buckets import (
    Bucketing,
    BucketReduction,
    StageOneBucket,
    partition,
    reductions_after_backward,
    reductions_in_hooks,
)
from dsconf.memory.zero.wrapper import keeps_flat_fp32_gradients, reduces_in_hooks

_HEAD = Label("backward", "in the output projection")
_REDUCING = Label("backward", "reducing a bucket")
_COPYING = Label("backward", "copying gradients this rank owns")
_FIRST = Label("backward", "reducing the first bucket")
_UPDATING = Label("backward", "Muon's updates")
_NORM = Label("step", "gradient norm")
_CAST = Label("step", "flatten and cast")
_STEP = Label("step", "optimizer")
_AFTER = Place(NOWHERE, 0)


class PartitionedRun(NamedTuple):
    """Forward and backward of the model."""

    earlier_gradients: int
    """Of earlier micro-batches, or made earlier in this backward."""
    reduce_bucket: int
    own_gradients: int = 0
    """Once some have been reduced."""
    saved_activations: int = 0
    layer_in_progress: int = 0
    logits_and_loss: int = 0
    newest_gradient: int = 0
    embedding_gradient: int = 0
    tied_embedding_gradient: int = 0


class Reducing(NamedTuple):
    """A bucket is reduced in the hook of the parameter that no longer fitted."""

    earlier_gradients: int
    reduce_bucket: int
    newest_gradient: int
    reduce_copy: int
    fp32_slice: int
    own_gradients: int
    saved_activations: int = 0
    tied_embedding_gradient: int = 0


class Copying(NamedTuple):
    """Reduced gradients that this rank owns are copied out of the bucket, to its buffer or to the host."""

    earlier_gradients: int
    reduce_bucket: int
    newest_gradient: int
    own_gradients: int
    fp64_gradient_for_the_norm: int
    saved_activations: int = 0
    tied_embedding_gradient: int = 0


class ReducingAfterBackward(NamedTuple):
    """Stage 1 without overlap_comm: gradients go bucket by bucket once backward is over."""

    reduce_bucket: int
    gradients_still_to_reduce: int
    reduce_copy: int = 0
    own_gradients: int = 0
    fp64_gradient_for_the_norm: int = 0


class PartitionedStep(NamedTuple):
    """The optimizer step."""

    own_gradients: int
    reduce_bucket: int = 0
    muon_updates: int = 0
    newton_schulz_iteration: int = 0
    fp64_gradient_for_the_norm: int = 0
    flat_gradient: int = 0
    fp32_gradient: int = 0
    optimizer_temporaries: int = 0


@lru_cache(maxsize=4096)
def rises(frame: Frame, accumulating: bool, sharded_loss: bool, rank: int) -> tuple[Rise, ...]:
    """Return the moments of one rank."""
    groups = owned_slices(frame.model, frame.settings.optimizer, frame.world_size, rank)
    own = own_gradients(frame, groups)
    early = earlier_gradients(frame, own) if accumulating else frame.bytes.total()
    if not reduces_in_hooks(frame.settings):
        reduced = _after_backward(frame, rank, own)
    else:
        again = accumulating and keeps_flat_fp32_gradients(frame.settings)  # the flat slice is there already
        reduced = _in_hooks(frame, rank, early, frame.bytes.total() if again else own)
    return (*_until_reduced(frame, accumulating, sharded_loss, early), *reduced, *_optimizer(frame, groups, own))


def reduce_bucket(frame: Frame) -> int:
    """Return the reduce bucket, twice with ``overlap_comm``; made in the first hook of a backward (3256-3278)."""
    settings = frame.settings
    if not settings.contiguous_gradients and settings.offload_optimizer == "none":
        return frame.bytes.total()
    size, why = settings.reduce_bucket_size, "elements of reduce_bucket_size"
    if settings.overlap_comm:
        size, why = 2 * size, f"elements of two buckets of reduce_bucket_size, {size:,}, with overlap_comm"
    return frame.bytes.together(*[frame.bytes.product(width, size, why) for width in bucket_widths(frame)])


def own_gradients(frame: Frame, groups: tuple[OwnedSlice, ...]) -> int:
    """Return the gradients of every parameter that reaches into the rank's slice, whole (2184-2194); or its fp32 slice.

    Muon's group keeps whole gradients even where the others have a flat fp32 slice (1259-1266).
    """
    flat = keeps_flat_fp32_gradients(frame.settings)
    if frame.settings.offload_optimizer != "none" and not flat:
        return frame.bytes.total()
    whole = sum([g.slice.whole for g in groups if g.muon or not flat])
    sliced = sum([g.slice.elements for g in groups if not g.muon]) if flat else 0
    return frame.bytes.total(
        (frame.width.model, whole, "elements of the parameters that reach into this rank's slice, whole"),
        (4, sliced, "elements of this rank's slice"),
    )


def earlier_gradients(frame: Frame, own: int) -> int:
    """Return the gradients that earlier micro-batches left: at stage 2 those that the rank owns, at stage 1 all."""
    if frame.settings.stage == 2:
        return own
    return frame.bytes.product(frame.width.model, frame.hooks.total, "trained parameters, of earlier micro-batches")


@lru_cache(maxsize=2048)
def _until_reduced(frame: Frame, accumulating: bool, sharded_loss: bool, early: int) -> tuple[Rise, ...]:
    """Up to the first gradients that are reduced."""
    layers, bucket, stays = frame.model.layers, reduce_bucket(frame), frame.settings.stage == 1 and accumulating
    # Stage 1 reduces in the last micro-batch alone, and has its bucket from then on.
    before = PartitionedRun(early, bucket if stays else 0)
    after = PartitionedRun(early, bucket)
    found = [
        rise(INSIDE_A_LAYER, Place(FORWARD, layers - 1), before),
        rise(AT_THE_LOSS, Place(LOSS, layers), before),
    ]
    if sharded_loss:
        found.append(rise(AT_A_SHARD, Place(LOSS_SHARD, layers), after))
    at_loss = after if sharded_loss else before
    found.append(rise(AT_THE_GRADIENT_OF_THE_LOSS, Place(LOSS_GRADIENT, layers), at_loss))
    if reduces_in_hooks(frame.settings):
        found += [_in_the_head(frame, after, number) for number in range(len(frame.hooks.head_hooks))]
        found.append(rise(in_layer(layers - 1, layers), Place(LAYER, layers - 1, FREED), after))
    elif accumulating:
        found.append(rise(in_layer(layers - 1, layers), Place(LAYER, layers - 1, FREED), after))
        found.append(rise(AT_THE_EMBEDDING, Place(EMBEDDING, 0), after))
    else:
        found += _without_reductions(frame, bucket)
    return tuple(found)


def _in_the_head(frame: Frame, held: PartitionedRun, number: int) -> Rise:
    """Return the hook of the output projection or final norm: the first makes the bucket beside all activations.

    The hook of a bias comes while the weight's gradient of the same operation still waits for its own, which what is
    alive there has among the activations.
    """
    width, (hook, *later) = frame.width.model, frame.hooks.head_hooks[number:]
    module = hook.name.rpartition(".")[0]
    waiting = sum([other.numel for other in later if other.name.rpartition(".")[0] == module])
    newest = frame.bytes.total(
        (width, hook.numel, f"elements of {hook.name}, whose hook runs"),
        (width, waiting, f"elements of {module}, whose hook comes next"),
    )
    sizes = held._replace(newest_gradient=newest, saved_activations=-width * waiting)
    return rise(_HEAD, Place(HEAD_HOOK, frame.model.layers, hook.event), sizes)


def _without_reductions(frame: Frame, bucket: int) -> list[Rise]:
    """Stage 1: whole gradients stay until backward is over, then go bucket by bucket (958-980, 2284-2295)."""
    layers, known, width = frame.model.layers, frame.hooks, frame.width.model
    found = []
    for layer in (layers - 1, 0):
        above = frame.bytes.product(
            width, known.head + (layers - 1 - layer) * known.layer, "elements of layers above and the head"
        )
        found.append(rise(in_layer(layer, layers), Place(LAYER, layer, KEPT), PartitionedRun(above, bucket)))
    others = frame.bytes.product(width, known.total - known.embedding, "trained parameters, all but the embedding")
    return [*found, rise(AT_THE_EMBEDDING, Place(EMBEDDING, 0), PartitionedRun(others, bucket))]


def _in_hooks(frame: Frame, rank: int, early: int, own: int) -> list[Rise]:
    """List the moments of reducing as buckets fill: stage 2, and stage 1 with overlap_comm in the last micro-batch."""
    layers, bucket, nothing = frame.model.layers, reduce_bucket(frame), frame.bytes.total()
    reducing, copying = [], []
    inside, before_the_embedding = -1, False
    flat = keeps_flat_fp32_gradients(frame.settings)
    for reduction, copied, exists, piece in reductions_in_hooks(bucketing(frame), rank):
        place, newest, copy = _reduced(frame, reduction, copied)
        sizes = Reducing(
            earlier_gradients=early,
            reduce_bucket=bucket,
            newest_gradient=newest,
            reduce_copy=copy,
            fp32_slice=fp32_slice(frame, piece) if flat else nothing,
            # The flat slice is there before the first gradients are reduced, and each is cast for it (1290-1326).
            own_gradients=own if exists or (flat and piece) else nothing,
        )
        reducing.append(rise(_REDUCING, place, sizes))
        if not piece:
            continue
        norm = fp64_gradient_for_the_norm(frame, piece)
        copying.append(rise(_COPYING, place, Copying(early, bucket, newest, own, norm)))
        before_the_embedding = before_the_embedding or reduction.layer >= 0
        if reduction.layer < layers:
            inside = max(inside, reduction.layer)
    found = [*reducing, *copying]
    if inside >= 0:
        found.append(rise(in_layer(inside, layers), Place(LAYER, inside, FREED), PartitionedRun(early, bucket, own)))
    at_embedding = PartitionedRun(early, bucket, own if before_the_embedding else nothing)
    return [*found, rise(AT_THE_EMBEDDING, Place(EMBEDDING, 0), at_embedding)]


@lru_cache(maxsize=8192)
def _reduced(frame: Frame, reduction: BucketReduction, copied: int) -> tuple[Place, int, int]:
    """Return what is the same for all ranks: where it is, the newest gradient, and the copies of the bucket."""
    place = place_of_hook(reduction.layer, reduction.event, frame.model.layers)
    return place, newest_gradient(frame, reduction), reduce_copy(frame, copied, reduction.filled)


@lru_cache(maxsize=1024)
def bucketing(frame: Frame) -> Bucketing:
    """Return how gradients are put into buckets."""
    settings = frame.settings
    return Bucketing(
        model=frame.model,
        size=settings.reduce_bucket_size,
        world_size=frame.world_size,
        spans_owners=settings.reduce_scatter and settings.multi_rank_bucket_allreduce,
        flat_fp32_slice=keeps_flat_fp32_gradients(settings),
        is_cast=_cast(frame) > 0,
    )


def newest_gradient(frame: Frame, reduction: BucketReduction) -> int:
    """Return what is outside the bucket: the gradient whose hook runs, and one larger than the bucket, which is reduced
    where it is (1443-1449)."""
    width = frame.width.model
    return frame.bytes.total(
        (width, reduction.outside, "elements of a gradient larger than the bucket, reduced where it is"),
        (width, reduction.unreduced_elements, f"elements of {reduction.hook}, which no longer fits the bucket"),
    )


def reduce_copy(frame: Frame, copied: int, filled: int) -> int:
    """Return the bucket flattened anew for several owners, and its cast to the collective's type (1706-1715)."""
    return frame.bytes.total(
        (frame.width.model, copied, "elements of a bucket of several owners, flattened anew"),
        (_cast(frame), filled, "elements of the bucket, cast for the collective"),
    )


def _cast(frame: Frame) -> int:
    """Return the bytes an element of the copy in the collective's type, 0 where that is the bucket's."""
    width = frame.width
    return 0 if width.communicate == width.model else width.communicate


def fp32_slice(frame: Frame, piece: int) -> int:
    """Return a piece of a gradient cast for the flat fp32 slice, which a cast for the collective spares (1290-1326)."""
    if _cast(frame):
        return frame.bytes.total()
    return frame.bytes.product(
        4, piece, "elements of the largest piece of a gradient that this rank owns in the bucket"
    )


def fp64_gradient_for_the_norm(frame: Frame, piece: int) -> int:
    """Return the piece whose norm is taken as it is copied to the host (1860-1886, 2152)."""
    if frame.settings.offload_optimizer == "none":
        return frame.bytes.total()
    return frame.bytes.product(
        8, piece, "elements of the largest piece of a gradient that this rank owns in the bucket"
    )


def _after_backward(frame: Frame, rank: int, own: int) -> list[Rise]:
    """List the moments of stage 1 after backward: every rank flattens the first bucket; those with gradients of this
    rank make its buffer, or go to the host."""
    offloaded = frame.settings.offload_optimizer != "none"
    first, own_buckets = reductions_after_backward(bucketing(frame), rank, all_pieces=offloaded)
    bucket = reduce_bucket(frame)
    found = []
    if first is not None:
        copied = first.copied if frame.settings.reduce_scatter else 0
        copy = reduce_copy(frame, copied, first.filled)
        waiting = gradients_still_to_reduce(frame, first)
        found.append(rise(_FIRST, _AFTER, ReducingAfterBackward(bucket, waiting, reduce_copy=copy)))
    for reduced in own_buckets:
        waiting, norm = gradients_still_to_reduce(frame, reduced), reduced.largest_own_piece
        sizes = ReducingAfterBackward(
            reduce_bucket=bucket,
            gradients_still_to_reduce=waiting,
            own_gradients=own,
            fp64_gradient_for_the_norm=fp64_gradient_for_the_norm(frame, norm),
        )
        found.append(rise(_COPYING, _AFTER, sizes))
    return found


def gradients_still_to_reduce(frame: Frame, reduced: StageOneBucket) -> int:
    """Return the whole gradients that have not gone into a bucket yet (2284-2295)."""
    waiting = frame.hooks.total - reduced.moved
    return frame.bytes.product(frame.width.model, waiting, f"elements in no bucket yet, of {frame.hooks.total:,}")


def _optimizer(frame: Frame, groups: tuple[OwnedSlice, ...], own: int) -> list[Rise]:
    """Gradient norm in fp64, then group by group flatten, cast, step (2648-2690, 3080-3140)."""
    settings, width = frame.settings, frame.width
    if settings.offload_optimizer != "none":
        return []
    made = optimizer_temporaries(frame.bytes, settings, width.master, partition(frame.hooks.total, frame.world_size))
    updates, nothing = muon_updates(frame, groups), frame.bytes.total()
    found: list[Rise] = []
    if settings.optimizer == "muon":
        # Made when backward is over, the bucket not yet released (1020-1061).
        scratch = newton_schulz_iteration(frame.bytes, frame.model, width.model) if groups[0].muon else 0
        sizes = PartitionedStep(own, reduce_bucket(frame), muon_updates=updates, newton_schulz_iteration=scratch)
        found.append(rise(_UPDATING, _AFTER, sizes))
    largest = frame.bytes.product(
        8, max([g.slice.largest for g in groups]), "elements of the largest piece in this rank's slice"
    )
    found.append(rise(_NORM, _AFTER, PartitionedStep(own, muon_updates=updates, fp64_gradient_for_the_norm=largest)))
    for number, group in enumerate(groups):
        # The buffer of the gradients goes with the last group that it serves, Muon's updates with Muon's group.
        after = own if number + 1 < len(groups) else nothing
        flat, (gradient, is_cast) = flat_gradient(frame, group), fp32_gradient(frame, group)
        cast = gradient if is_cast else nothing
        sizes = PartitionedStep(own, muon_updates=updates, flat_gradient=flat, fp32_gradient=cast)
        found.append(rise(_CAST, _AFTER, sizes))
        found.append(rise(_STEP, _AFTER, PartitionedStep(after, fp32_gradient=gradient, optimizer_temporaries=made)))
        updates = nothing
    return found


def muon_updates(frame: Frame, groups: tuple[OwnedSlice, ...]) -> int:
    """Return the orthogonalized gradients of Muon's matrices, whole (2869-2890)."""
    whole = sum([g.slice.whole for g in groups if g.muon])
    return frame.bytes.product(frame.width.model, whole, "elements of whole matrices that reach into this rank's slice")


def flat_gradient(frame: Frame, group: OwnedSlice) -> int:
    """Return the slice's gradients flattened for the step; a lone one is flat, and so is an fp32 slice."""
    if group.slice.tensors == 1 or _is_flat_fp32(frame, group):
        return frame.bytes.total()
    return frame.bytes.product(frame.width.model, group.slice.elements, "elements of this rank's slice")


def fp32_gradient(frame: Frame, group: OwnedSlice) -> tuple[int, bool]:
    """Return the slice's gradients in the master's type, and whether they have to be cast to it."""
    is_cast = (4 if _is_flat_fp32(frame, group) else frame.width.model) != frame.width.master
    return frame.bytes.product(frame.width.master, group.slice.elements, "elements of this rank's slice"), is_cast


def _is_flat_fp32(frame: Frame, group: OwnedSlice) -> bool:
    """Tell Muon's group, which keeps whole gradients, from the others, which have a flat fp32 slice (1259-1266)."""
    return keeps_flat_fp32_gradients(frame.settings) and not group.muon
