"""The search space, all of it: every strategy × activation checkpointing × micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import lcm
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.config.resolve import FUSED_OPTIMIZERS
from dsconf.config.settings import Settings
from dsconf.errors import InputError
from dsconf.model.attention import refuse_flash
from dsconf.model.spec import Model
from dsconf.read_job import OFFLOAD_STAGES
from dsconf.search.constraints import CPU_OPTIMIZERS, OFFLOADS, Constraints
from dsconf.search.strategies import Strategy, buckets, strategies, unshareable
from dsconf.workload import Workload


class Combination(NamedTuple):
    """One setting of everything but the micro-batch, with its workloads, smallest micro-batch first."""

    settings: Settings
    workloads: tuple[Workload, ...]


def combinations(model: Model, cluster: Cluster, fixed: Constraints) -> list[Combination]:
    """List every combination that ``fixed`` leaves open.

    Raises:
        InputError: a global batch that cannot be split, a precision that the GPU lacks, or a fixed that the
            stage, the optimizer or a missing NVMe path rules out.
    """
    precision = choose_precision(cluster, fixed.precision)
    refuse_flash(model, fixed.attention, precision, cluster.gpu.has_bf16)
    pairs = {1: batches(cluster.world_size, fixed.seq_len, fixed)}
    found = list(strategies(model, cluster, precision, fixed))
    if not found:
        raise InputError(_nothing_left(model, fixed, cluster))
    for degree in {strategy.sequence_parallel for strategy in found} - {1}:
        # The ranks that share a sequence count as one, and hold that part of its tokens.
        pairs[degree] = batches(cluster.world_size // degree, fixed.seq_len // degree, fixed)
    switches = (False, True) if fixed.checkpointing is None else (fixed.checkpointing,)
    # Of settings and workloads that are equal there is one: the caches of the models find it sooner than its equal.
    runs: dict[tuple[int, bool, bool], tuple[Workload, ...]] = {}
    space: list[Combination] = []
    for strategy in found:
        settings = _settings(model, cluster.nvme_path, precision, fixed.optimizer, strategy)
        for checkpointing in switches:
            key = (strategy.sequence_parallel, strategy.tiled_loss, checkpointing)
            if key not in runs:
                runs[key] = _workloads(pairs[strategy.sequence_parallel], fixed, strategy, checkpointing)
            space.append(Combination(settings, runs[key]))
    return space


def plain_settings(model: Model, cluster: Cluster, fixed: Constraints, stage: int) -> Settings:
    """Return DeepSpeed at ``stage``, with the offload of ``fixed`` where the stage allows it."""
    precision = choose_precision(cluster, fixed.precision)
    where = fixed.offload or "none"
    devices = OFFLOADS[where if stage in OFFLOAD_STAGES[where] else "none"][0]
    strategy = Strategy("deepspeed", stage, *devices, sequence_parallel=fixed.sequence_parallel or 1)
    return _settings(model, cluster.nvme_path, precision, fixed.optimizer, strategy)


def choose_precision(cluster: Cluster, wanted: str | None) -> str:
    """Choose bf16 by default, fp16 where the card has no bf16.

    Raises:
        InputError: bf16 asked for on a card without it.
    """
    if wanted == "bf16" and not cluster.gpu.has_bf16:
        raise InputError(f"--precision bf16: {cluster.gpu.name} has no bf16; use --precision fp16")
    return wanted or ("bf16" if cluster.gpu.has_bf16 else "fp16")


def _nothing_left(model: Model, fixed: Constraints, cluster: Cluster) -> str:
    if fixed.sequence_parallel not in (None, 1):
        problem = unshareable(fixed.sequence_parallel or 1, fixed.stage, model, cluster, fixed)
        return f"--sequence-parallel {fixed.sequence_parallel}: {problem or 'the other words leave nothing to search'}"
    if fixed.quantize == "8bit" and fixed.stage == 3:
        return "--quantize 8bit cannot be partitioned at stage 3; use --quantize 4bit or --stage 2"
    if fixed.offload == "nvme" and cluster.nvme_path is None:
        return "--offload nvme needs --nvme PATH, a path on a fast local disk"
    if fixed.optimizer not in CPU_OPTIMIZERS:
        return f"--optimizer {fixed.optimizer} cannot be offloaded; use one of {', '.join(CPU_OPTIMIZERS)}"
    if fixed.offload == "optimizer+param" and fixed.quantize is not None:
        return f"--offload optimizer+param cannot hold --quantize {fixed.quantize} weights; use --offload optimizer"
    if fixed.low_states:
        return "--optimizer-states bf16 needs bf16, ZeRO stage 1 to 3, Adam or AdamW, and no offload"
    needed = "1, 2 or 3" if fixed.offload == "optimizer" else "3"
    return f"--offload {fixed.offload} needs --stage {needed}, not --stage {fixed.stage}"


@lru_cache(maxsize=1024)
def _settings(model: Model, nvme_path: str | None, precision: str, optimizer: str, strategy: Strategy) -> Settings:
    """Plain DDP trains 16-bit models under autocast with fp32 parameters, which is what DDP users run, and steps with
    torch's own loop over lists, which is what ``torch.optim.AdamW(...)`` takes on CUDA unless told ``fused=True``."""
    devices = (strategy.optimizer_device, strategy.param_device)
    return Settings(
        stage=strategy.stage,
        engine=strategy.engine,
        precision="autocast" if strategy.engine == "ddp" and precision != "fp32" else precision,
        optimizer=optimizer,
        optimizer_fused=strategy.engine == "deepspeed" and optimizer in ("adam", "adamw", *FUSED_OPTIMIZERS),
        offload_optimizer=strategy.optimizer_device,
        offload_optimizer_ratio=strategy.ratio,
        offload_param=strategy.param_device,
        nvme_path=nvme_path if "nvme" in devices else None,
        bf16_master=strategy.low_states,
        bf16_optimizer_states=strategy.low_states,
        hpz_partition_size=strategy.hpz,
        sequence_parallel=strategy.sequence_parallel,
        # Muon orthogonalises whole matrices, so stage 3 refuses it with reduce_scatter (stage3.py:360).
        reduce_scatter=not (strategy.stage == 3 and optimizer == "muon"),
        overlap_comm=strategy.stage > 0,
        **buckets(model, strategy.stage, lean=strategy.lean),
    )


def _workloads(
    pairs: list[tuple[int, int]], fixed: Constraints, strategy: Strategy, checkpointing: bool
) -> tuple[Workload, ...]:
    return tuple(
        Workload(
            seq_len=fixed.seq_len,
            micro_batch=micro,
            accumulation=accumulation,
            checkpointing=checkpointing,
            attention=fixed.attention,
            quantize=fixed.quantize,
            loss_shards=(fixed.loss_shards or 0) if strategy.tiled_loss else None,
            load_dtype=fixed.load_dtype,
            zero_init=fixed.zero_init,
            allocator=fixed.allocator,
        )
        for micro, accumulation in pairs
    )


MOST_TOKENS = 2**18
"""Tokens of the largest micro-batch tried when no global batch is given: matrix products are as fast as they
get from some 2**14 rows on, so a larger micro-batch buys memory use and no speed."""


def batches(world_size: int, seq_len: int, fixed: Constraints) -> list[tuple[int, int]]:
    """Return all (micro-batch, accumulation) pairs that ``fixed`` leaves open, smallest first.

    ``world_size`` counts ranks that share a sequence as one, and ``seq_len`` is their part of it in tokens. Micro-batch
    × accumulation × world size is the global batch, as DeepSpeed asserts (runtime/config.py:602). Without one the
    accumulation is 1 unless it is given, and the micro-batches are the powers of two up to ``MOST_TOKENS`` tokens.

    Raises:
        InputError: the global batch cannot be split evenly; the message names the nearest that can.
    """
    micro_batch, accumulation = fixed.micro_batch, fixed.accumulation
    if fixed.global_batch is None:
        return [(micro, accumulation or 1) for micro in ([micro_batch] if micro_batch else _powers(seq_len))]
    _check_split(fixed.global_batch, world_size, micro_batch)
    per_rank = fixed.global_batch // world_size
    pairs = [(micro, per_rank // micro) for micro in ([micro_batch] if micro_batch else _divisors(per_rank))]
    if accumulation is None:
        return pairs
    kept = [pair for pair in pairs if pair[1] == accumulation]
    if not kept:
        possible = ", ".join(str(steps) for _, steps in reversed(pairs))
        raise InputError(
            f"--gradient-accumulation-steps {accumulation}: does not make --global-batch-size {fixed.global_batch} on "
            f"{world_size} GPUs; possible: {possible}"
        )
    return kept


def check_split(global_batch: int, sizes: Sequence[int]) -> None:
    """Refuse a ``global_batch`` that cannot be split evenly over each number of GPUs in ``sizes``.

    Raises:
        InputError: it cannot; the message names the nearest that can.
    """
    if any(global_batch % size for size in sizes):
        raise InputError(_no_multiple(global_batch, lcm(*sizes), f"each of {', '.join(map(str, sizes))} GPUs"))


def _powers(seq_len: int) -> list[int]:
    most = max(1, MOST_TOKENS // seq_len)
    return [2**exponent for exponent in range(most.bit_length())]


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _check_split(global_batch: int, world_size: int, micro_batch: int | None) -> None:
    unit = world_size * (micro_batch or 1)
    if global_batch % unit:
        times = f" × micro-batch {micro_batch}" if micro_batch else ""
        gpus = f"{world_size} GPU{'s' if world_size > 1 else ''}"
        raise InputError(_no_multiple(global_batch, unit, f"{gpus}{times}"))


def _no_multiple(global_batch: int, unit: int, what: str) -> str:
    below, above = global_batch // unit * unit, -(-global_batch // unit) * unit
    nearest = f"{below} and {above}" if below else f"{above}"
    return f"--global-batch-size {global_batch} is no multiple of {what}; nearest: {nearest}"
