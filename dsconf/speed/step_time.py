"""Seconds of one optimizer step, and of each of its parts.

It knows nothing of the data loader, a busy network or stragglers; docs/speed.md says what else it leaves out and how
far it is from measured steps. Compare configs with it; measure before promising a date.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.model.spec import Model
from dsconf.speed import communication, compute, offload, optimizer
from dsconf.speed.communication import Collectives, exposed
from dsconf.speed.cpu_overhead import Engine, engine
from dsconf.speed.kernels import traffic_seconds
from dsconf.workload import Workload


class StepTime(NamedTuple):
    """Seconds of one optimizer step, all its micro-batches included; ``parts`` sum to ``seconds``."""

    seconds: float
    parts: dict[str, float]
    tokens_per_second: float
    """Rate of the whole cluster."""


def _gradients(job: Job) -> float:
    """Compute the GPU seconds of copying one micro-batch's gradients to where they are reduced, and of unpacking
    gathers."""
    gpu, settings, world = job.cluster.gpu, job.settings, job.cluster.world_size
    moved = optimizer.gradient_bytes(settings, world) * optimizer.trained(job.model)[0]
    if world > 1 and settings.stage == 3:
        moved += optimizer.gather_bytes(settings) * sum(communication.gathers(job)) * job.model.num_params
    return traffic_seconds(gpu, moved)


class _Busy(NamedTuple):
    """Seconds of each forward and backward without waiting: kernels, or the CPU where launching takes longer."""

    forward: float
    backward: float


def _longest(*stretches: tuple[float, float]) -> float:
    """Return the seconds of a pass, from (kernels, launches) of each stretch of it.

    A kernel starts once it is launched and the one before it has ended. So a pass takes as long as the longest way from
    its first launch to its last kernel: launches up to the end of some stretch, and the kernels after it.
    """
    launched, ended = 0.0, 0.0
    for kernels, launches in stretches:
        launched += launches
        ended = max(ended + kernels, launched)
    return ended


class _Waits(NamedTuple):
    """Seconds that forward, backward and the step wait for communication."""

    forward: float
    backward: float
    step: float


class _Offload(NamedTuple):
    """Seconds of what passes between GPU, host and drive, as if nothing were hidden."""

    forward: float = 0.0
    backward: float = 0.0
    """Fetching parameters, as in forward."""
    gradients: float = 0.0
    step: float = 0.0


class _PerCombination(NamedTuple):
    """Seconds that depend on neither micro-batch nor sequence length: of each micro-batch, and of the step."""

    gradients: float
    python: Engine
    collectives: Collectives
    overlap: bool
    taken: float
    """Share of the GPU that a collective takes from computing."""
    offload: _Offload
    optimizer: float
    norm: float
    """Part of ``optimizer`` before the CPU waits for the gradients' norm."""


@lru_cache(maxsize=4096)
def _per_combination(
    model: Model, cluster: Cluster, settings: Settings, checkpointing: bool, quantize: str | None
) -> _PerCombination:
    """Compute what every batch of one combination shares: a search asks for many of them."""
    job = Job(model, cluster, settings, Workload(checkpointing=checkpointing, quantize=quantize))
    return _PerCombination(
        gradients=_gradients(job),
        python=engine(job),
        collectives=communication.collectives(job),
        overlap=communication.overlaps(settings),
        taken=communication.processors(cluster),
        offload=_offload(job),
        optimizer=optimizer.step_seconds(job),
        norm=optimizer.norm_seconds(job),
    )


def _offload(job: Job) -> _Offload:
    if job.settings.offload_optimizer == "none" == job.settings.offload_param:
        return _Offload()
    copies, reads = offload.parameter_copy(job), offload.nvme_parameters(job)
    return _Offload(
        max(copies[0], reads[0]),
        max(copies[1], reads[1]),
        offload.gradient_copy(job),
        max(offload.cpu_step(job), offload.nvme_step(job)) + reads[2],
    )


def _waits(job: Job, shared: _PerCombination, busy: _Busy) -> _Waits:
    collectives, overlap, taken = shared.collectives, shared.overlap, shared.taken
    exchanges = communication.exchanges(job)
    return _Waits(
        exposed(collectives.forward, busy.forward, overlap, taken) + exchanges[0],
        exposed(collectives.backward, busy.backward, overlap, taken) + exchanges[1],
        exposed(collectives.boundary, busy.backward, overlap, taken) + collectives.step,
    )


def _offload_waits(copies: _Offload, busy: _Busy, waits: _Waits) -> float:
    """Compute the seconds that each micro-batch waits for the host or the drive.

    Stage 3 fetches offloaded parameters ahead, over a link of its own, and hides what computing and communication
    cover; gradients go after their bucket.
    """
    forward = exposed(copies.forward, busy.forward + waits.forward, True)
    backward = exposed(copies.backward, busy.backward + waits.backward, True)
    return forward + backward + copies.gradients


def step_time(job: Job, kernels: str = "eager") -> StepTime:
    """Predict the seconds of one optimizer step of ``job`` on its cluster, in some 20 µs once the model is known.

    ``kernels`` says who wrote what is neither product nor attention (``elementwise.KERNELS``): ``eager`` PyTorch,
    ``fused`` ones such as Liger's, or torch.compile's (``compiled``).

    A micro-batch takes as long as its kernels, or as long as the CPU needs to launch them (``_longest``), and then what
    communication and offload leave exposed. The step adds the optimizer. The gradients' norm separates it from the
    backward before it: the update waits for the norm, and the norm waits for Python's way through the tensors.
    """
    settings, work = job.settings, job.workload
    accumulation, micro_batch = settings.accumulation or work.accumulation, settings.micro_batch or work.micro_batch
    shared = _per_combination(job.model, job.cluster, settings.without_batch, work.checkpointing, work.quantize)
    python, step = shared.python, shared.optimizer
    layers, head, head_backward, backward, recompute = compute.micro_batch(job, kernels)
    behind = backward.gpu + recompute.gpu + shared.gradients
    launched = backward.launch + recompute.launch + python.backward + python.recompute
    busy = _Busy(
        _longest((layers.gpu, layers.launch + python.forward), (head.gpu, head.launch)),
        _longest((head_backward.gpu, head_backward.launch), (behind, launched)),
    )
    idle = max(0.0, busy.forward + busy.backward - layers.gpu - head.gpu - head_backward.gpu - behind)
    waits = _waits(job, shared, busy)
    fetched = _offload_waits(shared.offload, busy, waits)
    matmul = layers.matmul + head.matmul + head_backward.matmul + backward.matmul
    elementwise = layers.elementwise + head.elementwise + head_backward.elementwise + backward.elementwise
    parts = {
        "matmul": accumulation * matmul,
        "attention": accumulation * (layers.attention + backward.attention),
        "elementwise": accumulation * elementwise,
        "loss": accumulation * (head.loss + head_backward.loss),
        "recompute": accumulation * recompute.gpu,
        "launch": accumulation * idle + max(0.0, python.step - shared.norm),
        "gradients": accumulation * shared.gradients,
        "communication": accumulation * (waits.forward + waits.backward) + waits.step,
        "offload": accumulation * fetched + shared.offload.step,
        "optimizer": step,
    }
    seconds = sum(parts.values())
    sequences = micro_batch * accumulation * (job.cluster.world_size / settings.sequence_parallel)
    return StepTime(seconds, parts, sequences * work.seq_len / seconds)
