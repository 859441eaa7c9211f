"""What a check found: measured against predicted, or why it did not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dsconf.live.launcher import Failure

MEASUREMENT_VERSION = 1
"""Raised whenever the measuring changes, so that records of different kinds are not mixed."""
PHASES = ("forward", "backward", "step")
FAILURE_EXITS = {"timeout": 3, "missing": 3}
"""Exit codes of failures other than 1."""


class Figures(NamedTuple):
    """One side of the comparison, for the rank that holds most. None where there is no such figure."""

    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    step_seconds: float | None = None


NO_FIGURES = Figures()


class Phase(NamedTuple):
    """Peak of one phase over all iterations, and the error of the prediction in percent of the measured."""

    predicted_bytes: int | None
    measured_bytes: int | None
    error_percent: float | None


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
    failure: Failure | None = None
    findings: tuple[Mapping[str, Any], ...] = ()
    """What validation found, when it kept the run from starting."""

    @property
    def exit_code(self) -> int:
        """0 it ran, 1 it failed, 3 it cannot be run here."""
        if self.failure is None:
            return 0
        return FAILURE_EXITS.get(self.failure.kind, 1)

    def to_json(self) -> dict[str, Any]:
        """The document ``--format json`` prints."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        document["measurement_version"] = MEASUREMENT_VERSION
        for name in ("predicted", "measured"):
            document[name] = document[name]._asdict()
        document["phases"] = {name: phase._asdict() for name, phase in self.phases.items()}
        document["failure"] = None if self.failure is None else self.failure._asdict()
        return document


def fullest(events: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The iterations of the rank with the highest peak; empty where no iteration was finished."""
    ranks = [[_bare(event) for event in rank if event["event"] == "iteration"] for rank in events]
    return max(ranks, key=lambda iterations: _peak(iterations) or 0, default=[])


def _bare(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("event", "time")}


def _peak(iterations: list[dict[str, Any]]) -> int | None:
    return max((event[f"{phase}_bytes"] for event in iterations for phase in PHASES), default=None)


def figures(iterations: list[dict[str, Any]]) -> Figures:
    """Peaks over all iterations; the step time is the median of those after the first, which warms up."""
    from statistics import median

    later = [event["step_seconds"] for event in iterations[1:] or iterations]
    reserved = max((event.get("reserved_bytes", 0) for event in iterations), default=0)
    return Figures(_peak(iterations), reserved or None, median(later) if later else None)


def error_percent(predicted: float | None, measured: float | None) -> float | None:
    """By how much ``predicted`` is too high (or, negative, too low), in percent of ``measured``."""
    if predicted is None or not measured:
        return None
    return round(100 * (predicted - measured) / measured, 2)


def compare_phases(iterations: list[dict[str, Any]], predicted: Mapping[str, int]) -> dict[str, Phase]:
    """Each phase's measured peak beside what was predicted of that phase."""
    phases = {}
    for name in PHASES:
        measured = max((event[f"{name}_bytes"] for event in iterations), default=None)
        expected = predicted.get(name)
        phases[name] = Phase(expected, measured, error_percent(expected, measured))
    return phases
