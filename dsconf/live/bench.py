"""``dsconf bench``: the same model on the same data under several strategies, side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.errors import InputError, UnavailableError, one_of
from dsconf.live.plan import CPU_RANKS, CheckRequest
from dsconf.live.processes.crew import StopSignals
from dsconf.live.processes.launcher import Failure, Runner, SubprocessRunner
from dsconf.live.result import CheckResult
from dsconf.live.run import launch, no_progress
from dsconf.request import BENCH_DEFAULTS, BenchWords
from dsconf.units import whole
from dsconf.word import read, worded
from dsconf.workload import Workload

if TYPE_CHECKING:
    from typing_extensions import Unpack

STRATEGIES = {
    "single": ("ddp", 0),
    "ddp": ("ddp", 0),
    "zero1": ("deepspeed", 1),
    "zero2": ("deepspeed", 2),
    "zero3": ("deepspeed", 3),
    "accelerate": ("accelerate", 2),
}
"""Strategy: backend and ZeRO stage. ``single`` is one GPU without DeepSpeed; Accelerate runs DeepSpeed's stage 2."""


class Row(NamedTuple):
    """One strategy: what it took, and what it learned."""

    strategy: str
    world_size: int
    step_seconds: float | None
    tokens_per_second: float | None
    speedup: float | None
    """Tokens a second against ``single``."""
    peak_bytes: int | None
    """Of the fullest rank."""
    losses: tuple[float, ...]
    loss_difference: float | None
    """Largest difference to the first strategy's loss of the same step."""
    resumed: bool | None
    """Whether the run from the checkpoint went on with the losses of the run that saved it; None: not tried."""
    failure: Failure | None


@dataclass(frozen=True)
class BenchResult:
    """The rows in the order asked for, and what they have in common."""

    rows: tuple[Row, ...]
    device: str
    global_batch: int
    """Sequences of one optimizer step, the same for all."""
    seq_len: int
    steps: int
    scaled_down: tuple[str, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def exit_code(self) -> int:
        """0 all ran, 3 none could be run here, else 1."""
        failed = [row.failure for row in self.rows if row.failure is not None]
        if failed and all(failure.kind in ("missing", "timeout") for failure in failed):
            return 3
        return 1 if failed or any(row.resumed is False for row in self.rows) else 0

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--format json`` prints."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        rows = [row._asdict() for row in self.rows]
        for row in rows:
            row["failure"] = None if row["failure"] is None else row["failure"]._asdict()
        return document | {"rows": rows}


@worded(BenchWords, BENCH_DEFAULTS)
def bench(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    runner: Runner | None = None,
    **words: Unpack[BenchWords],
) -> BenchResult:
    """Train ``model`` with each strategy for some optimizer steps from the same weights on the same tokens.

    All run on the GPUs of this machine (``gpus`` of them, by default all; without any two ranks on the CPU, scaled
    down). ``single`` takes the micro-batches of all ranks one after the other, so that every strategy sees the same
    global batch. The words are those of ``dsconf bench``; ``strategies`` are some of ``STRATEGIES``, in a sequence or
    separated by commas, and ``timeout`` is seconds for one of them.

    Raises:
        InputError: a word that cannot be used as given.
        UnavailableError: there are fewer GPUs here than asked for.
    """
    from dsconf.model.read import read_model

    word = read(BenchWords, words, BENCH_DEFAULTS)
    names = _names(word["strategies"])
    steps, seq_len = word["steps"], word["seq_len"] or 0
    if word["resume"] and steps < 2:
        raise InputError(f"--steps {steps}: --resume saves half-way, so it needs at least 2")
    ranks = _ranks(gpus)
    request = CheckRequest(
        {},
        read_model(params, model),
        ranks,
        workload=Workload(
            seq_len=seq_len,
            checkpointing=bool(word["activation_checkpointing"]),
            attention=word["attention"],
            zero_init=False,
        ),
        micro_batch=word["micro_batch_size"],
        accumulation=word["gradient_accumulation_steps"],
        gpus_per_node=ranks,
        steps=steps,
        real_gpus=ranks,
        launcher=word["launcher"],
        save_after=steps // 2 if word["resume"] else 0,
    )
    requests = {name: _request(request, name, word) for name in names}
    return _collect(
        _run_all(requests, word["timeout"], progress or no_progress, runner or SubprocessRunner()), seq_len, steps
    )


class _Run(NamedTuple):
    """What came of one strategy, and whether it resumed (None: not tried)."""

    result: CheckResult
    resumed: bool | None


def _run_all(
    requests: Mapping[str, CheckRequest], timeout: float, tell: Callable[[str], None], runner: Runner
) -> dict[str, _Run]:
    """Run each strategy in its turn. A checkpoint is deleted before the next strategy writes one."""
    runs: dict[str, _Run] = {}
    with StopSignals() as signals:
        for name, request in requests.items():
            with TemporaryDirectory(prefix="dsconf-bench-") as folder:
                request = request._replace(checkpoint=str(Path(folder) / name))
                tell(f"strategy {name}")
                result, resumed = launch(request, (), timeout, tell, runner), None
                if request.save_after and result.ran:
                    tell(f"strategy {name}, from its checkpoint")
                    again = launch(
                        request._replace(save_after=0, resume_at=request.save_after), (), timeout, tell, runner
                    )
                    resumed = _goes_on(result, again, request.save_after)
                    result = replace(result, failure=again.failure)
                runs[name] = _Run(result, resumed)
            signals.end_as_asked()
    return runs


def _names(strategies: str | Sequence[str]) -> list[str]:
    names = strategies.split(",") if isinstance(strategies, str) else list(strategies)
    names = [name.strip() for name in names]
    for name in names:
        one_of("--strategies", name, tuple(STRATEGIES))
    return list(dict.fromkeys(names))


def _ranks(gpus: int | None) -> int:
    """Return how many ranks train: as asked, else one for each GPU, else two on the CPU."""
    if gpus is not None:
        return whole("--gpus", gpus)
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=120)
    if answer.returncode:
        raise UnavailableError("torch is not installed: pip install 'dsconf[check]'")
    return int(answer.stdout) or CPU_RANKS


def _request(request: CheckRequest, name: str, word: BenchWords) -> CheckRequest:
    """Return ``request`` for the strategy ``name``, with DeepSpeed's own defaults in its config."""
    from dsconf.config.render import render
    from dsconf.config.settings import Settings

    backend, stage = STRATEGIES[name]
    ranks, accumulation = 1 if name == "single" else request.world_size, request.accumulation or 1
    settings = Settings(
        stage=stage,
        precision=word["precision"] or "bf16",
        overlap_comm=stage == 3,
        micro_batch=request.micro_batch,
        accumulation=accumulation,
        train_batch=(request.micro_batch or 1) * accumulation * ranks,
    )
    return request._replace(
        config=json.loads(render(settings, learning_rate=word["learning_rate"])),
        world_size=ranks,
        accumulation=accumulation * request.world_size if name == "single" else accumulation,
        backend=backend,
        workload=replace(request.workload, load_dtype="fp32" if backend == "ddp" else None),
    )


def _goes_on(first: CheckResult, again: CheckResult, saved_after: int) -> bool:
    """Tell whether the processes that loaded the checkpoint saw the losses that the saving run saw."""
    expected = [step["loss"] for step in first.iterations if step["iteration"] >= saved_after]
    found = [step["loss"] for step in again.iterations]
    return again.ran and len(found) == len(expected) and all(_near(a, b) for a, b in zip(found, expected, strict=True))


def _near(a: float, b: float) -> bool:
    """Equal but for the order of a 16-bit sum."""
    return abs(a - b) <= 2e-3 * max(abs(a), abs(b))


def _collect(runs: dict[str, _Run], seq_len: int, steps: int) -> BenchResult:
    every = [run.result for run in runs.values()]
    some = next((result for result in every if result.order is not None), every[0])
    order = some.order
    return BenchResult(
        rows=tuple(_rows(runs)),
        device=some.device,
        global_batch=order.tokens // order.workload.seq_len if order else 0,
        seq_len=order.workload.seq_len if order else seq_len,
        steps=steps,
        scaled_down=some.scaled_down,
        notes=tuple(dict.fromkeys(note for result in every for note in result.notes)),
        versions=some.versions,
    )


def _rows(runs: dict[str, _Run]) -> Iterator[Row]:
    alone = runs["single"].result.tokens_per_second if "single" in runs else None
    first = _losses(next(iter(runs.values())).result)
    for name, (result, resumed) in runs.items():
        losses, speed = _losses(result), result.tokens_per_second
        compared = [abs(a - b) for a, b in zip(losses, first, strict=False)]
        yield Row(
            strategy=name,
            world_size=result.world_size_run or result.world_size,
            step_seconds=result.measured.step_seconds,
            tokens_per_second=speed,
            speedup=speed / alone if speed and alone else None,
            peak_bytes=result.measured.peak_bytes,
            losses=losses,
            loss_difference=max(compared, default=None),
            resumed=resumed,
            failure=result.failure,
        )


def _losses(result: CheckResult) -> tuple[float, ...]:
    return tuple(step["loss"] for step in result.iterations)
