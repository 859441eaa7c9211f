"""Why the winner won, said in sentences a person can check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsconf.search.explain.headroom import STEP as LENGTH_STEP
from dsconf.search.explain.script_changes import in_the_script
from dsconf.search.rank import (
    EQUAL,
    combination,
    held_for_its_host,
    likely_host_bytes,
    name,
    needs_unstated_host,
    rivals,
    same_states,
)
from dsconf.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from dsconf.cluster.spec import Cluster
    from dsconf.search.candidates import Candidate
    from dsconf.search.explain.headroom import Headroom
    from dsconf.search.explain.limits import Limit

PARTS = {
    "matmul": "matrix products",
    "elementwise": "elementwise operations",
    "launch": "launching kernels",
    "optimizer": "the optimizer step",
    "recompute": "recomputing activations",
    "loss": "the loss",
    "gradients": "copying gradients",
}
"""What the parts of a step are called in a sentence, where their name is too short for one."""


WHERE = {
    "communication": {"link_in_node": "links in a node", "network_between_nodes": "network between nodes"},
    "offload": {"link_to_host": "link to the host", "host_cpu": "optimizer step on the CPU", "nvme": "NVMe disk"},
}
"""What a part of the step can wait for, by the resource that makes it shorter."""


SAME = "the same tokens/s"
HEADROOM = " with headroom"


def why(winner: Candidate, candidates: Sequence[Candidate], slowest: Sequence[Limit] = ()) -> Iterator[str]:
    """What the winner is, what fills the GPU, what takes the time, what the next best costs."""
    yield _first(winner, candidates)
    yield _fullest(winner)
    yield _slowest(winner, slowest)
    following = runner_up(winner, candidates)
    if following is not None:
        tight = " (tight)" if following.fits == "tight" and winner.fits == "yes" else ""
        yield f"Next best: {name(following)}{tight}, {loss(following, winner)}{_lost(following, winner)}."


def notes(
    winner: Candidate,
    candidates: Sequence[Candidate],
    room: Headroom,
    target: str = "deepspeed",
    whole: Candidate | None = None,
) -> Iterator[str]:
    """What a person must know or do before training with the winner; ``whole`` is the same without ``zero.Init``."""
    yield from _host(winner)
    yield from _states(winner)
    yield from _positions(winner)
    yield from _precision(winner)
    yield from _loading(winner)
    yield from _room(winner, room)
    yield from in_the_script(winner, target, whole)
    if winner.job.cluster.world_size == 1:
        yield "With one GPU ZeRO shards nothing: only offload, checkpointing and a smaller micro-batch save memory."
    yield from _plain_ddp(winner, candidates)
    yield from _crossed(winner, candidates)


def marked(candidate: Candidate) -> str:
    """Its name, and whether it is tight."""
    return f"{name(candidate)}{', tight' if candidate.fits == 'tight' else ''}"


def told(candidate: Candidate) -> str:
    """What a person must know before taking it: its name, whether it is tight, and what it needs of each host."""
    needed = f", {format_bytes(candidate.estimate.host_bytes_per_node)} of host memory in each node"
    return f"{marked(candidate)}{needed if candidate.offloads else ''}"


def runner_up(winner: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """The best of the other candidates that fit, are not faster and differ from the winner in more than their batch.

    One that is faster comes after the winner for another reason than its speed, which ``why`` says first of all; one
    with states in bf16 is another training, where the winner's are in fp32.
    """
    others = (other for other in candidates if other.fits != "no" and other.settings.engine == "deepspeed")
    low = winner.settings.bf16_optimizer_states
    alike = (other for other in others if other.settings.bf16_optimizer_states <= low)
    slower = (other for other in alike if other.tokens_per_second <= winner.tokens_per_second)
    return next((other for other in slower if combination(other) != combination(winner)), None)


def loss(candidate: Candidate, winner: Candidate) -> str:
    """``12 % fewer tokens/s``: ``candidate`` beside ``winner``."""
    ratio = candidate.tokens_per_second / winner.tokens_per_second - 1
    if abs(ratio) < 0.0005:
        return SAME
    return f"{abs(ratio):.1%}".replace("%", " %") + (" more tokens/s" if ratio > 0 else " fewer tokens/s")


def compared(part: float) -> str:
    """``61 % more tokens/s``, ``3.2 % fewer tokens/s``, ``14.9 × the tokens/s``: ``part`` more than there were."""
    if abs(part) < 0.0005:
        return "as many tokens/s"
    if part >= 2:
        return f"{1 + part:.1f} × the tokens/s"
    figure = f"{100 * abs(part):.1f}" if abs(part) < 0.1 else f"{100 * abs(part):.0f}"
    return f"{figure} % {'more' if part > 0 else 'fewer'} tokens/s"


def short(candidate: Candidate, winner: Candidate | None) -> str:
    """One phrase on a candidate in the table: what it misses, or how it compares."""
    if candidate.fits != "no":
        return "recommended" if winner is None or candidate is winner else loss(candidate, winner)
    return " and ".join(missing(candidate, "of {}, --host-memory")) or "no headroom"


def missing(
    candidate: Candidate, unstated: str = "{} taken as the most a node has: state yours with --host-memory"
) -> Iterator[str]:
    """What does not fit, and by how much: ``40.2 GiB too much on each GPU``; ``unstated`` is said of a host's limit
    that nobody stated."""
    if candidate.gpu_short_bytes:
        yield f"{format_bytes(candidate.gpu_short_bytes)} too much on each GPU"
    if candidate.host_short_bytes:
        cluster = candidate.job.cluster
        limit = f" ({unstated})".format(format_bytes(cluster.host_limit_bytes))
        taken = limit if cluster.host_memory_bytes is None else ""
        yield f"{format_bytes(candidate.host_short_bytes)} too much on each host{taken}"


def _first(winner: Candidate, candidates: Sequence[Candidate]) -> str:
    alike, held = rivals(winner, candidates), held_back(winner, candidates)
    within = held is not None and not winner.offloads
    fastest = max(alike, key=lambda candidate: candidate.tokens_per_second)
    gain = loss(fastest, winner)
    among = ("" if winner.fits == "yes" else " that fit tightly") + (" without offload" if within else "")
    if fastest.tokens_per_second > winner.tokens_per_second:
        also = f"; {name(fastest)} would give {gain}, too few to tell" if gain != SAME else ""
        place = f"the plainest of the fastest{among}{also}"
    elif within:
        place = f"the fastest{among}"
    elif winner.fits == "tight":
        place = "the fastest of what fits tightly"
    else:
        place = _among(alike, winner, candidates)
    lead = _reserved(winner, candidates)
    place = place.partition(HEADROOM)[0] if lead else place
    return f"{name(winner)}: {lead}{place}" + ("." if held is None else f"; {_offer(held, winner)}.")


def _among(alike: Sequence[Candidate], winner: Candidate, candidates: Sequence[Candidate]) -> str:
    """What the winner is the fastest of; what fits as well and is not counted is said to be left out."""
    fitting = [c for c in candidates if c.fits == "yes" and c.settings.engine == "deepspeed"]
    low = winner.settings.bf16_optimizer_states
    others = [candidate for candidate in fitting if candidate.settings.bf16_optimizer_states != low]
    left_out = len(fitting) - len(others) > len(alike)
    within = "" if not left_out else ", without offload" if not winner.offloads else ", in what its host likely has"
    kept = f" and optimizer states in {'bf16' if low else 'fp32'}" if others else ""
    if len(alike) == 1:
        return f"the only DeepSpeed candidate that fits{HEADROOM}{kept}{within}"
    return f"the fastest of the {len(alike)} DeepSpeed candidates that fit{HEADROOM}{kept}{within}"


def held_back(winner: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest that comes after ``winner`` for the host alone that nobody described, where it is clearly faster."""
    offloading = (
        candidate
        for candidate in candidates
        if candidate.fits == winner.fits
        and (held_for_its_host(candidate) if winner.offloads else needs_unstated_host(candidate))
        and same_states(candidate, winner)
        and candidate.tokens_per_second > (1 + EQUAL) * winner.tokens_per_second
    )
    return max(offloading, key=lambda candidate: candidate.tokens_per_second, default=None)


def _offer(held: Candidate, winner: Candidate) -> str:
    needs = f"needs {format_bytes(held.estimate.host_bytes_per_node)} of host memory in each node"
    return f"{name(held)} would give {loss(held, winner)} and {needs}: give --host-memory to have it considered"


def held_back_sentence(winner: Candidate, candidates: Sequence[Candidate]) -> str | None:
    """What a host with enough memory would make of it, where nobody said how much there is."""
    held = held_back(winner, candidates)
    return None if held is None else f"{_offer(held, winner)}."


def _reserved(winner: Candidate, candidates: Sequence[Candidate]) -> str:
    """What the winner has that is taken only where nothing else fits."""
    if winner.fits == "tight":
        return "nothing fits with headroom; this is "
    if winner.settings.bf16_optimizer_states and not all(c.settings.bf16_optimizer_states for c in candidates):
        return "nothing with optimizer states in fp32 fits with headroom; this is "
    if not needs_unstated_host(winner):
        return ""
    held = [c for c in candidates if c.settings.engine == "deepspeed" and not c.offloads]
    ours = [candidate for candidate in held if candidate.fits == "yes"]
    if not held or any(not candidate.settings.bf16_optimizer_states for candidate in ours):
        return ""
    precise = " with optimizer states in fp32" if ours else ""
    return f"nothing{precise} fits with headroom without offload; this is "


def _fullest(winner: Candidate) -> str:
    found, peak = winner.estimate, winner.estimate.peak
    step = f"{peak.phase} ({peak.name}): {format_bytes(peak.num_bytes)} allocated, most of it {largest_term(winner)}"
    if found.init_peak_bytes > found.peak_bytes:
        start = format_bytes(found.init_peak_bytes)
        return f"Memory is fullest in initialisation: {start}; the step is fullest in {step}."
    return f"Memory is fullest in {step}."


def largest_term(candidate: Candidate) -> str:
    """``logits and loss, 24.48 GiB (tokens × vocabulary …)``: what takes most at the peak."""
    term = max(candidate.estimate.peak.terms, key=lambda term: term.num_bytes)
    return f"{term.name}, {format_bytes(term.num_bytes)} ({term.formula})"


def part_name(part: str) -> str:
    """A part of the step as a sentence names it."""
    return PARTS.get(part, part)


def _slowest(winner: Candidate, slowest: Sequence[Limit]) -> str:
    part, seconds = max(winner.step.parts.items(), key=lambda item: item[1])
    share = seconds / winner.step.seconds
    waits = [limit for limit in slowest if limit.resource in WHERE.get(part, {}) and limit.gain >= 0.01]
    where = f" ({WHERE[part][waits[0].resource]})" if waits else ""
    of_it = f"{share:.0%}".replace("%", " %")
    return f"Speed is limited by {part_name(part)}{where}: {of_it} of a {format_seconds(winner.step.seconds)} s step."


def grown(candidate: Candidate, winner: Candidate) -> str | None:
    """The part of the step that costs ``candidate`` most more GPU time a token than it costs ``winner``."""

    def each(one: Candidate, part: str) -> float:
        return one.step.parts.get(part, 0.0) / one.step.seconds / one.tokens_per_second * one.job.cluster.world_size

    more = {part: each(candidate, part) - each(winner, part) for part in candidate.step.parts}
    part = max(more, key=lambda part: more[part], default=None)
    return part if part is not None and more[part] > 0 else None


def _lost(following: Candidate, winner: Candidate) -> str:
    """To what the runner-up loses its speed, and what it holds less or more."""
    part = grown(following, winner) if loss(following, winner) != SAME else None
    lost = f", most of it lost to {part_name(part)}" if part else ""
    held = following.estimate.process_bytes - winner.estimate.process_bytes
    return f"{lost}; {format_bytes(abs(held))} {'more' if held > 0 else 'less'} on each GPU" if held else lost


def _precision(winner: Candidate) -> Iterator[str]:
    gpu, precision = winner.job.cluster.gpu, winner.settings.precision
    if precision == "fp16" and not gpu.has_bf16:
        yield (
            f"Trains in fp16 with a dynamic loss scale, because a {gpu.name} has no bf16: a model that was trained in "
            "bf16 can overflow in it."
        )


def _positions(winner: Candidate) -> Iterator[str]:
    """Samples longer than the model was made for, where its positions are computed and so no error."""
    positions = winner.job.model.positions
    if winner.workload.seq_len > positions and not winner.job.model.alibi:
        yield (
            f"The model was made for {positions} positions, and --seq-len {winner.workload.seq_len} goes beyond: scale "
            "its rotary embedding (rope_scaling, or a larger rope_theta), or it learns the new positions from nothing."
        )


def _room(winner: Candidate, room: Headroom) -> Iterator[str]:
    """What is left on each GPU, what for, and how much longer a sample may be."""
    kept = f"{format_bytes(room.fragmentation_bytes)} of it kept above the peak for fragmentation"
    outside = f"{format_bytes(room.outside_bytes)} the driver's context and the communicators"
    takes = f"{format_bytes(winner.estimate.process_bytes)} of each GPU, {kept}, {outside}"
    if winner.fits == "tight":
        yield (
            f"Little headroom: it would take {takes}, {format_bytes(-room.free_bytes)} more than there is; "
            "a fragmented allocator can run out of memory, prove it with --check."
        )
    else:
        yield f"Takes {takes}; {format_bytes(room.free_bytes)} stay free."
    lead = f"--seq-len {winner.workload.seq_len} is the longest sample this holds for"
    within = winner.workload.seq_len <= room.positions and not winner.job.model.alibi
    if within and room.longest_seq_len + LENGTH_STEP > room.positions:
        yield f"{lead}; with these settings all of the model's {room.positions} positions fit."
    elif room.longest_seq_len <= winner.workload.seq_len:
        yield f"{lead}: {LENGTH_STEP} tokens more do not fit with these settings."
    else:
        yield f"{lead}; with these settings up to {room.longest_seq_len} tokens fit."


def _states(winner: Candidate) -> Iterator[str]:
    if winner.settings.bf16_optimizer_states:
        yield (
            "Optimizer states in bf16 round each update to 8 significant bits: compare the loss with that of fp32 "
            "states before a long run."
        )


def _gpus_hold(cluster: Cluster) -> str:
    held = format_bytes(likely_host_bytes(cluster))
    return f"its GPU holds {held}" if cluster.gpus_per_node == 1 else f"its GPUs hold {held}"


def _host(winner: Candidate) -> Iterator[str]:
    if not winner.offloads:
        return
    needed = format_bytes(winner.estimate.host_bytes_per_node)
    limit = winner.job.cluster.host_memory_bytes
    if limit is None:
        cluster = winner.job.cluster
        likely = "" if held_for_its_host(winner) else f", taken to be there as {_gpus_hold(cluster)}"
        yield f"Needs {needed} of host memory in each node{likely}: give --host-memory to check."
    else:
        yield f"Needs {needed} of the {format_bytes(limit)} of host memory in each node."
    if winner.estimate.nvme_bytes_per_node:
        yield f"Needs {format_bytes(winner.estimate.nvme_bytes_per_node)} on the NVMe disk of each node."


def _loading(winner: Candidate) -> Iterator[str]:
    """Where each process of a node loads the whole model and the node cannot hold that."""
    needed, limit = winner.estimate.loading_host_bytes_per_node, winner.job.cluster.host_memory_bytes
    if limit is not None and needed > limit:
        yield (
            f"Loading takes up to {format_bytes(needed)} of host memory in each node, where each process loads the "
            f"whole model, and there are {format_bytes(limit)}: load it on the GPU (device_map), one process after the "
            "other, or under deepspeed.zero.Init at stage 3."
        )


def _plain_ddp(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[str]:
    plain = next((c for c in candidates if c.settings.engine == "ddp" and c.fits == "yes"), None)
    if plain is None or plain.tokens_per_second < (1 - EQUAL) * winner.tokens_per_second:
        return
    ways = "plain torch DDP" if winner.job.cluster.world_size > 1 else "plain torch"
    gain = f"{name(plain)}: {loss(plain, winner)}"
    buys = "nothing" if plain.tokens_per_second >= winner.tokens_per_second else "no speed worth having"
    yield f"The model is small enough for {ways} ({gain}): DeepSpeed buys {buys} here but memory."


def _crossed(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Stage 3 where it holds more than stage 2 with the same batch: gathered parameters outweigh what it shards."""
    held: dict[int, int] = {}
    for candidate in candidates:
        alike = candidate.workload == winner.workload and not candidate.offloads
        if alike and candidate.settings.engine == "deepspeed":
            size = candidate.estimate.process_bytes
            held[candidate.settings.stage] = min(size, held.get(candidate.settings.stage, size))
    more = held.get(3, 0) - held.get(2, 0)
    if 2 in held and more > 0 and winner.job.cluster.world_size > 1:
        held_more = f"ZeRO stage 3 holds {format_bytes(more)} more than stage 2 here"
        yield f"{held_more}: what it gathers outweighs what it shards."
