"""What more GPUs, or fewer, would give: each number is asked for as the recommendation itself was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dsconf.search.candidates import Candidate
from dsconf.search.explain.reason import Reason, facts, reason
from dsconf.search.explain.winner import grown
from dsconf.search.question import Question, best_like
from dsconf.search.rank import EQUAL, same_states

POOR = 0.8
"""Speed of a GPU among others against the same GPU among fewer below which it is said."""


class Scale(NamedTuple):
    """The best on another number of GPUs. ``efficiency`` compares one GPU's tokens a second with the winner's."""

    gpus: int
    candidate: Candidate
    gain: float
    """More tokens a second of the whole cluster, as a part of the winner's."""

    def efficiency(self, winner: Candidate) -> float:
        """Return tokens a second of one GPU here, as a part of those of one GPU of ``winner``."""
        return (1 + self.gain) * winner.job.cluster.world_size / self.gpus


def sizes(gpus: int, node: int) -> list[int]:
    """List other numbers of GPUs worth a look: one, half, two more (one more than one), a node, a node more, twice."""
    fewer = {1, gpus // 2, node} if gpus > 1 else set()
    more = {gpus + (2 if gpus > 1 else 1), node} if gpus < node else {(gpus // node + 1) * node}
    return sorted(size for size in {*fewer, *more, 2 * gpus} if 0 < size != gpus and (size <= node or size % node == 0))


def scales(winner: Candidate, question: Question) -> Iterator[Scale]:
    """Find the best on other numbers of GPUs, fewest first; the ones where nothing fits are left out."""
    for gpus in sizes(question.cluster.world_size, question.node_size):
        candidate = best_like(winner, question.on(gpus))
        if candidate is not None:
            yield Scale(gpus, candidate, candidate.tokens_per_second / winner.tokens_per_second - 1)


def scaling_notes(winner: Candidate, others: Sequence[Scale]) -> Iterator[Reason]:
    """Say where more GPUs bring nothing, or each of them less, and what their step waits for."""
    now = winner.job.cluster.world_size
    fewer = [scale for scale in others if scale.gpus < now]
    equal = next((scale for scale in fewer if scale.gain >= -EQUAL), None)
    alone = next((scale for scale in fewer if alike(scale.candidate, winner)), None)
    if equal is not None:
        same_way = alike(winner, equal.candidate)
        yield reason(
            "fewer_gpus_as_fast",
            gpus=equal.gpus,
            now=now,
            gain=equal.gain,
            waits=waits(winner, equal.candidate) if same_way else None,
            config=None if same_way else facts(equal.candidate),
        )
    elif alone is not None and 1 / alone.efficiency(winner) < POOR:
        lost = 1 / alone.efficiency(winner) - 1
        waiting = waits(winner, alone.candidate)
        yield reason("each_gpu_gives_less", gpus=now, fewer=alone.gpus, gain=lost, waits=waiting)
    more = (scale for scale in others if scale.gpus > now and alike(scale.candidate, winner))
    useless = next((scale for scale in more if brings_nothing(scale.gain, scale.gpus / now)), None)
    if useless is not None:
        waiting = waits(useless.candidate, winner)
        yield reason("more_gpus_bring_nothing", gpus=useless.gpus, gain=useless.gain, waits=waiting)


def brings_nothing(gain: float, times: float) -> bool:
    """Tell whether ``times`` as many GPUs are not worth having for ``gain`` more tokens a second.

    One node more of many adds little by itself: less than a third of the GPUs' own share brings nothing.
    """
    return gain <= min(EQUAL, (times - 1) / 3)


def alike(one: Candidate, other: Candidate) -> bool:
    """Tell whether both keep their states alike, so that the number of GPUs is what makes the difference."""
    return same_states(one, other) and (one.offloads > 0) == (other.offloads > 0)


def waits(many: Candidate, few: Candidate) -> dict[str, Any] | None:
    """State the part of the step that costs ``many`` more for each token, if any, and its share of that step."""
    part = grown(many, few)
    if part is None:
        return None
    return {"part": part, "share": many.step.parts[part] / many.step.seconds, "gpus": many.job.cluster.world_size}
