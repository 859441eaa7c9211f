"""One launched training: planned for the machine there is, run, and held against its prediction."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsconf.errors import UnavailableError
from dsconf.live import advice, result
from dsconf.live.plan import CheckRequest, RunPlan, as_run, make_plan
from dsconf.live.predict import comparable, predict
from dsconf.live.processes.launcher import Outcome, Runner
from dsconf.live.processes.order import Order, Probe
from dsconf.live.result import CheckResult, Figures
from dsconf.units import format_bytes


def launch(
    request: CheckRequest, notes: tuple[str, ...], timeout: float, progress: Callable[[str], None], runner: Runner
) -> CheckResult:
    """Run ``request`` and report; ``notes`` come before those of the plan."""
    plans: list[RunPlan] = []
    probes: list[Probe] = []

    def decide(probe: Probe) -> Order:
        plan = make_plan(request, probe)
        plan = plan._replace(notes=(*notes, *plan.notes))
        room = room_note(plan)
        plans.append(plan)
        probes.append(probe)
        for line in (*plan.notes, *(f"scaled down: {change}" for change in plan.scaled_down), *filter(None, [room])):
            progress(line)
        return plan.order

    outcome = runner.run(decide, progress, timeout)
    if not plans:
        explained = advice.explained(outcome.failure, None, None)
        return CheckResult(False, "real", world_size=request.world_size, failure=explained)
    return _report(request, plans[0], probes[0], outcome)


def no_progress(line: str) -> None:
    """Take a line of progress that nobody asked for."""


def _report(request: CheckRequest, plan: RunPlan, probe: Probe, outcome: Outcome) -> CheckResult:
    plan = as_run(plan, _last(outcome, "built").get("attention", ""), probe)
    predicted = predict(plan, _last(outcome, "predicted"))
    process, iterations = result.fullest(outcome.events)
    order = plan.order
    measured = result.figures(iterations, _last(outcome, "initialized").get("init_bytes"))
    notes, phases = plan.notes, {phase: sum(terms.values()) for phase, terms in predicted.phases.items()}
    error = result.error_percent(predicted.peak_bytes, measured.peak_bytes)
    furthest = result.furthest_off(iterations, predicted.phases, predicted.stays)
    if not comparable(plan):
        notes = (*notes, "offloaded tensors lie in the same memory as the others here: peaks are not compared")
        error, phases, furthest = None, {}, None
    tokens = 0 if order.module else order.tokens
    return CheckResult(
        ran=outcome.failure is None,
        ranks="rehearsed" if order.rehearsed else "real",
        predicted=Figures(
            predicted.peak_bytes,
            predicted.reserved_bytes,
            predicted.step_seconds,
            predicted.init_bytes,
            predicted.process_bytes,
        ),
        measured=measured,
        error_percent=error,
        measured_by=_last(outcome, "done").get("source"),
        device=probe.device_name,
        world_size=request.world_size,
        world_size_run=order.world_size,
        rank=order.rank if order.rehearsed else process,
        micro_batch_size=order.workload.micro_batch,
        limit_bytes=order.cap_bytes or None,
        phases=result.compare_phases(iterations, phases),
        furthest_off=furthest,
        iterations=tuple(iterations),
        host_peak_bytes=_last(outcome, "done").get("host_peak_bytes"),
        card_used_bytes=max((event["card_used_bytes"] or 0 for event in iterations), default=0) or None,
        tokens_per_second=tokens / measured.step_seconds if tokens and measured.step_seconds else None,
        loss=iterations[-1]["loss"] if iterations else None,
        snapshot=_last(outcome, "snapshot").get("file"),
        scaled_down=plan.scaled_down,
        notes=notes,
        versions=probe.versions,
        seconds=round(outcome.seconds, 2),
        phase_seconds=outcome.phase_seconds,
        failure=advice.explained(outcome.failure, predicted, plan),
        order=order,
        every_rank=result.every_rank(outcome.events, order.rank if order.rehearsed else 0),
    )


def _last(outcome: Outcome, name: str) -> dict[str, Any]:
    """Return the event ``name`` with the largest host peak over the ranks; empty where there is none."""
    found = [event for events in outcome.events for event in events if event["event"] == name]
    return max(found, key=lambda event: int(event.get("host_peak_bytes", 0)), default={})


BYTES_PER_PARAMETER = 16
"""At most: Adam's two moments and the fp32 weights, and DeepSpeed's module file once more in the type trained in."""


def room_note(plan: RunPlan) -> str | None:
    """Say what the checkpoint of ``plan`` takes at most, and where; None where none is saved.

    Raises:
        UnavailableError: there is less room than that.
    """
    order = plan.order
    if not order.save_after or plan.job is None:
        return None
    folder = Path(order.checkpoint).parent
    needed, free = BYTES_PER_PARAMETER * plan.job.model.num_params, shutil.disk_usage(folder).free
    if needed > free:
        raise UnavailableError(
            f"--resume: a checkpoint takes up to {format_bytes(needed)}, and {folder} has {format_bytes(free)} left; "
            "set TMPDIR to a folder on a larger disk"
        )
    return f"a checkpoint of at most {format_bytes(needed)} will be written to {folder} and deleted again"
