"""The functions of ``import dsconf`` that need no search: the words of the command line in, an answer out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dsconf.config.finding import Problem, Report
from dsconf.config.validate import Rule, Source, ValidationOptions, checked_options
from dsconf.config.validate import validate as validate_config
from dsconf.errors import InputError
from dsconf.memory.estimate import Estimate
from dsconf.memory.estimate import estimate as estimate_job
from dsconf.read_job import read_job
from dsconf.request import FULLEST, JobWords, RankWords, ValidateWords
from dsconf.units import format_bytes
from dsconf.word import option_of, read, worded, words_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dsconf.config.rules.case import Case
    from dsconf.job import Job


@worded(JobWords)
def estimate(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    *,
    rank: int | str | None = FULLEST,
    **words: Unpack[JobWords],
) -> Estimate:
    """Return the memory of one rank and one node, in bytes; the words are those of ``dsconf estimate``.

    ``params`` is a size such as ``70B``, ``model`` a config.json, its folder, its content or a known name, ``gpus`` the
    world size, ``rank`` a number or, by default, ``fullest``. ``module`` is a live ``torch.nn.Module`` in place of a
    model, traced without a GPU, and ``batch`` what it is called with.

    Raises:
        InputError: a word that cannot be used as given, or a job that DeepSpeed would not run.
    """
    chosen = cast("int | None", read(RankWords, {"rank": rank})["rank"])
    return estimate_job(read_job(params, model, gpus, **words), chosen)


@worded(ValidateWords)
def validate(
    files: Source | Sequence[Source],
    gpus: int | None = None,
    target: str | None = None,
    **words: Unpack[ValidateWords],
) -> Report:
    """Check one file or several: paths, ``-`` for standard input, or mappings.

    ``gpus`` is the world size for the batch sizes. ``target`` is who loads the files (``deepspeed``, ``hf``,
    ``accelerate``); by default ``hf`` for a file that holds "auto" and ``deepspeed`` for the others. With ``params``
    or ``model`` and ``gpus`` one more finding says whether the job fits the GPUs; the words about it are those of
    ``dsconf.estimate``. A file that cannot be read is a finding, not an exception.

    Raises:
        InputError: a word that cannot be used as given.
    """
    return validate_config(files, options=read_asked(gpus, target, **words))


def read_asked(gpus: int | None, target: str | None, **words: Unpack[ValidateWords]) -> ValidationOptions:
    """Return the words of ``validate`` as one value.

    Raises:
        InputError: a word that cannot be used as given, whatever the config says.
    """
    word = read(ValidateWords, words)
    asked = checked_options(ValidationOptions(target, gpus, word["deepspeed_version"], word["resume_gpus"]))
    params, model = word["params"], word["model"]
    known = words_of(JobWords)
    about_job = cast("JobWords", {name: value for name, value in words.items() if name in known})
    if params is None and model is None:
        given = next((name for name, value in about_job.items() if value not in (None, known[name].default)), None)
        if given is not None:
            raise InputError(f"{option_of(given, known[given])}: says whether the job fits; name the model too")
        return asked
    # Whatever the config says: what it says too is compared with it, file by file.
    alone: JobWords = {**about_job, "stage": 0, "offload": None}
    job = read_job(params, model, gpus, **alone)

    def job_of(config: Mapping[str, Any]) -> Job:
        beside_config: JobWords = {**about_job, "config": config}
        return read_job(params, model, gpus, **beside_config)

    rule = _fit_rule(job_of, named=word["gpu"] is not None or word["gpu_memory"] is not None)
    return asked._replace(model_params=job.model.parameters.total(), rules=(rule,))


def _fit_rule(job_of: Callable[[Mapping[str, Any]], Job], *, named: bool) -> Rule:
    def fits(case: Case) -> Iterator[Problem]:
        """Say whether each GPU, and each node where its memory was given, holds what the job needs."""
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
    """Return the bytes of fp32 weights that an older release copies to the GPU in its step (DS413), else 0."""
    from dsconf.config.rules.offload import copies_weights

    return 4 * -(-job.model.parameters.trainable() // job.cluster.world_size) if copies_weights(case) else 0


def _with_copy(job: Job, found: Estimate, copied: int) -> tuple[Estimate, str]:
    """Return ``found`` where the step, whose activations are gone, also holds ``copied`` bytes; and the phase of its
    peak."""
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
    """Return the bytes a node needs at least without zero.Init: weights converted while loaded are each process's own;
    else a mapped safetensors file may be one copy for all of them."""
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
    message = (
        f"each GPU loads all {format_bytes(held.weights + held.scales)} of quantized weights before they are sharded"
    )
    advice = "set bnb_4bit_quant_storage and the dtype of from_pretrained to the training type, or nothing is sharded"
    yield Problem("DS904", "note", (), message, advice)
