"""Offload to host memory and NVMe."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Path, Problem, Remove, SetValue
from dsconf.config.names import RELEASES
from dsconf.config.rules.case import Case, block, device, flag, number, offloads_optimizer, whole
from dsconf.units import format_bytes

_OPTIMIZER_NVME_KEYS = ("buffer_count", "fast_init", "nvme_path", "pipeline_read", "pipeline_write")
_PARAM_NVME_KEYS = ("buffer_count", "buffer_size", "max_in_cpu", "nvme_path")


def param_below_stage3(case: Case) -> Iterator[Problem]:
    """Find offloaded parameters that are not sharded: below stage 3 nothing reads the block
    (runtime/engine.py:2668-2707)."""
    stage = case.stage
    if stage is not None and stage < 3 and device(case, "offload_param") in ("cpu", "nvme"):
        message = f"ignored at ZeRO stage {stage}: parameters stay on the GPU"
        yield Problem("DS401", "error", ("zero_optimization", "offload_param"), message, "use stage 3, or leave it out")


def optimizer_at_stage0(case: Case) -> Iterator[Problem]:
    """Find offload at stage 0: DeepSpeed builds its CPU Adam over GPU parameters, which then refuses
    (ops/adam/cpu_adam.py:148)."""
    if case.stage == 0 and offloads_optimizer(case):
        message = "optimizer offload needs a ZeRO stage: the CPU optimizer refuses parameters on the GPU"
        yield Problem("DS402", "error", ("zero_optimization", "offload_optimizer"), message, "use stage 1, 2 or 3")


def nvme_path_missing(case: Case) -> Iterator[Problem]:
    """Find NVMe without a path, on which the engine fails at stage 3 (zero/stage3.py:840,
    partition_parameters.py:1225-1230)."""
    for name in ("offload_optimizer", "offload_param"):
        offload = block(case.zero, name)
        if offload.get("device") == "nvme" and case.stage == 3 and offload.get("nvme_path") is None:
            path = ("zero_optimization", name, "device")
            yield Problem("DS403", "error", path, "nvme needs a folder on that disk", "set nvme_path beside it")


def nvme_below_stage3(case: Case) -> Iterator[Problem]:
    """Find NVMe at stages 1 and 2, which keep the states in host memory whatever the device is
    (zero/stage_1_and_2.py:220-222)."""
    if case.stage in (1, 2) and device(case, "offload_optimizer") == "nvme":
        path = ("zero_optimization", "offload_optimizer", "device")
        message = "below ZeRO stage 3 DeepSpeed keeps the states in host memory, not on NVMe"
        yield Problem("DS404", "error", path, message, 'use stage 3, or write "cpu"')


def ratio_below_stage3(case: Case) -> Iterator[Problem]:
    """Find partial offload below stage 3, where DeepSpeed refuses it (zero/config.py:395-400)."""
    ratio = number(block(case.zero, "offload_optimizer").get("ratio", 1.0))
    stage = case.stage
    if ratio is not None and 0 <= ratio < 1 and stage is not None and stage < 3:
        path = ("zero_optimization", "offload_optimizer", "ratio")
        yield Problem("DS405", "error", path, "partial offload needs ZeRO stage 3", "write 1.0, or use stage 3")


def super_offload(case: Case) -> Iterator[Problem]:
    """Find SuperOffload below stage 3, the only stage that has it (runtime/engine.py:2747-2750)."""
    stage = case.stage
    if stage is not None and stage < 3 and flag(block(case.zero, "offload_optimizer").get("super_offload", False)):
        path = ("zero_optimization", "offload_optimizer", "super_offload")
        message = f"SuperOffload needs stage 3; at stage {stage} DeepSpeed ignores it"
        yield Problem("DS406", "error", path, message, "leave it out, or use stage 3", (Remove(path),))


def zenflow(case: Case) -> Iterator[Problem]:
    """Find ZenFlow without the CPU offload, the stage or the matching intervals it needs
    (runtime/zenflow/engine.py:24-63)."""
    flow = case.zero.get("zenflow")
    if not isinstance(flow, dict):
        return
    path = ("zero_optimization", "zenflow")
    strategy = flow.get("select_strategy", "auto")
    select, update = (whole(flow.get(f"{key}_interval", "auto")) for key in ("select", "update"))
    if case.stage == 0 or (case.stage is not None and not offloads_optimizer(case)):
        message = "ZenFlow needs ZeRO stage 1, 2 or 3 and offload_optimizer"
        yield Problem("DS407", "error", path, message, "offload the optimizer to cpu")
    elif strategy == "auto" and select is not None:
        message = 'select_interval must be "auto" with select_strategy "auto"'
        yield Problem("DS407", "error", (*path, "select_interval"), message, 'write "step" as the strategy')
    elif strategy in ("step", "epoch") and select is None:
        message = f'select_strategy "{strategy}" needs a whole number as select_interval'
        yield Problem("DS407", "error", (*path, "select_strategy"), message, "set select_interval")
    elif strategy == "step" and select is not None and update is not None and 0 < select < update:
        message = f"select_interval {select} is less than update_interval {update}"
        yield Problem("DS407", "error", (*path, "select_interval"), message, f"write at least {update}")


def accumulation_of_zenflow(case: Case) -> Iterator[Problem]:
    """Find an accumulation that ZenFlow replaces by its update_interval (runtime/zenflow/engine.py:69)."""
    given, flow = case.config.get("gradient_accumulation_steps"), case.zero.get("zenflow")
    if isinstance(flow, dict) and given not in (None, 1) and flow.get("update_interval", "auto") != given:
        message = "ZenFlow replaces it by zenflow.update_interval"
        yield Problem("DS408", "warning", ("gradient_accumulation_steps",), message, "set update_interval instead")


def contiguous_under_offload(case: Case) -> Iterator[Problem]:
    """Find contiguous_gradients off under offload, which switches it on (zero/stage_1_and_2.py:299-300)."""
    off = flag(case.zero.get("contiguous_gradients", True)) is False
    if off and case.stage in (1, 2) and offloads_optimizer(case):
        path = ("zero_optimization", "contiguous_gradients")
        message = "optimizer offload keeps gradients contiguous all the same"
        yield Problem("DS409", "warning", path, message, "leave it out", (SetValue(path, True),))


def own_optimizer(case: Case) -> Iterator[Problem]:
    """Find offload of an optimizer that the script brings, which must be a CPU one (runtime/engine.py:2338-2346)."""
    brings = case.target == "deepspeed" and "optimizer" not in case.config and case.stage != 0
    if brings and offloads_optimizer(case) and case.config.get("zero_force_ds_cpu_optimizer", True):
        path = ("zero_optimization", "offload_optimizer")
        message = "the script's own optimizer must be DeepSpeedCPUAdam or DeepSpeedCPULion"
        yield Problem("DS410", "note", path, message, "or add an optimizer block")


def nvme_keys_without_nvme(case: Case) -> Iterator[Problem]:
    """Find settings of the swapper, which only runs for nvme at stage 3 (zero/stage3.py:830-911)."""
    swaps = False
    for name, keys in (("offload_optimizer", _OPTIMIZER_NVME_KEYS), ("offload_param", _PARAM_NVME_KEYS)):
        if device(case, name) in ("nvme", "auto"):
            swaps = True
            continue
        offload = block(case.zero, name)
        for key in keys:
            if offload.get(key) not in (None, False):
                path: Path = ("zero_optimization", name, key)
                yield Problem("DS411", "note", path, "only used with device nvme")
    writer = "writer" in block(case.config, "checkpoint")
    if not swaps and not writer and isinstance(case.config.get("aio"), dict):
        yield Problem("DS411", "note", ("aio",), "only used with device nvme")


def pinned_anyway(case: Case) -> Iterator[Problem]:
    """Find pin_memory off for parameters, which stage 3 pins all the same (zero/stage3.py:888-911)."""
    param = block(case.zero, "offload_param")
    if case.stage == 3 and param.get("device") == "cpu" and flag(param.get("pin_memory", True)) is False:
        path = ("zero_optimization", "offload_param", "pin_memory")
        yield Problem("DS412", "note", path, "offloaded parameters are page-locked all the same")


def copies_weights(case: Case) -> bool:
    """Say whether a step copies the rank's fp32 weights to the GPU: offload at stages 1 and 2 before 0.17."""
    return case.stage in (1, 2) and offloads_optimizer(case) and not _since(case, "0.17.6")


def weights_through_the_gpu(case: Case) -> Iterator[Problem]:
    """Find releases before 0.17, whose step copies a rank's fp32 weights to the GPU (0.16.9
    runtime/zero/stage_1_and_2.py:1890).

    Later releases send 16 bits through a buffer on the host, which is what the memory model counts.
    """
    if not copies_weights(case):
        return
    message = f"DeepSpeed {case.release} copies a rank's fp32 weights to the GPU in each step"
    if case.model_params is not None:
        copied = format_bytes(4 * case.model_params // (case.gpus or 1))
        message += f", {copied} of them"
    advice = "use 0.17 or later, whose memory dsconf estimates"
    yield Problem("DS413", "warning", ("zero_optimization", "offload_optimizer"), message, advice)


def master_weights_pinned_anyway(case: Case) -> Iterator[Problem]:
    """Find pin_memory off before 0.18, where stages 1 and 2 pin all the same (0.17.6
    runtime/zero/stage_1_and_2.py:444)."""
    unpinned = flag(block(case.zero, "offload_optimizer").get("pin_memory", True)) is False
    if unpinned and case.stage in (1, 2) and offloads_optimizer(case) and not _since(case, "0.18.9"):
        path = ("zero_optimization", "offload_optimizer", "pin_memory")
        message = f"DeepSpeed {case.release} page-locks the master weights all the same"
        yield Problem("DS414", "note", path, message, "use 0.18 or later")


def _since(case: Case, release: str) -> bool:
    return RELEASES.index(case.release) >= RELEASES.index(release)
