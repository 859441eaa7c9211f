"""What there is to choose from besides the batch: who trains, what is sharded, where states live, how they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from dsconf.accepted import sharing_problem
from dsconf.cluster.spec import Cluster
from dsconf.model.spec import Model
from dsconf.search.constraints import CPU_OPTIMIZERS, OFFLOADS, Constraints

RATIOS = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Parts of the optimizer that stage 3 offloads (twin-flow's ``ratio``, blogs/deepspeed-offloadpp)."""
LONG = 16_384
"""Sequence length from which on sequences are also split between ranks; below it one fits on a GPU with checkpointing
(1 GiB of activations a layer and sequence at a hidden size of 16 384)."""
LOW_STATES_OPTIMIZERS = ("adam", "adamw")


class Strategy(NamedTuple):
    """One way to train, apart from activation checkpointing and the batch."""

    engine: str = "deepspeed"
    stage: int = 0
    optimizer_device: str = "none"
    param_device: str = "none"
    ratio: float = 1.0
    """Part of the optimizer that is offloaded."""
    low_states: bool = False
    """Master weights, gradients and moments in bf16 too."""
    hpz: int = 1
    """Ranks of the secondary partition (ZeRO++'s hpZ), 1 for none."""
    sequence_parallel: int = 1
    tiled_loss: bool = False
    """Logits and loss made shard by shard (DeepSpeed's ``TiledFusedLogitsLoss``)."""
    lean: bool = False
    """Buckets and sub-groups as small as bandwidth allows."""


def strategies(model: Model, cluster: Cluster, precision: str, fixed: Constraints) -> Iterator[Strategy]:
    """List what ``fixed`` leaves open, simplest first."""
    stages = range(4) if fixed.stage is None else (fixed.stage,)
    devices = [pair for name in ([fixed.offload] if fixed.offload else OFFLOADS) for pair in OFFLOADS[name]]
    plain = fixed.offload in (None, "none") and not fixed.low_states and fixed.sequence_parallel in (None, 1)
    plain = plain and fixed.loss_shards is None
    if plain and fixed.stage in (None, 0):
        yield Strategy("ddp")
    for stage in stages:
        for optimizer_device, param_device in devices:
            if _possible(stage, optimizer_device, param_device, cluster, fixed):
                strategy = Strategy("deepspeed", stage, optimizer_device, param_device)
                yield from _finer(strategy, model, cluster, precision, fixed)


def _possible(stage: int, optimizer_device: str, param_device: str, cluster: Cluster, fixed: Constraints) -> bool:
    """Offload needs stage 1 and a host optimizer, parameters and NVMe need stage 3 (zero/offload_config.py);
    bitsandbytes' 8-bit weights cannot be partitioned (huggingface.co/docs/peft, quantization with DeepSpeed)."""
    if fixed.quantize == "8bit" and stage == 3:
        return False
    if optimizer_device == "none":
        return True
    if stage == 0 or fixed.optimizer not in CPU_OPTIMIZERS:
        return False
    if optimizer_device == "nvme" and (stage < 3 or cluster.nvme_path is None):
        return False
    return param_device == "none" or (stage == 3 and fixed.quantize is None)


def _finer(plain: Strategy, model: Model, cluster: Cluster, precision: str, fixed: Constraints) -> Iterator[Strategy]:
    sizes = (False, True) if buckets(model, plain.stage) != buckets(model, plain.stage, lean=True) else (False,)
    for low_states in _states(plain, precision, fixed):
        for ratio in _ratios(plain, model, cluster, fixed):
            for hpz in _secondary(plain, cluster, fixed):
                for degree, tiled in _shared(plain, model, cluster, fixed):
                    finer = plain._replace(ratio=ratio, low_states=low_states, hpz=hpz, sequence_parallel=degree)
                    yield from (finer._replace(tiled_loss=tiled, lean=lean) for lean in sizes)


def _states(plain: Strategy, precision: str, fixed: Constraints) -> tuple[bool, ...]:
    """List the types of states: bf16 states need stage 1 and, without DeepSpeedCPUAdam, an optimizer on the GPU
    (runtime/config.py:702-714)."""
    possible = (
        precision == "bf16"
        and plain.stage > 0
        and plain.optimizer_device == "none"
        and fixed.optimizer in LOW_STATES_OPTIMIZERS
    )
    if fixed.low_states is None:
        return (False, True) if possible else (False,)
    return (fixed.low_states,) if possible or not fixed.low_states else ()


def _ratios(plain: Strategy, model: Model, cluster: Cluster, fixed: Constraints) -> tuple[float, ...]:
    """Return the parts to offload: the rest of the optimizer stays on the GPU in whole sub-groups, at stage 3 with Adam
    (stage3.py:313-315, 1100-1108)."""
    if plain.stage != 3 or (plain.optimizer_device, plain.param_device) != ("cpu", "none"):
        return (1.0,)
    if fixed.optimizer not in LOW_STATES_OPTIMIZERS:
        return (1.0,)
    groups = model.parameters.trainable() // cluster.world_size // int(buckets(model, 3)["sub_group_size"])
    return RATIOS if groups >= len(RATIOS) else (1.0,)


def _secondary(plain: Strategy, cluster: Cluster, fixed: Constraints) -> tuple[int, ...]:
    """List the secondary partitions: a copy of the parameters in each node saves the gathers of backward between
    nodes; the world must divide evenly (utils/groups.py:925-953)."""
    nearby = cluster.gpus_per_node
    useful = plain.stage == 3 and cluster.nodes > 1 and nearby > 1 and fixed.quantize is None
    if not useful or cluster.world_size % nearby or plain.param_device != "none":
        return (1,)
    return 1, nearby


def _shared(plain: Strategy, model: Model, cluster: Cluster, fixed: Constraints) -> Iterator[tuple[int, bool]]:
    """List ranks that share a sequence, and whether the loss is tiled: always where they do, and for long sequences;
    never where an embedding is trained through its tie (``dsconf.accepted``)."""
    tied = model.tied and any(p.trainable for p in model.parameters.before[:1])
    for degree in _degrees(plain, model, cluster, fixed):
        if fixed.loss_shards is not None:
            yield degree, True
            continue
        if degree == 1 or tied:
            yield degree, False
        if not tied and (degree > 1 or (fixed.seq_len >= LONG and plain.stage > 0)):
            yield degree, True


def _degrees(plain: Strategy, model: Model, cluster: Cluster, fixed: Constraints) -> tuple[int, ...]:
    """List numbers of ranks of a node that can share a sequence."""
    if fixed.sequence_parallel is not None:
        wanted: tuple[int, ...] = (fixed.sequence_parallel,)
    else:
        wanted = (1, 2, 4, 8) if fixed.seq_len >= LONG else (1,)
    return tuple(
        degree for degree in wanted if degree == 1 or not unshareable(degree, plain.stage, model, cluster, fixed)
    )


def unshareable(degree: int, stage: int | None, model: Model, cluster: Cluster, fixed: Constraints) -> str | None:
    """Say why ``degree`` ranks cannot share a sequence, or None."""
    if degree > cluster.gpus_per_node:
        return f"a node has {cluster.gpus_per_node} GPUs"
    if stage == 0:
        return "it needs ZeRO stage 1, 2 or 3"
    if model.alibi:
        return f"{model.family} biases its attention scores, which no shared kernel does"
    return sharing_problem(model, cluster.world_size, fixed.seq_len, degree, fixed.attention)


REDUCE = 200_000_000
"""Stages 1 and 2: the figure of Hugging Face's ZeRO-2 example (https://huggingface.co/docs/transformers/deepspeed).
DeepSpeed's default of 5e8 costs 1 GB a buffer, and two of them with overlap_comm, for no bandwidth gained."""
SATURATING = 50_000_000
"""100 MB of bf16: DeepSpeed's own default prefetch bucket (runtime/zero/config.py, ``prefetch_bucket_size``)."""
LIVE = 1_000_000_000
"""DeepSpeed's default of ``max_live_parameters`` and ``max_reuse_distance``."""
SUB_GROUP = 100_000_000
"""Elements stepped at a time at stage 3. The step holds 6 bytes of each of them as a copy (stage3.py:2683-2699):
0.6 GB here, 6 GB at DeepSpeed's default of 1e9; a kernel over 1e8 elements is still bound by bandwidth alone."""


LEAN = 12_500_000
"""25 MB of bf16, the bucket that torch's DistributedDataParallel sends at a time (``bucket_cap_mb``)."""
LEAN_LIVE = 100_000_000
LEAN_SUB_GROUP = 25_000_000


def buckets(model: Model, stage: int, *, lean: bool = False) -> dict[str, Any]:
    """Choose the sizes that ``stage`` reads, by the name of their field in ``Settings``; others keep their default.

    Stage 3 follows Hugging Face's "auto" rule (hidden² for the reduce bucket, 0.9 × hidden² for the prefetch,
    10 × hidden for the persistence threshold; transformers/integrations/deepspeed.py), with ``SATURATING`` as a
    floor so that narrow models do not send small messages. What lies between two uses of a parameter, forward
    and backward, is at most twice the model. Stages 1 and 2 gather what the optimizer changed, and assert that the
    bucket for it is even (stage_1_and_2.py:389). ``lean`` sizes hold the least memory that keeps messages worth
    sending: a small card has a use for the gigabytes that the others take.
    """
    total = max(2, model.num_params)
    trainable = max(2, model.parameters.trainable())
    if stage == 0:
        return {}
    if stage < 3:
        size = LEAN if lean else REDUCE
        return {"reduce_bucket_size": min(trainable, size), "allgather_bucket_size": min(trainable, size) // 2 * 2}
    square = model.hidden**2
    if lean:
        return {
            "reduce_bucket_size": min(trainable, LEAN),
            "prefetch_bucket_size": min(total, LEAN),
            "param_persistence_threshold": 10 * model.hidden,
            "max_live_parameters": min(total, LEAN_LIVE),
            "max_reuse_distance": min(2 * total, LEAN_LIVE),
            "sub_group_size": min(total, LEAN_SUB_GROUP),
        }
    return {
        "reduce_bucket_size": min(trainable, max(square, SATURATING)),
        "prefetch_bucket_size": min(total, max(square * 9 // 10, SATURATING)),
        "param_persistence_threshold": 10 * model.hidden,
        "max_live_parameters": min(total, LIVE),
        "max_reuse_distance": min(2 * total, LIVE),
        "sub_group_size": min(total, SUB_GROUP),
    }
