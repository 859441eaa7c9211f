"""What more GPUs, or fewer, would give: each number is asked for as the recommendation itself was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dsconf.search.candidates import Candidate
from dsconf.search.question import Question, best_like
from dsconf.search.rank import EQUAL
from dsconf.search.reasons import compared, grown, part_name

POOR = 0.8
"""Speed of a GPU among others against the same GPU among fewer below which it is said."""


class Scale(NamedTuple):
    """The best on another number of GPUs. ``efficiency`` compares one GPU's tokens a second with the winner's."""

    gpus: int
    candidate: Candidate
    gain: float
    """More tokens a second of the whole cluster, as a part of the winner's."""

    def efficiency(self, winner: Candidate) -> float:
        """Tokens a second of one GPU here, as a part of those of one GPU of ``winner``."""
        return (1 + self.gain) * winner.job.cluster.world_size / self.gpus


def sizes(gpus: int, node: int) -> list[int]:
    """Other numbers of GPUs worth a look: one, half, two more (one more than one), a full node, a node more, twice."""
    fewer = {1, gpus // 2, node} if gpus > 1 else set()
    more = {gpus + (2 if gpus > 1 else 1), node} if gpus < node else {(gpus // node + 1) * node}
    return sorted(size for size in {*fewer, *more, 2 * gpus} if 0 < size != gpus and (size <= node or size % node == 0))


def scales(winner: Candidate, question: Question) -> Iterator[Scale]:
    """The best on other numbers of GPUs, fewest first; the ones where nothing fits are left out."""
    for gpus in sizes(question.cluster.world_size, question.node_size):
        candidate = best_like(winner, question.on(gpus))
        if candidate is not None:
            yield Scale(gpus, candidate, candidate.tokens_per_second / winner.tokens_per_second - 1)


def scaling_notes(winner: Candidate, found: Sequence[Scale]) -> Iterator[str]:
    """Where more GPUs bring nothing, or each of them less: said with what their step waits for."""
    now = winner.job.cluster.world_size
    fewer = [scale for scale in found if scale.gpus < now]
    equal = [scale for scale in fewer if scale.gain >= -EQUAL]
    if equal:
        few = equal[0]
        yield f"{_gpus(few.gpus)} {compared(few.gain)} than {now}{_waits(winner, few.candidate)}."
    elif fewer and 1 / fewer[0].efficiency(winner) < POOR:
        few = fewer[0]
        lost = compared(1 / few.efficiency(winner) - 1)
        beside = "one alone" if few.gpus == 1 else f"each of {few.gpus}"
        yield f"Each of the {now} GPUs gives {lost} than {beside} would{_waits(winner, few.candidate)}."
    # One node more of many adds little by itself: less than a third of the GPUs' own share brings nothing.
    more = (scale for scale in found if scale.gpus > now)
    useless = next((scale for scale in more if scale.gain <= min(EQUAL, (scale.gpus / now - 1) / 3)), None)
    if useless is not None:
        waits = _waits(useless.candidate, winner)
        yield f"More GPUs do not help: {useless.gpus} give {compared(useless.gain)}{waits}."


def _gpus(number: int) -> str:
    return "A single GPU gives" if number == 1 else f"{number} GPUs give"


def _waits(many: Candidate, few: Candidate) -> str:
    part = grown(many, few)
    if part is None:
        return ""
    share = f"{many.step.parts[part] / many.step.seconds:.0%}".replace("%", " %")
    return f": {part_name(part)} takes {share} of the step on {many.job.cluster.world_size}"
