"""What a rank and its node hold whatever the batch: worked out once for all batches of a search."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.allocator import CONTEXT_BYTES, CUBLAS_WORKSPACE
from dsconf.memory.host import host_terms, nvme_bytes
from dsconf.memory.init import init_peak
from dsconf.memory.loading import loading_bytes_per_node
from dsconf.memory.moments import Frame, Step
from dsconf.memory.states import Resident, Terms, resident
from dsconf.memory.verdict import nccl_bytes


class Standing(NamedTuple):
    """Bytes of one rank and of its node."""

    stays: Terms
    """On the card from step to step, from the second on."""
    stays_bytes: int
    at_start: int
    """The highest point of initialisation."""
    outside: int
    """On the card outside torch's allocator: the context, and NCCL."""
    host: Terms
    """Of one process."""
    host_per_node: int
    nvme_per_node: int
    loading_per_node: int
    """Host memory while the model is loaded."""


def standing(step: Step, rank: int) -> Standing:
    """What ``rank`` holds in the job of ``step``; it is the same for any batch and sequence length."""
    # Earlier micro-batches leave nothing on the host but at stage 2 (memory/host.py).
    return _standing(step.frame, rank, step.accumulating and step.settings.stage == 2)


@lru_cache(maxsize=4096)
def _standing(frame: Frame, rank: int, accumulating: bool) -> Standing:
    job, cluster = frame.job, frame.job.cluster
    if accumulating:
        job = replace(job, workload=replace(job.workload, accumulation=2))
    between = resident(job, rank)
    stays, host = staying(between), host_terms(job, rank)
    per_node = min(cluster.gpus_per_node, cluster.world_size)
    return Standing(
        stays,
        sum([size for _, size in stays]),
        init_peak(job, rank, between),
        CONTEXT_BYTES + nccl_bytes(cluster, job.settings),
        host,
        per_node * sum([size for _, size in host]),
        per_node * nvme_bytes(job),
        loading_bytes_per_node(job),
    )


def staying(between: Resident) -> Terms:
    """What is alive at every moment: ``between`` two steps, and the workspaces of matrix products."""
    return (*between.terms, ("cuBLAS workspaces", 2 * CUBLAS_WORKSPACE))
