"""bf16, fp16 and what depends on them."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem
from dsconf.config.rules.case import Case, block, flag, stage


def _bf16(case: Case) -> str:
    """The name of the bf16 block that counts (runtime/precision_config.py:34-38)."""
    return "bf16" if case.config.get("bf16") is not None or "bfloat16" not in case.config else "bfloat16"


def bf16_and_fp16(case: Case) -> Iterator[Problem]:
    """The two exclude each other (runtime/config.py:511-512)."""
    on = [name for name in (_bf16(case), "fp16") if flag(block(case.config, name).get("enabled", False))]
    if len(on) == 2:
        message = f"fp16 and {on[0]} are both enabled"
        yield Problem("DS501", "error", ("fp16", "enabled"), message, "switch one of them off")


def bfloat16_ignored(case: Case) -> Iterator[Problem]:
    """``bfloat16`` is not read when there is ``bf16``, even where that is off."""
    if "bfloat16" in case.config and case.config.get("bf16") is not None:
        yield Problem("DS502", "error", ("bfloat16",), "ignored, because there is a bf16 block", "leave it out")


def master_without_zero(case: Case) -> Iterator[Problem]:
    """16-bit masters need ZeRO, and 16-bit states 16-bit masters (runtime/config.py:702-714)."""
    bf16 = _bf16(case)
    masters = (("fp16", "fp16_master_weights_and_grads"), (bf16, "bf16_master_weights_and_grads"))
    for name, key in (*masters, (bf16, "bf16_optimizer_states")):
        if stage(case.config) == 0 and flag(block(case.config, name).get(key, False)):
            yield Problem("DS503", "error", (name, key), "needs ZeRO stage 1, 2 or 3", "leave it out")
    states, master = (block(case.config, bf16).get(key, False) for _, key in ((0, "bf16_optimizer_states"), masters[1]))
    if flag(states) and not flag(master) and stage(case.config) != 0:
        advice = "set bf16_master_weights_and_grads too"
        yield Problem("DS504", "error", (bf16, "bf16_optimizer_states"), "needs 16-bit masters", advice)
