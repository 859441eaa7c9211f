"""What more GPUs, or fewer, would give: each number is asked for as the recommendation itself was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dsconf.search.candidates import Candidate
from dsconf.search.explain.reasons import compared, grown, part_name
from dsconf.search.question import Question, best_like
from dsconf.search.rank import EQUAL, name, same_states

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
    equal = next((scale for scale in fewer if scale.gain >= -EQUAL), None)
    alone = next((scale for scale in fewer if alike(scale.candidate, winner)), None)
    if equal is not None:
        yield f"{_gpus(equal.gpus)} {compared(equal.gain)} than {now}{_because(winner, equal.candidate)}."
    elif alone is not None and 1 / alone.efficiency(winner) < POOR:
        lost = compared(1 / alone.efficiency(winner) - 1)
        beside = "one alone" if alone.gpus == 1 else f"each of {alone.gpus}"
        yield f"Each of the {now} GPUs gives {lost} than {beside} would{waits(winner, alone.candidate)}."
    more = (scale for scale in found if scale.gpus > now and alike(scale.candidate, winner))
    useless = next((scale for scale in more if brings_nothing(scale.gain, scale.gpus / now)), None)
    if useless is not None:
        because = waits(useless.candidate, winner)
        yield f"More GPUs do not help: {useless.gpus} give {compared(useless.gain)}{because}."


def brings_nothing(gain: float, times: float) -> bool:
    """Whether ``times`` as many GPUs are not worth having for ``gain`` more tokens a second.

    One node more of many adds little by itself: less than a third of the GPUs' own share brings nothing.
    """
    return gain <= min(EQUAL, (times - 1) / 3)


def alike(one: Candidate, other: Candidate) -> bool:
    """Whether both keep their states alike, so that the number of GPUs is what makes the difference."""
    return same_states(one, other) and (one.offloads > 0) == (other.offloads > 0)


def _because(many: Candidate, few: Candidate) -> str:
    """Why fewer GPUs are as fast: what more of them wait for, or that they are used in another way."""
    return waits(many, few) if alike(many, few) else f", with {name(few)}"


def _gpus(number: int) -> str:
    return "A single GPU gives" if number == 1 else f"{number} GPUs give"


def waits(many: Candidate, few: Candidate) -> str:
    """``: communication takes 45 % of the step on 64``: what costs ``many`` more for each token, or nothing."""
    part = grown(many, few)
    if part is None:
        return ""
    share = f"{many.step.parts[part] / many.step.seconds:.0%}".replace("%", " %")
    return f": {part_name(part)} takes {share} of the step on {many.job.cluster.world_size}"
