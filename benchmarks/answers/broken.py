"""Configs that somebody spoilt: keys, values, places and the text itself."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.answers.configs import Config
from benchmarks.answers.question import misspelt

Path = tuple[str, ...]
_KEYS = {
    "": "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping steps_per_print "
    "wall_clock_breakdown memory_breakdown dump_state log_level prescale_gradients gradient_predivide_factor "
    "communication_data_type seq_parallel_communication_data_type disable_allgather zero_allow_untested_optimizer "
    "zero_force_ds_cpu_optimizer allgather_size sequence_parallel_size data_parallel_size dataloader_drop_last amp "
    "zero_optimization bf16 fp16 bfloat16 tensor_parallel compile comms_logger optimizer scheduler torch_autocast "
    "data_types activation_checkpointing aio checkpoint flops_profiler pipeline autotuning expert_parallel elasticity",
    "zero_optimization": "stage contiguous_gradients reduce_scatter reduce_bucket_size allgather_partitions "
    "allgather_bucket_size overlap_comm load_from_fp32_weights elastic_checkpoint offload_param offload_optimizer "
    "zenflow sub_group_size cpu_offload cpu_offload_param cpu_offload_use_pin_memory stage3_prefetch_bucket_size "
    "prefetch_bucket_size stage3_param_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance "
    "stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save ignore_unused_parameters "
    "legacy_stage1 round_robin_gradients zero_hpz_partition_size zero_quantized_weights zero_quantized_gradients "
    "memory_efficient_linear leaf_module",
    "zero_optimization.offload_param": "device nvme_path buffer_count buffer_size max_in_cpu pin_memory",
    "zero_optimization.offload_optimizer": "device nvme_path buffer_count pin_memory pipeline_read fast_init ratio "
    "super_offload cpuadam_cores_perc",
    "zero_optimization.zenflow": "topk_ratio select_strategy update_interval overlap_step",
    "bf16": "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states",
    "fp16": "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis min_loss_scale "
    "fp16_master_weights_and_grads",
    "optimizer": "type params legacy_fusion",
    "optimizer.params": "lr betas eps weight_decay bias_correction amsgrad adam_w_mode max_grad_norm torch_adam",
    "scheduler": "type params",
    "scheduler.params": "warmup_min_lr warmup_max_lr warmup_num_steps warmup_type total_num_steps cycle_min_lr",
    "torch_autocast": "enabled dtype lower_precision_safe_modules",
    "data_types": "grad_accum_dtype param_dtype",
    "activation_checkpointing": "partition_activations cpu_checkpointing number_checkpoints",
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "checkpoint": "tag_validation load_universal parallel_write writer",
    "flops_profiler": "enabled profile_step module_depth top_modules output_file",
    "comms_logger": "enabled prof_all prof_ops verbose",
    "tensor_parallel": "autotp_size tp preset_model",
    "expert_parallel": "enabled autoep_size preset_model",
    "compile": "deepcompile offload_activation double_buffer",
    "pipeline": "stages activation_checkpoint_interval",
}
KEYS: tuple[Path, ...] = tuple(
    (*(place.split(".") if place else ()), key) for place, keys in _KEYS.items() for key in keys.split()
)
_VALUES: tuple[Any, ...] = (None, True, False, -1, 0, 1, 3, 0.5, -0.5, 10**12, 1e300, "", "word", "5", "1e9", "true")
_VALUES += (
    [],
    {},
    [1],
    ["a"],
    {"enabled": True},
    "auto",
    "none",
    "cpu",
    "nvme",
    "fp16",
    "-1",
    " 7 ",
    "0x10",
    "9" * 400,
)
_PIECES = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "'",
    "'''",
    "\\",
    "\\u12",
    "\n",
    "\r",
    "#",
    "//",
    "/*",
    "*/",
    "\0",
    "\ufeff",
)
_PIECES += ("NaN", "-Infinity", "1e999", "-", "0x10", "9" * 500, "true", "null", '"auto"', '"amp": {},', "[" * 300)
_PIECES += ('{"a":' * 300, "_c: 1\n", "é", "\u2028", "\udcff", "\udcc3(", '"stage": 1,')
_OLD: tuple[tuple[Path, Any], ...] = (
    (("zero_optimization",), True),
    (("zero_optimization",), False),
    (("zero_optimization", "cpu_offload"), True),
    (("zero_optimization", "cpu_offload"), False),
    (("zero_optimization", "cpu_offload_param"), True),
    (("zero_optimization", "cpu_offload_use_pin_memory"), True),
    (("zero_optimization", "stage3_gather_fp16_weights_on_model_save"), True),
    (("bfloat16",), {"enabled": True}),
    (("disable_allgather",), True),
    (("amp",), {"enabled": True, "opt_level": "O1"}),
    (("optimizer", "type"), "OneBitAdam"),
    (("optimizer", "params", "max_grad_norm"), 1.0),
)
_RARE: tuple[tuple[Path, Any], ...] = (
    (("zero_optimization", "legacy_stage1"), True),
    (("zero_optimization", "elastic_checkpoint"), True),
    (("zero_optimization", "load_from_fp32_weights"), False),
    (("zero_optimization", "compute_grad_norm"), False),
    (("zero_optimization", "zenflow"), {"topk_ratio": 0.1, "select_strategy": "auto", "select_interval": 5}),
    (("zero_optimization", "offload_optimizer"), {"device": "cpu", "super_offload": True}),
    (("zero_optimization", "stage3_param_persistence_threshold"), 10**6),
    (("zero_optimization", "allgather_bucket_size"), 10**10),
    (("zero_optimization", "reduce_bucket_size"), 1),
    (("gradient_allreduce_op",), "sum"),
    (("managed_gradient_accumulation",), False),
    (("vocabulary_size",), 50257),
    (("log_level",), "loud"),
    (("torch_autocast",), {"enabled": True, "dtype": "bfloat16"}),
    (("fp16", "auto_cast"), True),
    (("fp16", "initial_scale_power"), 70),
    (("data_types",), {"grad_accum_dtype": "bfp16", "param_dtype": "fp16"}),
    (("communication_data_type",), "bfp16"),
    (("optimizer",), {"type": "AdamW", "params": {"lr": -1, "betas": [0.9, 1.5]}}),
    (("optimizer",), {"type": "SGD", "params": {"lr": 0.1, "differentiable": True}}),
    (("scheduler",), {"type": "WarmupLR", "params": {"warmup_steps": 10}}),
    (("scheduler",), {"type": "WarmupDecayLR", "params": {"total_num_steps": 5, "warmup_num_steps": 10}}),
    (("comms_logger",), {"enabled": True, "prof_all": True, "prof_ops": ["all_reduce"]}),
    (("tensor_parallel",), {"autotp_size": 2, "tp": {"tp_size": 4}}),
    (("data_efficiency",), {"enabled": True, "data_routing": {"enabled": True, "random_ltd": {"enabled": True}}}),
    (("elasticity",), {"enabled": True, "max_train_batch_size": 2000, "micro_batch_sizes": [2, 4]}),
)
_CONFLICTS: tuple[tuple[tuple[Path, Any], ...], ...] = (
    ((("zero_optimization", "stage"), 0), (("zero_optimization", "offload_optimizer"), {"device": "cpu"})),
    ((("zero_optimization", "stage"), 2), (("zero_optimization", "offload_param"), {"device": "cpu"})),
    ((("zero_optimization", "stage"), 3), (("zero_optimization", "offload_optimizer"), {"device": "nvme"})),
    ((("zero_optimization", "stage"), 1), (("zero_optimization", "offload_optimizer"), {"device": "nvme"})),
    ((("bf16",), {"enabled": True}), (("fp16",), {"enabled": True})),
    ((("bf16",), {"enabled": True, "bf16_optimizer_states": True}), (("zero_optimization",), {"stage": 1})),
    ((("fp16",), {"enabled": True, "fp16_master_weights_and_grads": True}), (("zero_optimization",), {"stage": 2})),
    ((("train_batch_size",), 30), (("train_micro_batch_size_per_gpu",), 4)),
    ((("train_batch_size",), 7), (("gradient_accumulation_steps",), 2)),
    ((("zero_optimization", "stage"), 3), (("zero_optimization", "zero_hpz_partition_size"), 3)),
    ((("zero_optimization", "stage"), 3), (("zero_optimization", "zero_quantized_gradients"), True)),
    ((("zero_optimization", "stage"), 2), (("zero_optimization", "contiguous_gradients"), False)),
    ((("zero_optimization", "stage"), 2), (("pipeline",), {"stages": 2})),
    ((("scheduler",), {"type": "WarmupDecayLR", "params": {}}), (("optimizer",), {"type": "AdamV"})),
    ((("sequence_parallel_size",), 3), (("train_batch_size",), 8)),
)


def broken(chance: random.Random, config: Config) -> str:
    """The file of a config spoilt in one, two or three ways."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        chance.choice(_IN_VALUES)(chance, config)
    text = json.dumps(config, indent=chance.choice((None, 2, 2, "\t")))
    return chance.choice(_IN_TEXT)(chance, text) if chance.random() < 0.3 else text


def _places(config: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(config, dict):
        yield path
        for key, inner in config.items():
            yield from _places(inner, (*path, key))


def _at(config: Any, path: Path) -> Any:
    for key in path:
        config = config[key]
    return config


def _members(config: Config) -> list[Path]:
    return [(*place, key) for place in _places(config) for key in _at(config, place)] or [("_comment",)]


def _put(config: Config, path: Path, value: Any) -> None:
    """Sets the value at ``path``, making blocks, whatever stands in the way."""
    for key in path[:-1]:
        inner = config.get(key)
        if not isinstance(inner, dict):
            inner = config[key] = {}
        config = inner
    config[path[-1]] = json.loads(json.dumps(value))


def _typo(chance: random.Random, config: Config) -> None:
    path = chance.choice(_members(config))
    holder, wrong = _at(config, path[:-1]), misspelt(chance, path[-1])
    changed = {wrong if key == path[-1] else key: value for key, value in holder.items()}
    holder.clear()
    holder.update(changed)


def _misplaced(chance: random.Random, config: Config) -> None:
    path, to = chance.choice(_members(config)), chance.choice(list(_places(config)))
    value = _at(config, path[:-1]).pop(path[-1], None)
    _at(config, () if to[: len(path)] == path else to)[path[-1]] = value


def _wrong_value(chance: random.Random, config: Config) -> None:
    path = chance.choice(KEYS) if chance.random() < 0.6 else chance.choice(_members(config))
    _put(config, path, chance.choice(_VALUES))


def _wrong_word(chance: random.Random, config: Config) -> None:
    words = [path for path in _members(config) if path[-1] in ("type", "device", "dtype") or path[0].endswith("_type")]
    named = {path: _at(config, path) for path in words if isinstance(_at(config, path), str)}
    path, word = chance.choice(list(named.items()) or [(("optimizer", "type"), "AdamW")])
    _put(config, path, misspelt(chance, word))


def _left_out(chance: random.Random, config: Config) -> None:
    path = chance.choice(_members(config))
    _at(config, path[:-1]).pop(path[-1], None)


def _not_finite(chance: random.Random, config: Config) -> None:
    _put(config, chance.choice(_members(config)), chance.choice((float("nan"), float("inf"), float("-inf"))))


def _old(chance: random.Random, config: Config) -> None:
    _put(config, *chance.choice(_OLD))


def _rare(chance: random.Random, config: Config) -> None:
    _put(config, *chance.choice(_RARE))


def _conflict(chance: random.Random, config: Config) -> None:
    for path, value in chance.choice(_CONFLICTS):
        _put(config, path, value)


def _duplicate(chance: random.Random, text: str) -> str:
    key = chance.choice(('"train_batch_size": 8', '"zero_optimization": {"stage": 1}', '"bf16": null'))
    return text.replace("{", "{" + key + ", " + (key + ", ") * chance.randrange(2), 1)


def _cut(chance: random.Random, text: str) -> str:
    return text[: chance.randrange(len(text) + 1)]


def _sprinkled(chance: random.Random, text: str) -> str:
    for _ in range(chance.randrange(1, 4)):
        spot = chance.randrange(len(text) + 1)
        text = text[:spot] + chance.choice(_PIECES) + text[spot:]
    return text


def _spliced(chance: random.Random, text: str) -> str:
    return text[: chance.randrange(len(text) + 1)] + text[chance.randrange(len(text) + 1) :]


def _commented(chance: random.Random, text: str) -> str:
    """As HJSON allows: comments, and commas left out at line ends."""
    text = text.replace("{", "{ # settings\n", 1)
    return text.replace(",\n", "\n") if chance.random() < 0.5 else text + "\n// end\n"


_IN_VALUES: tuple[Callable[[random.Random, Config], None], ...] = (
    *(_typo, _typo, _misplaced, _wrong_value, _wrong_value, _wrong_word, _left_out, _not_finite, _old, _old),
    *(_conflict, _conflict, _rare, _rare, _rare),
)
_IN_TEXT: tuple[Callable[[random.Random, str], str], ...] = (
    *(_duplicate, _cut, _sprinkled, _sprinkled, _spliced, _commented, _commented),
)
