"""Keys that DeepSpeed 0.19.8 knows although they are old or nothing reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsconf.config.finding import Edit, Path, Problem, Remove, Rename, SetValue
from dsconf.config.rules.case import Case, block, flag

_DEPRECATED: Mapping[Path, str] = {
    ("bfloat16",): "use bf16",
    ("zero_optimization", "cpu_offload"): 'use offload_optimizer: {"device": "cpu"}',
    ("zero_optimization", "cpu_offload_param"): 'use offload_param: {"device": "cpu"}',
    ("zero_optimization", "cpu_offload_use_pin_memory"): "it has no effect; use pin_memory in the offload blocks",
    ("zero_optimization", "stage3_gather_fp16_weights_on_model_save"): (
        "use stage3_gather_16bit_weights_on_model_save"
    ),
}
_REPLACED_BY: Mapping[str, tuple[str, ...]] = {
    "cpu_offload": ("offload_optimizer",),
    "cpu_offload_param": ("offload_param",),
    "stage3_gather_fp16_weights_on_model_save": (
        "stage3_gather_16bit_weights_on_model_save",
        "gather_16bit_weights_on_model_save",
    ),
}
_NEVER_READ: tuple[Path, ...] = (
    ("disable_allgather",),
    ("zero_optimization", "allgather_partitions"),
    ("autotuning", "min_train_batch_size"),
    ("pipeline", "stages"),
    ("pipeline", "partition"),
    ("pipeline", "seed_layers"),
    ("tensor_parallel", "dtype"),
    ("data_efficiency", "enabled"),
)


def _there(case: Case, path: Path) -> bool:
    return path[-1] in block(case.config, *(str(part) for part in path[:-1]))


def _modern(case: Case, path: Path) -> tuple[Edit, ...]:
    """Return the edits that say the same in today's words; none where the new name is there already."""
    key = path[-1]
    if key == "cpu_offload_use_pin_memory":
        return (Remove(path),)
    new: Path = {
        "bfloat16": ("bf16",),
        "cpu_offload": (*path[:-1], "offload_optimizer"),
        "cpu_offload_param": (*path[:-1], "offload_param"),
    }.get(str(key), (*path[:-1], "stage3_gather_16bit_weights_on_model_save"))
    if _there(case, new):
        return ()
    if new[-1] not in ("offload_optimizer", "offload_param"):
        return (Rename(path, str(new[-1])),)
    wanted = flag(case.zero.get(str(key)))
    return (SetValue(new, {"device": "cpu"}), Remove(path)) if wanted else (Remove(path),) if wanted is False else ()


def deprecated(case: Case) -> Iterator[Problem]:
    """Find old names, which still work and log a warning (runtime/config_utils.py:60-103, zero/config.py:60-78)."""
    old = case.config.get("zero_optimization")
    if isinstance(old, bool):
        value = {"stage": int(old)}
        fix = (SetValue(("zero_optimization",), value),)
        advice = f'use {{"stage": {int(old)}}}'
        if case.target == "accelerate":
            message = "old form, which Accelerate cannot read"
            yield Problem("DS107", "error", ("zero_optimization",), message, advice, fix)
        else:
            yield Problem("DS107", "warning", ("zero_optimization",), "old form", advice, fix)
    for path, advice in _DEPRECATED.items():
        if _there(case, path):
            yield Problem("DS107", "warning", path, "deprecated", advice, _modern(case, path))


def old_and_new(case: Case) -> Iterator[Problem]:
    """Find an old name beside its new one, which DeepSpeed refuses (runtime/config_utils.py:80-83)."""
    zero = block(case.config, "zero_optimization")
    for old, names in _REPLACED_BY.items():
        for new in names:
            if old in zero and new in zero and "auto" not in (zero[old], zero[new]):
                message = f"given together with {new}, which replaces it"
                yield Problem("DS108", "error", ("zero_optimization", old), message, "leave it out")


def never_read(case: Case) -> Iterator[Problem]:
    """Find keys that DeepSpeed 0.19.8 accepts and stores although none of its code reads them."""
    for path in _NEVER_READ:
        if _there(case, path):
            yield Problem("DS109", "note", path, "accepted, but nothing in DeepSpeed 0.19.8 reads it")
