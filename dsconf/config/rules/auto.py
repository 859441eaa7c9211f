"""The value "auto": filled in by HF Trainer and Accelerate, unknown to DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsconf.config.auto import FILLED
from dsconf.config.finding import Path, Problem, dotted
from dsconf.config.rules.case import Case
from dsconf.config.schema import property_at

_PYDANTIC = (
    *("zero_optimization", "bf16", "bfloat16", "fp16", "tensor_parallel", "compile", "comms_logger"),
    *("tensorboard", "wandb", "csv_monitor", "comet", "hybrid_engine", "weight_quantization"),
)
"""Blocks that drop a key whose value is "auto" (runtime/config_utils.py:55-56); the others take it as a string."""
_OWN_AUTO = (
    ("zero_optimization", "zenflow"),
    ("data_types", "keep_in_fp32_modules"),
    ("expert_parallel",),
    ("pipeline", "stages"),
    ("datastates_ckpt",),
)
"""Where "auto" means something to DeepSpeed itself."""


def autos(value: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths whose value is an "auto" that somebody has to fill in before DeepSpeed."""
    for key, inner in value.items():
        here = (*path, key)
        if key.startswith("_") or here in _OWN_AUTO:
            continue
        if inner == "auto":
            yield here
        elif isinstance(inner, dict):
            yield from autos(inner, here)


def _severity(case: Case, path: Path) -> str:
    return "warning" if case.target == "hf" and path[0] in _PYDANTIC else "error"


def _default(path: Path) -> str:
    known = property_at(path)
    if known is None or known.get("default") is None:
        return "its default"
    value = known["default"]
    return f"its default, {str(value).lower() if isinstance(value, bool) else value}"


def unfilled(case: Case) -> Iterator[Problem]:
    """An "auto" that nobody fills: dropped for the default, or taken as a string, or refused by Accelerate."""
    for path in autos(case.config):
        if dotted(path) in FILLED[case.target]:
            continue
        if case.target == "deepspeed":
            message, advice = '"auto" is filled in by HF Trainer and Accelerate only', "write the value"
            if dotted(path) in FILLED["hf"]:
                advice = "write the value, or say --for hf"
        elif case.target == "accelerate":
            message, advice = 'Accelerate does not fill in this "auto" and refuses it', "write the value"
        else:
            message, advice = 'HF Trainer does not fill in this "auto"', "write the value"
        if path[0] in _PYDANTIC and case.target != "accelerate":
            message += f"; DeepSpeed drops it and takes {_default(path)}"
        yield Problem("DS110", _severity(case, path), path, message, advice)
