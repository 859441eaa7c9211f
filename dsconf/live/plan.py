"""Decides what to run on the machine there is, and which job that is for the memory model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.errors import InputError, UnavailableError
from dsconf.job import Job
from dsconf.live import prepare, scale
from dsconf.live.processes.crew import allocator_setting
from dsconf.live.processes.order import Order, Probe
from dsconf.model.attention import runs_eager
from dsconf.model.spec import Model, sequence_length
from dsconf.workload import Workload

USUAL_HIDDEN = 4096
CPU_RANKS = 2
"""Enough for every collective to be real, few enough for a laptop."""


class Wish(NamedTuple):
    """What the person asked for, read but not yet fitted to a machine. Batches in sequences, lengths in tokens."""

    config: Mapping[str, Any]
    model: Model | None
    """None for a module of the person's own."""
    world_size: int
    gpus_per_node: int = 8
    steps: int = 3
    seq_len: int = 2048
    micro_batch: int | None = None
    accumulation: int | None = None
    checkpointing: bool = False
    attention: str = "sdpa"
    load_dtype: str | None = None
    zero_init: bool | None = None
    quantize: str | None = None
    backend: str = "deepspeed"
    module: str = ""
    cap_bytes: int = 0
    snapshot: str = ""
    checkpoint: str = ""
    save_after: int = 0
    resume_at: int = 0
    real_gpus: int = 0
    """GPUs that must be here, since a rehearsal holds no communication; 0: a rehearsal will do."""
    rehearse_rank: int | None = None
    """Rehearse this rank alone, however many GPUs are here; None: the fullest, where there are too few."""
    launcher: str | None = None
    """None: torchrun where there is more than one process to start."""

    @property
    def hidden(self) -> int:
        """Width of the model, from which the Trainer derives bucket sizes; a usual one where it is not known."""
        return self.model.hidden if self.model is not None else USUAL_HIDDEN


class Plan(NamedTuple):
    """An order, the job it is for the memory model, and how both differ from what was asked."""

    order: Order
    job: Job | None
    """None for a module of the person's own, which is traced where it is trained."""
    scaled_down: tuple[str, ...]
    notes: tuple[str, ...]


def make_plan(wish: Wish, probe: Probe) -> Plan:
    """Real ranks where there are GPUs enough, a rehearsal on one GPU, else real ranks of a small model on the CPU."""
    config = prepare.launchable(wish.config, wish.hidden)
    if probe.cuda_devices == 0:
        return _on_cpu(wish, config, probe)
    if probe.cuda_devices < wish.real_gpus:
        raise UnavailableError(f"--gpus {wish.real_gpus}: {probe.cuda_devices} here, and only real ranks can be timed")
    rehearsed = probe.cuda_devices < wish.world_size or wish.rehearse_rank is not None
    plan = _plan(wish, config, probe, wish.world_size, rehearsed, (), ())
    if not rehearsed:
        return plan
    known = plan.job is not None and wish.rehearse_rank is None
    which = f"rank {plan.order.rank}" + (", the fullest," if known else "")
    note = f"{probe.cuda_devices} of {wish.world_size} GPUs here: {which} is real, the others are not run"
    return plan._replace(notes=(note,))


def settled(wish: Wish) -> Wish:
    """``wish`` with its batch sizes known, fit to be launched.

    Raises:
        InputError: the batch sizes disagree, or the sequence is longer than the model's positions.
    """
    model = wish.model
    if model is not None:
        sequence_length(wish.seq_len, model)
    config = prepare.launchable(wish.config, wish.hidden)
    micro, accumulation = prepare.batch_of(config, wish.world_size, wish.micro_batch, wish.accumulation)
    return wish._replace(micro_batch=micro, accumulation=accumulation)


def _attention(wish: Wish) -> str:
    """The kernel that is asked of transformers, which refuses SDPA for families that have none."""
    alone = wish.model is not None and runs_eager(wish.model.family, wish.attention)
    return "eager" if alone else wish.attention


def _on_cpu(wish: Wish, config: dict[str, Any], probe: Probe) -> Plan:
    world_size = min(wish.world_size, CPU_RANKS)
    small, scaled = _fit(wish) if not wish.module else (wish, [])
    if small.model is not wish.model and small.model is not None and wish.model is not None:
        factor = wish.model.num_params / small.model.num_params
        prepare.shrink_buckets(config, factor)
        scaled.append(f"bucket sizes and thresholds ÷ {factor:.3g}, as the parameters")
    notes = ["no CUDA device: run on the CPU"]
    if world_size != wish.world_size:
        notes.append(f"{world_size} ranks run where {wish.world_size} were asked for")
    if not probe.fp16 and prepare.use_bf16_for_fp16(config):
        notes.append("this CPU has no fp16: bf16 stands in for it")
    if not probe.can_build and prepare.use_torch_adam(config):
        notes.append("no C++ compiler and ninja: torch's AdamW stands in for DeepSpeed's")
    if wish.attention == "flash":
        small = small._replace(attention="sdpa")
        notes.append("flash attention needs CUDA: sdpa stands in for it")
    rehearsed = wish.rehearse_rank is not None
    return _plan(small, config, probe, world_size, rehearsed, tuple(scaled), tuple(notes))


def _fit(wish: Wish) -> tuple[Wish, list[str]]:
    """``wish`` at a size that a CPU trains in seconds, and what had to shrink."""
    from dsconf.model.read import read_model

    scaled = []
    if wish.model is not None and wish.model.num_params > scale.SMALL_ENOUGH:
        small = read_model(model=scale.small_hf_config(wish.model), lora_rank=wish.model.lora_rank or None)
        scaled.append(scale.scale_note(wish.model, small))
        wish = wish._replace(model=small)
    caps = {
        "seq_len": ("sequence length", scale.MAX_SEQ_LEN),
        "micro_batch": ("micro-batch", scale.MAX_MICRO_BATCH),
        "accumulation": ("accumulation", scale.MAX_ACCUMULATION),
    }
    for field, (name, most) in caps.items():
        if getattr(wish, field) > most:
            scaled.append(f"{name} {getattr(wish, field)} → {most}")
            changed: dict[str, Any] = {field: most}
            wish = wish._replace(**changed)
    return wish, scaled


def _plan(
    wish: Wish,
    config: dict[str, Any],
    probe: Probe,
    world_size: int,
    rehearsed: bool,
    scaled: tuple[str, ...],
    notes: tuple[str, ...],
) -> Plan:
    from dsconf.config.resolve import resolve
    from dsconf.memory.estimate import estimate

    micro, accumulation = wish.micro_batch or 1, wish.accumulation or 1
    prepare.set_batch(config, world_size, micro, accumulation)
    settings = resolve(config, world_size, "deepspeed")
    if wish.backend == "ddp":
        half = settings.precision in ("bf16", "fp16")
        settings = replace(settings, engine="ddp", precision="autocast" if half else "fp32", optimizer_fused=False)
    trained_in = settings.precision if settings.precision in ("bf16", "fp16") else "fp32"
    workload = Workload(
        seq_len=wish.seq_len,
        micro_batch=micro,
        accumulation=accumulation,
        checkpointing=wish.checkpointing,
        attention=_attention(wish),
        allocator="expandable" if "expandable_segments:True" in allocator_setting() else "default",
        load_dtype=wish.load_dtype or trained_in,
        zero_init=settings.stage == 3 and (not wish.quantize if wish.zero_init is None else wish.zero_init),
        quantize=wish.quantize,
    )
    order = _order(wish, workload, config, probe, world_size, rehearsed)
    if wish.model is None:
        return Plan(order._replace(rank=wish.rehearse_rank or 0), None, scaled, notes)
    cluster = cluster_of(probe, world_size, wish.gpus_per_node)
    job = Job(wish.model, cluster, settings, workload)
    rank = estimate(job, wish.rehearse_rank).rank if rehearsed else 0
    return Plan(order._replace(rank=rank), job, scaled, notes)


def _order(
    wish: Wish, workload: Workload, config: dict[str, Any], probe: Probe, world_size: int, rehearsed: bool
) -> Order:
    processes = 1 if rehearsed else world_size
    return Order(
        device="cuda" if probe.cuda_devices else "cpu",
        rehearsed=rehearsed,
        world_size=world_size,
        processes=processes,
        launcher=wish.launcher or ("direct" if processes == 1 else "torchrun"),
        steps=wish.steps,
        seq_len=workload.seq_len,
        micro_batch=workload.micro_batch,
        accumulation=workload.accumulation,
        checkpointing=workload.checkpointing,
        reentrant=workload.reentrant,
        attention=workload.attention,
        load_dtype=workload.load_dtype or "fp32",
        zero_init=bool(workload.zero_init),
        lora_rank=wish.model.lora_rank if wish.model is not None else 0,
        quantize=wish.quantize or "",
        ds_config=config,
        hf_config=dict(wish.model.hf_config) if wish.model is not None else {},
        backend=wish.backend,
        module=wish.module,
        cap_bytes=wish.cap_bytes,
        snapshot=wish.snapshot,
        checkpoint=wish.checkpoint,
        save_after=wish.save_after,
        resume_at=wish.resume_at,
    )


def cluster_of(probe: Probe, world_size: int, gpus_per_node: int) -> Cluster:
    """The cluster of ``world_size`` devices like the one probed, with its real memory."""
    from dsconf.cluster.read import read_cluster

    if not probe.device_bytes:
        return read_cluster(world_size, gpus_per_node=gpus_per_node)
    try:
        return read_cluster(world_size, probe.device_name, probe.device_bytes, gpus_per_node)
    except InputError:  # a card the catalogue does not know by torch's name
        cluster = read_cluster(world_size, None, probe.device_bytes, gpus_per_node)
        return replace(cluster, gpu=replace(cluster.gpu, name=probe.device_name))
