"""The fullest rank at stages 1 and 2: the highest of the moments that each of its candidates has."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.timeline import stage_1_and_2
from dsconf.memory.timeline.common import Frame, Place, Step, heights_of
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
    highest: dict[Place, tuple[int, int]] = {}
    for number, rank in enumerate(ranks):
        for place, size, _, _ in stage_1_and_2.rises(frame, accumulating, sharded_loss, rank):
            if size + beyond[number] > highest.get(place, (-1, 0))[0]:
                highest[place] = size + beyond[number], number
    return RisesOfAll(ranks, beyond, _none_higher(highest))


def _none_higher(highest: dict[Place, tuple[int, int]]) -> tuple[tuple[int, int, int, int, int], ...]:
    """Return those that can be the highest of one hook, or the first of the highest, whatever a layer keeps."""
    kept: dict[tuple[int, int], list[tuple[int, int]]] = {}
    found = []
    for (part, level, event), (size, number) in sorted(highest.items(), key=_from_the_top):
        above = kept.setdefault((part, event), [])
        if not above or not any(other >= size and first <= number for other, first in above):
            above.append((size, number))
            found.append((part, level, event, size, number))
    found.sort(key=_number)
    return tuple(found)


def _from_the_top(item: tuple[Place, tuple[int, int]]) -> int:
    return -item[0].level


def _number(rise: tuple[int, int, int, int, int]) -> int:
    return rise[-1]
