"""Seconds of one optimizer step, and of each of its parts: a first, honest model of speed.

What it does not know: the data loader, other kernels than eager PyTorch's (torch.compile, fused losses), a congested
network, stragglers. Compare configs with it; measure before promising a date.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.job import Job
from dsconf.speed import communication, compute, kernels, offload, optimizer
from dsconf.speed.compute import Pass


class StepTime(NamedTuple):
    """Seconds of one optimizer step, all its micro-batches included; ``parts`` sum to ``seconds``."""

    seconds: float
    parts: dict[str, float]
    tokens_per_second: float
    """Of the whole cluster."""


def _gradients(job: Job) -> float:
    """GPU seconds of copying one micro-batch's gradients to where they are reduced, and of unpacking gathers."""
    gpu, settings, world = job.cluster.gpu, job.settings, job.cluster.world_size
    moved = optimizer.gradient_bytes(settings, world) * optimizer.trained(job.model)[0]
    if world > 1:
        moved += optimizer.gather_bytes(settings) * sum(communication.gathers(job)) * job.model.num_params
    return kernels.traffic(gpu, moved)


def _waits(job: Job, forward: Pass, backward: Pass, again: Pass) -> tuple[float, float, float]:
    """Seconds that each forward, each backward and the last backward wait for communication."""
    collectives = communication.collectives(job)
    overlap = communication.overlaps(job.settings)
    busy = backward.gpu + again.gpu
    return (
        communication.exposed(collectives.forward, forward.gpu, overlap),
        communication.exposed(collectives.backward, busy, overlap),
        communication.exposed(collectives.boundary, busy, overlap),
    )


def _offload(job: Job, forward: Pass, backward: Pass, again: Pass) -> tuple[float, float]:
    """Seconds that each micro-batch, and the step, wait for the host or the drive.

    Stage 3 fetches offloaded parameters ahead and hides what computing covers; gradients go after their bucket.
    """
    copies = offload.parameter_copy(job)
    reads = offload.nvme_parameters(job)
    waits = [
        communication.exposed(max(copies[0], reads[0]), forward.gpu, True),
        communication.exposed(max(copies[1], reads[1]), backward.gpu + again.gpu, True),
    ]
    step = max(offload.cpu_step(job), offload.nvme_step(job)) + reads[2]
    return sum(waits) + offload.gradient_copy(job), step


def step_time(job: Job) -> StepTime:
    """Predicts the seconds of one optimizer step of ``job`` on its cluster.

    A micro-batch is its kernels, or the CPU's time to launch them where that is longer, and what communication and
    offload leave exposed; the step adds the optimizer.
    """
    accumulation = job.settings.accumulation or job.workload.accumulation
    forward, backward, again = compute.micro_batch(job)
    gradients = _gradients(job)
    launch = max(0.0, forward.launch - forward.gpu)
    behind = backward.launch + again.launch + optimizer.hook_seconds(job)
    launch += max(0.0, behind - backward.gpu - again.gpu - gradients)
    waits = _waits(job, forward, backward, again)
    offloaded, offloaded_step = _offload(job, forward, backward, again)
    both = compute.total(forward, backward)
    parts = {
        "matmul": accumulation * both.matmul,
        "attention": accumulation * both.attention,
        "elementwise": accumulation * both.elementwise,
        "loss": accumulation * both.loss,
        "recompute": accumulation * again.gpu,
        "launch": accumulation * launch,
        "gradients": accumulation * gradients,
        "communication": accumulation * (waits[0] + waits[1]) + waits[2] + communication.collectives(job).step,
        "offload": accumulation * offloaded + offloaded_step,
        "optimizer": optimizer.step_seconds(job) * (1 - offload.share_on_cpu(job.settings)),
    }
    seconds = sum(parts.values())
    sequences = (job.settings.micro_batch or job.workload.micro_batch) * accumulation * job.cluster.world_size
    return StepTime(seconds, parts, sequences * job.workload.seq_len / seconds)
