"""Moments without ZeRO's shards: stage 0, BF16_Optimizer, and plain DistributedDataParallel.

DeepSpeed 0.19.8: ENG runtime/engine.py, FO runtime/fp16/fused_optimizer.py, UO
runtime/fp16/unfused_optimizer.py, BF runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from dsconf.memory.timeline.common import (
    Alive,
    Kind,
    Step,
    common,
    embedding_gradient,
    forward,
    in_layer,
    loss_gradient,
    tiled_loss,
)
from dsconf.memory.timeline.resident import tensors
from dsconf.memory.zero.muon import iteration, parts
from dsconf.memory.zero.optimizer_states import temporaries

ALLREDUCE_BUCKET = 500_000_000
"""Elements after which stage 0 closes a bucket (ENG:151)."""

HELD = common("gradients of this step")

_ALLREDUCE = Kind("backward", "all-reduce", (*HELD.held, "reduce copy"))
_COPIES = Kind("step", "fp32 gradients", (*HELD.held, "fp32 gradient", "flat gradient"))
_NORM = Kind("step", "gradient norm", (*HELD.held, "flat gradient", "fp32 gradient"))
_STEP = Kind("step", "optimizer", (*HELD.held, "fp32 gradient", "Newton-Schulz iteration", "optimizer temporaries"))


def moments(step: Step) -> list[Alive]:
    """Forward, backward and optimizer step of any rank."""
    known, width, layers = step.known, step.width.model, step.act.layers
    full = tensors(step.model, width)
    early = full if step.accumulating else 0
    found = [*forward(step, HELD, (early,)), *tiled_loss(step, HELD, (early,)), loss_gradient(step, HELD, (early,))]
    for layer in {layers - 1, 0}:
        above = early or width * (known.head + (layers - 1 - layer) * known.layer)
        found.append(in_layer(step, HELD, layer, (above,), hoarded=not early))
    found.append(embedding_gradient(step, HELD, (early or full - width * known.embedding,)))
    if step.wrapper != "ddp":
        found.append((_ALLREDUCE, (full, _flattened(step))))
    found.append(_optimizer(step, full))
    return found


def _flattened(step: Step) -> int:
    """A flat copy of a bucket of gradients, which closes when it exceeds its size (ENG:3795-3839).

    BF16_Optimizer's fp32 gradients are one flat tensor: no copy but the cast to a narrower collective (BF:508).
    """
    known, width = step.known, step.width
    if step.wrapper == "bf16":
        return 0 if width.communicate == width.accumulate else width.communicate * known.total
    elements = min(known.total, ALLREDUCE_BUCKET + known.largest)
    cast = width.communicate if width.communicate != width.model else 0
    return (width.model + cast) * elements


def _optimizer(step: Step, full: int) -> Alive:
    settings, known, kind = step.settings, step.known, step.wrapper
    total = known.total
    if kind == "fp16":
        # A list of fp32 copies and the flat one are alive beside the 16-bit gradients (FO:282-314).
        return _COPIES, (full, tensors(step.model, 4), 4 * total)
    if kind == "unfused" and settings.optimizer == "lamb":
        # Flat for the kernel, flat again for the norm, and that in fp32 (UO:141-151; runtime/utils.py:578).
        return _NORM, (full, 2 * step.width.model * total, 4 * total)
    if kind == "bf16":
        owned = sum([one.slice.elements for one in parts(step.model, settings.optimizer, step.world_size, rank=0)])
        return _STEP, (full, 0, *_made(step, 4 * owned, 4 * owned))
    size = tensors(step.model, 4) if kind == "unfused" else 4 * total
    return _STEP, (full, size if kind == "unfused" else 0, *_made(step, size, 4 * known.largest))


def _made(step: Step, gradient: int, largest: int) -> tuple[int, int]:
    """What the optimizer makes in its step over fp32 gradients: Muon's iteration, or lists of tensors."""
    if step.settings.optimizer == "muon":
        return iteration(step.model, 4), 0
    return 0, temporaries(step.settings, gradient, largest)
