"""``dsconf check``: runs a short real DeepSpeed training and holds the prediction against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsconf.errors import InputError, UnavailableError, one_of
from dsconf.live.plan import Wish, settled
from dsconf.live.precheck import precheck
from dsconf.live.processes.launcher import Runner, SubprocessRunner
from dsconf.live.processes.order import LAUNCHERS
from dsconf.live.record import append, writable
from dsconf.live.result import CheckResult, Fit
from dsconf.live.run import launch, silent
from dsconf.model.spec import USUAL_SEQ_LEN, Model, sequence_length
from dsconf.workload import ATTENTION_KERNELS, LOAD_DTYPES, read_quantize


def check(
    config: str | Path | Mapping[str, Any],
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int = 1,
    gpus_per_node: int = 8,
    gpu: str | None = None,
    seq_len: int | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    activation_checkpointing: bool | None = None,
    attention: str = "sdpa",
    load_dtype: str | None = None,
    zero_init: bool | None = None,
    lora_rank: int | None = None,
    quantize: str | None = None,
    module: str | None = None,
    fit: bool = False,
    steps: int = 3,
    launcher: str | None = None,
    timeout: float = 600.0,
    record: str | Path | None = None,
    memory_snapshot: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    runner: Runner | None = None,
) -> CheckResult:
    """Train ``steps`` optimizer steps with ``config`` and compare the measured peak with the predicted one.

    With ``gpus`` CUDA devices here every rank is real; with fewer, one GPU rehearses the fullest rank of ``gpus``;
    with none, two real ranks train on the CPU a model scaled down to fit.

    The words are those of ``dsconf check``, sizes in tokens, sequences and seconds; ``config`` may be its content.
    ``launcher`` starts the ranks: ``torchrun``, ``deepspeed`` or ``direct``; by default torchrun for two or more.
    ``progress`` is told, line by line, what is being done. ``runner`` carries the order out: real processes on this
    machine unless a test says otherwise. A run that failed has ``ran`` False and says why in ``failure``.

    Raises:
        InputError: an input that cannot be read or does not go together.
        UnavailableError: something that cannot be launched here at all.
        KeyboardInterrupt: Ctrl-C; nothing is left running or on disk.
    """
    words = dict(locals())
    wish = _read(words)
    place = None if record is None else writable("--record", record)
    judged = precheck(config, wish.config, gpus, any((micro_batch_size, gradient_accumulation_steps)))
    if judged.failure is not None:
        return CheckResult(False, "real", world_size=gpus, failure=judged.failure, findings=judged.findings)
    wish, tell, launched = settled(wish), progress or silent, runner or SubprocessRunner()

    def run(wanted: Wish) -> CheckResult:
        return launch(wanted, judged.notes, timeout, tell, launched)

    result = find_boundary(wish, run, tell) if fit else run(wish)
    return result if place is None else append(place, result, tell)


def _read(words: Mapping[str, Any]) -> Wish:
    """The words of ``check`` as one value."""
    from dsconf.config.load import load_config

    _require(**{name: words[name] for name in ("steps", "gpus", "timeout", "gpus_per_node")})
    one_of("--attention", words["attention"], ATTENTION_KERNELS)
    if words["launcher"] is not None:
        one_of("--launcher", words["launcher"], LAUNCHERS)
    if words["load_dtype"] is not None:
        one_of("--load-dtype", words["load_dtype"], LOAD_DTYPES)
    module, snapshot = words["module"], words["memory_snapshot"]
    _quantized(words["quantize"], words["lora_rank"], words["zero_init"], module)
    config = load_config(words["config"])
    model = _model(words["params"], words["model"], words["lora_rank"], module)
    return Wish(
        config,
        model,
        words["gpus"],
        words["gpus_per_node"],
        words["steps"],
        _seq_len(words["seq_len"], model),
        words["micro_batch_size"],
        words["gradient_accumulation_steps"],
        checkpointing=bool(words["activation_checkpointing"]),
        attention=words["attention"],
        load_dtype=words["load_dtype"],
        quantize=words["quantize"],
        zero_init=_zero_init(words["zero_init"], module),
        module=module or "",
        cap_bytes=_cap(words["gpu"], words["gpus"], words["gpus_per_node"], config),
        launcher=words["launcher"],
        snapshot="" if snapshot is None else str(writable("--memory-snapshot", snapshot, new=True)),
    )


def _seq_len(seq_len: int | None, model: Model | None) -> int:
    """As asked for; a module of the person's own says nothing of how long its sequences may be."""
    if seq_len is not None:
        _require(seq_len=seq_len)
    return (seq_len or USUAL_SEQ_LEN) if model is None else sequence_length(seq_len, model)


def _model(
    params: str | int | None, model: str | Path | Mapping[str, Any] | None, lora_rank: int | None, module: str | None
) -> Any:
    from dsconf.model.read import read_model

    if module is None:
        return read_model(params, model, lora_rank)
    if (params, model, lora_rank) != (None, None, None):
        raise InputError("--module: it is the model and has its adapters; leave --params, --model, --lora-rank out")
    file, colon, function = module.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in file.split("."))):
        raise InputError(f"--module: {module!r} is not of the form package.file:function")
    return None


def _quantized(quantize: str | None, lora_rank: int | None, zero_init: bool | None, module: str | None) -> None:
    """Refuse what quantized weights do not go with."""
    if quantize is None:
        return
    if module is not None:
        raise InputError(f"--quantize {quantize}: --module brings its own weights; quantize them there")
    read_quantize(quantize, lora_rank)
    if zero_init:
        raise InputError(f"--quantize {quantize}: zero.Init cannot hold quantized weights; leave --zero-init out")


def _zero_init(wanted: bool | None, module: str | None) -> bool | None:
    """A module of the person's own is built as it is unless zero.Init is asked for."""
    return False if wanted is None and module is not None else wanted


def _cap(gpu: str | None, gpus: int, gpus_per_node: int, config: Mapping[str, Any]) -> int:
    """What torch may allocate on a ``gpu``: its memory less CUDA's context and NCCL's buffers."""
    if gpu is None:
        return 0
    from dsconf.cluster.read import read_cluster
    from dsconf.config.resolve import resolve
    from dsconf.config.settings import Settings
    from dsconf.memory.allocator import CONTEXT_BYTES
    from dsconf.memory.timeline.reserved import nccl_bytes

    cluster = read_cluster(gpus, gpu, gpus_per_node=gpus_per_node)
    try:
        settings = resolve(config, gpus)
    except InputError:  # precheck says what is wrong with the config
        settings = Settings()
    return cluster.gpu.memory_bytes - CONTEXT_BYTES - nccl_bytes(cluster, settings)


def _require(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')}: {value} is not a positive number")


def find_boundary(
    wish: Wish, run: Callable[[Wish], CheckResult], progress: Callable[[str], None] = lambda line: None
) -> CheckResult:
    """The result of the largest micro-batch that ran, with the boundary in its ``fit``; else of a single sequence.

    Doubles from the micro-batch of ``wish`` while it runs, then halves the gap between the largest that ran and the
    smallest that did not. Memory grows with the micro-batch, so whatever lies between is decided.

    Raises:
        UnavailableError: there is no CUDA device, or no memory was ever filled at a micro-batch of 65 536.
    """
    runs: list[tuple[int, bool]] = []
    results: dict[int, CheckResult] = {}
    largest, failed = 0, None
    candidate = wish.micro_batch or 1
    while failed is None or failed - largest > 1:
        progress(f"trying a micro-batch of {candidate}")
        result = results[candidate] = run(wish._replace(micro_batch=candidate))
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
