"""What a check found: measured against predicted, or why it did not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dsconf.live.processes.launcher import Failure
from dsconf.live.processes.order import Order

MEASUREMENT_VERSION = 1
"""Raised whenever the measuring changes, so that records of different kinds are not mixed."""
PHASES = ("forward", "backward", "step")
NOT_SHOWN = ("order", "every_rank")
"""Fields of a result that are not in its JSON document."""
FAILURE_EXITS = {"timeout": 3, "missing": 3}
"""Exit codes of failures other than 1."""


class Figures(NamedTuple):
    """One side of the comparison, for the rank that holds most. None where there is no such figure."""

    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    step_seconds: float | None = None
    init_bytes: int | None = None
    """Peak of initialisation; measured, a lower bound, since DeepSpeed resets torch's counter on the way."""
    process_bytes: int | None = None
    """As nvidia-smi shows it."""


NO_FIGURES = Figures()


class RankFigures(NamedTuple):
    """What one rank of a run measured."""

    rank: int
    measured: Figures
    iterations: tuple[Mapping[str, Any], ...]
    """Raw figures, iteration by iteration."""
    after_init_bytes: int | None = None
    """Allocated when initialisation was done."""
    host_peak_bytes: int | None = None
    """Largest resident memory of its process."""


class Phase(NamedTuple):
    """Peak of one phase over all iterations, and the error of the prediction in percent of the measured."""

    predicted_bytes: int | None
    measured_bytes: int | None
    error_percent: float | None


class PredictedPart(NamedTuple):
    """One part of the prediction: what stays between steps, or what a phase adds to it."""

    name: str
    terms: tuple[str, ...]
    """The terms of the memory model in it, the largest first."""
    off_bytes: int
    """Predicted less measured."""


class Fit(NamedTuple):
    """The boundary found by running: micro-batches of one rank."""

    largest: int
    """The largest that ran; 0 where not even one sequence did."""
    failed: int | None
    """The smallest that ran out of memory; None where none did."""
    runs: tuple[tuple[int, bool], ...]
    """Every micro-batch tried, in that order, and whether it ran."""


@dataclass(frozen=True)
class CheckResult:
    """The answer of ``dsconf check``. Bytes and seconds; percentages are of the measured value."""

    ran: bool
    """Whether every step ran to its end."""
    ranks: str
    """``real`` or ``rehearsed`` (one real rank of many)."""
    predicted: Figures = NO_FIGURES
    measured: Figures = NO_FIGURES
    error_percent: float | None = None
    measured_by: str | None = None
    """``cuda allocator`` or ``live tensors on the CPU``."""
    device: str = ""
    world_size: int = 0
    """As asked."""
    world_size_run: int = 0
    rank: int = 0
    """Which rank the figures are of."""
    micro_batch_size: int | None = None
    limit_bytes: int | None = None
    """What the process was allowed to allocate, where a smaller card was named."""
    furthest_off: PredictedPart | None = None
    fit: Fit | None = None
    tokens_per_second: float | None = None
    """Of all ranks together; a rehearsal leaves the communication out."""
    snapshot: str | None = None
    phases: Mapping[str, Phase] = field(default_factory=dict)
    iterations: tuple[Mapping[str, Any], ...] = ()
    """Raw figures of the rank that holds most, iteration by iteration."""
    host_peak_bytes: int | None = None
    """Largest resident memory of one training process."""
    card_used_bytes: int | None = None
    """In use on the whole card, contexts and other processes included."""
    loss: float | None = None
    scaled_down: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    """Where the time of rank 0 went: ``launch`` (until it begins), ``import``, ``build``, ``init``, ``train``, …"""
    failure: Failure | None = None
    order: Order | None = None
    """What was run, in every detail; not in the JSON document."""
    every_rank: tuple[RankFigures, ...] = ()
    """Each process's own figures, by rank; not in the JSON document."""
    findings: tuple[Mapping[str, Any], ...] = ()
    """What validation found, when it kept the run from starting."""

    @property
    def exit_code(self) -> int:
        """0 it ran, 1 it failed, 3 it cannot be run here."""
        if self.failure is None:
            return 0
        return FAILURE_EXITS.get(self.failure.kind, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--format json`` prints."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in NOT_SHOWN}
        document["measurement_version"] = MEASUREMENT_VERSION
        for name in ("predicted", "measured"):
            document[name] = document[name]._asdict()
        for name in ("furthest_off", "fit"):
            document[name] = None if document[name] is None else document[name]._asdict()
        document["phases"] = {name: phase._asdict() for name, phase in self.phases.items()}
        document["failure"] = None if self.failure is None else self.failure._asdict()
        return document


def every_rank(events: list[list[dict[str, Any]]], first: int = 0) -> tuple[RankFigures, ...]:
    """Return the figures of each process; the ranks count from ``first``."""
    return tuple(_rank(rank, found) for rank, found in enumerate(events, first))


def _rank(rank: int, events: list[dict[str, Any]]) -> RankFigures:
    said = {event["event"]: event for event in events}
    initialized, done = said.get("initialized", {}), said.get("done", {})
    iterations = [_bare(event) for event in events if event["event"] == "iteration"]
    return RankFigures(
        rank,
        figures(iterations, initialized.get("init_bytes")),
        tuple(iterations),
        initialized.get("after_init_bytes"),
        done.get("host_peak_bytes"),
    )


def fullest(events: list[list[dict[str, Any]]]) -> tuple[int, list[dict[str, Any]]]:
    """Return the process with the highest peak and its iterations; none where no iteration was finished."""
    ranks = [[_bare(event) for event in rank if event["event"] == "iteration"] for rank in events]
    return max(enumerate(ranks), key=lambda found: _peak(found[1]) or 0, default=(0, []))


def _bare(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("event", "time")}


def _peak(iterations: list[dict[str, Any]]) -> int | None:
    return max((event[f"{phase}_bytes"] for event in iterations for phase in PHASES), default=None)


def figures(iterations: list[dict[str, Any]], init_bytes: int | None = None) -> Figures:
    """Return peaks over all iterations; the step time is the median of those after the first, which warms up."""
    from statistics import median

    later = [event["step_seconds"] for event in iterations[1:] or iterations]
    reserved = max((event.get("reserved_bytes", 0) for event in iterations), default=0)
    process = max((event.get("process_bytes") or 0 for event in iterations), default=0)
    return Figures(_peak(iterations), reserved or None, median(later) if later else None, init_bytes, process or None)


def error_percent(predicted: float | None, measured: float | None) -> float | None:
    """Return by how much ``predicted`` is too high (or, negative, too low), in percent of ``measured``."""
    if predicted is None or not measured:
        return None
    return round(100 * (predicted - measured) / measured, 2)


def furthest_off(
    iterations: list[dict[str, Any]], predicted: Mapping[str, Mapping[str, int]], stays: Mapping[str, int]
) -> PredictedPart | None:
    """Return the part of the prediction with the largest error in bytes; None where something is missing.

    What stays between steps is measured at the end of the last step.
    """
    if not iterations or not stays or not set(PHASES) <= set(predicted):
        return None
    resting = iterations[-1]["step_end_bytes"]
    parts = [PredictedPart("what stays between steps", _largest_first(stays), sum(stays.values()) - resting)]
    for phase in PHASES:
        added = {name: size - stays.get(name, 0) for name, size in predicted[phase].items()}
        measured = max(event[f"{phase}_bytes"] for event in iterations) - resting
        parts.append(PredictedPart(f"what {phase} adds", _largest_first(added), sum(added.values()) - measured))
    return max(parts, key=lambda part: abs(part.off_bytes))


def _largest_first(terms: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(name for name, size in sorted(terms.items(), key=lambda term: -term[1]) if size > 0)


def compare_phases(iterations: list[dict[str, Any]], predicted: Mapping[str, int]) -> dict[str, Phase]:
    """Put each phase's measured peak beside what was predicted of that phase."""
    phases = {}
    for name in PHASES:
        measured = max((event[f"{name}_bytes"] for event in iterations), default=None)
        expected = predicted.get(name)
        phases[name] = Phase(expected, measured, error_percent(expected, measured))
    return phases
