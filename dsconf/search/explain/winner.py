"""Why the winner won: the rule that decided, what fills the GPU, what takes the time, what the next best costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dsconf.search.explain.reason import Reason, facts, gained, reason
from dsconf.search.rank import EQUAL, Decision, combination, same_states

if TYPE_CHECKING:
    from dsconf.search.candidates import Candidate
    from dsconf.search.explain.limits import Limit

WAITS_FOR = {
    "communication": ("link_in_node", "network_between_nodes"),
    "offload": ("link_to_host", "host_cpu", "nvme"),
}
"""What a part of the step can wait for: the resources that make it shorter."""


def why(decision: Decision, candidates: Sequence[Candidate], slowest: Sequence[Limit] = ()) -> Iterator[Reason]:
    """Say what decided, where memory and time go, and what the next best loses."""
    winner = decision.winner
    yield _decided(decision, candidates)
    yield _fullest(winner)
    yield _slowest(winner, slowest)
    following = runner_up(winner, candidates)
    if following is not None:
        yield reason(
            "next_best",
            config=facts(following),
            gain=gained(following, winner),
            tight=following.fits == "tight" and winner.fits == "yes",
            lost_to=grown(following, winner),
            more_bytes=following.estimate.process_bytes - winner.estimate.process_bytes,
        )


def _decided(decision: Decision, candidates: Sequence[Candidate]) -> Reason:
    """Name the rule of ``decide`` that chose, and what it chose from."""
    winner, held = decision.winner, decision.held_back
    figures: dict[str, Any] = {
        "config": facts(winner),
        "resort": decision.resort,
        "held_back": None if held is None else facts(held) | {"gain": gained(held, winner)},
    }
    if decision.decided_by == "simplicity":
        faster = decision.fastest
        return reason("simplest", **figures, faster=facts(faster), gain=gained(faster, winner), within=EQUAL)
    fitting = [c for c in candidates if c.fits == winner.fits and c.settings.engine == "deepspeed"]
    alike = [candidate for candidate in fitting if same_states(candidate, winner)]
    low = winner.settings.bf16_optimizer_states
    left_out = "large_host" if winner.offloads else "offload"
    figures |= {
        "states": None if len(alike) == len(fitting) else "bf16" if low else "fp32",
        "left_out": left_out if len(alike) > len(decision.rivals) else None,
    }
    if decision.decided_by == "only":
        return reason("only_one", **figures)
    return reason("fastest", **figures, count=len(decision.rivals))


def runner_up(winner: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the best of the others that fit, are not faster and differ from the winner in more than their batch.

    One that is faster comes after the winner for another reason than its speed, which ``why`` says first of all; one
    with states in bf16 is another training, where the winner's are in fp32.
    """
    others = (other for other in candidates if other.fits != "no" and other.settings.engine == "deepspeed")
    low = winner.settings.bf16_optimizer_states
    alike = (other for other in others if other.settings.bf16_optimizer_states <= low)
    slower = (other for other in alike if other.tokens_per_second <= winner.tokens_per_second)
    return next((other for other in slower if combination(other) != combination(winner)), None)


def _fullest(winner: Candidate) -> Reason:
    estimate, peak = winner.estimate, winner.estimate.peak
    step = {"phase": peak.phase, "moment": peak.name, "peak_bytes": peak.num_bytes, "term": largest_term(winner)}
    if estimate.init_peak_bytes > estimate.peak_bytes:
        return reason("fullest_at_start", start_bytes=estimate.init_peak_bytes, **step)
    return reason("fullest", **step)


def largest_term(candidate: Candidate) -> dict[str, Any]:
    """State what takes most at the peak: its name, its bytes and its formula."""
    term = max(candidate.estimate.peak.terms, key=lambda term: term.num_bytes)
    return {"name": term.name, "bytes": term.num_bytes, "formula": term.formula}


def _slowest(winner: Candidate, slowest: Sequence[Limit]) -> Reason:
    part, seconds = max(winner.step.parts.items(), key=lambda item: item[1])
    waits = [limit.resource for limit in slowest if limit.resource in WAITS_FOR.get(part, ()) and limit.gain >= 0.01]
    return reason(
        "slowest",
        part=part,
        waits_for=waits[0] if waits else None,
        share=seconds / winner.step.seconds,
        step_seconds=winner.step.seconds,
    )


def grown(candidate: Candidate, winner: Candidate) -> str | None:
    """Name the part of the step that costs ``candidate`` most more GPU time a token than it costs ``winner``."""

    def each(one: Candidate, part: str) -> float:
        return one.step.parts.get(part, 0.0) / one.step.seconds / one.tokens_per_second * one.job.cluster.world_size

    more = {part: each(candidate, part) - each(winner, part) for part in candidate.step.parts}
    part = max(more, key=lambda part: more[part], default=None)
    return part if part is not None and more[part] > 0 else None
