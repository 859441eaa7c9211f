"""Any ds_config: settings as DeepSpeed takes them, every one of which may be left to its default."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from benchmarks.answers.question import pick

Config = dict[str, Any]
_TYPES = ("bf16", "fp16", "fp32")
_SWITCH = (True, False)
_BUCKETS = (10_000_000, 50_000_000, 200_000_000, 500_000_000, 5e8, 1_000_000_000, 100_000, 1000)
_ZERO: dict[str, Sequence[Any]] = {
    "contiguous_gradients": _SWITCH,
    "reduce_scatter": _SWITCH,
    "reduce_bucket_size": _BUCKETS,
    "overlap_comm": _SWITCH,
}
_ZERO12: dict[str, Sequence[Any]] = {
    "allgather_bucket_size": _BUCKETS,
    "use_multi_rank_bucket_allreduce": _SWITCH,
    "round_robin_gradients": _SWITCH,
    "parameter_alignment": _SWITCH,
}
_ZERO3: dict[str, Sequence[Any]] = {
    "sub_group_size": (1_000_000, 10_000_000, 100_000_000, 1e9, 1_000_000_000_000),
    "stage3_prefetch_bucket_size": (0, 1_000_000, 15_000_000, 5e7, 500_000_000),
    "stage3_param_persistence_threshold": (0, 10_000, 100_000, 1_000_000, 1e9),
    "stage3_model_persistence_threshold": (0, 1_000_000, 10**12),
    "stage3_max_live_parameters": (0, 1_000_000, 100_000_000, 1e9, 10**12),
    "stage3_max_reuse_distance": (0, 1_000_000, 100_000_000, 1e9, 10**12),
    "stage3_gather_16bit_weights_on_model_save": _SWITCH,
    "stage3_module_granularity_threshold": (0, 1000, 1_000_000_000),
    "stage3_allgather_sequential": _SWITCH,
    "zero_hpz_partition_size": (1, 2, 4, 8),
    "zero_quantized_weights": _SWITCH,
    "zero_quantized_nontrainable_weights": _SWITCH,
    "zero_quantized_gradients": _SWITCH,
    "memory_efficient_linear": _SWITCH,
}
_COMMON: dict[str, Sequence[Any]] = {"lr": (1e-5, 1e-4, 0.001, "auto"), "weight_decay": (0, 0.0, 0.01, 0.1, "auto")}
_ADAM = _COMMON | {
    "betas": ([0.9, 0.95], [0.9, 0.999], "auto"),
    "eps": (1e-8, 1e-6, "auto"),
    "torch_adam": _SWITCH,
    "adam_w_mode": _SWITCH,
    "amsgrad": (True, False),
}
_LOOP = {"foreach": _SWITCH}
OPTIMIZERS: dict[str, dict[str, Sequence[Any]]] = {
    "AdamW": _ADAM,
    "Adam": _ADAM,
    "adamw": _ADAM | {"fused": _SWITCH} | _LOOP,
    "Adagrad": _COMMON | {"fused": _SWITCH},
    "Lamb": _COMMON | {"max_coeff": (10.0,), "min_coeff": (0.01,)},
    "Lion": _COMMON | {"betas": ([0.9, 0.99],)},
    "Muon": _COMMON | {"momentum": (0.95, 0.9), "muon_lr": (0.02,), "adam_lr": (3e-4,)},
    "SGD": _COMMON | {"momentum": (0, 0.9), "nesterov": _SWITCH, "fused": _SWITCH} | _LOOP,
    "RMSprop": _COMMON | {"momentum": (0, 0.9), "centered": _SWITCH} | _LOOP,
    "Adadelta": _COMMON | _LOOP,
    "Adafactor": _COMMON,
    "Adamax": _COMMON | _LOOP,
    "ASGD": _COMMON,
    "NAdam": _COMMON | _LOOP,
    "RAdam": _COMMON | _LOOP,
    "Rprop": {"lr": (0.01,)} | _LOOP,
    "MuAdam": _COMMON,
    "MuSGD": _COMMON | {"momentum": (0.9,)},
    "OneBitAdam": _COMMON | {"freeze_step": (400,)},
}
_USUAL = {"AdamW": 40, "Adam": 12, "adamw": 12, "Muon": 8, "Lion": 6, "SGD": 6, "Adagrad": 4, "Lamb": 4}
SCHEDULERS: dict[str, dict[str, Sequence[Any]]] = {
    "WarmupLR": {"warmup_min_lr": (0,), "warmup_max_lr": (1e-3, "auto"), "warmup_num_steps": (100, "auto")},
    "WarmupDecayLR": {"total_num_steps": (1000, "auto"), "warmup_num_steps": (100,)},
    "WarmupCosineLR": {"total_num_steps": (1000,), "cos_min_ratio": (0.01,), "warmup_type": ("log", "linear")},
    "OneCycle": {"cycle_min_lr": (1e-5,), "cycle_max_lr": (1e-3,)},
    "LRRangeTest": {"lr_range_test_min_lr": (1e-4,)},
    "StepLR": {"step_size": (10,), "gamma": (0.5,)},
    "CosineAnnealingLR": {"T_max": (100,)},
}
_REST: dict[str, Sequence[Any]] = {
    "gradient_clipping": (0.0, 0.5, 1.0, "auto"),
    "communication_data_type": _TYPES,
    "seq_parallel_communication_data_type": _TYPES[:3],
    "data_types": tuple({"grad_accum_dtype": name} for name in ("fp32", "bf16", "fp16", None)),
    "sequence_parallel_size": (1, 2, 4),
    "zero_allow_untested_optimizer": _SWITCH,
    "zero_force_ds_cpu_optimizer": _SWITCH,
    "prescale_gradients": _SWITCH,
    "gradient_predivide_factor": (1.0, 2.0),
    "steps_per_print": (10, 100),
    "wall_clock_breakdown": _SWITCH,
    "activation_checkpointing": (
        {"partition_activations": True},
        {"cpu_checkpointing": True, "number_checkpoints": 4},
    ),
    "aio": ({"block_size": 1048576, "queue_depth": 8}, {"use_gds": False}),
    "flops_profiler": ({"enabled": True, "profile_step": 5, "module_depth": -1},),
    "comms_logger": ({"enabled": True, "verbose": False},),
    "tensorboard": ({"enabled": True, "output_path": "logs"},),
    "wandb": ({"enabled": True, "project": "dsconf"},),
    "checkpoint": ({"tag_validation": "Warn", "load_universal": False},),
    "compile": ({"deepcompile": True},),
    "tensor_parallel": ({"autotp_size": 2}, {"tp": {"tp_size": 4}}),
    "_comment": ("why", 1),
}


def some(chance: random.Random, choices: dict[str, Sequence[Any]], share: float) -> Config:
    """``share`` of the keys of ``choices``, each with one of its values."""
    return {key: chance.choice(values) for key, values in choices.items() if chance.random() < share}


def _batches(chance: random.Random, gpus: int, auto: bool) -> Config:
    if auto:
        names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        return dict.fromkeys(names, "auto")
    micro, accumulation = chance.choice((1, 1, 2, 4, 8, 16)), chance.choice((1, 1, 1, 2, 4, 8, 16))
    full = {
        "train_batch_size": micro * accumulation * gpus,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }
    left = pick(chance, {(0, 1, 2): 4, (1,): 3, (1, 2): 4, (0,): 2, (0, 1): 2, (0, 2): 2, (): 1})
    return {key: value for number, (key, value) in enumerate(full.items()) if number in left}


def _precision(chance: random.Random, auto: bool) -> Config:
    on: Any = "auto" if auto else True
    way = pick(chance, {"bf16": 55, "fp16": 20, "none": 10, "autocast": 10, "bfloat16": 2, "both": 2, "off": 1})
    if way in ("bf16", "bfloat16"):
        block = {"enabled": on} | some(chance, {"immediate_grad_update": _SWITCH, "check_grad_overflow": _SWITCH}, 0.15)
        if chance.random() < 0.25:
            block["bf16_master_weights_and_grads"] = True
            block |= some(chance, {"bf16_optimizer_states": _SWITCH}, 0.7)
        return {way: block}
    if way == "fp16":
        choices = {"loss_scale": (0, 128), "initial_scale_power": (12, 16), "auto_cast": _SWITCH, "hysteresis": (2,)}
        return {way: {"enabled": on} | some(chance, choices | {"fp16_master_weights_and_grads": _SWITCH}, 0.2)}
    if way == "autocast":
        return {"torch_autocast": {"enabled": True, "dtype": chance.choice(("bfloat16", "float16"))}}
    if way == "both":
        return {"bf16": {"enabled": True}, "fp16": {"enabled": chance.choice(_SWITCH)}}
    return {} if way == "none" else {"bf16": {"enabled": False}}


def _offload(chance: random.Random, stage: int) -> Config:
    """Mostly what the stage can do."""
    allowed = {"cpu": 6, "nvme": 3 if stage == 3 else 0.3, "none": 1}
    found: Config = {}
    if chance.random() < (0.35 if stage else 0.03):
        device = pick(chance, allowed)
        choices = {"pin_memory": _SWITCH, "buffer_count": (4, 8), "pipeline_read": _SWITCH, "fast_init": _SWITCH}
        block = {"device": device} | some(chance, choices, 0.3)
        if device == "nvme" and chance.random() < 0.9:
            block["nvme_path"] = "/local_nvme"
        if chance.random() < (0.3 if stage == 3 else 0.03):
            block["ratio"] = chance.choice((0.0, 0.1, 0.3, 0.5, 0.75, 0.9, 1.0))
        found["offload_optimizer"] = block
    if chance.random() < (0.25 if stage == 3 else 0.02):
        device = pick(chance, allowed)
        choices = {"pin_memory": _SWITCH, "buffer_count": (5, 8), "max_in_cpu": (0, 1e9), "buffer_size": (1e8, 2e8)}
        found["offload_param"] = {"device": device} | some(chance, choices, 0.3)
        if device == "nvme":
            found["offload_param"]["nvme_path"] = "/local_nvme"
    return found


def _zero(chance: random.Random, auto: bool) -> Config:
    stage = pick(chance, {0: 1, 1: 2, 2: 3, 3: 5})
    block: Config = {"stage": stage} if stage or chance.random() < 0.5 else {}
    rich = chance.choice((0.0, 0.15, 0.4))
    block |= some(chance, _ZERO, max(rich, 0.1))
    block |= some(chance, _ZERO12, rich if stage in (1, 2) else 0.02)
    block |= some(chance, _ZERO3, rich if stage == 3 else 0.01)
    if auto and stage == 3:
        keys = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
        block |= {key: "auto" for key in keys if chance.random() < 0.6}
    block |= _offload(chance, stage)
    return {"zero_optimization": block} if block or chance.random() < 0.5 else {}


def _built(chance: random.Random, table: dict[str, dict[str, Sequence[Any]]], name: str) -> Config:
    block: Config = {"type": name}
    if chance.random() < 0.9:
        block["params"] = some(chance, table[name], chance.choice((0.3, 0.6, 0.9)))
    return block


def config(chance: random.Random, gpus: int) -> Config:
    """A config for ``gpus`` GPUs, mostly one that DeepSpeed takes."""
    auto = chance.random() < 0.12
    made = _batches(chance, gpus, auto) | _precision(chance, auto and chance.random() < 0.8) | _zero(chance, auto)
    if chance.random() < 0.85:
        rare = dict.fromkeys((name for name in OPTIMIZERS if name not in _USUAL), 0.7)
        made["optimizer"] = _built(chance, OPTIMIZERS, pick(chance, _USUAL | rare))
    if chance.random() < 0.2:
        made["scheduler"] = _built(chance, SCHEDULERS, chance.choice(list(SCHEDULERS)))
    made |= some(chance, _REST, chance.choice((0.02, 0.06, 0.12)))
    return made if auto else _without_auto(made)


def _without_auto(value: Any) -> Any:
    """``value`` without the keys that only a trainer fills in."""
    if not isinstance(value, dict):
        return value
    return {key: _without_auto(inner) for key, inner in value.items() if inner != "auto"}


def text(chance: random.Random, made: Config) -> str:
    """``made`` as a file."""
    return json.dumps(made, indent=chance.choice((None, 2, 2, 2, "\t")))
