"""Sizes in elements compared with the size of the model, where that is known."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem
from dsconf.config.rules.case import Case, block, number, offloads_optimizer, precision, whole
from dsconf.units import format_bytes

_LARGEST_GROUP = 10**12
_SMALL_GROUP = 100_000_000
"""Sub-group that ``dsconf recommend`` writes: a kernel over so many elements is still bound by bandwidth alone."""


def bucket_larger_than_model(case: Case) -> Iterator[Problem]:
    """Find a bucket larger than the model; it is allocated whole all the same (zero/stage_1_and_2.py:3256-3280,
    stage3.py:780-784)."""
    if case.model_params is None or case.stage in (0, None):
        return
    size = whole(case.zero.get("reduce_bucket_size", 500_000_000))
    if size is not None and size > case.model_params:
        message = f"a bucket of {size} elements for a model of {case.model_params}: the difference is wasted"
        where = ("zero_optimization", "reduce_bucket_size")
        yield Problem("DS701", "warning", where, message, f"write {case.model_params} or less")


def sub_group_larger_than_model(case: Case) -> Iterator[Problem]:
    """Find a sub-group so large that the optimizer step of stage 3 is not split (zero/stage3.py:1210-1233)."""
    given = whole(case.zero.get("sub_group_size"))
    if case.stage != 3 or given is None:
        return
    path = ("zero_optimization", "sub_group_size")
    share = None if case.model_params is None else -(-case.model_params // (case.gpus or 1))
    if share is not None and given > share:
        message = f"the {share} parameters of a rank make one sub-group: the step is not split"
        yield Problem("DS702", "note", path, *_cost_of_one_group(case, share, message))
    elif share is None and given >= _LARGEST_GROUP:
        message = "larger than any model: the optimizer step is never split"
        yield Problem("DS702", "note", path, message, "leave it out for 1e9, or write less")


def _cost_of_one_group(case: Case, share: int, message: str) -> tuple[str, str]:
    """Return the message and its advice, with bytes where the GPU steps in 16 bits and a smaller group is possible.

    The gradients of one group are flattened in their own type and cast to fp32 beside that (zero/stage3.py:2683-2699).
    Whatever the groups, fp16's check for overflow then makes 3 bytes of each element (zero/stage3.py:2814).
    """
    kind = precision(case)
    if offloads_optimizer(case) or kind not in ("bf16", "fp16") or share <= _SMALL_GROUP:
        return message, "a smaller size lowers the peak of the step"
    copied = 6 * share
    small = max(6 * _SMALL_GROUP, 3 * share if kind == "fp16" else 0)
    message = f"{message}, and all of their gradients are copied at once, {format_bytes(copied)}"
    if small >= copied:
        return message, "a smaller size lowers the peak of the step"
    return message, f"write {_SMALL_GROUP}: up to {format_bytes(copied - small)} less at the peak of the step"


def ratio_of_one_sub_group(case: Case) -> Iterator[Problem]:
    """Find a ratio that moves no sub-group: int((1 - ratio) × their number) whole ones stay on the GPU
    (zero/stage3.py:1100-1108)."""
    ratio = number(block(case.zero, "offload_optimizer").get("ratio", 1.0))
    group = whole(case.zero.get("sub_group_size", 1_000_000_000))
    if case.model_params is None or case.stage != 3 or not offloads_optimizer(case) or ratio is None or not group:
        return
    groups = -(-case.model_params // ((case.gpus or 1) * group))
    if 0 < ratio < 1 and int((1 - ratio) * groups) == 0:
        message = f"{groups} sub-group{'s' * (groups > 1)} to a rank: all of them are offloaded, as with 1.0"
        path = ("zero_optimization", "offload_optimizer", "ratio")
        yield Problem("DS703", "warning", path, message, "lower sub_group_size")
