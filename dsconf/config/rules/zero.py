"""ZeRO stages."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem
from dsconf.config.names import STAGE3_ALIASED
from dsconf.config.rules.case import Case, block, stage


def needed_by_accelerate(case: Case) -> Iterator[Problem]:
    """Accelerate refuses a file without the block (accelerate utils/dataclasses.py: DeepSpeedPlugin)."""
    if case.target == "accelerate" and "zero_optimization" not in case.config:
        advice = 'add "zero_optimization": {"stage": 0}'
        yield Problem("DS301", "error", (), "Accelerate needs a zero_optimization block", advice)


def twice(case: Case) -> Iterator[Problem]:
    """A key with and without stage3_ given twice is forbidden (zero/config.py:240-292)."""
    zero = block(case.config, "zero_optimization")
    for name in STAGE3_ALIASED:
        if name in zero and f"stage3_{name}" in zero and "auto" not in (zero[name], zero[f"stage3_{name}"]):
            message = f"the same setting as stage3_{name}, which is given too"
            yield Problem("DS302", "error", ("zero_optimization", name), message, "leave one of them out")


def stage3_key_below_stage3(case: Case) -> Iterator[Problem]:
    """``stage3_`` keys are read and ignored below stage 3."""
    at = stage(case.config)
    if at is None or at >= 3:
        return
    for key in block(case.config, "zero_optimization"):
        if key.removeprefix("stage3_") in STAGE3_ALIASED and key.startswith("stage3_"):
            message = f"has no effect at ZeRO stage {at}"
            yield Problem("DS303", "warning", ("zero_optimization", key), message, "leave it out, or use stage 3")
