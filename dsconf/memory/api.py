"""``dsconf.estimate``: the memory model with the words of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconf.errors import InputError, one_of
from dsconf.job import Job
from dsconf.memory.estimate import Estimate
from dsconf.memory.estimate import estimate as estimate_job
from dsconf.model.attention import refuse_flash
from dsconf.model.spec import USUAL_SEQ_LEN, sequence_length
from dsconf.workload import ALLOCATORS, ATTENTION_KERNELS, LOAD_DTYPES, Workload, read_quantize

if TYPE_CHECKING:
    from dsconf.config.settings import Settings
    from dsconf.model.spec import Model

PRECISIONS = ("bf16", "fp16", "fp32")
OFFLOADS = ("none", "optimizer", "optimizer+param")
DEFAULT_STAGE = 2
"""ZeRO stage of an estimate that names neither a config nor a stage."""


def estimate(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    *,
    gpu: str | None = None,
    gpu_memory: str | int | None = None,
    gpus_per_node: int = 8,
    host_memory: str | int | None = None,
    nvme: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    stage: int | None = None,
    precision: str | None = None,
    optimizer: str | None = None,
    offload: str | None = None,
    seq_len: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    activation_checkpointing: bool | None = None,
    attention: str = "sdpa",
    load_dtype: str | None = None,
    zero_init: bool | None = None,
    lora_rank: int | None = None,
    quantize: str | None = None,
    allocator: str = "expandable",
    sequence_parallel: int | None = None,
    tiled_loss: bool | int | str | None = None,
    rank: str | int | None = "fullest",
    module: Any = None,
    batch: Any = None,
) -> Estimate:
    """Memory of one rank and one node; the words are those of ``dsconf estimate``, sizes in bytes or as ``80GiB``.

    ``sequence_parallel`` is the number of ranks that share each sequence; ``tiled_loss`` a number of shards, or
    ``auto`` (True) for as many as leave each at most 1 GiB of fp32 logits.

    Raises:
        InputError: a word that cannot be used as given.
    """
    words = dict(locals())
    chosen = read_rank(words.pop("rank"))
    return estimate_job(read_job(**words), chosen)


def read_rank(rank: str | int | None) -> int | None:
    """A rank's number, or None for the fullest.

    Raises:
        InputError: neither ``fullest`` nor a whole number.
    """
    if rank is None or rank == "fullest":
        return None
    try:
        return int(rank)
    except ValueError:
        raise InputError(f"--rank: {rank!r} is neither 'fullest' nor a rank's number") from None


def read_job(
    *,
    params: str | int | None,
    model: str | Path | Mapping[str, Any] | None,
    gpus: int | None,
    gpu: str | None = None,
    gpu_memory: str | int | None = None,
    gpus_per_node: int = 8,
    host_memory: str | int | None = None,
    nvme: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    stage: int | None = None,
    precision: str | None = None,
    optimizer: str | None = None,
    offload: str | None = None,
    seq_len: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    activation_checkpointing: bool | None = None,
    attention: str = "sdpa",
    load_dtype: str | None = None,
    zero_init: bool | None = None,
    lora_rank: int | None = None,
    quantize: str | None = None,
    allocator: str = "expandable",
    sequence_parallel: int | None = None,
    tiled_loss: bool | int | str | None = None,
    module: Any = None,
    batch: Any = None,
) -> Job:
    """The words as one value; options win over what the config says.

    Raises:
        InputError: a word that cannot be used as given.
    """
    from dsconf.cluster.read import read_cluster
    from dsconf.model.read import read_model

    if gpus is None:
        raise InputError("--gpus: give the total number of GPUs")
    cluster = read_cluster(gpus, gpu, gpu_memory, gpus_per_node, host_memory, nvme)
    if module is None:
        shape = read_model(params=params, model=model, lora_rank=lora_rank)
    elif (params, model, lora_rank, quantize) != (None, None, None, None):
        raise InputError("module: it is the model and has its adapters; leave params, model, lora_rank, quantize out")
    else:
        shape = _traced(module, batch, micro_batch_size, seq_len or USUAL_SEQ_LEN, precision)
    settings = _settings(config, cluster.world_size, shape.hidden or None, stage, precision, optimizer, offload)
    settings = _shared(settings, config, sequence_parallel)
    micro, seq_len = _sizes(shape, micro_batch_size or settings.micro_batch, seq_len, traced=module is not None)
    accumulation = gradient_accumulation_steps or settings.accumulation or 1
    workload = _workload(
        seq_len, micro, accumulation, activation_checkpointing, attention, load_dtype, zero_init, allocator
    )
    workload = replace(workload, quantize=read_quantize(quantize, lora_rank), loss_shards=_loss_shards(tiled_loss))
    train = micro * accumulation * cluster.world_size // settings.sequence_parallel
    settings = replace(settings, micro_batch=micro, accumulation=accumulation, train_batch=train)
    return _accepted(Job(shape, cluster, settings, workload))


def _traced(module: Any, batch: Any, micro_batch: int | None, seq_len: int, precision: str | None) -> Model:
    from dsconf.memory.trace.module import read_module

    return read_module(module, batch, micro_batch_size=micro_batch, seq_len=seq_len, precision=precision or "bf16")


def _sizes(model: Model, micro_batch: int | None, seq_len: int | None, traced: bool) -> tuple[int, int]:
    """Micro-batch and sequence length as asked for, else as usual; of a ``traced`` module those of its batch."""
    if seq_len is not None:
        _positive("--seq-len", seq_len)
    if not traced:
        return micro_batch or 1, sequence_length(seq_len, model)
    from dsconf.memory.trace.module import batch_sizes

    return batch_sizes(model, micro_batch, seq_len or USUAL_SEQ_LEN)


def _shared(settings: Settings, config: Any, ranks: int | None) -> Settings:
    """``settings`` with the ranks that share sequences; a config may leave them to the script."""
    if ranks is None:
        return settings
    _positive("--sequence-parallel", ranks)
    if config is not None and ranks != settings.sequence_parallel:
        from dsconf.config.load import load_config

        if load_config(config).get("sequence_parallel_size") is not None:
            raise InputError(
                f"--sequence-parallel: {ranks}, but the config's sequence_parallel_size is "
                f"{settings.sequence_parallel}; leave the option out or change one of them"
            )
    return replace(settings, sequence_parallel=ranks)


def _loss_shards(tiled_loss: bool | int | str | None) -> int | None:
    """The workload's word for it: None, 0 (``auto``) or a number."""
    if tiled_loss is None or tiled_loss is False:
        return None
    if tiled_loss is True or tiled_loss == "auto":
        return 0
    try:
        shards = int(tiled_loss)
    except ValueError:
        shards = 0
    if shards <= 0:
        raise InputError(f"--tiled-loss: {tiled_loss!r} is neither 'auto' nor a number of shards")
    return shards


def _accepted(job: Job) -> Job:
    """``job``, if DeepSpeed would run it.

    Raises:
        InputError: why not, in one line.
    """
    from dsconf.memory.sharing import sharing_problem, tiled_loss_problem

    model, settings, workload = job.model, job.settings, job.workload
    ranks = settings.sequence_parallel
    problem = sharing_problem(model, job.cluster.world_size, workload.seq_len, ranks, workload.attention)
    if problem is not None:
        raise InputError(f"--sequence-parallel: {problem}")
    refuse_flash(model, workload.attention, settings.precision, job.cluster.gpu.has_bf16)
    problem = None if workload.loss_shards is None else tiled_loss_problem(model, settings)
    if problem is not None:
        raise InputError(f"--tiled-loss: {problem}")
    return job


def _workload(
    seq_len: int,
    micro: int,
    accumulation: int,
    checkpointing: bool | None,
    attention: str,
    load_dtype: str | None,
    zero_init: bool | None,
    allocator: str,
) -> Workload:
    return Workload(
        seq_len=seq_len,
        micro_batch=_positive("--micro-batch-size", micro),
        accumulation=_positive("--gradient-accumulation-steps", accumulation),
        checkpointing=bool(checkpointing),
        attention=one_of("--attention", attention, ATTENTION_KERNELS),
        load_dtype=None if load_dtype is None else one_of("--load-dtype", load_dtype, LOAD_DTYPES),
        zero_init=zero_init,
        allocator=one_of("--allocator", allocator, ALLOCATORS),
    )


def _settings(
    config: str | Path | Mapping[str, Any] | None,
    world_size: int,
    hidden_size: int | None,
    stage: int | None,
    precision: str | None,
    optimizer: str | None,
    offload: str | None,
) -> Settings:
    from dsconf.config.settings import Settings

    if config is not None:
        if (stage, precision, optimizer, offload) != (None, None, None, None):
            raise InputError(
                "--config: it says stage, precision, optimizer and offload itself; leave those options out"
            )
        from dsconf.config.load import load_config
        from dsconf.config.resolve import resolve

        loaded = load_config(config)
        from dsconf.config.rules.auto import autos

        return resolve(loaded, world_size, "hf" if any(autos(loaded)) else "deepspeed", hidden_size=hidden_size)
    stage = DEFAULT_STAGE if stage is None else stage
    if stage not in (0, 1, 2, 3):
        raise InputError(f"--stage: {stage} is not one of 0, 1, 2, 3")
    where = one_of("--offload", offload or "none", OFFLOADS)
    if (where == "optimizer+param" and stage != 3) or (where == "optimizer" and stage == 0):
        raise InputError(f"--offload: {where} needs stage {'3' if 'param' in where else '1, 2 or 3'}, not {stage}")
    return Settings(
        stage=stage,
        precision=one_of("--precision", precision or "bf16", PRECISIONS),
        optimizer=(optimizer or "adamw").lower(),
        overlap_comm=stage == 3,
        offload_optimizer="cpu" if where != "none" else "none",
        offload_param="cpu" if "param" in where else "none",
    )


def _positive(option: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InputError(f"{option}: {value!r} is not a positive whole number")
    return value
