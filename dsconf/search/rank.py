"""Orders the candidates and names them in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dsconf.cluster.spec import Cluster
from dsconf.search.candidates import Candidate
from dsconf.search.kinds import LEAN

VERDICTS = ("yes", "tight", "no")
EQUAL = 0.03
"""Speeds this close are called equal: the same candidate run twice differed by up to 4 %, and the predicted seconds of
195 are off by 4 % in the median (``h200-step-times-*grid.jsonl``)."""
WORTH_A_HOST = 0.1
"""More tokens a second for which offload is taken unasked to a host nobody described: its cores and bandwidth are
assumed, too, and decide that speed."""


def ranked(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Best first: what fits with headroom, then what is tight, then the rest by how little it misses.

    Within a verdict, what trains with less precise states comes last, and what needs host memory that nobody stated
    after what needs none; then tokens a second decide, and a tie goes to the plainer candidate: no offload, lower
    stage, no recomputation, nothing out of the ordinary, less memory.
    """
    return tuple(sorted(candidates, key=_order))


def _order(candidate: Candidate) -> tuple[Any, ...]:
    missing = (candidate.gpu_short_bytes, candidate.host_short_bytes) if candidate.fits == "no" else (0, 0)
    return (
        VERDICTS.index(candidate.fits),
        *missing,
        *_reserve(candidate),
        -candidate.tokens_per_second,
        *_plainness(candidate),
        candidate.estimate.process_bytes,
    )


def _reserve(candidate: Candidate) -> tuple[bool, bool]:
    """What is held back for where nothing else fits: less precise states, and host memory nobody said is there."""
    return candidate.settings.bf16_optimizer_states, needs_unstated_host(candidate)


def held_for_its_host(candidate: Candidate) -> bool:
    """Whether it needs more host memory than a node has for certain, where nobody said how much that is."""
    likely = likely_host_bytes(candidate.job.cluster)
    return needs_unstated_host(candidate) and candidate.estimate.host_bytes_per_node > likely


def likely_host_bytes(cluster: Cluster) -> int:
    """Memory that a node is taken to have where nobody said: that of its GPUs together.

    NVIDIA recommends more for training, at least 1.5 times as much (NVIDIA-Certified Systems Configuration Guide,
    https://docs.nvidia.com/certification-programs/nvidia-certified-configuration-guide).
    """
    return cluster.gpus_per_node * cluster.gpu.memory_bytes


def _plainness(candidate: Candidate) -> tuple[int, ...]:
    settings = candidate.settings
    unusual = (
        settings.offload_optimizer_ratio < 1,
        settings.hpz_partition_size > 1,
        settings.sequence_parallel > 1,
        candidate.workload.loss_shards is not None,
        has_small_buckets(candidate),
    )
    return candidate.offloads, settings.stage, candidate.workload.checkpointing, sum(unusual)


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The plainest of the ``ranked`` DeepSpeed candidates that are as fast as the best that fits, give or take
    ``EQUAL``; None when none fits. Torch DDP is there to compare with and is never chosen.

    Offload to a host that nobody described is taken where nothing else fits, or where it is much faster and the host
    likely has the memory.
    """
    best = next(candidate for candidate in candidates if candidate.settings.engine == "deepspeed")
    if best.fits == "no":
        return None
    pool = rivals(best, candidates)
    if not needs_unstated_host(best):
        likely = [c for c in _same(best, candidates) if not held_for_its_host(c)]
        pool = likely if _fastest(likely) > (1 + WORTH_A_HOST) * _fastest(pool) else pool
    least = (1 - EQUAL) * _fastest(pool)
    return min((candidate for candidate in pool if candidate.tokens_per_second >= least), key=_plainness)


def rivals(winner: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, ``winner`` among them, between which speed alone decides."""
    same = _same(winner, candidates)
    within = [candidate for candidate in same if not needs_unstated_host(candidate)]
    if not within:
        return same
    return [c for c in same if not held_for_its_host(c)] if needs_unstated_host(winner) else within


def _same(winner: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The DeepSpeed candidates that fit as ``winner`` does and train with the same states."""
    ours = (candidate for candidate in candidates if candidate.settings.engine == "deepspeed")
    return [candidate for candidate in ours if candidate.fits == winner.fits and same_states(candidate, winner)]


def same_states(one: Candidate, other: Candidate) -> bool:
    """Whether both keep master weights and moments in the same type: if not, they train differently."""
    return one.settings.bf16_optimizer_states == other.settings.bf16_optimizer_states


def _fastest(candidates: Sequence[Candidate]) -> float:
    return max(candidate.tokens_per_second for candidate in candidates)


def needs_unstated_host(candidate: Candidate) -> bool:
    """Whether it offloads to a host whose memory nobody stated."""
    return candidate.offloads > 0 and candidate.job.cluster.host_memory_bytes is None


def best_of_each(candidates: Iterable[Candidate], winner: Candidate | None = None) -> tuple[Candidate, ...]:
    """The first of each combination of what matters most, in the order given; ``winner`` stands for its own."""
    first: dict[tuple[Any, ...], Candidate] = {} if winner is None else {combination(winner): winner}
    for candidate in candidates:
        first.setdefault(combination(candidate), candidate)
    return tuple(first.values())


def combination(candidate: Candidate) -> tuple[Any, ...]:
    """What identifies a candidate apart from its batch sizes, its buckets, how much of the optimizer is offloaded and
    whether each node has a copy of the parameters."""
    settings = candidate.settings
    devices = (settings.offload_optimizer, settings.offload_param)
    kept = (settings.bf16_optimizer_states, settings.sequence_parallel, candidate.workload.loss_shards)
    return settings.engine, settings.stage, *devices, *kept, candidate.workload.checkpointing


def stage_name(candidate: Candidate) -> str:
    """``ZeRO stage 3``, ``DeepSpeed stage 0`` or ``torch DDP``, and what it has besides: hpZ, bf16 states, Ulysses…"""
    settings = candidate.settings
    if settings.engine == "ddp":
        return "torch DDP"
    stage = f"ZeRO stage {settings.stage}" if settings.stage else "DeepSpeed stage 0"
    hpz = f", hpZ {settings.hpz_partition_size}" if settings.hpz_partition_size > 1 else ""
    states = ", bf16 states" if settings.bf16_optimizer_states else ""
    shared = f", Ulysses {settings.sequence_parallel}" if settings.sequence_parallel > 1 else ""
    tiled = ", tiled loss" if candidate.workload.loss_shards is not None else ""
    return f"{stage}{hpz}{states}{shared}{tiled}"


def offload_name(candidate: Candidate) -> str:
    """What lives off the GPU: ``none``, ``optimizer on cpu``, ``optimizer + parameters on nvme``."""
    settings = candidate.settings
    if settings.offload_optimizer == "none" and settings.offload_param == "none":
        return "none"
    if settings.offload_param == "none":
        part = "" if settings.offload_optimizer_ratio == 1 else f"{settings.offload_optimizer_ratio:.0%} of the "
        return f"{part.replace('%', ' %')}optimizer on {settings.offload_optimizer}"
    return f"optimizer + parameters on {settings.offload_param}"


def has_small_buckets(candidate: Candidate) -> bool:
    """Whether its buckets are the lean ones, on a model that larger ones exist for."""
    settings = candidate.settings
    # With adapters alone the gradients may fill no bucket; what stage 3 gathers is the whole model.
    size = settings.prefetch_bucket_size if settings.stage == 3 else settings.reduce_bucket_size
    return settings.stage > 0 and size == LEAN


def strategy_name(candidate: Candidate) -> str:
    """``stage_name``, and whether its buckets are small: what a row of a table begins with."""
    return f"{stage_name(candidate)}{', small buckets' if has_small_buckets(candidate) else ''}"


def name(candidate: Candidate) -> str:
    """One phrase: stage, offload, checkpointing, buckets and micro-batch."""
    offload = "" if offload_name(candidate) == "none" else f", {offload_name(candidate)}"
    recompute = ", activation checkpointing" if candidate.workload.checkpointing else ""
    buckets = ", small buckets" if has_small_buckets(candidate) else ""
    return f"{stage_name(candidate)}{offload}{recompute}{buckets}, micro-batch {candidate.workload.micro_batch}"


LESS = 0.9
"""Of the memory of the one before it, what the next one in the short list takes at most."""


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Of the DeepSpeed candidates that fit, those that none with as little memory on each GPU outruns, fastest first.

    Memory is ``process_bytes`` of the fullest rank. Of two with the same figures the first counts. A tight fit counts
    only where nothing has headroom, and states in bf16, which train differently, where nothing fits without them.
    """
    ours = [candidate for candidate in candidates if candidate.settings.engine == "deepspeed"]
    fitting = [c for c in ours if c.fits == "yes"] or [c for c in ours if c.fits == "tight"]
    alike = [c for c in fitting if not c.settings.bf16_optimizer_states] or fitting
    front: list[Candidate] = []
    for candidate in sorted(alike, key=lambda c: (c.estimate.process_bytes, -c.tokens_per_second)):
        if not front or candidate.tokens_per_second > front[-1].tokens_per_second:
            front.append(candidate)
    return tuple(reversed(front))


def spread(front: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """A short list of ``front``: the fastest, then each time the fastest that takes a tenth less memory."""
    kept: list[Candidate] = []
    for candidate in front:
        if not kept or candidate.estimate.process_bytes <= LESS * kept[-1].estimate.process_bytes:
            kept.append(candidate)
    return tuple(kept)
