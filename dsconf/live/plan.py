"""Decides what to run on the machine there is, and which job that is for the memory model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.errors import InputError, UnavailableError
from dsconf.job import Job
from dsconf.live import prepare, scale
from dsconf.live.processes.crew import allocator_of, allocator_setting
from dsconf.live.processes.order import Order, Probe
from dsconf.model.attention import runs_eager, sdpa_is_gone
from dsconf.model.spec import Model, sequence_length
from dsconf.workload import Workload

USUAL_HIDDEN = 4096
CPU_RANKS = 2
"""Enough for every collective to be real, few enough for a laptop."""


class CheckRequest(NamedTuple):
    """What the person asked for, read but not yet fitted to a machine. Batches in sequences, lengths in tokens."""

    config: Mapping[str, Any]
    model: Model | None
    """None for a module of the person's own."""
    world_size: int
    workload: Workload = Workload()
    """All of a step but its batch sizes and allocator, which have fields of their own."""
    micro_batch: int | None = None
    accumulation: int | None = None
    gpus_per_node: int = 8
    host_memory: str | int | None = None
    """Of one node, in bytes or as text; None: not stated."""
    allocator: str | None = None
    """As ``Workload`` has it; None: what the environment says."""
    sequence_parallel: int | None = None
    """Ranks that share each sequence where the config leaves it to the script."""
    steps: int = 3
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


class RunPlan(NamedTuple):
    """An order, the job it is for the memory model, and how both differ from what was asked."""

    order: Order
    job: Job | None
    """None for a module of the person's own, which is traced where it is trained."""
    scaled_down: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def make_plan(request: CheckRequest, probe: Probe) -> RunPlan:
    """Real ranks where there are GPUs enough, a rehearsal on one GPU, else real ranks of a small model on the CPU."""
    config = _launchable(request)
    if probe.cuda_devices == 0:
        return _on_cpu(request, config, probe)
    if probe.cuda_devices < request.real_gpus:
        raise UnavailableError(
            f"--gpus {request.real_gpus}: {probe.cuda_devices} here, and only real ranks can be timed"
        )
    rehearsed = probe.cuda_devices < request.world_size or request.rehearse_rank is not None
    plan = _plan(request, config, probe, request.world_size, rehearsed)
    if not rehearsed:
        return plan
    known = plan.job is not None and request.rehearse_rank is None
    which = f"rank {plan.order.rank}" + (", the fullest," if known else "")
    note = f"{probe.cuda_devices} of {request.world_size} GPUs here: {which} is real, the others are not run"
    return plan._replace(notes=(note, *plan.notes))


def settled(request: CheckRequest) -> CheckRequest:
    """Return ``request`` with its batch sizes known, fit to be launched.

    Raises:
        InputError: the batch sizes disagree, or the sequence is longer than the model's positions.
    """
    if request.model is not None:
        sequence_length(request.workload.seq_len, request.model)
    config, batch = _launchable(request), (request.micro_batch, request.accumulation)
    micro, accumulation = prepare.batch_of(config, request.world_size, *batch)
    return request._replace(micro_batch=micro, accumulation=accumulation)


def _launchable(request: CheckRequest) -> dict[str, Any]:
    config = prepare.launchable(request.config, request.hidden)
    if request.sequence_parallel is not None:
        config["sequence_parallel_size"] = request.sequence_parallel
    return config


def _kernel(request: CheckRequest, probe: Probe) -> tuple[str, tuple[str, ...]]:
    """Choose the kernel to ask of transformers, which refuses SDPA for some families, and what to say of it."""
    family, release = request.model.family if request.model is not None else "", _release(probe)
    asked = request.workload.attention
    if asked == "sdpa" and sdpa_is_gone(family, release):
        return "eager", (_no_sdpa(family, release),)
    return "eager" if runs_eager(family, asked) else asked, ()


def _release(probe: Probe) -> str:
    return probe.versions.get("transformers", "")


def _no_sdpa(family: str, release: str) -> str:
    return f"transformers {release} has no SDPA for {family}: eager attention stands in for it"


def as_run(plan: RunPlan, attention: str, probe: Probe) -> RunPlan:
    """Return ``plan`` with the kernel that its ranks say they ran; empty: as planned.

    They run another where their release of transformers refuses one that ``dsconf.model.attention`` says it has.
    """
    if plan.job is None or attention in ("", plan.order.workload.attention):
        return plan
    workload = replace(plan.job.workload, attention=attention)
    note = _no_sdpa(plan.job.model.family, _release(probe))
    return plan._replace(
        order=plan.order._replace(workload=workload),
        job=replace(plan.job, workload=workload),
        notes=(*plan.notes, note),
    )


def _on_cpu(request: CheckRequest, config: dict[str, Any], probe: Probe) -> RunPlan:
    world_size = min(request.world_size, CPU_RANKS)
    small, scaled = _fit(request) if not request.module else (request, [])
    if small.model is not request.model and small.model is not None and request.model is not None:
        factor = request.model.num_params / small.model.num_params
        prepare.shrink_buckets(config, factor)
        scaled.append(f"bucket sizes and thresholds ÷ {factor:.3g}, as the parameters")
    notes = ["no CUDA device: run on the CPU"]
    if world_size != request.world_size:
        notes.append(f"{world_size} ranks run where {request.world_size} were asked for")
    if not probe.fp16 and prepare.use_bf16_for_fp16(config):
        notes.append("this CPU has no fp16: bf16 stands in for it")
    if not probe.can_build and prepare.use_torch_adam(config):
        notes.append("no C++ compiler and ninja: torch's AdamW stands in for DeepSpeed's")
    shared = config.get("sequence_parallel_size")
    if isinstance(shared, int) and shared > world_size:
        config["sequence_parallel_size"] = world_size
        scaled.append(f"{shared} ranks that share a sequence → {world_size}")
    if request.workload.attention == "flash":
        small = small._replace(workload=replace(small.workload, attention="sdpa"))
        notes.append("flash attention needs CUDA: sdpa stands in for it")
    plan = _plan(small, config, probe, world_size, request.rehearse_rank is not None)
    return plan._replace(scaled_down=tuple(scaled), notes=(*notes, *plan.notes))


def _fit(request: CheckRequest) -> tuple[CheckRequest, list[str]]:
    """Return ``request`` at a size that a CPU trains in seconds, and what had to shrink."""
    from dsconf.model.read import read_model

    scaled = []
    if request.model is not None and request.model.num_params > scale.SMALL_ENOUGH:
        small = read_model(model=scale.small_hf_config(request.model), lora_rank=request.model.lora_rank or None)
        scaled.append(scale.scale_note(request.model, small))
        request = request._replace(model=small)
    caps = {
        "seq_len": ("sequence length", request.workload.seq_len, scale.MAX_SEQ_LEN),
        "micro_batch": ("micro-batch", request.micro_batch or 1, scale.MAX_MICRO_BATCH),
        "accumulation": ("accumulation", request.accumulation or 1, scale.MAX_ACCUMULATION),
    }
    sizes: dict[str, int] = {}
    for field, (name, asked, most) in caps.items():
        sizes[field] = min(asked, most)
        if asked > most:
            scaled.append(f"{name} {asked} → {most}")
    return request._replace(
        workload=replace(request.workload, seq_len=sizes["seq_len"]),
        micro_batch=sizes["micro_batch"],
        accumulation=sizes["accumulation"],
    ), scaled


def _plan(request: CheckRequest, config: dict[str, Any], probe: Probe, world_size: int, rehearsed: bool) -> RunPlan:
    from dsconf.config.resolve import resolve
    from dsconf.memory.estimate import estimate

    micro, accumulation = request.micro_batch or 1, request.accumulation or 1
    prepare.set_batch(config, world_size, micro, accumulation)
    settings = resolve(config, world_size, "deepspeed")
    if request.backend == "ddp":
        half = settings.precision in ("bf16", "fp16")
        settings = replace(settings, engine="ddp", precision="autocast" if half else "fp32", optimizer_fused=False)
    attention, said = _kernel(request, probe)
    trained_in = settings.precision if settings.precision in ("bf16", "fp16") else "fp32"
    asked = request.workload
    workload = replace(
        asked,
        micro_batch=micro,
        accumulation=accumulation,
        attention=attention,
        allocator=request.allocator or allocator_of(allocator_setting()),
        load_dtype=asked.load_dtype or trained_in,
        zero_init=settings.stage == 3 and (not asked.quantize if asked.zero_init is None else asked.zero_init),
    )
    order = _order(request, config, probe, world_size, rehearsed)
    order = order._replace(workload=workload, sequence_parallel=settings.sequence_parallel)
    if request.model is None:
        return RunPlan(order._replace(rank=request.rehearse_rank or 0), None)
    cluster = cluster_of(probe, world_size, request.gpus_per_node, request.host_memory)
    job = Job(request.model, cluster, settings, workload)
    rank = estimate(job, request.rehearse_rank).rank if rehearsed else 0
    return RunPlan(order._replace(rank=rank), job, notes=said)


def _order(request: CheckRequest, config: dict[str, Any], probe: Probe, world_size: int, rehearsed: bool) -> Order:
    processes = 1 if rehearsed else world_size
    return Order(
        device="cuda" if probe.cuda_devices else "cpu",
        rehearsed=rehearsed,
        world_size=world_size,
        processes=processes,
        launcher=request.launcher or ("direct" if processes == 1 else "torchrun"),
        steps=request.steps,
        lora_rank=request.model.lora_rank if request.model is not None else 0,
        ds_config=config,
        hf_config=dict(request.model.hf_config) if request.model is not None else {},
        backend=request.backend,
        module=request.module,
        cap_bytes=request.cap_bytes,
        snapshot=request.snapshot,
        checkpoint=request.checkpoint,
        save_after=request.save_after,
        resume_at=request.resume_at,
    )


def cluster_of(probe: Probe, world_size: int, gpus_per_node: int, host_memory: str | int | None = None) -> Cluster:
    """Return the cluster of ``world_size`` devices like the one probed, with its real memory."""
    from dsconf.cluster.read import read_cluster

    if not probe.device_bytes:
        return read_cluster(world_size, gpus_per_node=gpus_per_node, host_memory=host_memory)
    try:
        return read_cluster(world_size, probe.device_name, probe.device_bytes, gpus_per_node, host_memory)
    except InputError:  # a card the catalogue does not know by torch's name
        cluster = read_cluster(world_size, None, probe.device_bytes, gpus_per_node, host_memory)
        return replace(cluster, gpu=replace(cluster.gpu, name=probe.device_name))
