"""Moments of ZeRO stage 3; line references are to runtime/zero/stage3.py of DeepSpeed 0.19.8."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.timeline.common import (
    AT_A_SHARD,
    AT_THE_EMBEDDING,
    AT_THE_GRADIENT_OF_THE_LOSS,
    AT_THE_LOSS,
    EMBEDDING,
    EMBEDDING_HOOK,
    FORWARD,
    FREED,
    HEAD_HOOK,
    INSIDE_A_LAYER,
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
from dsconf.memory.zero.coordinator import (
    AtHooks,
    Gathered,
    Limits,
    PeakLayers,
    gathered,
    gathered_at_hooks,
    peak_layers,
)
from dsconf.memory.zero.muon import gathers, newton_schulz_iteration
from dsconf.memory.zero.optimizer_states import optimizer_temporaries
from dsconf.memory.zero.subgroups import BucketScatter, Shards, bucket_scatters, on_gpu, shards

_REDUCING = Label("backward", "reducing a bucket")
_OVERFLOW = Label("step", "overflow check")
_UPDATING = Label("step", "Muon's updates")
_NORM = Label("step", "gradient norm")
_CAST = Label("step", "flatten and cast")
_STEP = Label("step", "optimizer")
_AFTER = Place(NOWHERE, 0)


class GatheredRun(NamedTuple):
    """Forward and backward of the model."""

    gathered_weights: int
    secondary_partition: int
    saved_activations: int = 0
    layer_in_progress: int = 0
    logits_and_loss: int = 0
    newest_gradient: int = 0
    embedding_gradient: int = 0
    tied_embedding_gradient: int = 0


class Scattering(NamedTuple):
    """A bucket is reduce-scattered in the hook of the parameter that no longer fitted."""

    gathered_weights: int
    secondary_partition: int
    newest_gradient: int
    reduce_copy: int
    saved_activations: int = 0
    tied_embedding_gradient: int = 0


class ShardedStep(NamedTuple):
    """The optimizer step."""

    gathered_weights: int
    secondary_partition: int
    overflow_masks: int = 0
    gathered_gradients_and_momenta: int = 0
    newton_schulz_iteration: int = 0
    fp64_gradient_for_the_norm: int = 0
    flat_gradient: int = 0
    fp32_gradient: int = 0
    optimizer_temporaries: int = 0


@lru_cache(maxsize=1024)
def rises(frame: Frame, checkpointing_kind: str, loss_shards: int, sharded_loss: bool) -> tuple[Rise, ...]:
    """Return the moments of any rank."""
    # Another number of shards seldom changes what is gathered.
    live, tops, at_hooks = _gathered(frame, checkpointing_kind, loss_shards)
    return _rises(frame, live, tops, at_hooks, loss_shards > 0, sharded_loss)


@lru_cache(maxsize=1024)
def _rises(
    frame: Frame, live: Gathered, tops: PeakLayers, at_hooks: AtHooks, tiled: bool, sharded_loss: bool
) -> tuple[Rise, ...]:
    layers = frame.model.layers
    at_loss = _around(frame, live.loss)
    second_copy = secondary_partition(frame, live.loss)
    found = [
        rise(INSIDE_A_LAYER, Place(FORWARD, layer), GatheredRun(gathered_weights(frame, elements), second_copy))
        for layer, elements in tops.forward
    ]
    found.append(rise(AT_THE_LOSS, Place(LOSS, layers), at_loss))
    if sharded_loss:
        found.append(rise(AT_A_SHARD, Place(LOSS_SHARD, layers), at_loss))
    found.append(rise(AT_THE_GRADIENT_OF_THE_LOSS, Place(LOSS_GRADIENT, layers), at_loss))
    for layer, elements in dict([*tops.backward, (layers - 1, live.backward[-1])]).items():
        found.append(rise(in_layer(layer, layers), Place(LAYER, layer, FREED), _around(frame, elements)))
    at_ends = {HEAD_HOOK: live.head, EMBEDDING_HOOK: at_hooks.embedding}
    for reduction in bucket_scatters(frame.model, frame.settings.reduce_bucket_size, frame.world_size, at_hooks):
        place = place_of_hook(reduction.layer, reduction.event, layers)
        elements = at_ends.get(place.part, reduction.beside)
        sizes = Scattering(
            gathered_weights=gathered_weights(frame, elements),
            secondary_partition=secondary_partition(frame, elements),
            newest_gradient=newest_gradient(frame, reduction),
            reduce_copy=reduce_copy(frame, reduction, tiled),
        )
        found.append(rise(_REDUCING, place, sizes))
    at_embedding = GatheredRun(gathered_weights(frame, at_hooks.embedding), 0)
    found.append(rise(AT_THE_EMBEDDING, Place(EMBEDDING, 0), at_embedding))
    return (*found, *_optimizer(frame, live))


def _gathered(frame: Frame, checkpointing_kind: str, loss_shards: int) -> tuple[Gathered, PeakLayers, AtHooks]:
    settings, layers = frame.settings, frame.model.layers
    if frame.world_size == 1 and settings.offload_param == "none":
        # One rank's slice is the parameter: nothing is gathered (partition_parameters.py:61-119).
        none = (0,) * layers
        only = ((layers - 1, 0),)
        each = (0,) * len(frame.model.parameters.layer)
        return Gathered(0, none, none, 0, 0, 0), PeakLayers(only, only), AtHooks((each,) * layers, 0)
    limits = Limits(
        prefetch=settings.prefetch_bucket_size if not settings.allgather_sequential else 1,
        max_live=settings.max_live_parameters,
        reuse=settings.max_reuse_distance,
        persistence=settings.param_persistence_threshold,
        model_persistence=settings.model_persistence_threshold,
        sequential=settings.allgather_sequential,
        loss_shards=loss_shards,
    )
    asked = (frame.model, limits, checkpointing_kind)
    return gathered(*asked, first=False), peak_layers(*asked), gathered_at_hooks(*asked)


def _around(frame: Frame, elements: int) -> GatheredRun:
    """Return ``elements`` of gathered weights, and hpZ's second copy beside them."""
    return GatheredRun(gathered_weights(frame, elements), secondary_partition(frame, elements))


def gathered_weights(frame: Frame, elements: int) -> int:
    """Return weights that are gathered: for a module, prefetched, or kept for reuse."""
    return frame.bytes.product(frame.width.model, elements, "elements gathered, prefetched or kept for reuse")


def secondary_partition(frame: Frame, elements: int) -> int:
    """Return hpZ's second copy of every parameter that is not among the ``elements`` gathered just now
    (partition_parameters.py:1900-1950)."""
    size = frame.settings.hpz_partition_size
    if size <= 1 or frame.world_size == 1:
        return frame.bytes.total()
    others = max(0, frame.model.num_params - elements)
    return frame.bytes.divided(
        frame.width.model, others, size, f"elements: {others:,} ÷ zero_hpz_partition_size, {size}"
    )


def newest_gradient(frame: Frame, reduction: BucketScatter) -> int:
    """Return the gradient whose hook runs."""
    why = f"elements of {reduction.hook}, which no longer fits the bucket"
    return frame.bytes.product(frame.width.model, reduction.unreduced_elements, why)


def reduce_copy(frame: Frame, reduction: BucketScatter, tiled: bool) -> int:
    """Return the bucket flattened rank by rank, and what is this rank's cast for the gradient buffer (1918-1946).

    Gradients in the bucket have its type already; only without one are they cast for the collective. Without
    reduce_scatter the bucket is reduced where it is, and scaled into a copy (1880-1884).

    An output projection's gradient too large for the bucket stays beside its cast. Its weights, which are as large,
    have gone by then and are among those gathered around the head all the same; a ``tiled`` loss keeps both.
    """
    settings, width = frame.settings, frame.width
    cast = width.accumulate if width.communicate != width.accumulate else 0
    in_type = "elements of the bucket, in the collective's type"
    if not settings.reduce_scatter:
        both = (width.communicate + cast) if frame.world_size > 1 else 0
        return frame.bytes.product(both, reduction.filled, f"{in_type} and in the gradient's")
    beside = tiled and reduction.layer == frame.model.layers and width.communicate != width.model
    wide = 0 if settings.contiguous_gradients or width.communicate == width.model else width.communicate
    own = frame.bytes.divided(cast, reduction.copied, frame.world_size, "elements of its part of this rank, cast")
    flat = frame.bytes.total(
        (width.communicate, reduction.copied, f"{in_type}, flattened rank by rank"),
        (wide, reduction.copied, f"{in_type}, which they are cast to"),
        (width.model if beside else 0, reduction.outside, "elements of a gradient larger than the bucket"),
    )
    return frame.bytes.together(flat, own)


def _optimizer(frame: Frame, live: Gathered) -> list[Rise]:
    """Norm, then sub-group by sub-group: flatten, cast, step (2454, 2683-2699, 2873-2949)."""
    settings, width = frame.settings, frame.width
    shard = shards(frame.model, frame.world_size, settings.sub_group_size, settings.optimizer)
    held = ShardedStep(
        frame.bytes.product(width.model, live.persistent, "elements of small parameters, which stay gathered"),
        secondary_partition(frame, 0),
    )
    if settings.offload_optimizer != "none":
        # torch's AdamW, whatever the optimizer is called (313-322).
        stay = max([elements for elements, _ in on_gpu(settings, shard)], default=0)
        made = optimizer_temporaries(frame.bytes, settings, width.master, stay)
        return [rise(_STEP, _AFTER, held._replace(optimizer_temporaries=made))] if stay else []
    found: list[Rise] = []
    if settings.precision == "fp16":
        found.append(rise(_OVERFLOW, _AFTER, held._replace(overflow_masks=overflow_masks(frame, shard))))
    if shard.muon:
        updates, iteration = (
            gathered_gradients_and_momenta(frame),
            newton_schulz_iteration(frame.bytes, frame.model, width.communicate),
        )
        sizes = held._replace(gathered_gradients_and_momenta=updates, newton_schulz_iteration=iteration)
        found.append(rise(_UPDATING, _AFTER, sizes))
    norm = frame.bytes.product(8, shard.largest, "elements of the largest slice of one parameter")
    found.append(rise(_NORM, _AFTER, held._replace(fp64_gradient_for_the_norm=norm)))
    flat, gradient = flat_gradient(frame, shard), fp32_gradient(frame, shard)
    cast = frame.bytes.total() if width.accumulate == width.master else gradient
    found.append(rise(_CAST, _AFTER, held._replace(flat_gradient=flat, fp32_gradient=cast)))
    made = optimizer_temporaries(frame.bytes, settings, width.master, _largest_group(shard))
    found.append(rise(_STEP, _AFTER, held._replace(fp32_gradient=gradient, optimizer_temporaries=made)))
    return found


def overflow_masks(frame: Frame, shard: Shards) -> int:
    """Return a copy of the gradients and a mask of bools over them (2814)."""
    return frame.bytes.product(
        frame.width.accumulate + 1, shard.trained, "elements of the slices: a copy and a mask of bools"
    )


def gathered_gradients_and_momenta(frame: Frame) -> int:
    """Return what Muon gathers whole, chunk by chunk (1697-1864)."""
    settings, width = frame.settings, frame.width.communicate
    found = gathers(frame.model, frame.world_size, settings.sub_group_size, settings.reduce_bucket_size, width)
    return frame.bytes.product(width, found.most, "elements of a chunk of matrices, their gathers and momenta")


def flat_gradient(frame: Frame, shard: Shards) -> int:
    """Return the gradients of a sub-group flattened; a lone one is flat."""
    elements = max([elements for elements, tensors in shard.groups if tensors > 1], default=0)
    return frame.bytes.product(frame.width.accumulate, elements, _OF_A_SUB_GROUP)


def fp32_gradient(frame: Frame, shard: Shards) -> int:
    """Return the gradients of a sub-group in the type of the master weights."""
    return frame.bytes.product(frame.width.master, _largest_group(shard), _OF_A_SUB_GROUP)


_OF_A_SUB_GROUP = "elements of the largest sub-group (sub_group_size)"


def _largest_group(shard: Shards) -> int:
    return max([elements for elements, _ in shard.groups], default=0)
