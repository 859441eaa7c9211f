"""Reads the words about a job into one value, and refuses what DeepSpeed would not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dsconf.accepted import accepted
from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.model.spec import USUAL_SEQ_LEN, sequence_length
from dsconf.request import ConfigWords, DiskWords, JobWords, KernelWords, NodeWords, RateWords, StageWords, WeightWords
from dsconf.word import read
from dsconf.workload import ALLOCATORS, Workload, require_adapters

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dsconf.cluster.spec import Cluster
    from dsconf.config.settings import Settings
    from dsconf.model.spec import Model

DEFAULT_STAGE = 2
"""ZeRO stage of a job that names neither a config nor a stage."""


class SettingsWords(ConfigWords, WeightWords, total=False):
    """What settings are made of beside the stage."""


class AnyConfigWords(StageWords, SettingsWords, total=False):
    """Whatever a ds_config says too."""


_DEVICES = {
    "none": ("none", "none"),
    "optimizer": ("cpu", "none"),
    "optimizer+param": ("cpu", "cpu"),
    "nvme": ("nvme", "none"),
}
"""What ``--offload`` says → (optimizer device, parameter device)."""
OFFLOAD_STAGES = {"none": (0, 1, 2, 3), "optimizer": (1, 2, 3), "optimizer+param": (3,), "nvme": (3,)}
"""ZeRO stages that each ``--offload`` leaves open (runtime/zero/offload_config.py; engine.py:2342-2346)."""


def read_job(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    **words: Unpack[JobWords],
) -> Job:
    """Return the words as one value: model, cluster, settings and workload. A ds_config is read once.

    Raises:
        InputError: a word that cannot be used as given, or a job that DeepSpeed would not run.
    """
    word = read(JobWords, words)
    if gpus is None:
        raise InputError("--gpus: give the total number of GPUs")
    cluster = node_cluster(gpus, word, word["nvme"])
    shape = _model(params, model, word)
    settings = _settings(word, cluster.world_size, shape.hidden or None)
    micro, seq_len = _sizes(shape, word, settings)
    accumulation = word["gradient_accumulation_steps"] or settings.accumulation or 1
    train = micro * accumulation * cluster.world_size // settings.sequence_parallel
    settings = settings.with_batch(micro, accumulation, train)
    return accepted(Job(shape, cluster, settings, read_workload(word, seq_len, micro, accumulation)))


def node_cluster(gpus: int, word: NodeWords, nvme: str | None = None) -> Cluster:
    """Return the cluster that ``word``, which has been read, says; rates are assumed.

    Raises:
        InputError: a word that cannot be used as given.
    """
    from dsconf.cluster.read import read_cluster

    return read_cluster(
        gpus,
        word["gpu"],
        word["gpu_memory"],
        gpus_per_node=word["gpus_per_node"],
        host_memory=word["host_memory"],
        nvme=nvme,
    )


class ClusterWords(NodeWords, DiskWords, RateWords, total=False):
    """All that is said of a cluster."""


def stated_cluster(gpus: int, word: ClusterWords) -> Cluster:
    """Return the cluster that ``word``, which has been read, says, with its rates.

    Raises:
        InputError: a word that cannot be used as given.
    """
    from dsconf.cluster.read import with_rates

    return with_rates(
        node_cluster(gpus, word, word["nvme"]), word["network"], word["cpu_cores"], word["host_bandwidth"]
    )


def read_workload(word: KernelWords, seq_len: int, micro_batch: int, accumulation: int) -> Workload:
    """Return what ``word``, which has been read, says of a step; sizes are those settled on, in tokens and sequences.

    Raises:
        InputError: quantized weights without adapters to train.
    """
    require_adapters(word["quantize"], word["lora_rank"])
    return Workload(
        seq_len=seq_len,
        micro_batch=micro_batch,
        accumulation=accumulation,
        checkpointing=bool(word["activation_checkpointing"]),
        attention=word["attention"],
        load_dtype=word["load_dtype"],
        zero_init=word["zero_init"],
        allocator=word["allocator"] or ALLOCATORS[0],
        quantize=word["quantize"],
        loss_shards=cast("int | None", word["tiled_loss"]),
    )


def _model(params: str | int | None, model: str | Path | Mapping[str, Any] | None, word: JobWords) -> Model:
    from dsconf.model.read import read_model

    if word["module"] is None:
        return read_model(params, model, word["lora_rank"])
    if (params, model, word["lora_rank"], word["quantize"]) != (None, None, None, None):
        raise InputError("module: it is the model and has its adapters; leave params, model, lora_rank, quantize out")
    from dsconf.memory.trace.module import read_module

    return read_module(
        word["module"],
        word["batch"],
        micro_batch_size=word["micro_batch_size"],
        seq_len=word["seq_len"] or USUAL_SEQ_LEN,
        precision=word["precision"] or "bf16",
    )


def _sizes(model: Model, word: JobWords, settings: Settings) -> tuple[int, int]:
    """Micro-batch and sequence length as asked for, else as usual; of a live module those of its batch."""
    micro_batch = word["micro_batch_size"] or settings.micro_batch
    if word["module"] is None:
        return micro_batch or 1, sequence_length(word["seq_len"], model)
    from dsconf.memory.trace.module import batch_sizes

    return batch_sizes(model, micro_batch, word["seq_len"] or USUAL_SEQ_LEN)


def _settings(word: JobWords, world_size: int, hidden_size: int | None) -> Settings:
    """Return what the config says, or else the words; ranks that share sequences may be left to the script."""
    if word["config"] is None:
        return plain_settings(DEFAULT_STAGE if word["stage"] is None else word["stage"], word, word["nvme"])
    from dsconf.config.load import load_config
    from dsconf.config.resolve import resolve
    from dsconf.config.rules.auto import autos

    config = load_config(word["config"])
    settings = resolve(config, world_size, "hf" if any(autos(config)) else "deepspeed", hidden_size=hidden_size)
    return agreed(settings, config, word)


def agreed(settings: Settings, config: Mapping[str, Any], word: AnyConfigWords) -> Settings:
    """Return the ``settings`` of ``config`` with what only the words say.

    Raises:
        InputError: a word that contradicts the config.
    """
    pairs: list[tuple[str, object, object]] = [
        ("--stage", word["stage"], settings.stage),
        ("--precision", word["precision"], settings.precision),
        ("--optimizer", word["optimizer"], settings.optimizer),
        ("--offload", word["offload"], offload_of(settings)),
    ]
    if config.get("sequence_parallel_size") is not None:
        pairs.append(("--sequence-parallel", word["sequence_parallel"], settings.sequence_parallel))
    for option, wanted, said in pairs:
        if wanted is not None and wanted != said:
            raise InputError(
                f"{option}: {wanted}, but the config says {said}; leave the option out or change one of them"
            )
    return replace(settings, sequence_parallel=word["sequence_parallel"] or settings.sequence_parallel)


def offload_of(settings: Settings) -> str:
    """Return the word that ``settings`` offload by."""
    devices = (settings.offload_optimizer, settings.offload_param)
    if "nvme" in devices:
        return "nvme"
    return next((word for word, pair in _DEVICES.items() if pair == devices), "the parameters alone on the host")


def plain_settings(stage: int, word: SettingsWords, nvme: str | None = None) -> Settings:
    """Return DeepSpeed's defaults at ``stage`` with what the words say.

    Raises:
        InputError: an offload that the stage or a missing NVMe path rules out.
    """
    from dsconf.config.settings import Settings

    where = word["offload"] or "none"
    if stage not in OFFLOAD_STAGES[where]:
        allowed = " or ".join(", ".join(map(str, OFFLOAD_STAGES[where])).rsplit(", ", 1))
        raise InputError(f"--offload: {where} needs stage {allowed}, not {stage}")
    if where == "nvme" and nvme is None:
        raise InputError("--offload: nvme needs --nvme PATH, a folder on a fast local disk of each node")
    optimizer, param = _DEVICES[where]
    return Settings(
        stage=stage,
        precision=word["precision"] or "bf16",
        optimizer=word["optimizer"] or "adamw",
        overlap_comm=stage == 3,
        offload_optimizer=optimizer,
        offload_param=param,
        nvme_path=nvme if where == "nvme" else None,
        sequence_parallel=word["sequence_parallel"] or 1,
    )
