"""Sizes in elements against the size of the model, where that is known."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem
from dsconf.config.rules.case import Case, block, number, offloads_optimizer, whole

_LARGEST_GROUP = 10**12


def bucket_larger_than_model(case: Case) -> Iterator[Problem]:
    """The bucket is allocated whole, however small the model (zero/stage_1_and_2.py:3256-3280, stage3.py:780-784)."""
    if case.model_params is None or case.stage in (0, None):
        return
    size = whole(case.zero.get("reduce_bucket_size", 500_000_000))
    if size is not None and size > case.model_params:
        message = f"a bucket of {size} elements for a model of {case.model_params}: the difference is wasted"
        where = ("zero_optimization", "reduce_bucket_size")
        yield Problem("DS701", "warning", where, message, f"write {case.model_params} or less")


def sub_group_larger_than_model(case: Case) -> Iterator[Problem]:
    """Sub-groups split the optimizer step of stage 3 (zero/stage3.py:1210-1233)."""
    given = whole(case.zero.get("sub_group_size"))
    if case.stage != 3 or given is None:
        return
    path = ("zero_optimization", "sub_group_size")
    share = None if case.model_params is None else -(-case.model_params // (case.gpus or 1))
    if share is not None and given > share:
        message = f"the {share} parameters of a rank make one sub-group: the step is not split"
        yield Problem("DS702", "note", path, message, "a smaller size lowers the peak of the step")
    elif share is None and given >= _LARGEST_GROUP:
        message = "larger than any model: the optimizer step is never split"
        yield Problem("DS702", "note", path, message, "leave it out for 1e9, or write less")


def ratio_of_one_sub_group(case: Case) -> Iterator[Problem]:
    """Whole sub-groups stay on the GPU, int((1 - ratio) × their number) of them (zero/stage3.py:1100-1108)."""
    ratio = number(block(case.zero, "offload_optimizer").get("ratio", 1.0))
    group = whole(case.zero.get("sub_group_size", 1_000_000_000))
    if case.model_params is None or case.stage != 3 or not offloads_optimizer(case) or ratio is None or not group:
        return
    groups = -(-case.model_params // ((case.gpus or 1) * group))
    if 0 < ratio < 1 and int((1 - ratio) * groups) == 0:
        message = f"{groups} sub-group{'s' * (groups > 1)} to a rank: all of them are offloaded, as with 1.0"
        path = ("zero_optimization", "offload_optimizer", "ratio")
        yield Problem("DS703", "warning", path, message, "lower sub_group_size")
