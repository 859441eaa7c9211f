"""``dsconf check``: runs a short real DeepSpeed training and holds the prediction against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsconf.errors import InputError, UnavailableError
from dsconf.live import result
from dsconf.live.launcher import Failure, Outcome, Runner, SubprocessRunner
from dsconf.live.order import Order, Probe
from dsconf.live.plan import Plan, Wish, make_plan, settled
from dsconf.live.precheck import precheck
from dsconf.live.predict import comparable, predict
from dsconf.live.result import CheckResult
from dsconf.units import format_bytes
from dsconf.workload import ATTENTION_KERNELS, LOAD_DTYPES

INSTALL = "pip install 'dsconf[check]'"


def check(
    config: str | Path | Mapping[str, Any],
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int = 1,
    gpus_per_node: int = 8,
    seq_len: int = 2048,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    activation_checkpointing: bool | None = None,
    attention: str = "sdpa",
    load_dtype: str | None = None,
    zero_init: bool | None = None,
    lora_rank: int | None = None,
    quantize: str | None = None,
    steps: int = 3,
    timeout: float = 600.0,
    progress: Callable[[str], None] | None = None,
    runner: Runner | None = None,
) -> CheckResult:
    """Train ``steps`` optimizer steps with ``config`` and compare the measured peak with the predicted one.

    With ``gpus`` CUDA devices here every rank is real; with fewer, one GPU rehearses rank 0 of ``gpus``; with none,
    two real ranks train on the CPU a model scaled down to fit.

    Args:
        config: a ds_config file, or its content.
        params, model: what is trained, as ``dsconf.model.read.read_model`` takes it.
        gpus: the world size the config is for.
        seq_len: tokens of one sequence.
        timeout: seconds after which the run is ended.
        progress: is told, line by line, what is being done.
        runner: what carries the order out; real processes on this machine unless a test says otherwise.

    Returns:
        What was measured; a run that failed has ``ran`` False and says why in ``failure``.

    Raises:
        InputError: an input that cannot be read or does not go together.
        UnavailableError: something that cannot be launched at all, such as quantized weights.
        KeyboardInterrupt: Ctrl-C; nothing is left running or on disk.
    """
    from dsconf.config.load import load_config
    from dsconf.model.read import read_model

    _require(steps=steps, gpus=gpus, timeout=timeout, seq_len=seq_len, gpus_per_node=gpus_per_node)
    _one_of("--attention", attention, ATTENTION_KERNELS)
    _one_of("--load-dtype", load_dtype, LOAD_DTYPES)
    if quantize is not None:
        raise UnavailableError(f"--quantize {quantize}: quantized weights cannot be launched with random values")
    batches = (micro_batch_size, gradient_accumulation_steps)
    trained = read_model(params, model, lora_rank)
    wish = Wish(load_config(config), trained, gpus, gpus_per_node, steps, seq_len, *batches)
    wish = wish._replace(checkpointing=bool(activation_checkpointing), attention=attention)
    wish = wish._replace(load_dtype=load_dtype, zero_init=zero_init)
    judged = precheck(config, wish.config, gpus, any(batches))
    if judged.failure is not None:
        return CheckResult(False, "real", world_size=gpus, failure=judged.failure, findings=judged.findings)
    return _launch(settled(wish), judged.notes, timeout, progress or _silent, runner or SubprocessRunner())


def _silent(line: str) -> None:
    """Progress that nobody asked for."""


def _require(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')}: {value} is not a positive number")


def _one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InputError(f"{option}: {value!r} is not one of {', '.join(known)}")


def _launch(
    wish: Wish, notes: tuple[str, ...], timeout: float, progress: Callable[[str], None], runner: Runner
) -> CheckResult:
    plans: list[Plan] = []
    probes: list[Probe] = []

    def decide(probe: Probe) -> Order:
        plan = make_plan(wish, probe)
        plan = plan._replace(notes=(*notes, *plan.notes))
        plans.append(plan)
        probes.append(probe)
        for line in (*plan.notes, *(f"scaled down: {change}" for change in plan.scaled_down)):
            progress(line)
        return plan.order

    outcome = runner.run(decide, progress, timeout)
    if not plans:
        return CheckResult(False, "real", world_size=wish.world_size, failure=_explained(outcome.failure, None))
    return _report(wish, plans[0], probes[0], outcome)


def _report(wish: Wish, plan: Plan, probe: Probe, outcome: Outcome) -> CheckResult:
    predicted, predicted_phases = predict(plan)
    iterations = result.fullest(outcome.events)
    measured = result.figures(iterations)
    notes = plan.notes
    error = result.error_percent(predicted.peak_bytes, measured.peak_bytes)
    if not comparable(plan):
        notes = (*notes, "offloaded tensors lie in the same memory as the others here: peaks are not compared")
        error, predicted_phases = None, {}
    done = _last(outcome, "done")
    return CheckResult(
        ran=outcome.failure is None,
        ranks="rehearsed" if plan.order.rehearsed else "real",
        predicted=predicted,
        measured=measured,
        error_percent=error,
        measured_by=done.get("source"),
        device=probe.device_name,
        world_size=wish.world_size,
        world_size_run=plan.order.world_size,
        phases=result.compare_phases(iterations, predicted_phases),
        iterations=tuple(iterations),
        host_peak_bytes=done.get("host_peak_bytes"),
        card_used_bytes=max((event["card_used_bytes"] or 0 for event in iterations), default=0) or None,
        loss=iterations[-1]["loss"] if iterations else None,
        scaled_down=plan.scaled_down,
        notes=notes,
        versions=probe.versions,
        seconds=round(outcome.seconds, 2),
        failure=_explained(outcome.failure, predicted.peak_bytes),
    )


def _last(outcome: Outcome, name: str) -> dict[str, Any]:
    """The event ``name`` with the largest host peak over the ranks; empty where there is none."""
    found = [event for events in outcome.events for event in events if event["event"] == name]
    return max(found, key=lambda event: int(event.get("host_peak_bytes", 0)), default={})


def _explained(failure: Failure | None, predicted_peak: int | None) -> Failure | None:
    """``failure`` with what a person can do about it, in one line."""
    if failure is None:
        return None
    if failure.kind == "missing" and "pip install" not in failure.message:
        return failure._replace(message=f"{failure.message}: {INSTALL}")
    if failure.kind == "oom":
        asked = f" asking for {format_bytes(failure.asked_bytes)}" if failure.asked_bytes else ""
        expected = f"; a peak of {format_bytes(predicted_peak)} was predicted" if predicted_peak else ""
        return failure._replace(message=f"out of memory in {failure.phase}{asked}{expected}")
    if failure.kind == "exception":
        return failure._replace(message=f"DeepSpeed failed in {failure.phase}: {failure.message}")
    return failure
