"""Says of a failed run, in one line, what went wrong and what a person can do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsconf.live.processes.launcher import Failure
from dsconf.units import format_bytes

if TYPE_CHECKING:
    from dsconf.live.plan import RunPlan
    from dsconf.live.predict import Prediction

INSTALL = "pip install 'dsconf[check]'"
KERNEL = ("Error building extension", "Ninja is required", "CUDA_HOME", "nvcc", "Unknown CUDA arch", "CUDAMismatch")
OLD_DRIVER = ("driver version is insufficient", "NVIDIA driver on your system is too old")
NAMES = {"deepspeed": "DeepSpeed", "ddp": "torch", "accelerate": "Accelerate"}
NO_GPU = ("No CUDA GPUs are available", "no CUDA-capable device")


def explained(failure: Failure | None, predicted: Prediction | None, plan: RunPlan | None) -> Failure | None:
    """Return ``failure`` with what can be done about it; ``predicted`` and ``plan`` where it came so far."""
    if failure is None:
        return None
    if failure.kind == "missing" and "pip install" not in failure.message:
        return failure._replace(message=f"{failure.message}: {INSTALL}")
    if failure.kind == "oom":
        return failure._replace(message=_out_of_memory(failure, predicted, plan))
    if failure.kind == "nan":
        return failure._replace(message=f"{failure.message}; {_not_finite(plan)}")
    if failure.kind == "exception":
        return failure._replace(message=_exception(failure, plan))
    return failure


def _out_of_memory(failure: Failure, predicted: Prediction | None, plan: RunPlan | None) -> str:
    asked = f" asking for {format_bytes(failure.asked_bytes)}" if failure.asked_bytes else ""
    limit = f", {format_bytes(plan.order.cap_bytes)} of it allowed" if plan and plan.order.cap_bytes else ""
    line = f"out of memory in {failure.phase}{asked}{limit}"
    if predicted is None or predicted.peak_bytes is None:
        return line
    line += f"; a peak of {format_bytes(predicted.peak_bytes)} was predicted"
    highest = max(predicted.phases.values(), key=lambda terms: sum(terms.values()))
    name, size = max(highest.items(), key=lambda term: term[1])
    changes = ", ".join(_changes(plan)) if plan else ""
    return f"{line}, most of it {name} ({format_bytes(size)})" + (f"; try {changes}" if changes else "")


def _changes(plan: RunPlan) -> Iterator[str]:
    """Yield what would lower the peak, the cheapest first."""
    order = plan.order
    zero = order.ds_config.get("zero_optimization", {})
    if order.workload.micro_batch > 1:
        yield f"--micro-batch-size {order.workload.micro_batch // 2}"
    if not order.workload.checkpointing and not order.module:
        yield "--activation-checkpointing"
    if order.world_size > 1 and zero.get("stage", 0) < 3:
        yield f"ZeRO stage {zero.get('stage', 0) + 1}"
    if zero.get("stage", 0) >= 1 and not zero.get("offload_optimizer"):
        yield "offload_optimizer to the cpu"


def _not_finite(plan: RunPlan | None) -> str:
    if plan is not None and plan.order.ds_config.get("fp16", {}).get("enabled"):
        return "fp16 overflows above 65504: use bf16, or lower the learning rate"
    return "lower the learning rate or clip gradients (the weights are random, the data too)"


def _exception(failure: Failure, plan: RunPlan | None) -> str:
    text = "\n".join((failure.message, *failure.log))
    if any(word in text for word in OLD_DRIVER):
        return f"the NVIDIA driver is too old for this torch: update it or install an older torch ({failure.message})"
    if any(word in text for word in NO_GPU):
        return f"no usable GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES ({failure.message})"
    if failure.phase == "init" and any(word in text for word in KERNEL):
        return (
            f"DeepSpeed's kernels could not be built: {failure.message}; they need a CUDA toolkit of torch's version "
            '(CUDA_HOME), a C++ compiler and ninja; or set "torch_adam": true in optimizer.params'
        )
    return f"{NAMES[plan.order.backend] if plan else 'DeepSpeed'} failed in {failure.phase}: {failure.message}"
