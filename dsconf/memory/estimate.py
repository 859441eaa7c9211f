"""The answer of the memory model: named bytes at the winning moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.memory import zero12
from dsconf.memory.moments import Alive, Step, prepare
from dsconf.memory.standing import standing
from dsconf.memory.states import Terms
from dsconf.memory.terms import TERMS
from dsconf.memory.timeline import moments, named
from dsconf.memory.verdict import reserved


class Term(NamedTuple):
    """One allocation somebody can point to."""

    name: str
    num_bytes: int
    formula: str
    """In words and figures, e.g. ``2 bytes × 1 235 814 400 parameters``."""
    source: str
    """Where it is allocated: DeepSpeed file:line, or the module's operation."""


class Moment(NamedTuple):
    """All that is allocated at one instant of the step."""

    phase: str
    """``init``, ``forward``, ``backward`` or ``step``."""
    name: str
    """``start of backward``, ``gradient norm`` …"""
    terms: tuple[Term, ...]

    @property
    def num_bytes(self) -> int:
        """Sum of the terms."""
        return sum(term.num_bytes for term in self.terms)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank (GPU side) and of one node (host side)."""

    rank: int
    peak_bytes: int
    """Predicts ``torch.cuda.max_memory_allocated`` over the first training steps, after initialisation."""
    init_peak_bytes: int
    reserved_bytes: int
    process_bytes: int
    host_bytes_per_node: int
    nvme_bytes_per_node: int
    name_moments: Callable[[], tuple[Moment, ...]] = field(repr=False, compare=False)
    """Makes ``moments``: their terms are named when somebody asks, which a search does for few of its candidates."""
    host_terms: Terms = ()
    stays: Terms = ()
    """What is allocated between two steps, from the second on."""
    loading_host_bytes_per_node: int = 0
    """Of a node where each process loads the whole model into its own memory; an upper bound."""

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """The largest moment of each phase, from ``forward`` on."""
        return self.name_moments()

    @property
    def peak(self) -> Moment:
        """The largest moment, the first of several that are as large."""
        return max(self.moments, key=lambda moment: moment.num_bytes)

    @property
    def between_steps_bytes(self) -> int:
        """Predicts ``torch.cuda.memory_allocated`` after a step, from the second on."""
        return sum(size for _, size in self.stays)

    @property
    def peak_phase(self) -> str:
        """``forward``, ``backward`` or ``step``."""
        return self.peak.phase


def estimate(job: Job, rank: int | None = None) -> Estimate:
    """Memory of ``job`` on ``rank``, by default on the fullest rank.

    Raises:
        InputError: no such rank.
    """
    if rank is not None and not 0 <= rank < job.cluster.world_size:
        raise InputError(f"--rank: {rank} is not one of 0 to {job.cluster.world_size - 1}")
    step = prepare(job)
    highest, rank = _fullest(step) if rank is None else (_highest(step, rank), rank)
    held = standing(step, rank)
    peak = highest + held.stays_bytes
    kept = reserved(job, max(peak, held.at_start))
    return Estimate(
        rank,
        peak,
        held.at_start,
        kept,
        kept + held.outside,
        held.host_per_node,
        held.nvme_per_node,
        partial(_largest, step, rank),
        held.host,
        held.stays,
        held.loading_per_node,
    )


def _highest(step: Step, rank: int) -> int:
    """Bytes of the highest moment of ``rank`` beside what stays."""
    return max([sum(sizes) for _, sizes in moments(step, rank)])


def _fullest(step: Step) -> tuple[int, int]:
    """The highest peak of all ranks, beside what stays, and the first rank that has it."""
    if step.wrapper != "zero12":
        return _highest(step, 0), 0
    if zero12.alike(step.settings):
        return zero12.fullest(step)
    found = [(_highest(step, rank), rank) for rank in zero12.full_ranks(step.frame)]
    return max(found, key=lambda one: one[0] + standing(step, one[1]).stays_bytes)


def _largest(step: Step, rank: int) -> tuple[Moment, ...]:
    """The largest moment of each phase, the first of several that are as large."""
    highest: dict[str, tuple[int, Alive]] = {}
    for kind, sizes in moments(step, rank):
        size = sum(sizes)
        if kind.phase not in highest or size > highest[kind.phase][0]:
            highest[kind.phase] = size, (kind, sizes)
    known = _known(step.wrapper)
    always = _terms(standing(step, rank).stays, known)
    winners = [alive for _, alive in highest.values()]
    return tuple([Moment(kind.phase, kind.name, always + _terms(named(kind, alive), known)) for kind, alive in winners])


def _terms(sizes: Terms, known: dict[str, tuple[str, str]]) -> tuple[Term, ...]:
    return tuple([Term(name, size, *known[name]) for name, size in sizes if size])


@lru_cache(maxsize=16)
def _known(wrapper: str) -> dict[str, tuple[str, str]]:
    """Formula and place of every term under one wrapper."""
    return {name: (one.formula, one.place(wrapper)) for name, one in TERMS.items()}
