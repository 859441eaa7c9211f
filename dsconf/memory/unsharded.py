"""Moments without ZeRO's shards: stage 0, BF16_Optimizer, and plain DistributedDataParallel.

DeepSpeed 0.19.8: ENG runtime/engine.py, FO runtime/fp16/fused_optimizer.py, BF runtime/bf16_optimizer.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.memory.hooks import hooks
from dsconf.memory.states import Terms, wrapper
from dsconf.memory.timeline import Sketch, Step, embedding_gradient, forward, in_layer, start_of_backward
from dsconf.memory.zero12 import temporaries

ALLREDUCE_BUCKET = 500_000_000
"""Elements after which stage 0 closes a bucket (ENG:151)."""


def moments(step: Step) -> Iterator[Sketch]:
    """Forward, backward and optimizer step of one rank."""
    known, width, kind = hooks(step.model), step.width, wrapper(step.settings)
    full = width.model * known.total
    early: Terms = (("gradients of this step", full),) if step.accumulating else ()
    yield from forward(step, early)
    yield start_of_backward(step, early)
    layers = step.act.layers
    for layer in {layers - 1, 0}:
        above = width.model * (known.head + (layers - 1 - layer) * known.layer)
        held: Terms = early or (("gradients of this step", above),)
        yield in_layer(step, layer, held, hoarded=not early)
    others = full - width.model * known.embedding
    yield embedding_gradient(step, early or (("gradients of this step", others),), known.embedding)
    if kind != "ddp":
        yield Sketch("backward", "all-reduce", (("gradients of this step", full), *_flattened(step)))
    yield from _optimizer(step, full, kind)


def _flattened(step: Step) -> Terms:
    """A flat copy of a bucket of gradients, which closes when it exceeds its size (ENG:3795-3839)."""
    known = hooks(step.model)
    elements = min(known.total, ALLREDUCE_BUCKET + known.largest)
    return (("reduce copy", max(step.width.model, step.width.communicate) * elements),)


def _optimizer(step: Step, full: int, kind: str) -> Iterator[Sketch]:
    total, settings = hooks(step.model).total, step.settings
    held = ("gradients of this step", full)
    if kind == "fp16":
        # A list of fp32 copies and the flat one are alive beside the 16-bit gradients (FO:282-314).
        yield Sketch("step", "fp32 gradients", (held, ("fp32 gradient", 4 * total), ("flat gradient", 4 * total)))
        return
    if kind == "bf16":
        yield Sketch("step", "optimizer", (held,))
        return
    yield Sketch("step", "optimizer", (held, *temporaries(settings, 4 * total)))
