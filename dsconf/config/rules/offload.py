"""Offload to host memory and NVMe."""

from __future__ import annotations

from collections.abc import Iterator

from dsconf.config.finding import Problem
from dsconf.config.rules.case import Case, block, stage


def _device(case: Case, name: str) -> object:
    return block(case.config, "zero_optimization", name).get("device", "none")


def param_below_stage3(case: Case) -> Iterator[Problem]:
    """Parameters are only offloaded where they are sharded; below stage 3 the block is ignored."""
    at = stage(case.config)
    if at is not None and at < 3 and _device(case, "offload_param") in ("cpu", "nvme"):
        message = f"parameters stay on the GPU at ZeRO stage {at}: the block has no effect"
        yield Problem("DS401", "warning", ("zero_optimization", "offload_param"), message, "use stage 3")


def optimizer_at_stage0(case: Case) -> Iterator[Problem]:
    """DeepSpeed builds its CPU Adam over GPU parameters, which then refuses (ops/adam/cpu_adam.py:148)."""
    if stage(case.config) == 0 and _device(case, "offload_optimizer") in ("cpu", "nvme"):
        message = "optimizer offload needs a ZeRO stage: the CPU optimizer refuses parameters on the GPU"
        yield Problem("DS402", "error", ("zero_optimization", "offload_optimizer"), message, "use stage 1, 2 or 3")


def nvme_path_missing(case: Case) -> Iterator[Problem]:
    """At stage 3 the engine fails without a path (zero/stage3.py:840, partition_parameters.py:1225-1230)."""
    for name in ("offload_optimizer", "offload_param"):
        offload = block(case.config, "zero_optimization", name)
        if offload.get("device") == "nvme" and stage(case.config) == 3 and offload.get("nvme_path") is None:
            path = ("zero_optimization", name, "device")
            yield Problem("DS403", "error", path, "nvme needs a folder on that disk", "set nvme_path beside it")


def nvme_below_stage3(case: Case) -> Iterator[Problem]:
    """Stages 1 and 2 keep the states in host memory whatever the device says (zero/stage_1_and_2.py:220-222)."""
    if stage(case.config) in (1, 2) and _device(case, "offload_optimizer") == "nvme":
        path = ("zero_optimization", "offload_optimizer", "device")
        message = "below ZeRO stage 3 DeepSpeed keeps the states in host memory, not on NVMe"
        yield Problem("DS404", "warning", path, message, 'use stage 3, or write "cpu"')


def ratio_below_stage3(case: Case) -> Iterator[Problem]:
    """Partial offload is refused below stage 3 (zero/config.py:395-400)."""
    ratio = block(case.config, "zero_optimization", "offload_optimizer").get("ratio", 1.0)
    at = stage(case.config)
    if isinstance(ratio, (int, float)) and 0 <= ratio < 1 and at is not None and at < 3:
        path = ("zero_optimization", "offload_optimizer", "ratio")
        yield Problem("DS405", "error", path, "partial offload needs ZeRO stage 3", "write 1.0, or use stage 3")
