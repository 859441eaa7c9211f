"""Moments of ZeRO stage 3 (DeepSpeed 0.19.8: runtime/zero/stage3.py, Z3)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.timeline.common import (
    Alive,
    Bytes,
    Frame,
    Kind,
    Place,
    Step,
    Tops,
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
from dsconf.memory.zero.coordinator import Crests, Gathered, Limits, crests, gathered
from dsconf.memory.zero.muon import gathers, iteration
from dsconf.memory.zero.optimizer_states import temporaries
from dsconf.memory.zero.subgroups import on_gpu, reductions, shards
from dsconf.memory.zero.wrapper import Widths
from dsconf.model.spec import Model

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


class _Reduction(NamedTuple):
    """One bucket being reduced, in bytes."""

    place: Place
    newest: int
    copy: int


class _Reducing(NamedTuple):
    """The same with the weights gathered around it."""

    place: Place
    num_bytes: int
    """Gathered weights, newest gradient and copy."""
    around: tuple[int, int]
    newest: int
    copy: int


class _Weights(NamedTuple):
    """What is gathered where memory can be highest, the same for every batch.

    Pairs are bytes of gathered weights, and of hpZ's second copy beside them.
    """

    forward: Tops
    loss: tuple[int, int]
    backward: tuple[tuple[int, tuple[int, int]], ...]
    """Layers and what is gathered in them."""
    last: tuple[int, int]
    """In the last layer's backward."""
    end: tuple[int, int]
    reducing: tuple[_Reducing, ...]
    step: tuple[Alive, ...]
    """The moments of the optimizer step, which has no activations."""


def moments(step: Step) -> list[Alive]:
    """Forward, backward and optimizer step of any rank."""
    weights = _weights(step.frame, step.replay, step.shape.loss_shards)
    at_loss = weights.loss
    return [
        *forward(step, FORWARD, at_loss[1:], weights.forward, at_loss[0]),
        *tiled_loss(step, BACKWARD, at_loss),
        loss_gradient(step, BACKWARD, at_loss),
        *_backward(step, weights),
        *weights.step,
    ]


@lru_cache(maxsize=1024)
def _weights(frame: Frame, replay: str, loss_shards: int) -> _Weights:
    # Another number of shards seldom changes what is gathered.
    return _weighed(frame, *_gathered(frame, replay, loss_shards), loss_shards > 0)


@lru_cache(maxsize=1024)
def _weighed(frame: Frame, live: Gathered, tops: Crests, tiled: bool) -> _Weights:
    width, at_ends = frame.width.model, (0, live.head, live.end)
    reducing = []
    for where, newest, copy in _reduced(frame, tiled):
        elements = at_ends[where.part] if where.part else live.backward[where.level]
        around = _around(frame, elements)
        reducing.append(_Reducing(where, around[0] + newest + copy, around, newest, copy))
    return _Weights(
        tuple([(layer, width * elements) for layer, elements in tops.forward]),
        _around(frame, live.loss),
        tuple([(layer, _around(frame, elements)) for layer, elements in tops.backward]),
        _around(frame, live.backward[-1]),
        (width * live.end, 0),
        tuple(reducing),
        tuple(_optimizer(frame, live)),
    )


def _gathered(frame: Frame, replay: str, loss_shards: int) -> tuple[Gathered, Crests]:
    settings, layers = frame.settings, frame.model.layers
    if frame.world_size == 1 and settings.offload_param == "none":
        # One rank's slice is the parameter: nothing is gathered (partition_parameters.py:61-119).
        none = (0,) * layers
        only = ((layers - 1, 0),)
        return Gathered(0, none, none, 0, 0, 0), Crests(only, only)
    limits = Limits(
        settings.prefetch_bucket_size if not settings.allgather_sequential else 1,
        settings.max_live_parameters,
        settings.max_reuse_distance,
        settings.param_persistence_threshold,
        settings.model_persistence_threshold,
        settings.allgather_sequential,
        loss_shards,
    )
    return gathered(frame.model, limits, replay, False), crests(frame.model, limits, replay)


def _around(frame: Frame, elements: int) -> tuple[int, int]:
    """``elements`` of gathered weights, and hpZ's second copy beside them."""
    return frame.width.model * elements, _secondary(frame, elements)


def _secondary(frame: Frame, elements: int) -> int:
    """hpZ's second copy of every parameter that is not gathered just now (partition_parameters.py:1900-1950)."""
    size = frame.settings.hpz_partition_size
    if size <= 1 or frame.world_size == 1:
        return 0
    return frame.width.model * max(0, frame.model.num_params - elements) // size


def _backward(step: Step, weights: _Weights) -> list[Alive]:
    """Each layer with the weights gathered around it, and every bucket that is reduce-scattered."""
    act, each, last = step.act, step.act.layer, step.act.layers - 1
    layer, around = max(weights.backward, key=lambda top: top[0] * each + top[1][0])
    moments = [in_layer(step, BACKWARD, layer, around)]
    if layer != last:
        moments.append(in_layer(step, BACKWARD, last, weights.last))
    live = live_at_hooks(act)
    heights = [level * each + live[part][event] + size for (part, level, event), size, _, _, _ in weights.reducing]
    where, _, around, newest, copy = weights.reducing[heights.index(max(heights))]
    moments.append((_REDUCING, (*around, *at_hook(act, where, live), newest, copy)))
    moments.append(embedding_gradient(step, BACKWARD, weights.end))
    return moments


def _reduced(frame: Frame, tiled: bool) -> tuple[_Reduction, ...]:
    settings = frame.settings
    return _reductions(
        frame.model,
        settings.reduce_bucket_size,
        frame.world_size,
        frame.width,
        settings.reduce_scatter,
        settings.contiguous_gradients,
        tiled,
    )


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


def _optimizer(frame: Frame, live: Gathered) -> list[Alive]:
    """Norm, then sub-group by sub-group: flatten, cast, step (Z3:2454, 2683-2699, 2873-2949)."""
    settings, width = frame.settings, frame.width
    shard = shards(frame.model, frame.world_size, settings.sub_group_size, settings.optimizer)
    held = (width.model * live.persistent, _secondary(frame, 0))
    if settings.offload_optimizer != "none":
        # torch's AdamW, whatever the optimizer is called (Z3:313-322).
        stay = max([elements for elements, _ in on_gpu(settings, shard)], default=0)
        return [(_STEP, (*held, 0, temporaries(settings, width.master * stay)))] if stay else []
    moments: list[Alive] = []
    if settings.precision == "fp16":
        moments.append((_OVERFLOW, (*held, (width.accumulate + 1) * shard.trained)))
    if shard.muon:
        moments.append(_orthogonalized(frame, held))
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


def _orthogonalized(frame: Frame, held: Bytes) -> Alive:
    """Muon gathers gradients and momenta whole, chunk by chunk (Z3:1697-1864)."""
    settings, width = frame.settings, frame.width.communicate
    most = gathers(frame.model, frame.world_size, settings.sub_group_size, settings.reduce_bucket_size, width).most
    return _MUON, (*held, width * most, iteration(frame.model, width))
