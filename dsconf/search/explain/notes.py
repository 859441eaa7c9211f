"""What a person must know or do before training with the winner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsconf.search.explain.headroom import STEP
from dsconf.search.explain.reason import Reason, facts, gained, reason
from dsconf.search.rank import EQUAL, exceeds_likely_host, likely_host_bytes

if TYPE_CHECKING:
    from dsconf.search.candidates import Candidate
    from dsconf.search.explain.headroom import Headroom


def notes(
    winner: Candidate,
    candidates: Sequence[Candidate],
    room: Headroom,
    target: str = "deepspeed",
    whole: Candidate | None = None,
) -> Iterator[Reason]:
    """Say what the winner needs, leaves free, and asks of the training script for ``target``; ``whole`` is the same
    without ``deepspeed.zero.Init``, at stage 3."""
    yield from _host(winner)
    if winner.settings.bf16_optimizer_states:
        yield reason("bf16_states")
    yield from _positions(winner)
    yield from _precision(winner)
    yield from _loading(winner)
    yield from _room(winner, room)
    yield from _script(winner, target, whole)
    if winner.job.cluster.world_size == 1:
        yield reason("one_gpu")
    yield from _plain_torch(winner, candidates)
    yield from _stage_3_holds_more(winner, candidates)


def _host(winner: Candidate) -> Iterator[Reason]:
    if not winner.offloads:
        return
    estimate, cluster = winner.estimate, winner.job.cluster
    assumed = cluster.host_memory_bytes is None and not exceeds_likely_host(winner)
    yield reason(
        "host_memory",
        needed_bytes=estimate.host_bytes_per_node,
        stated_bytes=cluster.host_memory_bytes,
        assumed_bytes=likely_host_bytes(cluster) if assumed else None,
        gpus_per_node=cluster.gpus_per_node,
    )
    if estimate.nvme_bytes_per_node:
        yield reason("nvme_space", needed_bytes=estimate.nvme_bytes_per_node)


def _positions(winner: Candidate) -> Iterator[Reason]:
    """Name samples longer than the model was made for, where its positions are computed and so no error."""
    positions, seq_len = winner.job.model.positions, winner.workload.seq_len
    if seq_len > positions and not winner.job.model.alibi:
        yield reason("beyond_positions", positions=positions, seq_len=seq_len)


def _precision(winner: Candidate) -> Iterator[Reason]:
    gpu = winner.job.cluster.gpu
    if winner.settings.precision == "fp16" and not gpu.has_bf16:
        yield reason("no_bf16", gpu=gpu.name)


def _loading(winner: Candidate) -> Iterator[Reason]:
    """Warn where each process of a node loads the whole model and the node cannot hold that."""
    needed, limit = winner.estimate.loading_host_bytes_per_node, winner.job.cluster.host_memory_bytes
    if limit is not None and needed > limit:
        yield reason("loading", needed_bytes=needed, stated_bytes=limit)


def _room(winner: Candidate, room: Headroom) -> Iterator[Reason]:
    """Say what is left on each GPU, what for, and how much longer a sample may be."""
    yield reason(
        "little_headroom" if winner.fits == "tight" else "headroom",
        process_bytes=winner.estimate.process_bytes,
        fragmentation_bytes=room.fragmentation_bytes,
        outside_bytes=room.outside_bytes,
        free_bytes=room.free_bytes,
    )
    seq_len = winner.workload.seq_len
    within = seq_len <= room.positions and not winner.job.model.alibi
    if within and room.longest_seq_len + STEP > room.positions:
        yield reason("sample_all_positions", seq_len=seq_len, positions=room.positions)
    elif room.longest_seq_len <= seq_len:
        yield reason("sample_no_longer", seq_len=seq_len, step=STEP)
    else:
        yield reason("sample_longer", seq_len=seq_len, longest=room.longest_seq_len)


def _script(winner: Candidate, target: str, whole: Candidate | None) -> Iterator[Reason]:
    """Say what no config can turn on: the training script has to, or the loader that the config is for does."""
    model, workload, settings = winner.job.model, winner.workload, winner.settings
    if model.lora_rank:
        yield reason("script_lora", rank=model.lora_rank, quantize=workload.quantize, precision=settings.precision)
    if workload.checkpointing:
        yield reason("script_checkpointing", target=target)
    if whole is not None:
        start = whole.estimate.init_peak_bytes
        yield reason("script_zero_init", target=target, start_bytes=start, fits=whole.fits != "no")
    if settings.sequence_parallel > 1:
        yield reason("script_ulysses", ranks=settings.sequence_parallel, target=target)
    if workload.loss_shards is not None:
        yield reason("script_tiled_loss")


def _plain_torch(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[Reason]:
    plain = next((c for c in candidates if c.settings.engine == "ddp" and c.fits == "yes"), None)
    if plain is not None and plain.tokens_per_second >= (1 - EQUAL) * winner.tokens_per_second:
        yield reason("plain_torch", config=facts(plain), gain=gained(plain, winner))


def _stage_3_holds_more(winner: Candidate, candidates: Sequence[Candidate]) -> Iterator[Reason]:
    """Say where stage 3 holds more than stage 2 with the same batch: gathered parameters outweigh what it shards."""
    held: dict[int, int] = {}
    for candidate in candidates:
        alike = candidate.workload == winner.workload and not candidate.offloads
        if alike and candidate.settings.engine == "deepspeed":
            size = candidate.estimate.process_bytes
            held[candidate.settings.stage] = min(size, held.get(candidate.settings.stage, size))
    more = held.get(3, 0) - held.get(2, 0)
    if 2 in held and more > 0 and winner.job.cluster.world_size > 1:
        yield reason("stage_3_holds_more", more_bytes=more)
