"""The search space, all of it: stage × offload × activation checkpointing × micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.config.resolve import FUSED_OPTIMIZERS
from dsconf.config.settings import Settings
from dsconf.errors import InputError
from dsconf.model.spec import Model
from dsconf.search.batch import batches
from dsconf.search.buckets import buckets
from dsconf.workload import Workload

OFFLOADS = {
    "none": (("none", "none"),),
    "optimizer": (("cpu", "none"),),
    "param": (("cpu", "cpu"),),
    "nvme": (("nvme", "none"), ("nvme", "nvme")),
}
"""What ``--offload`` says → (optimizer device, parameter device)."""
OPTIMIZERS = ("adamw", "adam", "adagrad", "lamb", "lion", "muon", "sgd")
"""What ``--optimizer`` takes: what the templates can write."""
CPU_OPTIMIZERS = ("adam", "adamw", "lion")
"""Optimizers that DeepSpeed runs on the host (engine.py:2342-2346 refuses the others under offload)."""


class Wish(NamedTuple):
    """What the person fixed; None leaves it to the search. Batch sizes are in sequences."""

    seq_len: int = 2048
    global_batch: int | None = None
    micro_batch: int | None = None
    precision: str | None = None
    optimizer: str = "adamw"
    stage: int | None = None
    offload: str | None = None
    checkpointing: bool | None = None
    attention: str = "sdpa"
    quantize: str | None = None


class Kind(NamedTuple):
    """Who trains, how much is sharded, and where the optimizer and the parameters live."""

    engine: str
    stage: int
    optimizer_device: str
    param_device: str


class Combination(NamedTuple):
    """One setting of everything but the micro-batch, with its workloads, smallest micro-batch first."""

    settings: Settings
    workloads: tuple[Workload, ...]


def combinations(model: Model, cluster: Cluster, wish: Wish) -> list[Combination]:
    """Every combination that ``wish`` leaves open.

    Raises:
        InputError: a global batch that cannot be split, a precision that the GPU lacks, or an offload that the
            stage, the optimizer or a missing NVMe path rules out.
    """
    precision = choose_precision(cluster, wish.precision)
    pairs = batches(cluster.world_size, wish.seq_len, wish.global_batch, wish.micro_batch)
    kinds = list(_kinds(cluster, wish))
    if not kinds:
        raise InputError(_nothing_left(wish, cluster))
    switches = (False, True) if wish.checkpointing is None else (wish.checkpointing,)
    return [
        Combination(_settings(model, cluster.nvme_path, precision, wish, kind), _workloads(pairs, wish, checkpointing))
        for kind in kinds
        for checkpointing in switches
    ]


def plain_settings(model: Model, cluster: Cluster, wish: Wish, stage: int) -> Settings:
    """DeepSpeed at ``stage`` without offload."""
    precision = choose_precision(cluster, wish.precision)
    return _settings(model, cluster.nvme_path, precision, wish, Kind("deepspeed", stage, "none", "none"))


def choose_precision(cluster: Cluster, wanted: str | None) -> str:
    """bf16 by default, fp16 where the card has no bf16.

    Raises:
        InputError: bf16 asked for on a card without it.
    """
    if wanted == "bf16" and not cluster.gpu.has_bf16:
        raise InputError(f"--precision bf16: {cluster.gpu.name} has no bf16; use --precision fp16")
    return wanted or ("bf16" if cluster.gpu.has_bf16 else "fp16")


def _kinds(cluster: Cluster, wish: Wish) -> Iterator[Kind]:
    """What ``wish`` leaves open, plainest first."""
    stages = range(4) if wish.stage is None else (wish.stage,)
    devices = [pair for name in ([wish.offload] if wish.offload else OFFLOADS) for pair in OFFLOADS[name]]
    if wish.stage in (None, 0) and wish.offload in (None, "none"):
        yield Kind("ddp", 0, "none", "none")
    for stage in stages:
        for optimizer_device, param_device in devices:
            if _possible(stage, optimizer_device, param_device, cluster, wish):
                yield Kind("deepspeed", stage, optimizer_device, param_device)


def _possible(stage: int, optimizer_device: str, param_device: str, cluster: Cluster, wish: Wish) -> bool:
    """Offload needs stage 1 and a host optimizer, parameters and NVMe need stage 3 (zero/offload_config.py);
    bitsandbytes' 8-bit weights cannot be partitioned (huggingface.co/docs/peft, quantization with DeepSpeed)."""
    if wish.quantize == "8bit" and stage == 3:
        return False
    if optimizer_device == "none":
        return True
    if stage == 0 or wish.optimizer not in CPU_OPTIMIZERS:
        return False
    if optimizer_device == "nvme" and (stage < 3 or cluster.nvme_path is None):
        return False
    return param_device == "none" or (stage == 3 and wish.quantize is None)


def _nothing_left(wish: Wish, cluster: Cluster) -> str:
    if wish.quantize == "8bit" and wish.stage == 3:
        return "--quantize 8bit cannot be partitioned at stage 3; use --quantize 4bit or --stage 2"
    if wish.offload == "nvme" and cluster.nvme_path is None:
        return "--offload nvme needs --nvme PATH, a path on a fast local disk"
    if wish.optimizer not in CPU_OPTIMIZERS:
        return f"--optimizer {wish.optimizer} cannot be offloaded; use one of {', '.join(CPU_OPTIMIZERS)}"
    if wish.offload == "param" and wish.quantize is not None:
        return f"--offload param cannot hold --quantize {wish.quantize} weights; use --offload optimizer"
    needed = "1, 2 or 3" if wish.offload == "optimizer" else "3"
    return f"--offload {wish.offload} needs --stage {needed}, not --stage {wish.stage}"


def _settings(model: Model, nvme_path: str | None, precision: str, wish: Wish, kind: Kind) -> Settings:
    """Plain DDP trains 16-bit models under autocast with fp32 parameters, which is what DDP users run."""
    engine, stage, *devices = kind
    return Settings(
        stage=stage,
        engine=engine,
        precision="autocast" if engine == "ddp" and precision != "fp32" else precision,
        optimizer=wish.optimizer,
        optimizer_fused=wish.optimizer in ("adam", "adamw", *FUSED_OPTIMIZERS),
        offload_optimizer=kind.optimizer_device,
        offload_param=kind.param_device,
        nvme_path=nvme_path if "nvme" in devices else None,
        # Muon orthogonalises whole matrices, so stage 3 refuses it with reduce_scatter (stage3.py:360).
        reduce_scatter=not (stage == 3 and wish.optimizer == "muon"),
        overlap_comm=stage > 0,
        **buckets(model, stage),
    )


def _workloads(pairs: list[tuple[int, int]], wish: Wish, checkpointing: bool) -> tuple[Workload, ...]:
    return tuple(
        Workload(
            seq_len=wish.seq_len,
            micro_batch=micro,
            accumulation=accumulation,
            checkpointing=checkpointing,
            attention=wish.attention,
            quantize=wish.quantize,
        )
        for micro, accumulation in pairs
    )
