"""The value "auto": filled in by HF Trainer and Accelerate, unknown to DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsconf.config.finding import Path, Problem, dotted
from dsconf.config.rules.case import Case
from dsconf.config.schema import property_at

ACCELERATE = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "fp16.enabled",
        "bf16.enabled",
        "optimizer.params.lr",
        "optimizer.params.weight_decay",
        "scheduler.params.warmup_min_lr",
        "scheduler.params.warmup_max_lr",
        "scheduler.params.warmup_num_steps",
        "scheduler.params.total_num_steps",
        "zero_optimization.stage",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.stage3_param_persistence_threshold",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_optimization.offload_optimizer.device",
        "zero_optimization.offload_optimizer.nvme_path",
        "zero_optimization.offload_param.device",
        "zero_optimization.offload_param.nvme_path",
    }
)
TRAINER = ACCELERATE | {"optimizer.params.betas", "optimizer.params.eps"}
"""The HF Trainer runs through Accelerate, so it fills whatever Accelerate does and two more."""

FILLED: dict[str, frozenset[str]] = {"deepspeed": frozenset(), "hf": TRAINER, "accelerate": ACCELERATE}
"""Keys whose "auto" each loader fills in before DeepSpeed sees the file. Sources: transformers 5.17
integrations/deepspeed.py (trainer_config_process, trainer_config_finalize); accelerate accelerator.py
(_prepare_deepspeed) and utils/dataclasses.py (DeepSpeedPlugin.__post_init__, set_mixed_precision)."""

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


def autos(value: Mapping[str, Any], path: Path = (), deepspeed_too: bool = False) -> Iterator[Path]:
    """Yield the paths of every "auto" that somebody has to fill in, and with ``deepspeed_too`` of those that DeepSpeed
    itself reads."""
    for key, inner in value.items():
        here = (*path, key)
        left_to_deepspeed = here in _OWN_AUTO and not (inner == "auto" and here in _BLOCKS)
        if key.startswith("_") or (left_to_deepspeed and not deepspeed_too):
            continue
        if inner == "auto":
            yield here
        elif isinstance(inner, dict):
            yield from autos(inner, here, deepspeed_too)


def _default(path: Path) -> str:
    schema = property_at(path)
    if schema is None or schema.get("default") is None:
        return "its default"
    value = schema["default"]
    return f"its default, {str(value).lower() if isinstance(value, bool) else value}"


def unfilled(case: Case) -> Iterator[Problem]:
    """Find an "auto" that nobody fills in: it is dropped for the default or taken as a string, and Accelerate refuses
    it.

    The HF Trainer builds its engine through Accelerate, which raises for every "auto" that is left (accelerate
    utils/dataclasses.py: DeepSpeedPlugin.fill_match), including those that DeepSpeed itself reads.
    """
    for path in autos(case.config, deepspeed_too=case.target != "deepspeed"):
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
