"""ZeRO stages 0 to 3 side by side, everything else equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsconf.cluster.read import read_cluster
from dsconf.cluster.spec import Cluster
from dsconf.job import Job
from dsconf.model.attention import refuse_flash
from dsconf.model.read import read_model
from dsconf.model.spec import Model
from dsconf.search.candidates import Candidate, Tools, evaluate, real_tools, with_batch
from dsconf.search.space import batches, choose_precision, plain_settings
from dsconf.search.volume import sent_bytes
from dsconf.search.words import read_seq_len, read_wish
from dsconf.workload import Workload, read_quantize

SHARDS = (
    "nothing",
    "optimizer states",
    "optimizer states, gradients",
    "optimizer states, gradients, parameters",
)
"""What each rank keeps only its part of (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5)."""
WHEN = (
    "the whole training state fits on one GPU",
    "parameters and gradients fit on each GPU, the optimizer does not",
    "parameters fit on each GPU, gradients beside them do not",
    "not even the parameters fit on one GPU, or longer sequences need the room",
)


class StageRow(NamedTuple):
    """One stage: what it shards, what a GPU holds, what it sends in one optimizer step, when to take it."""

    stage: int
    shards: str
    candidate: Candidate
    sent_bytes: int
    """Bytes one GPU sends in one optimizer step."""
    when: str


class StageComparison(NamedTuple):
    """The four stages of one job, and the facts they share."""

    model: Model
    cluster: Cluster
    workload: Workload
    rows: tuple[StageRow, ...]


def stages(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: str | int = 1,
    gpu: str | None = None,
    gpu_memory: str | int | None = None,
    gpus_per_node: str | int = 8,
    host_memory: str | int | None = None,
    seq_len: int | None = None,
    global_batch_size: int | None = None,
    micro_batch_size: int | None = None,
    precision: str | None = None,
    optimizer: str = "adamw",
    activation_checkpointing: bool | None = None,
    attention: str = "sdpa",
    lora_rank: int | None = None,
    quantize: str | None = None,
    *,
    network: str | None = None,
    cpu_cores: str | int | None = None,
    host_bandwidth: str | None = None,
    tools: Tools | None = None,
) -> StageComparison:
    """The same words as ``recommend``. Without a micro-batch it is 1; checkpointing is off unless asked for.

    Raises:
        InputError: an argument that cannot be used as given.
    """
    shape = read_model(params, model, lora_rank)
    words = (read_seq_len(seq_len, shape), global_batch_size, micro_batch_size or 1, precision, optimizer, None, None)
    wish = read_wish(*words, bool(activation_checkpointing), attention, read_quantize(quantize, lora_rank))
    rates = (network, cpu_cores, host_bandwidth)
    cluster = read_cluster(gpus, gpu, gpu_memory, gpus_per_node, host_memory, None, *rates)
    wish = wish._replace(precision=choose_precision(cluster, wish.precision))
    refuse_flash(shape, wish.attention, wish.precision or "bf16", cluster.gpu.has_bf16)
    micro, accumulation = batches(cluster.world_size, wish.seq_len, wish.global_batch, wish.micro_batch)[0]
    workload = Workload(
        seq_len=wish.seq_len,
        micro_batch=micro,
        accumulation=accumulation,
        checkpointing=bool(wish.checkpointing),
        attention=wish.attention,
        quantize=wish.quantize,
    )
    tools = tools or real_tools()

    def row(stage: int) -> StageRow:
        settings = with_batch(plain_settings(shape, cluster, wish, stage), workload, cluster)
        candidate = evaluate(Job(shape, cluster, settings, workload), tools)
        return StageRow(stage, SHARDS[stage], candidate, sent_bytes(candidate.job), WHEN[stage])

    return StageComparison(shape, cluster, workload, tuple(row(stage) for stage in range(4)))
