"""ZeRO settings that DeepSpeed does not accept together, when it reads the file or when it builds the engine."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem, Remove, SetValue
from dsconf.config.rules.case import Case, block, flag, number, offloads_optimizer, precision, whole


def legacy_stage1(case: Case) -> Iterator[Problem]:
    """Find the first form of stage 1, which is gone (runtime/engine.py:2650-2653)."""
    if case.stage in (1, 2, 3) and flag(case.zero.get("legacy_stage1", False)):
        path = ("zero_optimization", "legacy_stage1")
        yield Problem("DS311", "error", path, "removed in DeepSpeed 0.5.9", "leave it out", (Remove(path),))


def elastic_checkpoint(case: Case) -> Iterator[Problem]:
    """Find elastic_checkpoint at stage 3, where it is deprecated and nothing reads it (zero/config.py:402-408)."""
    if case.stage == 3 and flag(case.zero.get("elastic_checkpoint", False)):
        path = ("zero_optimization", "elastic_checkpoint")
        message = "no longer supported at stage 3"
        yield Problem("DS312", "warning", path, message, "use checkpoint.load_universal", (Remove(path),))


def norm_left_out(case: Case) -> Iterator[Problem]:
    """Find a gradient norm left out where something needs it, such as clipping (zero/config.py:389-393,
    stage_1_and_2.py:212-218)."""
    if flag(case.zero.get("compute_grad_norm", True)) is not False or case.stage is None:
        return
    path = ("zero_optimization", "compute_grad_norm")
    clipping = case.config.get("gradient_clipping", 1.0)
    bf16_stage1 = case.stage == 1 and precision(case) == "bf16" and not offloads_optimizer(case)
    fp32_sums = block(case.config, "data_types").get("grad_accum_dtype") in (
        "fp32",
        "float32",
        "float",
        "torch.float32",
    )
    message = advice = None
    if case.stage not in (1, 2):
        message, advice = "may only be false at ZeRO stage 1 or 2", "write true"
    elif case.zero.get("zenflow") is not None or offloads_optimizer(case):
        message, advice = "may not be false with optimizer offload or ZenFlow", "write true"
    elif bf16_stage1 and fp32_sums:
        message, advice = "may not be false at stage 1 with bf16 and fp32 gradient accumulation", "write true"
    elif (number(clipping) or 0) > 0:
        given = "gradient_clipping" if "gradient_clipping" in case.config else "gradient_clipping, 1.0 by default,"
        message, advice = f"clipping needs the norm, and {given} is on", "write gradient_clipping 0"
    if message is not None:
        yield Problem("DS313", "error", path, message, advice)


def scaled_before_reduce_scatter(case: Case) -> Iterator[Problem]:
    """Find scaling before a reduce-scatter, which averages after the sum (zero/stage_1_and_2.py:346-351,
    zero/stage3.py:392-396)."""
    averaged = str(case.config.get("gradient_allreduce_op", "mean")).lower() == "mean"
    if case.stage not in (2, 3) or flag(case.zero.get("reduce_scatter", True)) is not True or not averaged:
        return
    message = f"not supported with reduce_scatter at ZeRO stage {case.stage}"
    advice = "leave it out, or set zero_optimization.reduce_scatter to false"
    if case.config.get("prescale_gradients", False) is True:
        yield Problem("DS314", "error", ("prescale_gradients",), message, advice)
    if (number(case.config.get("gradient_predivide_factor", 1.0)) or 0) not in (0, 1):
        yield Problem("DS314", "error", ("gradient_predivide_factor",), message, advice)


def odd_allgather_bucket(case: Case) -> Iterator[Problem]:
    """Find an odd bucket; buffers are aligned to two elements (zero/stage_1_and_2.py:386-391)."""
    size = whole(case.zero.get("allgather_bucket_size", 0))
    if case.stage in (1, 2) and size is not None and size % 2:
        path = ("zero_optimization", "allgather_bucket_size")
        message = f"{size} is odd; the size must be even"
        yield Problem("DS315", "error", path, message, f"write {size + 1}", (SetValue(path, size + 1),))


def summed_gradients(case: Case) -> Iterator[Problem]:
    """Find summed gradients at stage 3, with ZenFlow or with DeepCompile (runtime/config.py:694-700)."""
    if str(case.config.get("gradient_allreduce_op", "mean")).lower() != "sum":
        return
    where = "ZeRO stage 3" if case.stage == 3 else None
    if case.zero.get("zenflow") is not None:
        where = where or "ZenFlow"
    if flag(block(case.config, "compile").get("deepcompile", False)):
        where = where or "DeepCompile"
    if where:
        yield Problem("DS316", "error", ("gradient_allreduce_op",), f"sum is not supported with {where}", "use mean")


def unmanaged_accumulation(case: Case) -> Iterator[Problem]:
    """Find accumulation by the script with overlap below stage 2, or with DeepCompile (runtime/engine.py:2030-2036)."""
    if case.config.get("managed_gradient_accumulation", True) is not False:
        return
    path = ("managed_gradient_accumulation",)
    if case.stage in (0, 1) and flag(case.zero.get("overlap_comm", False)):
        message = "may only be false with overlap_comm at ZeRO stage 2 or 3"
        yield Problem("DS317", "error", path, message, "set overlap_comm to false")
    elif flag(block(case.config, "compile").get("deepcompile", False)):
        yield Problem("DS317", "error", path, "may not be false with DeepCompile", "write true")


def quantized_weights_and_autocast(case: Case) -> Iterator[Problem]:
    """Find the two together; they exclude each other (runtime/torch_autocast.py:30-32)."""
    autocast = block(case.config, "torch_autocast").get("enabled", False) is True
    if autocast and case.stage == 3 and flag(case.zero.get("zero_quantized_weights", False)):
        path = ("zero_optimization", "zero_quantized_weights")
        yield Problem("DS318", "error", path, "not possible with torch_autocast", "switch one of them off")


def quantized_gradients_without_reduce_scatter(case: Case) -> Iterator[Problem]:
    """Find the quantized reduction without the reduce-scatter that it is (zero/stage3.py:389-390)."""
    scatter = flag(case.zero.get("reduce_scatter", True))
    if case.stage == 3 and scatter is False and flag(case.zero.get("zero_quantized_gradients", False)):
        path = ("zero_optimization", "zero_quantized_gradients")
        yield Problem("DS319", "error", path, "needs reduce_scatter", "set reduce_scatter to true")
