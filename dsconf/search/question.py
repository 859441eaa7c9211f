"""What was asked, so that it can be asked again with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.errors import InputError
from dsconf.model.spec import Model
from dsconf.search.candidates import Candidate, CostModels, fitting
from dsconf.search.constraints import Constraints
from dsconf.search.rank import choose, ranked
from dsconf.search.space import Combination, combinations

MOST_GPUS = 2**14


class Question(NamedTuple):
    """Model, cluster, what the person fixed, and the models of memory and time that answer."""

    model: Model
    cluster: Cluster
    fixed: Constraints
    node_size: int
    """GPUs that a full node has; ``cluster.gpus_per_node`` is no more than there are GPUs."""
    tools: CostModels
    with_lora: Callable[[int], Model]
    """Reads the same model again with LoRA adapters of that rank."""

    def on(self, gpus: int) -> Question:
        """Ask the same question with ``gpus`` GPUs in all, of the same kind and as many to a node."""
        now, each = self.cluster, min(gpus, self.node_size)
        # Cores that were stated for more GPUs of a node are shared by fewer as the assumed ones are.
        fewer = now.cpu_cores is not None and each < now.gpus_per_node
        cores = max(1, (now.cpu_cores or 0) * each // now.gpus_per_node) if fewer else now.cpu_cores
        return self._replace(cluster=replace(now, world_size=gpus, gpus_per_node=each, cpu_cores=cores))


def space_of(question: Question) -> list[Combination]:
    """List what is left open, without torch DDP; nothing where the words rule each other out."""
    try:
        space = combinations(question.model, question.cluster, question.fixed)
    except InputError:
        return []
    return [combination for combination in space if combination.settings.engine == "deepspeed"]


def best_like(winner: Candidate, question: Question) -> Candidate | None:
    """Find what would be recommended, or None when nothing fits. With a ``winner`` in fp32 states so has this: others
    train differently."""
    precise = not winner.settings.bf16_optimizer_states
    fixed = question.fixed._replace(low_states=False) if precise else question.fixed
    space = space_of(question._replace(fixed=fixed))
    return choose(ranked(fitting(question.model, question.cluster, space, question.tools)))


def _strategy(settings: Settings) -> tuple[Any, ...]:
    return settings.stage, settings.offload_optimizer, settings.offload_param


def fits_somehow(question: Question) -> bool:
    """Tell whether anything fits: of each strategy what holds least is tried, the highest stage first."""
    leanest: dict[tuple[Any, ...], Combination] = {}
    for combination in space_of(question):
        settings = combination.settings
        # A smaller part of the optimizer on the host is more on the GPU: it matters where the host is too small.
        key = (*_strategy(settings), settings.sequence_parallel, settings.offload_optimizer_ratio)
        leanest[key] = max(leanest.get(key, combination), combination, key=_leanness)
    space = sorted(leanest.values(), key=lambda combination: -combination.settings.stage)
    return any(fitting(question.model, question.cluster, [_smallest(each)], question.tools) for each in space)


def _leanness(combination: Combination) -> tuple[Any, ...]:
    settings, recomputes = combination.settings, combination.workloads[0].checkpointing
    sizes = (-settings.hpz_partition_size, -settings.reduce_bucket_size)
    return recomputes, settings.bf16_optimizer_states, settings.offload_optimizer_ratio, *sizes


def first_that_fits(question: Question) -> Candidate | None:
    """Find the best of the smallest micro-batches, or None: cheaper than a full search, and the same yes or no."""
    if not fits_somehow(question):
        return None
    smallest = [_smallest(combination) for combination in space_of(question)]
    candidates = ranked(fitting(question.model, question.cluster, smallest, question.tools))
    return candidates[0] if candidates else None


def rounds_unasked(candidate: Candidate, asked: bool | None) -> bool:
    """Tell whether its states are in bf16, which round each update, though nobody ``asked`` for that."""
    return candidate.settings.bf16_optimizer_states and not asked


def _smallest(combination: Combination) -> Combination:
    """Keep its smallest micro-batch alone, and the smallest without accumulation, which may hold less."""
    workloads = combination.workloads
    return combination._replace(workloads=(workloads[0], *workloads[-1:]) if len(workloads) > 1 else workloads)


def more_gpus(question: Question) -> Candidate | None:
    """Find the fewest GPUs on which it fits: twice as many within a node, then whole nodes, up to ``MOST_GPUS``."""
    node, gpus = question.node_size, question.cluster.world_size
    within = (2**exponent * gpus for exponent in range(1, node.bit_length()) if 2**exponent * gpus < node)
    fewest = next((size for size in within if fits_somehow(question.on(size))), None) or _fewest_nodes(question)
    return None if fewest is None else first_that_fits(question.on(fewest))


def _fewest_nodes(question: Question) -> int | None:
    """Count the GPUs of the fewest full nodes on which it fits, if it fits on all that there may be."""
    node = question.node_size
    low, most = question.cluster.world_size // node, MOST_GPUS // node
    if low >= most or not fits_somehow(question.on(most * node)):
        return None
    high = max(1, 2 * low)
    while high < most and not fits_somehow(question.on(high * node)):
        low, high = high, high * 2
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits_somehow(question.on(middle * node)) else (middle, high)
    return high * node
