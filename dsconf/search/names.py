"""What candidates are called: in a table, in JSON, and as one phrase."""

from __future__ import annotations

from dsconf.search.candidates import Candidate
from dsconf.search.strategies import LEAN


def name(candidate: Candidate) -> str:
    """Name stage, offload, checkpointing, buckets and micro-batch in one phrase."""
    offload = "" if offload_name(candidate) == "none" else f", {offload_name(candidate)}"
    recompute = ", activation checkpointing" if candidate.workload.checkpointing else ""
    buckets = ", small buckets" if has_small_buckets(candidate) else ""
    return f"{stage_name(candidate)}{offload}{recompute}{buckets}, micro-batch {candidate.workload.micro_batch}"


def strategy_name(candidate: Candidate) -> str:
    """Name the stage, and small buckets: what a row of a table begins with."""
    return f"{stage_name(candidate)}{', small buckets' if has_small_buckets(candidate) else ''}"


def stage_name(candidate: Candidate) -> str:
    """Say ``ZeRO stage 3``, ``DeepSpeed stage 0`` or ``torch DDP``, and what it has besides: hpZ, Ulysses…"""
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
    """Say what lives off the GPU: ``none``, ``optimizer on cpu``, ``optimizer + parameters on nvme``."""
    settings = candidate.settings
    if settings.offload_optimizer == "none" and settings.offload_param == "none":
        return "none"
    if settings.offload_param == "none":
        part = "" if settings.offload_optimizer_ratio == 1 else f"{settings.offload_optimizer_ratio:.0%} of the "
        return f"{part.replace('%', ' %')}optimizer on {settings.offload_optimizer}"
    return f"optimizer + parameters on {settings.offload_param}"


def has_small_buckets(candidate: Candidate) -> bool:
    """Tell whether its buckets are the lean ones, on a model that larger ones exist for."""
    settings = candidate.settings
    # With adapters alone the gradients may fill no bucket; what stage 3 gathers is the whole model.
    size = settings.prefetch_bucket_size if settings.stage == 3 else settings.reduce_bucket_size
    return settings.stage > 0 and size == LEAN
