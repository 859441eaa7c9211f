"""Moments of ZeRO stage 3 (DeepSpeed 0.19.8: runtime/zero/stage3.py, Z3)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.gather import Crests, Gathered, Limits, crests, gathered
from dsconf.memory.moments import (
    Alive,
    Bytes,
    Kind,
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
    replay,
    tiled_loss,
)
from dsconf.memory.muon import gathers, iteration
from dsconf.memory.optimizers import temporaries
from dsconf.memory.states import Widths
from dsconf.memory.subgroups import on_gpu, reductions, shards
from dsconf.model.spec import Model

NORM_BUFFER = 250_000_000
"""Elements that the norm casts to fp64 at a time when the optimizer is offloaded (Z3:1960-1967)."""

FORWARD = common("secondary partition")
BACKWARD = common("gathered weights", "secondary partition")

_REDUCING = Kind(
    "backward",
    "reducing a bucket",
    (*BACKWARD.held, "saved activations", "tied embedding gradient", "newest gradient", "reduce copy"),
)
_OVERFLOW = Kind("step", "overflow check", (*BACKWARD.held, "overflow masks"))
_MUON = Kind("step", "Muon's updates", (*BACKWARD.held, "gathered gradients and momenta", "Newton-Schulz iteration"))
_NORM = Kind("step", "gradient norm", (*BACKWARD.held, "fp64 gradient for the norm"))
_CAST = Kind("step", "flatten and cast", (*BACKWARD.held, "flat gradient", "fp32 gradient"))
_STEP = Kind("step", "optimizer", (*BACKWARD.held, "fp32 gradient", "optimizer temporaries"))


def moments(step: Step) -> list[Alive]:
    """Forward, backward and optimizer step of any rank."""
    live, tops = _gathered(step)
    width = step.width.model
    forward_live = tuple([(layer, width * n) for layer, n in tops.forward])
    at_loss = _around(step, live.loss)
    return [
        *forward(step, FORWARD, at_loss[1:], forward_live, at_loss[0]),
        *tiled_loss(step, BACKWARD, at_loss),
        loss_gradient(step, BACKWARD, at_loss),
        *_backward(step, live, tops),
        *_optimizer(step, live),
    ]


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
        step.shape.loss_shards,
    )
    kind = replay(step.job)
    return gathered(step.model, limits, kind, False), crests(step.model, limits, kind)


def _around(step: Step, elements: int) -> tuple[int, int]:
    """``elements`` of gathered weights, and hpZ's second copy beside them."""
    return step.width.model * elements, _secondary(step, elements)


def _secondary(step: Step, elements: int) -> int:
    """hpZ's second copy of every parameter that is not gathered just now (partition_parameters.py:1900-1950)."""
    size = step.settings.hpz_partition_size
    if size <= 1 or step.world_size == 1:
        return 0
    return step.width.model * max(0, step.model.num_params - elements) // size


def _backward(step: Step, live: Gathered, tops: Crests) -> list[Alive]:
    """Each layer with the weights gathered around it, and every bucket that is reduce-scattered."""
    act, width = step.act, step.width.model
    best, _ = max(tops.backward, key=lambda top: top[0] * act.layer + width * top[1])
    moments = [in_layer(step, BACKWARD, layer, _around(step, live.backward[layer])) for layer in {best, act.layers - 1}]
    found = _reductions(
        step.model,
        step.settings.reduce_bucket_size,
        step.world_size,
        step.width,
        step.settings.reduce_scatter,
        step.settings.contiguous_gradients,
        step.shape.loss_shards > 0,
    )
    inside, at_ends, live_at, each = live.backward, (0, live.head, live.end), live_at_hooks(act), act.layer
    around = [inside[level] if part == 0 else at_ends[part] for (part, level, _), *_ in found]
    heights = [
        level * each + live_at[part][event] + width * weights + newest + copy
        for ((part, level, event), newest, copy), weights in zip(found, around, strict=True)
    ]
    top = heights.index(max(heights))
    where, newest, copy = found[top]
    moments.append((_REDUCING, (*_around(step, around[top]), *at_hook(act, where, live_at), newest, copy)))
    moments.append(embedding_gradient(step, BACKWARD, (width * live.end, 0)))
    return moments


class _Reduction(NamedTuple):
    """One bucket being reduced, in bytes."""

    place: Place
    newest: int
    copy: int


@lru_cache(maxsize=256)
def _reductions(
    model: Model, bucket: int, world_size: int, width: Widths, scatters: bool, contiguous: bool, tiled: bool
) -> tuple[_Reduction, ...]:
    """The bucket flattened rank by rank, and what is this rank's cast for the gradient buffer (Z3:1918-1946).

    Gradients in the bucket have its type already; only without one are they cast for the collective. Without
    reduce_scatter the bucket is reduced where it is, and scaled into a copy (Z3:1880-1884).

    An output projection's gradient too large for the bucket stays beside its cast. Its weights, which are as large,
    have gone by then and are among those gathered around the head all the same; a ``tiled`` loss keeps both.
    """
    cast = width.accumulate if width.communicate != width.accumulate else 0
    wide = 0 if contiguous or width.communicate == width.model else width.communicate
    found = []
    for one in reductions(model, bucket, world_size):
        if scatters:
            both = tiled and one.layer == model.layers and width.communicate != width.model
            own = width.model * one.outside if both else 0
            copy = own + (width.communicate + wide) * one.copied + cast * one.copied // world_size
        else:
            copy = (width.communicate + cast) * one.filled if world_size > 1 else 0
        found.append(_Reduction(place(one.layer, one.event, model.layers), width.model * one.waiting, copy))
    return tuple(found)


def _optimizer(step: Step, live: Gathered) -> list[Alive]:
    """Norm, then sub-group by sub-group: flatten, cast, step (Z3:2454, 2683-2699, 2873-2949)."""
    settings, width = step.settings, step.width
    shard = shards(step.model, step.world_size, settings.sub_group_size, settings.optimizer)
    held = (width.model * live.persistent, _secondary(step, 0))
    if settings.offload_optimizer != "none":
        # torch's AdamW, whatever the optimizer is called (Z3:313-322).
        stay = max([elements for elements, _ in on_gpu(settings, shard)], default=0)
        return [(_STEP, (*held, 0, temporaries(settings, width.master * stay)))] if stay else []
    moments: list[Alive] = []
    if settings.precision == "fp16":
        moments.append((_OVERFLOW, (*held, (width.accumulate + 1) * shard.trained)))
    if shard.muon:
        moments.append(_orthogonalized(step, held))
    flat = max([e for e, tensors in shard.groups if tensors > 1], default=0)
    most = max([e for e, _ in shard.groups], default=0)
    cast = 0 if width.accumulate == width.master else width.master * most
    gradient = width.master * most
    made = 0 if settings.optimizer == "muon" else temporaries(settings, gradient)
    return [
        *moments,
        (_NORM, (*held, 8 * shard.largest)),
        (_CAST, (*held, width.accumulate * flat, cast)),
        (_STEP, (*held, gradient, made)),
    ]


def _orthogonalized(step: Step, held: Bytes) -> Alive:
    """Muon gathers gradients and momenta whole, chunk by chunk (Z3:1697-1864)."""
    settings, width = step.settings, step.width.communicate
    most = gathers(step.model, step.world_size, settings.sub_group_size, settings.reduce_bucket_size, width).most
    return _MUON, (*held, width * most, iteration(step.model, width))
