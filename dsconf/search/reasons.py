"""Why the winner won, said in sentences a person can check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsconf.search.rank import combination, name
from dsconf.units import format_bytes

if TYPE_CHECKING:
    from dsconf.search.candidates import Candidate

PARTS = {"matmul": "matrix products", "elementwise": "elementwise operations", "launch": "launching kernels"}
"""What the parts of a step are called in a sentence, where their name is too short for one."""


def why(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[str]:
    """What the winner is, what fills the GPU, what takes the time, what the next best costs."""
    yield _first(winner, candidates)
    yield _fullest(winner)
    yield _slowest(winner)
    following = runner_up(winner, candidates)
    if following is not None:
        yield f"Next best: {name(following)}, {loss(following, winner)}."


def notes(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[str]:
    """What a person must know or do before training with the winner."""
    yield from _host(winner)
    if winner.fits == "tight":
        yield "Little headroom: a fragmented allocator can run out of memory; prove it with --check."
    if winner.workload.checkpointing:
        yield (
            "Turn activation checkpointing on in the training script (model.gradient_checkpointing_enable()): "
            "Hugging Face models do not read the config's activation_checkpointing block."
        )
    if winner.job.cluster.world_size == 1:
        yield "With one GPU ZeRO shards nothing: only offload, checkpointing and a smaller micro-batch save memory."
    yield from _plain_ddp(winner, candidates)


def runner_up(winner: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """The best of the other candidates that fits and differs from the winner in more than its batch."""
    others = (other for other in candidates if other.fits != "no" and other.settings.engine == "deepspeed")
    return next((other for other in others if combination(other) != combination(winner)), None)


def loss(candidate: Candidate, winner: Candidate) -> str:
    """``12 % fewer tokens/s``: ``candidate`` beside ``winner``."""
    ratio = candidate.tokens_per_second / winner.tokens_per_second - 1
    if abs(ratio) < 0.0005:
        return "the same tokens/s"
    return f"{abs(ratio):.1%}".replace("%", " %") + (" more tokens/s" if ratio > 0 else " fewer tokens/s")


def short(candidate: Candidate, winner: Candidate | None) -> str:
    """One phrase on a candidate in the table: what it misses, or how it compares."""
    if candidate.fits != "no":
        return "recommended" if winner is None or candidate is winner else loss(candidate, winner)
    return " and ".join(missing(candidate)) or "no headroom"


def missing(candidate: Candidate) -> Iterator[str]:
    """What does not fit, and by how much: ``40.2 GiB too much on each GPU``."""
    if candidate.gpu_short_bytes:
        yield f"{format_bytes(candidate.gpu_short_bytes)} too much on each GPU"
    if candidate.host_short_bytes:
        yield f"{format_bytes(candidate.host_short_bytes)} too much on each host"


def _first(winner: Candidate, candidates: Sequence[Candidate]) -> str:
    fitting = sum(candidate.fits == "yes" for candidate in candidates)
    if winner.fits == "tight":
        return f"{name(winner)}: nothing fits with headroom, and this is the fastest of what fits tightly."
    unasked = winner.offloads and winner.job.cluster.host_memory_bytes is None
    lead = "nothing fits without offload, and this is " if unasked else ""
    fastest = next(candidate for candidate in candidates if candidate.settings.engine == "deepspeed")
    if fastest.tokens_per_second > winner.tokens_per_second:
        gain = loss(fastest, winner)
        return f"{name(winner)}: {lead}the plainest of the fastest; {name(fastest)} would give {gain}, too few to tell."
    return f"{name(winner)}: {lead}the fastest of the {fitting} candidates that fit with headroom."


def _fullest(winner: Candidate) -> str:
    peak = winner.estimate.peak
    term = max(peak.terms, key=lambda term: term.num_bytes)
    return (
        f"Memory is fullest in {peak.phase} ({peak.name}): {format_bytes(peak.num_bytes)} allocated, "
        f"most of it {term.name}, {format_bytes(term.num_bytes)} ({term.formula})."
    )


def _slowest(winner: Candidate) -> str:
    part, seconds = max(winner.step.parts.items(), key=lambda item: item[1])
    share = seconds / winner.step.seconds
    return f"Speed is limited by {PARTS.get(part, part)}: {share:.0%} of a {winner.step.seconds:.3g} s step.".replace(
        "%", " %"
    )


def _host(winner: Candidate) -> Iterator[str]:
    if not winner.offloads:
        return
    needed = format_bytes(winner.estimate.host_bytes_per_node)
    limit = winner.job.cluster.host_memory_bytes
    if limit is None:
        yield f"Needs {needed} of host memory in each node: give --host-memory to check."
    else:
        yield f"Needs {needed} of the {format_bytes(limit)} of host memory in each node."
    if winner.estimate.nvme_bytes_per_node:
        yield f"Needs {format_bytes(winner.estimate.nvme_bytes_per_node)} on the NVMe disk of each node."


def _plain_ddp(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[str]:
    plain = next((c for c in candidates if c.settings.engine == "ddp" and c.fits == "yes"), None)
    if plain is None or plain.tokens_per_second < 0.99 * winner.tokens_per_second:
        return
    ways = "plain torch DDP" if winner.job.cluster.world_size > 1 else "plain torch"
    yield f"The model is small enough for {ways} ({loss(plain, winner)}): DeepSpeed buys nothing here but memory."
