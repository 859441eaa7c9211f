"""Which of DeepSpeed's optimizer wrappers runs, and the bytes of an element of each kind."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.config.settings import Settings
from dsconf.memory.zero.optimizer_states import fused_adam, states_per_element

_WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4, "autocast": 4}
_GRADIENTS = {"fp32": 4, "fp16": 2, "bf16": 2}


class Widths(NamedTuple):
    """Bytes of an element."""

    model: int
    master: int
    state: int
    """Optimizer state for each element, all of it."""
    accumulate: int
    """Of a gradient while it accumulates."""
    communicate: int


@lru_cache(maxsize=256)
def widths(settings: Settings) -> Widths:
    """Return the element sizes (runtime/engine.py:1717-1730, 1806-1810; runtime/base_optimizer.py:523).

    Ranks that share sequences reduce gradients in a type of their own (runtime/engine.py:2173-2182), and in fp32 where
    stages 1 and 2 reduce a bucket for several owners (stage_1_and_2.py:2373).
    """
    model = _WIDTHS[settings.precision]
    accumulate = _GRADIENTS.get(settings.grad_accum_dtype or "", model)
    communicate = _GRADIENTS.get(settings.communication_dtype or "", model)
    if settings.sequence_parallel > 1:
        scattered = settings.stage in (1, 2) and settings.reduce_scatter
        communicate = 4 if scattered else _GRADIENTS.get(settings.sequence_parallel_dtype or "", 4)
    low = settings.bf16_master if settings.precision == "bf16" else settings.fp16_master
    master = 2 if low and model == 2 else 4
    state = states_per_element(settings).states * (2 if settings.bf16_optimizer_states else 4)
    return Widths(model, master, state, accumulate, communicate)


def wrapper(settings: Settings) -> str:
    """Return the optimizer wrapper: ``ddp``, ``none``, ``fp16``, ``unfused``, ``bf16``, ``zero12`` or ``zero3``.

    Source: engine.py:2294-2366 and, which of the 16-bit wrappers of stage 0, 2555-2609.
    """
    if settings.engine == "ddp":
        return "ddp"
    if settings.stage == 3:
        return "zero3"
    if settings.stage == 0:
        if _WIDTHS[settings.precision] != 2:
            return "none"
        return "fp16" if fused_adam(settings) else "unfused"
    explicit = settings.grad_accum_dtype == "fp32" and settings.precision == "bf16"
    if settings.stage == 1 and explicit and settings.offload_optimizer != "cpu":
        return "bf16"
    return "zero12"


def keeps_flat_fp32_gradients(settings: Settings) -> bool:
    """Return whether a rank's gradients are one flat fp32 slice.

    Stage 2 with fp32 accumulation of a 16-bit model does so (stage_1_and_2.py:1259-1345).
    """
    return settings.stage == 2 and settings.grad_accum_dtype == "fp32" and _WIDTHS[settings.precision] == 2


def reduces_in_hooks(settings: Settings) -> bool:
    """Return whether stages 1 and 2 reduce while backward runs, or after it (stage_1_and_2.py:958-980)."""
    return settings.stage == 2 or settings.overlap_comm
