"""ZeRO stages 0 to 3 side by side, everything else equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.accepted import accepted
from dsconf.cluster.spec import Cluster
from dsconf.job import Job
from dsconf.model.read import read_model
from dsconf.model.spec import Model
from dsconf.read_job import read_workload, stated_cluster
from dsconf.request import StagesWords
from dsconf.search.candidates import Candidate, CostModels, evaluate, real_models, with_batch
from dsconf.search.constraints import read_constraints
from dsconf.search.space import batches, choose_precision, plain_settings
from dsconf.search.volume import sent_bytes
from dsconf.word import read, worded
from dsconf.workload import Workload

if TYPE_CHECKING:
    from typing_extensions import Unpack

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


@worded(StagesWords)
def stages(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    gpus: int = 1,
    *,
    tools: CostModels | None = None,
    **words: Unpack[StagesWords],
) -> StageComparison:
    """Compare the stages; the words are those of ``dsconf stages``. Without a micro-batch it is 1; checkpointing is off
    unless asked for; an offload is made at the stages that allow it.

    Raises:
        InputError: an argument that cannot be used as given.
    """
    word = read(StagesWords, words)
    shape = read_model(params, model, word["lora_rank"])
    fixed = read_constraints(word, shape)
    cluster = stated_cluster(gpus, word)
    fixed = fixed._replace(precision=choose_precision(cluster, fixed.precision), micro_batch=fixed.micro_batch or 1)
    ranks = fixed.sequence_parallel or 1
    # The ranks that share a sequence count as one.
    micro, accumulation = batches(cluster.world_size // ranks, fixed.seq_len // ranks, fixed)[0]
    workload = read_workload(word, fixed.seq_len, micro, accumulation)
    tools = tools or real_models()

    def row(stage: int) -> StageRow:
        settings = with_batch(plain_settings(shape, cluster, fixed, stage), workload, cluster)
        candidate = evaluate(accepted(Job(shape, cluster, settings, workload)), tools)
        return StageRow(stage, SHARDS[stage], candidate, sent_bytes(candidate.job), WHEN[stage])

    return StageComparison(shape, cluster, workload, tuple(row(stage) for stage in range(4)))
