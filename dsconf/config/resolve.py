"""Reads a ds_config as DeepSpeed 0.19.8 would: defaults filled in, aliases and deprecated names mapped.

File and line references are to DeepSpeed 0.19.8, those to transformers to release 5.17.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dsconf.config.batch import Batch, data_parallel_ranks, solve
from dsconf.config.coerce import as_block, as_bool, as_dtype, as_float, as_int, as_text
from dsconf.config.names import DEVICES, STAGE3_ALIASED, TARGETS
from dsconf.config.settings import Settings
from dsconf.errors import InputError, nearest

__all__ = ["FUSED_OPTIMIZERS", "data_parallel_ranks", "resolve"]

FUSED_OPTIMIZERS = ("lamb", "lion", "muon")
"""Optimizers besides Adam that DeepSpeed runs as one kernel of its own (runtime/engine.py:2476-2550)."""

Read = Callable[[str, Any], Any]
# Settings field: (key in zero_optimization, how it is read)
_ZERO_FIELDS: dict[str, tuple[str, Read]] = {
    "reduce_bucket_size": ("reduce_bucket_size", as_int),
    "allgather_bucket_size": ("allgather_bucket_size", as_int),
    "contiguous_gradients": ("contiguous_gradients", as_bool),
    "reduce_scatter": ("reduce_scatter", as_bool),
    "multi_rank_bucket_allreduce": ("use_multi_rank_bucket_allreduce", as_bool),
    "round_robin_gradients": ("round_robin_gradients", as_bool),
    "parameter_alignment": ("parameter_alignment", as_bool),
    "sub_group_size": ("sub_group_size", as_int),
    "prefetch_bucket_size": ("prefetch_bucket_size", as_int),
    "param_persistence_threshold": ("param_persistence_threshold", as_int),
    "model_persistence_threshold": ("model_persistence_threshold", as_int),
    "max_live_parameters": ("max_live_parameters", as_int),
    "max_reuse_distance": ("max_reuse_distance", as_int),
    "allgather_sequential": ("allgather_sequential", as_bool),
    "module_granularity_threshold": ("module_granularity_threshold", as_int),
    "hpz_partition_size": ("zero_hpz_partition_size", as_int),
    "quantized_weights": ("zero_quantized_weights", as_bool),
    "quantized_nontrainable_weights": ("zero_quantized_nontrainable_weights", as_bool),
    "quantized_gradients": ("zero_quantized_gradients", as_bool),
    "memory_efficient_linear": ("memory_efficient_linear", as_bool),
}
_OFFLOAD_OPTIMIZER_FIELDS: dict[str, tuple[str, Read]] = {
    "offload_optimizer_pinned": ("pin_memory", as_bool),
    "offload_optimizer_ratio": ("ratio", as_float),
    "offload_optimizer_buffers": ("buffer_count", as_int),
}
_OFFLOAD_PARAM_FIELDS: dict[str, tuple[str, Read]] = {
    "offload_param_pinned": ("pin_memory", as_bool),
    "offload_param_buffers": ("buffer_count", as_int),
    "offload_param_buffer_size": ("buffer_size", as_int),
    "offload_param_max_in_cpu": ("max_in_cpu", as_int),
}
_HIDDEN_SIZE_KEYS: dict[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "param_persistence_threshold": lambda hidden: 10 * hidden,
}
"""What HF Trainer and Accelerate put for "auto" (transformers integrations/deepspeed.py: trainer_config_finalize)."""


def _known(block: Mapping[str, Any], key: str) -> Any:
    """Return ``key`` or its stage3_ alias in ``block``; None where absent or "auto", which blocks drop
    (runtime/config_utils.py:55-56)."""
    for name in (f"stage3_{key}", key) if key in STAGE3_ALIASED else (key,):
        if name in block and block[name] != "auto":
            return block[name]
    return None


def _fields(path: str, block: Mapping[str, Any], fields: Mapping[str, tuple[str, Read]]) -> dict[str, Any]:
    """Read the Settings fields that ``block`` sets; those it leaves out keep DeepSpeed's default."""
    settings = {}
    for field, (key, read) in fields.items():
        value = _known(block, key)
        if value is not None:
            settings[field] = read(f"{path}.{key}", value)
    return settings


def _block(config: Mapping[str, Any], path: str, *, null: bool = False) -> dict[str, Any]:
    """Return the object at top-level ``path``, empty where absent (or null, if DeepSpeed allows null there)."""
    value = config.get(path, {})
    return {} if value is None and null else as_block(path, value)


def _zero_block(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``zero_optimization``; the pre-2020 form ``true`` means stage 1 (runtime/zero/config.py:60-78)."""
    value = config.get("zero_optimization", {})
    if not isinstance(value, bool):
        return as_block("zero_optimization", value)
    return {"stage": 1, "allgather_bucket_size": config.get("allgather_size", 5e8)} if value else {}


def _stage(zero: Mapping[str, Any], target: str) -> int:
    if zero.get("stage") == "auto" and target != "deepspeed":
        return 2  # what Accelerate's plugin takes unless it is told (utils/dataclasses.py: zero_stage)
    value = _known(zero, "stage")
    stage = as_int("zero_optimization.stage", 0 if value is None else value)
    if stage not in (0, 1, 2, 3):
        raise InputError(f"zero_optimization.stage: {stage} is not one of 0, 1, 2, 3")
    return stage


def _offload_block(zero: Mapping[str, Any], name: str, deprecated: str) -> dict[str, Any]:
    """Return the offload block called ``name``, or what the ``deprecated`` boolean stands for
    (runtime/zero/config.py:188-220)."""
    value = _known(zero, name)
    if value is not None:
        return as_block(f"zero_optimization.{name}", value)
    old = _known(zero, deprecated)
    return {"device": "cpu"} if old is not None and as_bool(f"zero_optimization.{deprecated}", old) else {}


def _device(path: str, block: Mapping[str, Any]) -> str:
    value = _known(block, "device")
    device = "none" if value is None else as_text(f"{path}.device", value)
    if device not in DEVICES:
        raise InputError(f"{path}.device: {device!r} is not one of {', '.join(DEVICES)}{nearest(device, DEVICES)}")
    return device


def _offload(zero: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """Read both offload blocks as they act: below stage 3 parameters stay on the GPU, and NVMe means CPU
    (runtime/zero/stage_1_and_2.py:220-222)."""
    optimizer = _offload_block(zero, "offload_optimizer", "cpu_offload")
    param = _offload_block(zero, "offload_param", "cpu_offload_param")
    settings = _fields("zero_optimization.offload_optimizer", optimizer, _OFFLOAD_OPTIMIZER_FIELDS)
    settings |= _fields("zero_optimization.offload_param", param, _OFFLOAD_PARAM_FIELDS)
    device = _device("zero_optimization.offload_optimizer", optimizer)
    settings["offload_optimizer"] = "cpu" if device == "nvme" and stage < 3 else device
    param_device = _device("zero_optimization.offload_param", param)
    settings["offload_param"] = param_device if stage == 3 else "none"
    path = _known(optimizer, "nvme_path") if device == "nvme" else _known(param, "nvme_path")
    settings["nvme_path"] = None if path is None else as_text("nvme_path", path)
    return settings


def _zero(config: Mapping[str, Any], target: str, hidden_size: int | None) -> dict[str, Any]:
    zero = _zero_block(config)
    stage = _stage(zero, target)
    overlap = _known(zero, "overlap_comm")
    settings = {"stage": stage} | _fields("zero_optimization", zero, _ZERO_FIELDS) | _offload(zero, stage)
    settings["overlap_comm"] = stage == 3 if overlap is None else as_bool("zero_optimization.overlap_comm", overlap)
    if target != "deepspeed" and hidden_size is not None:
        for key, fill in _HIDDEN_SIZE_KEYS.items():
            if "auto" in (zero.get(key), zero.get(f"stage3_{key}")):
                settings[key] = fill(hidden_size)
    return settings


def _enabled(block: Mapping[str, Any], path: str, target: str) -> bool:
    """Say whether a precision block is on. HF and Accelerate fill "auto" from --bf16/--fp16, which is taken as
    given."""
    value = block.get("enabled", False)
    return target != "deepspeed" if value == "auto" else as_bool(f"{path}.enabled", value)


def _precision(config: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Read bf16, fp16, torch_autocast or fp32. ``bfloat16`` counts only where ``bf16`` is absent
    (runtime/precision_config.py:34-38)."""
    bf16_name = "bfloat16" if config.get("bf16") is None and "bfloat16" in config else "bf16"
    bf16, fp16 = _block(config, bf16_name, null=bf16_name == "bf16"), _block(config, "fp16")
    masters = {
        "bf16_master": (bf16, "bf16_master_weights_and_grads"),
        "bf16_optimizer_states": (bf16, "bf16_optimizer_states"),
        "immediate_grad_update": (bf16, "immediate_grad_update"),
        "fp16_master": (fp16, "fp16_master_weights_and_grads"),
    }
    settings: dict[str, Any] = {}
    for field, (block, key) in masters.items():
        settings |= _fields(bf16_name if block is bf16 else "fp16", block, {field: (key, as_bool)})
    if _enabled(bf16, bf16_name, target):
        return settings | {"precision": "bf16"}
    if _enabled(fp16, "fp16", target):
        return settings | {"precision": "fp16"}
    autocast = _block(config, "torch_autocast").get("enabled", False)
    return settings | {"precision": "autocast" if autocast else "fp32"}


def _optimizer(config: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Read the optimizer. Without a block the script brings one: torch's AdamW, which the HF Trainer makes fused."""
    block = _block(config, "optimizer")
    if block.get("type") is None:
        fused = target != "deepspeed"
        options = frozenset(("torch_adam",)) if fused else frozenset()
        return {"optimizer": "adamw", "optimizer_fused": fused, "optimizer_options": options}
    name = as_text("optimizer.type", block["type"]).lower()
    params = as_block("optimizer.params", block.get("params") or {})
    fused = name in FUSED_OPTIMIZERS or (name in ("sgd", "adagrad") and params.get("fused") is True)
    if name in ("adam", "adamw"):
        fused = not params.get("torch_adam") or bool(params.get("fused"))
    momentum = params.get("momentum", 0)
    momentum = 0 if momentum == "auto" else momentum
    return {
        "optimizer": name,
        "optimizer_fused": fused,
        "momentum": as_float("optimizer.params.momentum", momentum),
        "optimizer_options": _options(params, fused),
    }


def _options(params: Mapping[str, Any], fused: bool) -> frozenset[str]:
    """Read the arguments that change what the optimizer keeps or makes in its step."""
    options = {name for name in ("amsgrad", "centered") if params.get(name) is True}
    decay = params.get("weight_decay", 0)
    if isinstance(decay, int | float) and decay:
        options.add("weight_decay")
    if params.get("foreach") is False:
        options.add("for_loop")
    if fused and params.get("torch_adam"):
        options.add("torch_adam")
    return frozenset(options)


def _batch(config: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    given = [None if config.get(key) in (None, "auto") else as_int(key, config[key]) for key in keys]
    for key, value in zip(keys, given, strict=True):
        if value is not None and value <= 0:
            raise InputError(f"{key}: {value} is not a positive number")
    train, micro, accumulation = solve(Batch(*given), data_parallel_ranks(config, world_size))
    return {"train_batch": train, "micro_batch": micro, "accumulation": accumulation}


_WIRE_TYPES = {
    "communication_data_type": "communication_dtype",
    "seq_parallel_communication_data_type": "sequence_parallel_dtype",
}


def _rest(config: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    clipping = config.get("gradient_clipping")
    if clipping not in (None, "auto"):
        settings["gradient_clipping"] = as_float("gradient_clipping", clipping)
    accumulate = _block(config, "data_types").get("grad_accum_dtype")
    if accumulate is not None:
        settings["grad_accum_dtype"] = as_dtype("data_types.grad_accum_dtype", accumulate)
    if config.get("sequence_parallel_size") is not None:
        settings["sequence_parallel"] = as_int("sequence_parallel_size", config["sequence_parallel_size"])
    for key, field in _WIRE_TYPES.items():
        if config.get(key) is not None:
            settings[field] = as_dtype(key, config[key])
    return settings


def resolve(
    config: Mapping[str, Any],
    world_size: int = 1,
    target: str = "deepspeed",
    hidden_size: int | None = None,
) -> Settings:
    """Read the settings that ``config`` amounts to on ``world_size`` ranks when ``target`` loads it.

    "auto" becomes what ``target`` leaves to DeepSpeed: the default in DeepSpeed's own blocks; under ``hf`` and
    ``accelerate``, bf16/fp16 as if --bf16/--fp16 were given (bf16 first) and, where ``hidden_size`` is known, the
    bucket sizes they derive from it. Batch sizes that nothing determines stay None. Offload that DeepSpeed ignores at
    the stage is off here too. Nothing is judged here: ``dsconf.config.validate`` does that.

    Raises:
        InputError: a value that cannot be read as its type, an unknown ZeRO stage or offload device.
    """
    if target not in TARGETS:
        raise InputError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}{nearest(target, TARGETS)}")
    settings = _zero(config, target, hidden_size) | _precision(config, target) | _optimizer(config, target)
    return replace(Settings(), **settings, **_batch(config, world_size), **_rest(config))
