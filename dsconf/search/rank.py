"""The order of preference: which candidate is recommended, and which rule decided it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.search.candidates import Candidate
from dsconf.search.names import has_small_buckets

EQUAL = 0.03
"""Speeds this close are called equal: the same candidate run twice differed by up to 4 %, and the predicted seconds of
195 are off by 4 % in the median (``h200-step-times-*grid.jsonl``)."""
WORTH_A_HOST = 0.1
"""More tokens a second for which offload is taken unasked to a host nobody described: its cores and bandwidth are
assumed, too, and decide that speed."""


def needs_unstated_host(candidate: Candidate) -> bool:
    """Tell whether it offloads to a host whose memory nobody stated."""
    return candidate.offloads > 0 and candidate.job.cluster.host_memory_bytes is None


def exceeds_likely_host(candidate: Candidate) -> bool:
    """Tell whether it needs more host memory than a node likely has, where nobody said how much that is."""
    likely = likely_host_bytes(candidate.job.cluster)
    return needs_unstated_host(candidate) and candidate.estimate.host_bytes_per_node > likely


def likely_host_bytes(cluster: Cluster) -> int:
    """Return the memory that a node is taken to have where nobody said: that of its GPUs together.

    NVIDIA recommends more for training, at least 1.5 times as much (NVIDIA-Certified Systems Configuration Guide,
    https://docs.nvidia.com/certification-programs/nvidia-certified-configuration-guide).
    """
    return cluster.gpus_per_node * cluster.gpu.memory_bytes


LAST_RESORTS: dict[str, Callable[[Candidate], bool]] = {
    "tight": lambda candidate: candidate.fits != "yes",
    "bf16_states": lambda candidate: candidate.settings.bf16_optimizer_states,
    "unstated_host": needs_unstated_host,
}
"""What is recommended only where nothing fits without it, the least wanted first: no headroom on the GPU, master
weights and moments that round each update, host memory that nobody said is there."""


def preference(candidate: Candidate) -> tuple[Any, ...]:
    """Return the key that sorts candidates best first.

    What fits comes before what does not, and of that what misses less; then what needs no last resort; then the faster;
    of equally fast ones the simpler, and of equally simple ones what takes less memory.
    """
    missing = (candidate.gpu_short_bytes, candidate.host_short_bytes) if candidate.fits == "no" else (0, 0)
    return (
        candidate.fits == "no",
        *missing,
        *(needed(candidate) for needed in LAST_RESORTS.values()),
        -candidate.tokens_per_second,
        *complexity(candidate),
        candidate.estimate.process_bytes,
    )


def complexity(candidate: Candidate) -> tuple[int, ...]:
    """Return how much there is to a candidate: offload first, then the stage, recomputation, anything unusual."""
    settings = candidate.settings
    unusual = (
        settings.offload_optimizer_ratio < 1,
        settings.hpz_partition_size > 1,
        settings.sequence_parallel > 1,
        candidate.workload.loss_shards is not None,
        has_small_buckets(candidate),
    )
    return candidate.offloads, settings.stage, candidate.workload.checkpointing, sum(unusual)


class Decision(NamedTuple):
    """The recommended candidate, and what decided for it."""

    winner: Candidate
    decided_by: str
    """``only`` where nothing competes with it, ``speed`` where nothing that does is faster, else ``simplicity``."""
    rivals: tuple[Candidate, ...]
    """The candidates, the winner among them, between which speed and simplicity decided."""
    set_aside: tuple[Candidate, ...]
    """Those that fit as well and train alike, but need memory of a host that nobody described."""
    resort: str | None
    """What the winner has only because nothing fits without it: ``tight``, ``bf16_states``, ``offload``, or
    ``offload_or_bf16_states`` where one of the two was needed; None where it is none of these or was asked for."""

    @property
    def fastest(self) -> Candidate:
        """Return the fastest of the rivals."""
        return max(self.rivals, key=_rate)

    @property
    def held_back(self) -> Candidate | None:
        """Return the fastest of those set aside, where it is clearly faster than the winner."""
        faster = (c for c in self.set_aside if _rate(c) > (1 + EQUAL) * _rate(self.winner))
        return max(faster, key=_rate, default=None)


def ranked(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Sort candidates by ``preference``, best first."""
    return tuple(sorted(candidates, key=preference))


def decide(candidates: Sequence[Candidate]) -> Decision | None:
    """Choose among ``ranked`` candidates; None where none of DeepSpeed's fits. Torch DDP is there to compare with.

    The rules, each between what those before it leave:

    1. Headroom on the GPU, unless only tight fits are left.
    2. Optimizer states in fp32, unless only states in bf16 are left.
    3. No offload to a host that nobody described, unless nothing else is left, or it is more than ``WORTH_A_HOST``
       faster and the host likely has the memory.
    4. Speed: only what is within ``EQUAL`` of the fastest.
    5. Simplicity; of equally simple ones the faster.
    """
    alike = _comparable(candidates)
    if not alike:
        return None
    rivals = _without("unstated_host", alike)
    if not any(needs_unstated_host(candidate) for candidate in rivals):
        likely = [candidate for candidate in alike if not exceeds_likely_host(candidate)]
        if max(map(_rate, likely)) > (1 + WORTH_A_HOST) * max(map(_rate, rivals)):
            rivals = likely
    fastest = max(map(_rate, rivals))
    winner = min((c for c in rivals if _rate(c) >= (1 - EQUAL) * fastest), key=complexity)
    counted = {id(candidate) for candidate in rivals}
    return Decision(
        winner=winner,
        decided_by="only" if len(rivals) == 1 else "speed" if _rate(winner) == fastest else "simplicity",
        rivals=tuple(rivals),
        set_aside=tuple(candidate for candidate in alike if id(candidate) not in counted),
        resort=_resort(winner, candidates),
    )


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return what is recommended of ``ranked`` candidates, or None when none fits."""
    decision = decide(candidates)
    return None if decision is None else decision.winner


def _comparable(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Keep what rules 1 and 2 of ``decide`` leave: DeepSpeed candidates that fit and train alike."""
    fitting = [
        candidate for candidate in candidates if candidate.settings.engine == "deepspeed" and candidate.fits != "no"
    ]
    return _without("bf16_states", _without("tight", fitting))


def _without(resort: str, candidates: list[Candidate]) -> list[Candidate]:
    """Keep those that need no such last resort, or all where each needs it."""
    return [candidate for candidate in candidates if not LAST_RESORTS[resort](candidate)] or candidates


def _resort(winner: Candidate, candidates: Sequence[Candidate]) -> str | None:
    """Name the last resort of ``winner``, where the search took it and nobody asked for it."""
    if winner.fits == "tight":
        return "tight"
    if winner.settings.bf16_optimizer_states and not all(c.settings.bf16_optimizer_states for c in candidates):
        return "bf16_states"
    if not needs_unstated_host(winner):
        return None
    within = [c for c in candidates if c.settings.engine == "deepspeed" and not c.offloads]
    fitting = [candidate for candidate in within if candidate.fits == "yes"]
    if not within or any(not candidate.settings.bf16_optimizer_states for candidate in fitting):
        return None
    # What fits without offload may do so with states in bf16 alone, which are wanted even less.
    return "offload_or_bf16_states" if fitting else "offload"


def _rate(candidate: Candidate) -> float:
    return candidate.tokens_per_second


def same_states(one: Candidate, other: Candidate) -> bool:
    """Tell whether both keep master weights and moments in the same type: if not, they train differently."""
    return one.settings.bf16_optimizer_states == other.settings.bf16_optimizer_states


def best_of_each(candidates: Iterable[Candidate], winner: Candidate | None = None) -> tuple[Candidate, ...]:
    """Keep the first of each combination of what matters most, in the order given; ``winner`` stands for its own."""
    first: dict[tuple[Any, ...], Candidate] = {} if winner is None else {combination(winner): winner}
    for candidate in candidates:
        first.setdefault(combination(candidate), candidate)
    return tuple(first.values())


def combination(candidate: Candidate) -> tuple[Any, ...]:
    """Identify a candidate apart from its batch sizes, its buckets, how much of the optimizer is offloaded and whether
    each node has a copy of the parameters."""
    settings = candidate.settings
    devices = (settings.offload_optimizer, settings.offload_param)
    kept = (settings.bf16_optimizer_states, settings.sequence_parallel, candidate.workload.loss_shards)
    return settings.engine, settings.stage, *devices, *kept, candidate.workload.checkpointing


LESS = 0.9
"""Of the memory of the one before it, what the next one in the short list takes at most."""


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Keep, of what rules 1 and 2 of ``decide`` leave, those that none with as little memory on each GPU outruns,
    fastest first.

    Memory is ``process_bytes`` of the fullest rank. Of two with the same figures the first counts.
    """
    front: list[Candidate] = []
    for candidate in sorted(_comparable(candidates), key=lambda c: (c.estimate.process_bytes, -c.tokens_per_second)):
        if not front or candidate.tokens_per_second > front[-1].tokens_per_second:
            front.append(candidate)
    return tuple(reversed(front))


def spread(front: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Shorten ``front``: the fastest, then each time the fastest that takes a tenth less memory."""
    kept: list[Candidate] = []
    for candidate in front:
        if not kept or candidate.estimate.process_bytes <= LESS * kept[-1].estimate.process_bytes:
            kept.append(candidate)
    return tuple(kept)
