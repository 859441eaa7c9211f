"""The fullest rank at stages 1 and 2: the highest of the moments that each of its candidates has."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.timeline import stage_1_and_2
from dsconf.memory.timeline.common import Frame, Step, heights_of
from dsconf.memory.timeline.resident import resident
from dsconf.memory.zero.fullest_rank import Sharing, fullest_rank_candidates
from dsconf.memory.zero.wrapper import reduces_in_hooks


class RisesOfAll(NamedTuple):
    """The moments of all ranks that can be the highest, whatever the batch."""

    ranks: tuple[int, ...]
    beyond: tuple[int, ...]
    """Bytes that each holds from step to step beyond the first of them."""
    rises: tuple[tuple[int, int, int, int, int], ...]
    """Part, level and event of the place, bytes with ``beyond``, and the rank's position in ``ranks``, in whose order
    they are."""


def fullest(step: Step) -> tuple[int, int]:
    """Return the highest moment of all ranks, in bytes beside what stays, and the first rank that has it."""
    ranks, beyond, of_all = _rises_of_all(step.frame, step.accumulating, step.act.shards_gradient > 0)
    each, heights = step.act.layer, heights_of(step)
    sizes = [heights[part][event] + level * each + size for part, level, event, size, _ in of_all]
    highest = max(sizes)
    number = of_all[sizes.index(highest)][-1]
    return highest - beyond[number], ranks[number]


@lru_cache(maxsize=1024)
def _rises_of_all(frame: Frame, accumulating: bool, sharded_loss: bool) -> RisesOfAll:
    settings = frame.settings
    offloaded = settings.offload_optimizer != "none"
    sharing = Sharing(
        buckets=stage_1_and_2.bucketing(frame),
        optimizer=settings.optimizer,
        in_hooks=reduces_in_hooks(settings),
        offloaded=offloaded,
        width=frame.width.model,
    )
    ranks = fullest_rank_candidates(sharing)
    beyond = (0,) * len(ranks)
    if settings.optimizer == "muon" and not offloaded:
        stays = [sum([size for _, size in resident(frame, rank).terms]) for rank in ranks]
        beyond = tuple([size - stays[0] for size in stays])
    kept: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for number, rank in enumerate(ranks):
        for (part, level, event), size, _, _ in stage_1_and_2.rises(frame, accumulating, sharded_loss, rank):
            kept.setdefault((part, event), []).append((level, size + beyond[number], number))
    found = [
        (part, level, event, size, number)
        for (part, event), others in kept.items()
        for level, size, number in _none_higher(others)
    ]
    return RisesOfAll(ranks, beyond, tuple(sorted(found, key=lambda rise: rise[-1])))


def _none_higher(rises: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return those of one hook that can be the highest, or the first of the highest, whatever a layer keeps."""
    kept: list[tuple[int, int, int]] = []
    rises.sort(key=lambda rise: (-rise[0], -rise[1], rise[2]))
    for level, size, number in rises:
        if not any(other >= size and first <= number for _, other, first in kept):
            kept.append((level, size, number))
    return kept
