"""Bytes one GPU sends in one optimizer step, by ZeRO stage.

Symbols: P trainable parameters, A all parameters, N ranks, w bytes of an element, G accumulation.
A ring all-gather or reduce-scatter of X bytes sends X·(N−1)/N from each rank, an all-reduce twice that
(Thakur et al. 2005, https://doi.org/10.1177/1094342005051521).
"""

from __future__ import annotations

from dsconf.job import Job
from dsconf.speed.communication import gathered_bytes, gathers, gradient_width, reduced_bytes
from dsconf.speed.optimizer import element_bytes


def sent_bytes(job: Job) -> int:
    """Return the bytes sent by one rank in one optimizer step of ``job``; 0 on one GPU."""
    rings = (_stage_0, _stage_1, _stage_2, _stage_3)[job.settings.stage](job)
    return int(rings * (job.cluster.world_size - 1) / job.cluster.world_size)


def _gradients(job: Job) -> int:
    """Return w·P."""
    return gradient_width(job.settings) * job.model.parameters.trainable()


def _updated(job: Job) -> int:
    """Return w·P of the parameters that the optimizer changed."""
    return element_bytes(job.settings) * job.model.parameters.trainable()


def _stage_0(job: Job) -> float:
    """Return 2·w·P: one all-reduce of the gradients, at the accumulation boundary (engine.py:3828-3839)."""
    return 2 * _gradients(job)


def _stage_1(job: Job) -> float:
    """Return 3·w·P: gradients at the boundary, then an all-gather of the updated parameters.

    The ZeRO paper needs 2·w·P; DeepSpeed reduces a bucket that several ranks own by an all-reduce
    (stage_1_and_2.py:1516-1543, ``use_multi_rank_bucket_allreduce``).
    """
    return 2 * _gradients(job) + _updated(job)


def _stage_2(job: Job) -> float:
    """Return (2·G + 1)·w·P: as stage 1, but gradients are reduced in every micro-batch (stage_1_and_2.py:2284-2295)."""
    return job.workload.accumulation * 2 * _gradients(job) + _updated(job)


def _stage_3(job: Job) -> float:
    """G·(2·w·A + w·P) at most: parameters gathered for forward and, as far as they were released, for backward;
    gradients reduce-scattered, each micro-batch (Rajbhandari et al. 2020, section 7.2.2; stage3.py:1911-1946)."""
    (forward, backward), (first, again) = gathers(job), gathered_bytes(job)
    return job.workload.accumulation * (forward * first + backward * again + reduced_bytes(job))
