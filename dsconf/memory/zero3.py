"""Moments of ZeRO stage 3 (DeepSpeed 0.19.8: runtime/zero/stage3.py, Z3)."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.memory.gather import Crests, Gathered, Limits, crests, gathered
from dsconf.memory.hooks import hooks
from dsconf.memory.muon import gathers, iteration
from dsconf.memory.optimizers import temporaries
from dsconf.memory.states import Terms
from dsconf.memory.subgroups import Reduction, on_gpu, reductions, shards
from dsconf.memory.timeline import (
    Sketch,
    Step,
    at_hook,
    embedding_gradient,
    forward,
    in_layer,
    live_at_hook,
    replay,
    shape,
    start_of_backward,
    tiled_loss,
)

NORM_BUFFER = 250_000_000
"""Elements that the norm casts to fp64 at a time when the optimizer is offloaded (Z3:1960-1967)."""


def moments(step: Step) -> Iterator[Sketch]:
    """Forward, backward and optimizer step of one rank."""
    live, tops = _gathered(step)
    width = step.width.model
    forward_live = tuple((layer, width * n) for layer, n in tops.forward)
    yield from forward(step, _secondary(step, live.loss), forward_live, width * live.loss)
    yield from tiled_loss(step, (*_weights(step, live.loss), *_secondary(step, live.loss)))
    yield start_of_backward(step, (*_weights(step, live.loss), *_secondary(step, live.loss)))
    yield from _backward(step, live, tops)
    yield from _optimizer(step, live)


def _gathered(step: Step) -> tuple[Gathered, Crests]:
    settings = step.settings
    if step.world_size == 1 and settings.offload_param == "none":
        # One rank's slice is the parameter: nothing is gathered (partition_parameters.py:61-119).
        none = (0,) * step.act.layers
        only = ((step.act.layers - 1, 0),)
        return Gathered(0, none, none, 0, 0, 0), Crests(only, only)
    limits = Limits(
        settings.prefetch_bucket_size if not settings.allgather_sequential else 1,
        settings.max_live_parameters,
        settings.max_reuse_distance,
        settings.param_persistence_threshold,
        settings.model_persistence_threshold,
        settings.allgather_sequential,
        shape(step.job).loss_shards,
    )
    kind = replay(step.job)
    return gathered(step.model, limits, kind, False), crests(step.model, limits, kind)


def _weights(step: Step, elements: int) -> Terms:
    return (("gathered weights", step.width.model * elements),) if elements else ()


def _secondary(step: Step, elements: int) -> Terms:
    """hpZ's second copy of every parameter that is not gathered just now (partition_parameters.py:1900-1950)."""
    size = step.settings.hpz_partition_size
    if size <= 1 or step.world_size == 1:
        return ()
    total = max(0, step.model.num_params - elements)
    return (("secondary partition", step.width.model * total // size),)


def _backward(step: Step, live: Gathered, tops: Crests) -> Iterator[Sketch]:
    """Each layer with the weights gathered around it, and every bucket that is reduce-scattered."""
    act, width = step.act, step.width
    best, _ = max(tops.backward, key=lambda top: top[0] * act.layer + width.model * top[1])
    for layer in {best, act.layers - 1}:
        held = (*_weights(step, live.backward[layer]), *_secondary(step, live.backward[layer]))
        yield in_layer(step, layer, held)
    found = reductions(step.model, step.settings.reduce_bucket_size, step.world_size)

    def around(layer: int) -> int:
        return live.backward[layer] if 0 <= layer < act.layers else live.head if layer >= 0 else live.end

    def height(one: Reduction) -> int:
        copy = sum(size for _, size in _copy(step, one))
        return live_at_hook(step, one.layer, one.event) + width.model * (around(one.layer) + one.waiting) + copy

    one = max(found, key=height)
    elements = around(one.layer)
    terms = (
        *_weights(step, elements),
        *_secondary(step, elements),
        *at_hook(step, one.layer, one.event),
        ("newest gradient", width.model * one.waiting),
        *_copy(step, one),
    )
    yield Sketch("backward", "reducing a bucket", terms)
    yield embedding_gradient(step, _weights(step, live.end), hooks(step.model).embedding)


def _copy(step: Step, one: Reduction) -> Terms:
    """The bucket flattened rank by rank, and what is this rank's cast for the gradient buffer (Z3:1918-1946).

    Gradients in the bucket have its type already; only without one are they cast for the collective. Without
    reduce_scatter the bucket is reduced where it is, and scaled into a copy (Z3:1880-1884).

    An output projection's gradient too large for the bucket stays beside its cast. Its weights, which are as large,
    have gone by then and are among those gathered around the head all the same; a tiled loss keeps both.
    """
    width, settings = step.width, step.settings
    cast = width.accumulate if width.communicate != width.accumulate else 0
    if not settings.reduce_scatter:
        copied = one.filled if step.world_size > 1 else 0
        return (("reduce copy", (width.communicate + cast) * copied),)
    wide = 0 if settings.contiguous_gradients or width.communicate == width.model else width.communicate
    both = step.job.workload.loss_shards is not None and one.layer == step.act.layers
    own = width.model * one.outside if both and width.communicate != width.model else 0
    return (("reduce copy", own + (width.communicate + wide) * one.copied + cast * one.copied // step.world_size),)


def _optimizer(step: Step, live: Gathered) -> Iterator[Sketch]:
    """Norm, then sub-group by sub-group: flatten, cast, step (Z3:2454, 2683-2699, 2873-2949)."""
    settings, width = step.settings, step.width
    shard = shards(step.model, step.world_size, settings.sub_group_size, settings.optimizer)
    stays = (*_weights(step, live.persistent), *_secondary(step, 0))
    if settings.offload_optimizer != "none":
        if stay := max((elements for elements, _ in on_gpu(settings, shard)), default=0):
            # torch's AdamW, whatever the optimizer is called (Z3:313-322).
            made = temporaries(settings, width.master * stay)
            yield Sketch("step", "optimizer", (*stays, ("optimizer temporaries", made)))
        return
    if settings.precision == "fp16":
        size = (width.accumulate + 1) * shard.trained
        yield Sketch("step", "overflow check", (*stays, ("overflow masks", size)))
    if shard.muon:
        yield _orthogonalized(step, stays)
    yield Sketch("step", "gradient norm", (*stays, ("fp64 gradient for the norm", 8 * shard.largest)))
    flat = max((e for e, tensors in shard.groups if tensors > 1), default=0)
    most = max((e for e, _ in shard.groups), default=0)
    cast = 0 if width.accumulate == width.master else width.master * most
    terms = (*stays, ("flat gradient", width.accumulate * flat), ("fp32 gradient", cast))
    yield Sketch("step", "flatten and cast", terms)
    gradient = width.master * most
    made = 0 if settings.optimizer == "muon" else temporaries(settings, gradient)
    yield Sketch("step", "optimizer", (*stays, ("fp32 gradient", gradient), ("optimizer temporaries", made)))


def _orthogonalized(step: Step, stays: Terms) -> Sketch:
    """Muon gathers gradients and momenta whole, chunk by chunk (Z3:1697-1864)."""
    settings, width = step.settings, step.width.communicate
    most = gathers(step.model, step.world_size, settings.sub_group_size, settings.reduce_bucket_size, width).most
    terms = (
        ("gathered gradients and momenta", width * most),
        ("Newton-Schulz iteration", iteration(step.model, width)),
    )
    return Sketch("step", "Muon's updates", (*stays, *terms))
