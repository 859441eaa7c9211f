"""Saving and resuming."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem
from dsconf.config.rules.case import Case, block, flag, precision
from dsconf.units import format_bytes

_GATHER = (
    *("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save"),
    "stage3_gather_fp16_weights_on_model_save",
)


def saved_in_shards(case: Case) -> Iterator[Problem]:
    """Find stage 3 without gathering: save_16bit_model then writes nothing (runtime/engine.py:5730-5740)."""
    if case.stage == 3 and not _gathers(case):
        message = "save_16bit_model saves nothing at stage 3: the weights stay in shards"
        advice = "set stage3_gather_16bit_weights_on_model_save to true, or convert with zero_to_fp32.py"
        yield Problem("DS321", "note", ("zero_optimization", "stage"), message, advice)


def gathered_on_rank_0(case: Case) -> Iterator[Problem]:
    """Find gathering on save: rank 0 keeps each gathered parameter in host memory until the file is written
    (runtime/engine.py:5631-5700)."""
    if case.stage != 3 or case.model_params is None or not _gathers(case):
        return
    size = format_bytes(case.model_params * (4 if precision(case) == "fp32" else 2))
    key = next(key for key in _GATHER if key in case.zero)
    message = f"each save gathers the whole model in the host memory of rank 0, {size}, and writes a file as large"
    yield Problem(
        "DS323", "note", ("zero_optimization", key), message, "leave room for it, or convert with zero_to_fp32.py"
    )


def _gathers(case: Case) -> bool:
    return any(case.zero.get(key) == "auto" or flag(case.zero.get(key, False)) for key in _GATHER)


def other_world_size(case: Case) -> Iterator[Problem]:
    """Find another world size than the checkpoint's: optimizer shards only load on as many ranks as wrote them
    (runtime/engine.py:4743-4752)."""
    if case.gpus is None or case.resume_gpus in (None, case.gpus) or case.stage == 0:
        return
    if block(case.config, "checkpoint").get("load_universal", False) is not True:
        message = f"a checkpoint of {case.resume_gpus} GPUs does not load on {case.gpus}"
        advice = "convert it with ds_to_universal.py and set checkpoint.load_universal to true"
        yield Problem("DS322", "error", (), message, advice)
