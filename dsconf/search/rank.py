"""Orders the candidates and names them in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dsconf.search.candidates import Candidate

VERDICTS = ("yes", "tight", "no")
EQUAL = 0.02
"""Speeds this close are called equal: a speed model cannot tell them apart, and a repeated run hardly."""


def ranked(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Best first: what fits with headroom, then what is tight, then the rest by how little it misses.

    Within a verdict, what needs host memory that nobody stated comes after what needs none; then tokens a
    second decide, and a tie goes to the plainer candidate: no offload, lower stage, no recomputation, less memory.
    """
    return tuple(sorted(candidates, key=_order))


def _order(candidate: Candidate) -> tuple[Any, ...]:
    settings, workload = candidate.settings, candidate.workload
    missing = (candidate.gpu_short_bytes, candidate.host_short_bytes) if candidate.fits == "no" else (0, 0)
    return (
        VERDICTS.index(candidate.fits),
        *missing,
        _unstated(candidate),
        -candidate.tokens_per_second,
        candidate.offloads,
        settings.stage,
        workload.checkpointing,
        candidate.estimate.process_bytes,
    )


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The plainest of the ``ranked`` DeepSpeed candidates that are as fast as the best that fits, give or take
    ``EQUAL``; None when none fits. Torch DDP is there to compare with and is never chosen."""
    ours = [candidate for candidate in candidates if candidate.settings.engine == "deepspeed"]
    best = ours[0]
    if best.fits == "no":
        return None
    equal = (
        candidate
        for candidate in ours
        if candidate.fits == best.fits
        and _unstated(candidate) == _unstated(best)
        and candidate.tokens_per_second >= (1 - EQUAL) * best.tokens_per_second
    )
    return min(equal, key=lambda c: (c.offloads, c.settings.stage, c.workload.checkpointing))


def _unstated(candidate: Candidate) -> bool:
    """Whether it needs host memory that nobody said is there."""
    return candidate.offloads > 0 and candidate.job.cluster.host_memory_bytes is None


def best_of_each(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The first of each stage × offload × checkpointing combination, in the order given."""
    first: dict[tuple[Any, ...], Candidate] = {}
    for candidate in candidates:
        first.setdefault(combination(candidate), candidate)
    return tuple(first.values())


def combination(candidate: Candidate) -> tuple[Any, ...]:
    """What identifies a candidate apart from its batch sizes."""
    settings = candidate.settings
    devices = (settings.offload_optimizer, settings.offload_param)
    return settings.engine, settings.stage, *devices, candidate.workload.checkpointing


def stage_name(candidate: Candidate) -> str:
    """``ZeRO stage 3``, ``DeepSpeed stage 0`` or ``torch DDP``."""
    settings = candidate.settings
    if settings.engine == "ddp":
        return "torch DDP"
    return f"ZeRO stage {settings.stage}" if settings.stage else "DeepSpeed stage 0"


def offload_name(candidate: Candidate) -> str:
    """What lives off the GPU: ``none``, ``optimizer on cpu``, ``optimizer + parameters on nvme``."""
    settings = candidate.settings
    if settings.offload_optimizer == "none" and settings.offload_param == "none":
        return "none"
    if settings.offload_param == "none":
        return f"optimizer on {settings.offload_optimizer}"
    return f"optimizer + parameters on {settings.offload_param}"


def name(candidate: Candidate) -> str:
    """One phrase: stage, offload, checkpointing and micro-batch."""
    offload = "" if offload_name(candidate) == "none" else f", {offload_name(candidate)}"
    recompute = ", activation checkpointing" if candidate.workload.checkpointing else ""
    return f"{stage_name(candidate)}{offload}{recompute}, micro-batch {candidate.workload.micro_batch}"
