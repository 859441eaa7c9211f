"""Speed against memory: which candidates nothing else beats in both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dsconf.search.candidates import Candidate

LESS = 0.9
"""Of the memory of the one before it, what the next one in the short list takes at most."""


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Of the DeepSpeed candidates that fit, those that none with as little memory on each GPU outruns, fastest first.

    Memory is ``process_bytes`` of the fullest rank. Of two with the same figures the first counts. A tight fit counts
    only where nothing has headroom, and states in bf16, which train differently, where nothing fits without them.
    """
    ours = [candidate for candidate in candidates if candidate.settings.engine == "deepspeed"]
    fitting = [c for c in ours if c.fits == "yes"] or [c for c in ours if c.fits == "tight"]
    alike = [c for c in fitting if not c.settings.bf16_optimizer_states] or fitting
    front: list[Candidate] = []
    for candidate in sorted(alike, key=lambda c: (c.estimate.process_bytes, -c.tokens_per_second)):
        if not front or candidate.tokens_per_second > front[-1].tokens_per_second:
            front.append(candidate)
    return tuple(reversed(front))


def spread(front: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """A short list of ``front``: the fastest, then each time the fastest that takes a tenth less memory."""
    kept: list[Candidate] = []
    for candidate in front:
        if not kept or candidate.estimate.process_bytes <= LESS * kept[-1].estimate.process_bytes:
            kept.append(candidate)
    return tuple(kept)
