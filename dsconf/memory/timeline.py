"""The moments of a training step at which one rank's memory can peak, each as named bytes.

Every moment is what stays (memory/states.py) plus what is alive only then. Only the steady state is looked at, from the
second step on, besides the first optimizer step, which makes the states.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.job import Job
from dsconf.memory import unsharded, zero3, zero12
from dsconf.memory.moments import Alive, Bytes, Kind, Step, prepare
from dsconf.memory.standing import staying
from dsconf.memory.states import Terms, resident


class Sketch(NamedTuple):
    """A moment: the terms that are alive beside those that stay."""

    phase: str
    name: str
    terms: Terms

    @property
    def num_bytes(self) -> int:
        """Sum of the terms."""
        return sum(size for _, size in self.terms)


def timeline(job: Job, rank: int) -> tuple[Terms, list[Sketch]]:
    """The terms that stay on ``rank``, and every moment worth looking at.

    Stage by stage: forward and loss, start of backward, each full bucket, its end, gradient norm, optimizer step.
    """
    found = [Sketch(kind.phase, kind.name, named(kind, sizes)) for kind, sizes in moments(prepare(job), rank)]
    return staying(resident(job, rank)), found


def named(kind: Kind, sizes: Bytes) -> Terms:
    """The terms of one moment that are there."""
    found: dict[str, int] = {}
    for name, size in zip(kind.terms, sizes, strict=True):
        if size:
            found[name] = found.get(name, 0) + size
    return tuple(found.items())


def moments(step: Step, rank: int) -> list[Alive]:
    """The moments of ``rank``; only slices of a flat buffer make ranks differ."""
    if step.wrapper == "zero12":
        return zero12.moments(step, rank)
    return zero3.moments(step) if step.wrapper == "zero3" else unsharded.moments(step)
