"""The answer of the memory model: named bytes at the winning moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dsconf.job import Job


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
    peak: Moment
    moments: tuple[Moment, ...]
    """The largest moment of each phase, ``init`` included."""
    init_peak_bytes: int
    reserved_bytes: int
    process_bytes: int
    host_bytes_per_node: int
    nvme_bytes_per_node: int
    host_terms: tuple[Term, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Predicts ``torch.cuda.max_memory_allocated`` over the first training steps, after initialisation."""
        return self.peak.num_bytes

    @property
    def peak_phase(self) -> str:
        """``forward``, ``backward`` or ``step``."""
        return self.peak.phase


def estimate(job: Job, rank: int | None = None) -> Estimate:
    """Memory of ``job`` on ``rank``, by default on the fullest rank."""
    raise NotImplementedError(job, rank)
