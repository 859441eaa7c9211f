"""What was asked, so that it can be asked again with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.errors import InputError
from dsconf.model.spec import Model
from dsconf.search.candidates import Candidate, Tools, examine
from dsconf.search.rank import choose, ranked
from dsconf.search.space import Combination, Wish, combinations

MOST_GPUS = 2**14


class Question(NamedTuple):
    """Model, cluster, what the person fixed, and the models of memory and time that answer."""

    model: Model
    cluster: Cluster
    wish: Wish
    node_size: int
    """GPUs that a full node has; ``cluster.gpus_per_node`` is no more than there are GPUs."""
    tools: Tools
    with_lora: Callable[[int], Model]
    """Reads the same model again with LoRA adapters of that rank."""

    def on(self, gpus: int) -> Question:
        """The same question with ``gpus`` GPUs in all, of the same kind and as many to a node."""
        cluster = replace(self.cluster, world_size=gpus, gpus_per_node=min(gpus, self.node_size))
        return self._replace(cluster=cluster)


def space_of(question: Question) -> list[Combination]:
    """What is left open, without torch DDP; nothing where the words rule each other out."""
    try:
        space = combinations(question.model, question.cluster, question.wish)
    except InputError:
        return []
    return [combination for combination in space if combination.settings.engine == "deepspeed"]


def best(question: Question) -> Candidate | None:
    """What would be recommended, or None when nothing fits."""
    space = space_of(question)
    found = examine(question.model, question.cluster, space, question.tools).candidates if space else ()
    return choose(ranked(found)) if found else None


def first_that_fits(question: Question) -> Candidate | None:
    """The best of the smallest micro-batches, or None: cheaper than a full search, and the same yes or no."""
    smallest = [
        Combination(settings, (workloads[0], *workloads[-1:]) if len(workloads) > 1 else workloads)
        for settings, workloads in space_of(question)
    ]
    found = ranked(examine(question.model, question.cluster, smallest, question.tools).candidates)
    return found[0] if found and found[0].fits != "no" else None


def more_gpus(question: Question) -> Candidate | None:
    """The fewest GPUs on which it fits: twice as many within a node, then whole nodes; None up to ``MOST_GPUS``."""
    node = question.node_size
    within = question.cluster.world_size * 2
    while within < node:
        found = first_that_fits(question.on(within))
        if found is not None:
            return found
        within *= 2
    low = question.cluster.world_size // node
    high = max(1, 2 * low)
    while (found := first_that_fits(question.on(high * node))) is None:
        low, high = high, high * 2
        if high * node > MOST_GPUS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        better = first_that_fits(question.on(middle * node))
        low, high, found = (middle, high, found) if better is None else (low, middle, better)
    return found
