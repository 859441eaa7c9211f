"""``dsconf.validate``: the config's own rules, and with a model and a number of GPUs whether the job fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconf.config.finding import Problem, Report
from dsconf.config.validate import DEEPSPEED_VERSION, Asked, Rule, Source, check_asked
from dsconf.config.validate import validate as validate_config
from dsconf.errors import InputError
from dsconf.units import format_bytes

if TYPE_CHECKING:
    from dsconf.config.rules.case import Case
    from dsconf.job import Job
    from dsconf.memory.estimate import Estimate

_NEED_A_MODEL = ("gpu", "gpu_memory", "host_memory", "lora_rank", "quantize", "micro_batch_size")


def validate(
    files: Source | Sequence[Source],
    gpus: int | None = None,
    target: str | None = None,
    deepspeed_version: str = DEEPSPEED_VERSION,
    *,
    resume_gpus: int | None = None,
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpu: str | None = None,
    gpu_memory: str | int | None = None,
    gpus_per_node: int = 8,
    host_memory: str | int | None = None,
    seq_len: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    activation_checkpointing: bool | None = None,
    attention: str = "sdpa",
    load_dtype: str | None = None,
    zero_init: bool | None = None,
    lora_rank: int | None = None,
    quantize: str | None = None,
) -> Report:
    """Checks one file or several: paths, ``-`` for standard input, or mappings.

    ``gpus`` is the world size for the batch sizes. ``target`` is who loads the files (``deepspeed``, ``hf``,
    ``accelerate``); by default ``hf`` for a file that holds "auto" and ``deepspeed`` for the others. With ``params``
    or ``model`` and ``gpus`` one more finding says whether the job fits the GPUs; the words after them are those of
    ``dsconf.estimate``. A file that cannot be read is a finding, not an exception.

    Raises:
        InputError: a word that cannot be used as given.
    """
    words = {
        "params": params,
        "model": model,
        "gpu": gpu,
        "gpu_memory": gpu_memory,
        "gpus_per_node": gpus_per_node,
        "host_memory": host_memory,
        "seq_len": seq_len,
        "micro_batch_size": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "activation_checkpointing": activation_checkpointing,
        "attention": attention,
        "load_dtype": load_dtype,
        "zero_init": zero_init,
        "lora_rank": lora_rank,
        "quantize": quantize,
    }
    asked = read_asked(gpus, target, deepspeed_version, resume_gpus, **words)
    return validate_config(files, asked=asked)


def read_asked(
    gpus: int | None, target: str | None, deepspeed_version: str, resume_gpus: int | None, **words: Any
) -> Asked:
    """The words of ``validate`` as one value; ``words`` are those about the job.

    Raises:
        InputError: a word that cannot be used as given, whatever the config says.
    """
    asked = check_asked(Asked(target, gpus, deepspeed_version, resume_gpus))
    if words["params"] is None and words["model"] is None:
        given = next((word for word in _NEED_A_MODEL if words[word] is not None), None)
        if given is not None:
            raise InputError(f"--{given.replace('_', '-')}: says whether the job fits; name the model too")
        return asked
    from dsconf.memory.api import read_job

    job = read_job(gpus=gpus, stage=0, **words)
    rule = _fit_rule(lambda config: read_job(gpus=gpus, config=config, **words), words)
    return asked._replace(model_params=job.model.parameters.total(), rules=(rule,))


def _fit_rule(job_of: Callable[[Mapping[str, Any]], Job], words: Mapping[str, Any]) -> Rule:
    named = words["gpu"] is not None or words["gpu_memory"] is not None

    def fits(case: Case) -> Iterator[Problem]:
        """Whether each GPU, and each node where its memory was given, holds what the job needs."""
        from dsconf.memory.estimate import estimate

        try:
            job = job_of(case.config)
            found = estimate(job)
        except InputError as error:
            yield Problem("DS901", "note", (), f"cannot say whether it fits: {error}")
            return
        yield _on_gpu(job, found, named, _copied_weights(case, job))
        yield from _on_host(job, found)
        yield from _quantized(job)

    return fits


def _copied_weights(case: Case, job: Job) -> int:
    """Bytes of a rank's fp32 weights that an older release copies to the GPU in its step (DS413); 0 in others."""
    from dsconf.config.rules.offload import copies_weights

    return 4 * -(-job.model.parameters.trainable() // job.cluster.world_size) if copies_weights(case) else 0


def _with_copy(job: Job, found: Estimate, copied: int) -> tuple[Estimate, str]:
    """``found`` where the step, whose activations are gone, also holds ``copied`` bytes; and the phase of its peak."""
    from dsconf.memory.timeline.reserved import reserved

    in_step = found.between_steps_bytes + copied
    if not copied or in_step <= found.peak_bytes:
        return found, found.peak_phase
    kept = reserved(job, max(in_step, found.init_peak_bytes))
    outside = found.process_bytes - found.reserved_bytes
    more = replace(found, peak_bytes=in_step, reserved_bytes=kept, process_bytes=kept + outside)
    return more, f"step, with the copy of DS413 of {format_bytes(copied)}"


def _on_gpu(job: Job, found: Estimate, named: bool, copied: int) -> Problem:
    from dsconf.memory.fit import shortfall_bytes, verdict

    gpu = job.cluster.gpu
    found, phase = _with_copy(job, found, copied)
    answer = verdict(found, gpu)
    severity = {"yes": "note", "tight": "warning", "no": "error"}[answer]
    says = {"yes": "fits", "tight": "fits with little headroom", "no": "does not fit"}[answer]
    needs = f"{says}: a GPU needs {format_bytes(found.process_bytes)} of {format_bytes(gpu.memory_bytes)}"
    size = f"micro-batch {job.workload.micro_batch}, {job.workload.seq_len} tokens"
    message = f"{needs} ({gpu.name}; peak in {phase}, {size})"
    advice = None if named else "name your GPU with --gpu or --gpu-memory"
    if answer == "no":
        less = f"it is {format_bytes(shortfall_bytes(found, gpu))} too much; dsconf recommend finds a config that fits"
        advice = less if named else f"{less}; {advice}"
    return Problem("DS901", severity, (), message, advice)


def _on_host(job: Job, found: Estimate) -> Iterator[Problem]:
    limit = job.cluster.host_memory_bytes
    if limit is not None and found.host_bytes_per_node > limit:
        needs = f"a node needs {format_bytes(found.host_bytes_per_node)} of {format_bytes(limit)} of host memory"
        yield Problem("DS902", "error", (), f"does not fit: {needs}", "offload less, or use more nodes")
    elif limit is not None and found.loading_host_bytes_per_node > limit:
        stated = f"{format_bytes(limit)} of host memory"
        needs = f"{format_bytes(found.loading_host_bytes_per_node)} of {stated}"
        processes = min(job.cluster.gpus_per_node, job.cluster.world_size)
        message = f"loading may need {needs}: {processes} processes of a node, each with the whole model"
        advice = "build the model under zero.Init (stage 3, --zero-init)"
        least = _least_to_load(job, found)
        if least > limit:
            message = f"does not load: {processes} processes of a node need at least {format_bytes(least)} of {stated}"
            yield Problem("DS903", "error", (), message, advice)
            return
        advice = f"load safetensors in the training type, which processes share, or {advice}"
        yield Problem("DS903", "warning", (), message, advice)


def _least_to_load(job: Job, found: Estimate) -> int:
    """Bytes of a node without zero.Init: weights that are converted while they are loaded belong to each process
    alone; else a mapped safetensors file may be one copy for all of them."""
    from dsconf.memory.timeline.common import frame_of
    from dsconf.memory.timeline.host import loaded_by_each

    load = job.workload.load_dtype
    if load is not None and load != job.settings.precision:
        return found.loading_host_bytes_per_node
    processes = min(job.cluster.gpus_per_node, job.cluster.world_size)
    return found.loading_host_bytes_per_node - (processes - 1) * loaded_by_each(frame_of(job))


def _quantized(job: Job) -> Iterator[Problem]:
    """Stage 3 shards bitsandbytes' weights of 4 bits, only after they were loaded (peft: accelerate/deepspeed.md)."""
    if job.workload.quantize is None or job.settings.stage != 3:
        return
    if job.workload.quantize == "8bit":
        message = "weights of 8 bits cannot be sharded by stage 3"
        yield Problem("DS904", "error", (), message, "quantize to 4 bits, or use stage 2")
        return
    from dsconf.memory.zero.quantized import frozen
    from dsconf.memory.zero.wrapper import widths

    held = frozen(job.model, job.workload.quantize, widths(job.settings).model)
    message = f"each GPU loads all {format_bytes(held.weights + held.scales)} of quantized weights before they are cut"
    advice = (
        "set bnb_4bit_quant_storage and the dtype of from_pretrained to the training type, or they are not cut at all"
    )
    yield Problem("DS904", "note", (), message, advice)
