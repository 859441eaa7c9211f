"""``dsconf check``: runs a short real DeepSpeed training and holds the prediction against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconf.accepted import require_shareable
from dsconf.errors import InputError, UnavailableError
from dsconf.live.plan import CheckRequest, settled
from dsconf.live.precheck import precheck
from dsconf.live.processes.crew import allocator_variables
from dsconf.live.processes.launcher import Runner, SubprocessRunner
from dsconf.live.record import append, writable
from dsconf.live.result import CheckResult, Fit
from dsconf.live.run import launch, no_progress
from dsconf.model.spec import USUAL_SEQ_LEN, Model, sequence_length
from dsconf.read_job import agreed, node_cluster, read_workload
from dsconf.request import CheckWords
from dsconf.units import whole
from dsconf.word import read, worded
from dsconf.workload import require_adapters

if TYPE_CHECKING:
    from typing_extensions import Unpack


@worded(CheckWords)
def check(
    config: str | Path | Mapping[str, Any],
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int = 1,
    *,
    progress: Callable[[str], None] | None = None,
    runner: Runner | None = None,
    **words: Unpack[CheckWords],
) -> CheckResult:
    """Train some optimizer steps with ``config`` and compare the measured peak with the predicted one.

    With ``gpus`` CUDA devices here every rank is real; with fewer, one GPU rehearses the fullest rank of ``gpus``;
    with none, two real ranks train on the CPU a model scaled down to fit.

    The words are those of ``dsconf check``, sizes in tokens, sequences and seconds; ``config`` may be its content.
    ``progress`` is told, line by line, what is being done. ``runner`` carries the order out: real processes on this
    machine unless a test says otherwise. A run that failed has ``ran`` False and says why in ``failure``.

    Raises:
        InputError: an input that cannot be read or does not go together.
        UnavailableError: something that cannot be launched here at all.
        KeyboardInterrupt: Ctrl-C; nothing is left running or on disk.
    """
    from dsconf.config.resolve import resolve

    word = read(CheckWords, words)
    request = _read(config, params, model, whole("--gpus", gpus), word)
    place = None if word["record"] is None else writable("--record", word["record"])
    batch_given = bool(word["micro_batch_size"] or word["gradient_accumulation_steps"])
    judged = precheck(config, request.config, gpus, batch_given)
    if judged.failure is not None:
        return CheckResult(False, "real", world_size=gpus, failure=judged.failure, findings=judged.findings)
    settings = agreed(resolve(request.config, gpus, "hf"), request.config, word)
    if request.model is not None:
        require_shareable(request.model, gpus, settings, request.workload)
    request, tell = settled(request), progress or no_progress
    launched = runner or SubprocessRunner(allocator_variables(word["allocator"]))

    def run(wanted: CheckRequest) -> CheckResult:
        return launch(wanted, judged.notes, word["timeout"], tell, launched)

    result = find_boundary(request, run, tell) if word["fit"] else run(request)
    return result if place is None else append(place, result, tell)


def _read(
    source: str | Path | Mapping[str, Any],
    params: str | int | None,
    name: str | Path | Mapping[str, Any] | None,
    gpus: int,
    word: CheckWords,
) -> CheckRequest:
    """Return the words of ``check`` as one value."""
    from dsconf.config.load import load_config

    config = load_config(source)
    model = _model(params, name, word)
    snapshot = word["memory_snapshot"]
    seq_len = (word["seq_len"] or USUAL_SEQ_LEN) if model is None else sequence_length(word["seq_len"], model)
    return CheckRequest(
        config,
        model,
        gpus,
        workload=read_workload(word, seq_len, 1, 1),
        micro_batch=word["micro_batch_size"],
        accumulation=word["gradient_accumulation_steps"],
        gpus_per_node=word["gpus_per_node"],
        allocator=word["allocator"],
        host_memory=word["host_memory"],
        sequence_parallel=word["sequence_parallel"],
        steps=word["steps"],
        module=word["module"] or "",
        cap_bytes=_cap(gpus, word, config),
        launcher=word["launcher"],
        snapshot="" if snapshot is None else str(writable("--memory-snapshot", snapshot, new=True)),
    )


def _model(params: str | int | None, name: str | Path | Mapping[str, Any] | None, word: CheckWords) -> Model | None:
    """Return the model; None for a module of the person's own.

    Raises:
        InputError: words that do not go together.
    """
    from dsconf.model.read import read_model

    module, quantize = word["module"], word["quantize"]
    if quantize is not None and module is not None:
        raise InputError(f"--quantize {quantize}: --module brings its own weights; quantize them there")
    if module is not None and (word["sequence_parallel"] or word["tiled_loss"] is not None):
        raise InputError("--module: it runs as it is; leave --sequence-parallel and --tiled-loss out")
    require_adapters(quantize, word["lora_rank"])
    if quantize is not None and word["zero_init"]:
        raise InputError(f"--quantize {quantize}: zero.Init cannot hold quantized weights; leave --zero-init out")
    if module is None:
        return read_model(params, name, word["lora_rank"])
    if (params, name, word["lora_rank"]) != (None, None, None):
        raise InputError("--module: it is the model and has its adapters; leave --params, --model, --lora-rank out")
    file, colon, function = module.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in file.split("."))):
        raise InputError(f"--module: {module!r} is not of the form package.file:function")
    return None


def _cap(gpus: int, word: CheckWords, config: Mapping[str, Any]) -> int:
    """Return what torch may allocate on the card to stand in for: its memory less what CUDA and NCCL take."""
    if word["gpu"] is None and word["gpu_memory"] is None:
        return 0
    from dsconf.config.resolve import resolve
    from dsconf.config.settings import Settings
    from dsconf.memory.allocator import CONTEXT_BYTES
    from dsconf.memory.timeline.reserved import nccl_bytes

    cluster = node_cluster(gpus, word)
    try:
        settings = resolve(config, gpus)
    except InputError:  # precheck says what is wrong with the config
        settings = Settings()
    return cluster.gpu.memory_bytes - CONTEXT_BYTES - nccl_bytes(cluster, settings)


def find_boundary(
    request: CheckRequest,
    run: Callable[[CheckRequest], CheckResult],
    progress: Callable[[str], None] = lambda line: None,
) -> CheckResult:
    """Return the result of the largest micro-batch that ran, the boundary in its ``fit``; else of a single sequence.

    Doubles from the micro-batch of ``request`` while it runs, then halves the gap between the largest that ran and the
    smallest that did not. Memory grows with the micro-batch, so whatever lies between is decided.

    Raises:
        UnavailableError: there is no CUDA device, or no memory was ever filled at a micro-batch of 65 536.
    """
    runs: list[tuple[int, bool]] = []
    results: dict[int, CheckResult] = {}
    largest, failed = 0, None
    candidate = request.micro_batch or 1
    while failed is None or failed - largest > 1:
        progress(f"trying a micro-batch of {candidate}")
        result = results[candidate] = run(request._replace(micro_batch=candidate))
        if result.device == "CPU":
            raise UnavailableError("--fit: there is no CUDA device here whose memory could be filled")
        if result.failure is not None and result.failure.kind != "oom":
            return replace(result, fit=Fit(largest, failed, tuple(runs)))
        runs.append((candidate, result.ran))
        if result.ran:
            largest = candidate
        else:
            failed = candidate
        candidate = _next(largest, failed)
        if candidate > MOST:
            break
    found = Fit(largest, failed, tuple(runs))
    return replace(results[largest or 1], fit=found)


MOST = 65_536


def _next(largest: int, failed: int | None) -> int:
    if failed is None:
        return 2 * largest
    return max(1, (largest + failed) // 2)
