"""Moments without ZeRO's shards: stage 0, BF16_Optimizer, and plain DistributedDataParallel.

DeepSpeed 0.19.8: ENG runtime/engine.py, FO runtime/fp16/fused_optimizer.py, UO
runtime/fp16/unfused_optimizer.py, BF runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.memory.hooks import hooks
from dsconf.memory.muon import iteration, parts
from dsconf.memory.optimizers import temporaries
from dsconf.memory.states import Terms, tensors, wrapper
from dsconf.memory.timeline import Sketch, Step, embedding_gradient, forward, in_layer, start_of_backward, tiled_loss

ALLREDUCE_BUCKET = 500_000_000
"""Elements after which stage 0 closes a bucket (ENG:151)."""


def moments(step: Step) -> Iterator[Sketch]:
    """Forward, backward and optimizer step of one rank."""
    known, width, kind = hooks(step.model), step.width, wrapper(step.settings)
    full = tensors(step.model, width.model)
    early: Terms = (("gradients of this step", full),) if step.accumulating else ()
    yield from forward(step, early)
    yield from tiled_loss(step, early)
    yield start_of_backward(step, early)
    layers = step.act.layers
    for layer in {layers - 1, 0}:
        above = width.model * (known.head + (layers - 1 - layer) * known.layer)
        held: Terms = early or (("gradients of this step", above),)
        yield in_layer(step, layer, held, hoarded=not early)
    others = full - width.model * known.embedding
    yield embedding_gradient(step, early or (("gradients of this step", others),), known.embedding)
    if kind != "ddp":
        yield Sketch("backward", "all-reduce", (("gradients of this step", full), *_flattened(step, kind)))
    yield from _optimizer(step, full, kind)


def _flattened(step: Step, kind: str) -> Terms:
    """A flat copy of a bucket of gradients, which closes when it exceeds its size (ENG:3795-3839).

    BF16_Optimizer's fp32 gradients are one flat tensor: no copy but the cast to a narrower collective (BF:508).
    """
    known, width = hooks(step.model), step.width
    if kind == "bf16":
        return (("reduce copy", 0 if width.communicate == width.accumulate else width.communicate * known.total),)
    elements = min(known.total, ALLREDUCE_BUCKET + known.largest)
    cast = width.communicate if width.communicate != width.model else 0
    return (("reduce copy", (width.model + cast) * elements),)


def _optimizer(step: Step, full: int, kind: str) -> Iterator[Sketch]:
    settings, known = step.settings, hooks(step.model)
    total = known.total
    held = ("gradients of this step", full)
    if kind == "fp16":
        # A list of fp32 copies and the flat one are alive beside the 16-bit gradients (FO:282-314).
        copies = (("fp32 gradient", tensors(step.model, 4)), ("flat gradient", 4 * total))
        yield Sketch("step", "fp32 gradients", (held, *copies))
        return
    if kind == "unfused" and settings.optimizer == "lamb":
        # Flat for the kernel, flat again for the norm, and that in fp32 (UO:141-151; runtime/utils.py:578).
        flat = ("flat gradient", 2 * step.width.model * total)
        yield Sketch("step", "gradient norm", (held, flat, ("fp32 gradient", 4 * total)))
        return
    if kind == "bf16":
        owned = sum(one.slice.elements for one in parts(step.model, settings.optimizer, step.world_size, step.rank))
        yield Sketch("step", "optimizer", (held, _temporaries(step, 4 * owned, 4 * owned)))
        return
    size = tensors(step.model, 4) if kind == "unfused" else 4 * total
    fp32 = (("fp32 gradient", size),) if kind == "unfused" else ()
    yield Sketch("step", "optimizer", (held, *fp32, _temporaries(step, size, 4 * known.largest)))


def _temporaries(step: Step, gradient: int, largest: int) -> tuple[str, int]:
    """What the optimizer makes in its step over fp32 gradients: lists of tensors, or Muon's iteration."""
    if step.settings.optimizer == "muon":
        return ("Newton-Schulz iteration", iteration(step.model, 4))
    return ("optimizer temporaries", temporaries(step.settings, gradient, largest))
