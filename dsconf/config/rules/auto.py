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
_BLOCKS = (("zero_optimization", "zenflow"), ("expert_parallel",))
"""Those of them that cannot be "auto" themselves."""


def autos(value: Mapping[str, Any], path: Path = (), own: bool = False) -> Iterator[Path]:
    """The paths whose value is an "auto" that somebody has to fill in; with ``own`` also DeepSpeed's own ones."""
    for key, inner in value.items():
        here = (*path, key)
        if key.startswith("_") or (here in _OWN_AUTO and not own and not (inner == "auto" and here in _BLOCKS)):
            continue
        if inner == "auto":
            yield here
        elif isinstance(inner, dict):
            yield from autos(inner, here, own)


def _default(path: Path) -> str:
    known = property_at(path)
    if known is None or known.get("default") is None:
        return "its default"
    value = known["default"]
    return f"its default, {str(value).lower() if isinstance(value, bool) else value}"


def unfilled(case: Case) -> Iterator[Problem]:
    """An "auto" that nobody fills: dropped for the default, or taken as a string; Accelerate refuses all of them.

    The HF Trainer builds its engine through Accelerate, which raises for every "auto" that is left (accelerate
    utils/dataclasses.py: DeepSpeedPlugin.fill_match), those of DeepSpeed's own words included.
    """
    for path in autos(case.config, own=case.target != "deepspeed"):
        if dotted(path) in FILLED[case.target]:
            continue
        advice = "write the value"
        if case.target == "deepspeed":
            message = '"auto" is filled in by HF Trainer and Accelerate only'
            if dotted(path) in FILLED["hf"]:
                advice = "write the value, or say --for hf"
        elif case.target == "accelerate":
            message = 'Accelerate does not fill in this "auto" and refuses it'
        else:
            message = 'HF Trainer does not fill in this "auto", and Accelerate below it refuses it'
        if path[0] in _PYDANTIC and case.target != "accelerate":
            message += f"; DeepSpeed itself drops it and takes {_default(path)}"
        yield Problem("DS110", "error", path, message, advice)
