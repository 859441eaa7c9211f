"""Seconds of one optimizer step, and of each of its parts.

What it does not know: the data loader, a busy network, stragglers; docs/speed.md has the rest, and how far it is from
measured steps. Compare configs with it; measure before promising a date.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.job import Job
from dsconf.speed import communication, compute, offload, optimizer
from dsconf.speed.kernels import traffic
from dsconf.speed.python_time import engine


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
    if world > 1 and settings.stage == 3:
        moved += optimizer.gather_bytes(settings) * sum(communication.gathers(job)) * job.model.num_params
    return traffic(gpu, moved)


class _Busy(NamedTuple):
    """Seconds of each forward and backward without waiting: kernels, or the CPU where launching takes longer."""

    forward: float
    backward: float


class _Waits(NamedTuple):
    """Seconds that forward, backward and the step wait for communication."""

    forward: float
    backward: float
    step: float


def _waits(job: Job, busy: _Busy) -> _Waits:
    collectives = communication.collectives(job)
    overlap, taken = communication.overlaps(job.settings), communication.processors(job.cluster)
    boundary = communication.exposed(collectives.boundary, busy.backward, overlap, taken)
    exchanges = communication.exchanges(job)
    return _Waits(
        communication.exposed(collectives.forward, busy.forward, overlap, taken) + exchanges[0],
        communication.exposed(collectives.backward, busy.backward, overlap, taken) + exchanges[1],
        boundary + collectives.step,
    )


def _offload(job: Job, busy: _Busy, waits: _Waits) -> tuple[float, float]:
    """Seconds that each micro-batch, and the step, wait for the host or the drive.

    Stage 3 fetches offloaded parameters ahead, over a link of its own, and hides what computing and communication
    cover; gradients go after their bucket.
    """
    if job.settings.offload_optimizer == "none" == job.settings.offload_param:
        return 0.0, 0.0
    copies, reads = offload.parameter_copy(job), offload.nvme_parameters(job)
    forward = communication.exposed(max(copies[0], reads[0]), busy.forward + waits.forward, True)
    backward = communication.exposed(max(copies[1], reads[1]), busy.backward + waits.backward, True)
    step = max(offload.cpu_step(job), offload.nvme_step(job)) + reads[2]
    return forward + backward + offload.gradient_copy(job), step


def step_time(job: Job, kernels: str = "eager") -> StepTime:
    """Predicts the seconds of one optimizer step of ``job`` on its cluster, in some 20 µs once the model is known.

    ``kernels`` says who wrote what is neither product nor attention (``elementwise.KERNELS``): ``eager`` PyTorch,
    ``fused`` ones such as Liger's, or torch.compile's (``compiled``).

    A micro-batch is its kernels, or the CPU's time to launch them where that is longer, and what communication and
    offload leave exposed; the step adds the optimizer, which the gradients' norm parts from the backward before it.
    """
    accumulation = job.settings.accumulation or job.workload.accumulation
    forward, backward, again = compute.micro_batch(job, kernels)
    gradients = _gradients(job)
    behind = backward.gpu + again.gpu + gradients
    python = engine(job)
    launched = backward.launch + again.launch + python.backward + python.again
    busy = _Busy(max(forward.gpu, forward.launch + python.forward), max(behind, launched))
    waits = _waits(job, busy)
    offloads = _offload(job, busy, waits)
    both = forward.plus(backward)
    step = optimizer.step_seconds(job)
    parts = {
        "matmul": accumulation * both.matmul,
        "attention": accumulation * both.attention,
        "elementwise": accumulation * both.elementwise,
        "loss": accumulation * both.loss,
        "recompute": accumulation * again.gpu,
        "launch": accumulation * (busy.forward - forward.gpu + busy.backward - behind) + max(0.0, python.step - step),
        "gradients": accumulation * gradients,
        "communication": accumulation * (waits.forward + waits.backward) + waits.step,
        "offload": accumulation * offloads[0] + offloads[1],
        "optimizer": step,
    }
    seconds = sum(parts.values())
    replicas = job.cluster.world_size / job.settings.sequence_parallel
    sequences = (job.settings.micro_batch or job.workload.micro_batch) * accumulation * replicas
    return StepTime(seconds, parts, sequences * job.workload.seq_len / seconds)
