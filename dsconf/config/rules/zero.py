"""ZeRO: what its keys do at the stage chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dsconf.config.finding import Problem, Remove
from dsconf.config.names import STAGE3_ALIASED
from dsconf.config.rules.case import Case, device, flag, whole

_STAGES_1_AND_2 = (
    *("allgather_bucket_size", "ignore_unused_parameters", "parameter_alignment", "round_robin_gradients"),
    "use_multi_rank_bucket_allreduce",
)
_STAGE_3 = (
    *(*STAGE3_ALIASED, "enable_sanity_checks", "leaf_module", "log_trace_cache_warnings", "memory_efficient_linear"),
    *("override_module_apply", "save_muon_momentum_buffer_in_memory", "sub_group_size"),
)
_ANY_STAGE = (
    *("contiguous_gradients", "elastic_checkpoint", "load_from_fp32_weights", "overlap_comm", "reduce_bucket_size"),
    "reduce_scatter",
)
_ZERO_PLUS_PLUS = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def needed_by_accelerate(case: Case) -> Iterator[Problem]:
    """Find files without the block, which Accelerate refuses (accelerate utils/dataclasses.py: DeepSpeedPlugin)."""
    if case.target == "accelerate" and "zero_optimization" not in case.config:
        advice = 'add "zero_optimization": {"stage": 0}'
        yield Problem("DS301", "error", (), "Accelerate needs a zero_optimization block", advice)


def twice(case: Case) -> Iterator[Problem]:
    """Find a key given both with and without stage3_, which is forbidden (zero/config.py:240-292)."""
    for name in STAGE3_ALIASED:
        both = (case.zero.get(name, "auto"), case.zero.get(f"stage3_{name}", "auto"))
        if "auto" not in both:
            message = f"the same setting as stage3_{name}, which is given too"
            fix = (Remove(("zero_optimization", name)),) if both[0] == both[1] else ()
            yield Problem("DS302", "error", ("zero_optimization", name), message, "leave one of them out", fix)


def stage3_key_below_stage3(case: Case) -> Iterator[Problem]:
    """Find ``stage3_`` keys below stage 3, where they are read and ignored."""
    stage = case.stage
    if stage is None or stage >= 3:
        return
    for key in case.zero:
        if key.removeprefix("stage3_") in STAGE3_ALIASED and key.startswith("stage3_"):
            message = f"has no effect at ZeRO stage {stage}"
            yield Problem("DS303", "warning", ("zero_optimization", key), message, "leave it out, or use stage 3")


def zero_plus_plus_below_stage3(case: Case) -> Iterator[Problem]:
    """Find quantized weights or gradients, or a second shard, below stage 3 (runtime/engine.py:2747-2795)."""
    stage = case.stage
    if stage is None or stage >= 3:
        return
    wanted = [key for key in _ZERO_PLUS_PLUS if flag(case.zero.get(key, False))]
    if (whole(case.zero.get("zero_hpz_partition_size", 1)) or 0) > 1:
        wanted.append("zero_hpz_partition_size")
    for key in wanted:
        message = f"ZeRO++ needs stage 3; at stage {stage} DeepSpeed ignores it"
        yield Problem("DS304", "error", ("zero_optimization", key), message, "leave it out, or use stage 3")


def uneven_second_shard(case: Case) -> Iterator[Problem]:
    """Find hpZ groups that do not divide the world (utils/groups.py:942-943)."""
    size = whole(case.zero.get("zero_hpz_partition_size", 1)) or 0
    if case.stage == 3 and case.gpus is not None and size > 1 and case.gpus % min(size, case.gpus):
        message = f"{case.gpus} GPUs cannot be split into groups of {size}"
        advice = "use the number of GPUs of one node"
        yield Problem("DS305", "error", ("zero_optimization", "zero_hpz_partition_size"), message, advice)


def unused_at_the_stage(case: Case) -> Iterator[Problem]:
    """Find keys that only another stage reads (runtime/engine.py:2668-2795: what each stage's optimizer is given)."""
    stage = case.stage
    unused = {0: (*_ANY_STAGE, *_STAGES_1_AND_2, *_STAGE_3), 1: _STAGE_3, 2: _STAGE_3, 3: _STAGES_1_AND_2}
    for key in case.zero:
        if stage is not None and key in unused.get(stage, ()):
            yield Problem("DS306", "note", ("zero_optimization", key), f"not used at ZeRO stage {stage}")


def quantized_gradients_on_one_node(case: Case) -> Iterator[Problem]:
    """Find the quantized reduction, which only runs between nodes (zero/stage3.py:1925-1931)."""
    if case.stage == 3 and flag(case.zero.get("zero_quantized_gradients", False)):
        message = "gradients are only quantized on two nodes or more; on one node nothing changes"
        yield Problem("DS307", "note", ("zero_optimization", "zero_quantized_gradients"), message)


def nobody_to_share_with(case: Case) -> Iterator[Problem]:
    """Find ZeRO on one rank, whose slice is the whole: partitions, flat buffers and buckets only add to it
    (zero/stage3.py:780)."""
    offloads = [name for name in ("offload_optimizer", "offload_param") if device(case, name) != "none"]
    if case.gpus == 1 and case.stage and not offloads:
        message = f"one GPU has nobody to share with: stage {case.stage} saves no memory and adds its buckets"
        advice = (
            "offload the optimizer, or use stage 0; activation checkpointing and a smaller micro-batch save memory too"
        )
        yield Problem("DS308", "note", ("zero_optimization",), message, advice)


def weights_kept_in_older_patches(case: Case) -> Iterator[Problem]:
    """Find patches before 0.16.8 in which weights can stay gathered.

    There a module's backward hook counts each forward and recomputation, and waits in vain for as many (0.16.3 to
    0.16.7, runtime/zero/parameter_offload.py:375, 444-455).
    """
    patch = re.match(r"v?(0\.16\.[3-7])(?!\d)", case.version.strip())
    if patch is not None and case.stage == 3:
        message = f"DeepSpeed {patch[1]} can keep weights gathered under activation checkpointing until memory runs out"
        if case.model_params is not None:
            message += ", which DS901 does not count"
        yield Problem("DS309", "warning", ("zero_optimization", "stage"), message, "use 0.16.8 or later")
