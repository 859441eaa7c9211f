"""Makes a ds_config ready to be launched by a plain script: no "auto", an optimizer, batch sizes that agree."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from dsconf.config.batch import Batch, problem, solve
from dsconf.config.resolve import data_parallel_ranks
from dsconf.errors import InputError

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")
"""Sections that would write outside this run."""
LEARNING_RATE = 1e-4
AUTO: dict[str, Any] = {
    "optimizer.params.lr": LEARNING_RATE,
    "optimizer.params.betas": [0.9, 0.999],
    "optimizer.params.eps": 1e-8,
    "optimizer.params.weight_decay": 0.0,
    "scheduler.params.warmup_min_lr": 0.0,
    "scheduler.params.warmup_max_lr": LEARNING_RATE,
    "scheduler.params.warmup_num_steps": 10,
    "scheduler.params.total_num_steps": 1000,
    "gradient_clipping": 1.0,
}
"""What the Hugging Face Trainer's default arguments would put for "auto"; only whether it is there matters here.
A learning rate from the first step on and no decay: the figures of a few steps do not depend on them."""
ELEMENT_COUNTS = {
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_param_persistence_threshold": 100_000,
}
"""Sizes in elements, with DeepSpeed 0.19.8's defaults (runtime/zero/config.py)."""


def launchable(config: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    """Return a copy of ``config`` without "auto", monitors and counters that disturb the measurement.

    ``hidden`` is the model's width, from which the Trainer derives stage-3 bucket sizes.
    """
    ready = {key: deepcopy(value) for key, value in config.items() if key not in MONITORS}
    _fill_precision(ready)
    _fill_stage3(ready.get("zero_optimization"), hidden)
    ready = _filled(ready, "")
    ready.setdefault("optimizer", {"type": "AdamW", "params": {"lr": LEARNING_RATE}})
    ready["steps_per_print"] = 10**9
    ready["memory_breakdown"] = False  # true resets the peak counters at every phase
    return ready


def _fill_precision(config: dict[str, Any]) -> None:
    """Fill in bf16 before fp16 where both are left open."""
    taken = any(_section(config, name).get("enabled") is True for name in ("bf16", "bfloat16", "fp16"))
    for name in ("bf16", "bfloat16", "fp16"):
        if _section(config, name).get("enabled") == "auto":
            config[name]["enabled"] = not taken
            taken = True


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def _fill_stage3(zero: Any, hidden: int) -> None:
    """Fill in the Trainer's own figures (transformers 5.17, integrations/deepspeed.py: trainer_config_finalize)."""
    if not isinstance(zero, dict):
        return
    for key, value in (
        ("reduce_bucket_size", hidden * hidden),
        ("stage3_prefetch_bucket_size", int(0.9 * hidden * hidden)),
        ("stage3_param_persistence_threshold", 10 * hidden),
    ):
        if zero.get(key) == "auto":
            zero[key] = value


def _filled(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return ``block`` with every "auto" replaced, or left out so that DeepSpeed's default holds."""
    ready: dict[str, Any] = {}
    for key, value in block.items():
        place = f"{path}{key}"
        if isinstance(value, Mapping):
            ready[key] = _filled(value, f"{place}.")
        elif value != "auto":
            ready[key] = value
        elif place in AUTO:
            ready[key] = AUTO[place]
    return ready


def batch_of(
    config: Mapping[str, Any], world_size: int, micro_batch: int | None, accumulation: int | None
) -> tuple[int, int]:
    """Micro-batch and accumulation: the options where given, else the config's, else 1.

    Raises:
        InputError: the config's own batch sizes do not agree for ``world_size`` and no option settles it.
    """
    given = Batch(*(config.get(key) for key in BATCH_KEYS))
    ranks = data_parallel_ranks(config, world_size)
    if micro_batch is None and accumulation is None and (given.train or given.micro):
        wrong = problem(given, ranks)
        if wrong is not None:
            raise InputError(f"batch sizes: {wrong}; correct the config, --gpus or --micro-batch-size")
    solved = solve(given, ranks)
    return micro_batch or solved.micro or 1, accumulation or solved.accumulation or 1


def set_batch(config: dict[str, Any], world_size: int, micro_batch: int, accumulation: int) -> None:
    """Write all three batch sizes for ``world_size`` ranks."""
    ranks = data_parallel_ranks(config, world_size)
    config.update(zip(BATCH_KEYS, (micro_batch * accumulation * ranks, micro_batch, accumulation), strict=True))


def shrink_buckets(config: dict[str, Any], factor: float) -> None:
    """Divide the sizes counted in elements by ``factor``, so that a small model meets as many buckets as the large.

    Even numbers, as ``allgather_bucket_size`` must be (stage_1_and_2.py: nccl_start_alignment_factor). A size under
    its alias without ``stage3_`` is rewritten under the full name.
    """
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        return
    for key, default in ELEMENT_COUNTS.items():
        alias = key.removeprefix("stage3_")
        given = zero.pop(key) if key in zero else zero.pop(alias, default)
        zero[key] = max(2, 2 * int(float(given) / factor / 2))


def use_bf16_for_fp16(config: dict[str, Any]) -> bool:
    """Switch fp16 to bf16, which takes as many bytes; whether there was anything to switch."""
    if _section(config, "fp16").get("enabled") is not True:
        return False
    del config["fp16"]
    config["bf16"] = {"enabled": True}
    return True


def use_torch_adam(config: dict[str, Any]) -> bool:
    """Use torch's AdamW, which needs no compiler, in place of DeepSpeed's; whether it had to change."""
    optimizer = config["optimizer"]
    params = optimizer.setdefault("params", {})
    if optimizer.get("type", "").lower() not in ("adam", "adamw") or params.get("torch_adam"):
        return False
    params["torch_adam"] = True
    return True
