"""Moments without ZeRO's shards: stage 0, BF16_Optimizer, and plain DistributedDataParallel.

Files of DeepSpeed 0.19.8: runtime/engine.py, runtime/fp16/fused_optimizer.py, runtime/fp16/unfused_optimizer.py and
runtime/bf16_optimizer.py.
"""

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
    rise,
)
from dsconf.memory.timeline.resident import each_in_a_block
from dsconf.memory.zero.muon import newton_schulz_iteration, owned_slices
from dsconf.memory.zero.optimizer_states import optimizer_temporaries

ALLREDUCE_BUCKET = 500_000_000
"""Elements after which stage 0 closes a bucket (engine.py:151)."""

_ALLREDUCE = Label("backward", "all-reduce")
_COPIES = Label("step", "fp32 gradients")
_NORM = Label("step", "gradient norm")
_STEP = Label("step", "optimizer")
_AFTER = Place(NOWHERE, 0)


class ReplicatedRun(NamedTuple):
    """Forward and backward of the model."""

    gradients_of_this_step: int
    saved_activations: int = 0
    layer_in_progress: int = 0
    logits_and_loss: int = 0
    newest_gradient: int = 0
    embedding_gradient: int = 0
    tied_embedding_gradient: int = 0


class AllReducing(NamedTuple):
    """Gradients are averaged over the ranks, backward being over."""

    gradients_of_this_step: int
    reduce_copy: int


class ReplicatedStep(NamedTuple):
    """The optimizer step."""

    gradients_of_this_step: int
    fp32_gradient: int = 0
    flat_gradient: int = 0
    newton_schulz_iteration: int = 0
    optimizer_temporaries: int = 0


@lru_cache(maxsize=1024)
def rises(frame: Frame, accumulating: bool, sharded_loss: bool) -> tuple[Rise, ...]:
    """Return the moments of any rank."""
    layers = frame.model.layers
    whole = gradients_of_this_step(frame)
    early = ReplicatedRun(whole if accumulating else 0)
    found = [
        rise(INSIDE_A_LAYER, Place(FORWARD, layers - 1), early),
        rise(AT_THE_LOSS, Place(LOSS, layers), early),
    ]
    if sharded_loss:
        found.append(rise(AT_A_SHARD, Place(LOSS_SHARD, layers), early))
    found.append(rise(AT_THE_GRADIENT_OF_THE_LOSS, Place(LOSS_GRADIENT, layers), early))
    for layer in sorted({layers - 1, 0}, reverse=True):
        above = early if accumulating else ReplicatedRun(gradients_above(frame, layer))
        found.append(rise(in_layer(layer, layers), Place(LAYER, layer, FREED if accumulating else KEPT), above))
    others = early if accumulating else ReplicatedRun(gradients_but_the_embeddings(frame))
    found.append(rise(AT_THE_EMBEDDING, Place(EMBEDDING, 0), others))
    if frame.wrapper != "ddp":
        found.append(rise(_ALLREDUCE, _AFTER, AllReducing(whole, reduce_copy(frame))))
    found.append(_optimizer(frame, whole))
    return tuple(found)


def gradients_of_this_step(frame: Frame) -> int:
    """Return all gradients, which stay until the step."""
    return each_in_a_block(frame, frame.width.model, "trained parameters")


def gradients_above(frame: Frame, layer: int) -> int:
    """Return the gradients that backward has made when it comes to ``layer``."""
    known, above = frame.hooks, frame.model.layers - 1 - layer
    return frame.bytes.product(
        frame.width.model, known.head + above * known.layer, f"elements of the head and {above} layers"
    )


def gradients_but_the_embeddings(frame: Frame) -> int:
    """Return the gradients that backward has made when it comes to the embedding."""
    why = "trained parameters, all but the embedding"
    return each_in_a_block(frame, frame.width.model, why, without=frame.hooks.embedding)


def reduce_copy(frame: Frame) -> int:
    """Return a flat copy of a bucket of gradients, which closes when it exceeds its size (engine.py:3795-3839).

    BF16_Optimizer's fp32 gradients are one flat tensor: no copy but the cast to a narrower collective
    (bf16_optimizer.py:508).
    """
    known, width = frame.hooks, frame.width
    if frame.wrapper == "bf16":
        cast = 0 if width.communicate == width.accumulate else width.communicate
        return frame.bytes.product(cast, known.total, "trained parameters, cast for the collective")
    elements = min(known.total, ALLREDUCE_BUCKET + known.largest)
    cast = width.communicate if width.communicate != width.model else 0
    return frame.bytes.total(
        (width.model, elements, "elements of a full bucket"),
        (cast, elements, "elements of a full bucket, cast for the collective"),
    )


def _optimizer(frame: Frame, whole: int) -> Rise:
    settings, elements = frame.settings, frame.hooks.total
    if frame.wrapper == "fp16":
        # A list of fp32 copies and the flat one are alive beside the 16-bit gradients (fused_optimizer.py:282-314).
        copies = each_in_a_block(frame, 4, "trained parameters, copy by copy")
        flat = frame.bytes.product(4, elements, "trained parameters, flat")
        return rise(_COPIES, _AFTER, ReplicatedStep(whole, fp32_gradient=copies, flat_gradient=flat))
    if frame.wrapper == "unfused" and settings.optimizer == "lamb":
        # Flat for the kernel, flat again for the norm, and that in fp32 (unfused_optimizer.py:141-151;
        # runtime/utils.py:578).
        flat = frame.bytes.product(
            2 * frame.width.model, elements, "trained parameters, flat for the kernel and for the norm"
        )
        in_fp32 = frame.bytes.product(4, elements, "trained parameters, for the norm")
        return rise(_NORM, _AFTER, ReplicatedStep(whole, fp32_gradient=in_fp32, flat_gradient=flat))
    copies = (
        each_in_a_block(frame, 4, "trained parameters, copy by copy")
        if frame.wrapper == "unfused"
        else frame.bytes.total()
    )
    return rise(_STEP, _AFTER, _stepping(frame, whole, copies))


def _stepping(frame: Frame, whole: int, copies: int) -> ReplicatedStep:
    """Return the step over fp32 gradients: Muon's iteration, or what other optimizers make."""
    settings = frame.settings
    if settings.optimizer == "muon":
        iteration = newton_schulz_iteration(frame.bytes, frame.model, 4)
        return ReplicatedStep(whole, fp32_gradient=copies, newton_schulz_iteration=iteration)
    if frame.wrapper == "bf16":
        groups = owned_slices(frame.model, settings.optimizer, frame.world_size, 0)
        made = optimizer_temporaries(frame.bytes, settings, 4, sum([g.slice.elements for g in groups]))
    else:
        rounding = copies - 4 * frame.hooks.total if copies else 0
        made = optimizer_temporaries(frame.bytes, settings, 4, frame.hooks.total, frame.hooks.largest, rounding)
    return ReplicatedStep(whole, fp32_gradient=copies, optimizer_temporaries=made)
