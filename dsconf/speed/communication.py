"""Seconds of the collectives of one micro-batch and of the optimizer step, and how much of them computing hides."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.model.spec import Model
from dsconf.speed import rates
from dsconf.speed.nccl import all_gather, all_reduce, all_to_all, linked
from dsconf.speed.optimizer import element_bytes, trained

STAGE_0_BUCKET = 500_000_000
"""Elements of stage 0's all-reduce buckets (``runtime/engine.py:151``)."""
DDP_BUCKET_BYTES = 25 * 2**20
"""torch DistributedDataParallel's ``bucket_cap_mb``."""
QUANTIZED_GRADIENT_BYTES = 0.5
STORED_BYTES = {"4bit": 0.5, "8bit": 1.0}
"""Bytes of a frozen weight of QLoRA; its scales stay on every rank."""
_COMMUNICATED = {"fp32": 4, "fp16": 2, "bf16": 2}


class Collectives(NamedTuple):
    """Seconds of communication: in each forward, in each backward, at the last backward only, in the step."""

    forward: float = 0.0
    backward: float = 0.0
    boundary: float = 0.0
    step: float = 0.0


def gradient_width(settings: Settings) -> int:
    """Return the bytes of a gradient element on the wire: ``communication_data_type``, by default the model's type.

    Ranks that share sequences have a type of their own, by default fp32 (runtime/engine.py:2173-2182), and always fp32
    where stages 1 and 2 reduce a bucket for several owners (stage_1_and_2.py:2373).
    """
    if settings.sequence_parallel > 1:
        scattered = settings.stage in (1, 2) and settings.reduce_scatter
        return 4 if scattered else _COMMUNICATED.get(settings.sequence_parallel_dtype or "", 4)
    return _COMMUNICATED.get(settings.communication_dtype or "", element_bytes(settings))


def regathered(job: Job) -> float:
    """Return the share of the parameters that stage 3 gathers again for backward.

    What forward used last stays gathered, up to half of ``max_reuse_distance`` elements
    (``partitioned_param_coordinator.py``).
    """
    kept = job.settings.max_reuse_distance / 2
    return max(0.0, 1 - kept / job.model.num_params)


@lru_cache(maxsize=256)
def frozen_weights(model: Model) -> int:
    """Count the elements of the layers' frozen matrices, which QLoRA quantizes."""
    layer = (p.numel for p in model.parameters.layer if p.kind == "linear" and len(p.shape) == 2 and not p.trainable)
    return model.layers * sum(layer)


@lru_cache(maxsize=256)
def _layer_elements(model: Model) -> int:
    return sum(p.numel for p in model.parameters.layer)


def gathers(job: Job) -> tuple[float, float]:
    """Return how often stage 3 gathers all parameters in forward, and in backward with its recomputation.

    Recomputing a layer and its backward share one gather unless the layer is beyond ``max_reuse_distance``.
    """
    backward = regathered(job)
    if job.workload.checkpointing and _layer_elements(job.model) > job.settings.max_reuse_distance / 2:
        backward *= 2
    return 1.0, backward


def gathered_bytes(job: Job) -> tuple[float, float]:
    """Return the bytes of all parameters as stage 3 gathers them, in forward and in backward.

    Frozen weights of QLoRA travel as they are stored (``STORED_BYTES``). ``zero_quantized_weights`` halves them, in
    backward only where no secondary partition (hpZ) holds them in 16 bits already (``partition_parameters.py``).
    """
    settings, model = job.settings, job.model
    width, quantize = element_bytes(settings), job.workload.quantize
    whole = float(width * model.num_params)
    if quantize:
        frozen = frozen_weights(model)
        whole += (STORED_BYTES[quantize] - width) * frozen
    halved = whole / 2 if settings.quantized_weights else whole
    return halved, whole if settings.hpz_partition_size > 1 else halved


def reduced_bytes(job: Job) -> float:
    """Return the bytes of the gradients in one reduce-scatter of stage 3.

    ``zero_quantized_gradients`` sends 4 bits an element through two all-to-alls, one within the node and one that sends
    the node's share to other nodes, instead of a ring (ZeRO++, https://arxiv.org/abs/2306.10209, section 3.3).
    """
    elements = trained(job.model)[0]
    return (
        QUANTIZED_GRADIENT_BYTES * elements
        if job.settings.quantized_gradients
        else gradient_width(job.settings) * elements
    )


def _stage_3(job: Job) -> Collectives:
    settings, cluster, model = job.settings, job.cluster, job.model
    elements, tensors = trained(model)
    forward, backward = gathers(job)
    forward_bytes, backward_bytes = gathered_bytes(job)
    # Modules fetch their parameters together; prefetching joins fetches up to its bucket.
    fetches = min(tensors, 2 * model.layers + model.num_params / max(1, settings.prefetch_bucket_size))
    nearby = settings.hpz_partition_size if settings.hpz_partition_size > 1 else None
    reduced = all_gather(cluster, reduced_bytes(job), elements / settings.reduce_bucket_size)
    return Collectives(
        forward * all_gather(cluster, forward_bytes, fetches),
        backward * all_gather(cluster, backward_bytes, fetches, nearby) + reduced,
    )


def collectives(job: Job) -> Collectives:
    """Compute the seconds of each phase's communication, as if nothing were hidden.

    Stage 0 all-reduces the gradients at the last micro-batch; stage 1 likewise, stage 2 at every micro-batch
    (DeepSpeed 0.19.8 all-reduces there even with ``reduce_scatter``: ``stage_1_and_2.py:1516-1543``), and both
    all-gather the updated parameters. Stage 3 all-gathers parameters in forward and backward and reduce-scatters
    gradients at every micro-batch.
    """
    settings, cluster = job.settings, job.cluster
    if cluster.world_size == 1:
        return Collectives()
    if settings.stage == 3:
        return _stage_3(job)
    elements = trained(job.model)[0]
    carried = gradient_width(settings) * elements
    if settings.engine != "deepspeed":
        return Collectives(boundary=all_reduce(cluster, carried, carried / DDP_BUCKET_BYTES))
    bucket = settings.reduce_bucket_size if settings.stage else STAGE_0_BUCKET
    reduced = all_reduce(cluster, carried, elements / bucket)
    if settings.stage == 0:
        return Collectives(boundary=reduced)
    updated = element_bytes(settings) * elements
    gathered = all_gather(cluster, updated, elements / max(1, settings.allgather_bucket_size))
    if settings.stage == 1:
        return Collectives(boundary=reduced, step=gathered)
    return Collectives(backward=reduced, step=gathered)


def exchanges(job: Job) -> tuple[float, float]:
    """Compute the seconds of Ulysses' all-to-alls in forward, and in backward with its recomputation; nothing hides
    them.

    In each layer queries, keys, values and the output change from a share of the sequence with all heads to the whole
    sequence with a share of the heads, or back (``runtime/sequence_parallel/ulysses_sp.py``).
    """
    degree, model, work = job.settings.sequence_parallel, job.model, job.workload
    if degree == 1:
        return 0.0, 0.0
    sequences = job.settings.micro_batch or work.micro_batch
    elements = sequences * work.seq_len / degree * 2 * (model.heads + model.kv_heads) * model.head_dim
    width = 4 if job.settings.precision == "fp32" else 2
    once = model.layers * all_to_all(job.cluster, width * elements, 4, degree)
    return once, once * (2 if work.checkpointing else 1)


def overlaps(settings: Settings) -> bool:
    """Say whether communication runs beside computation: ``overlap_comm`` above stage 0, and always in torch's DDP."""
    return settings.engine != "deepspeed" or (settings.stage > 0 and settings.overlap_comm)


def processors(cluster: Cluster) -> float:
    """Return the share of a GPU's multiprocessors that a collective takes from what computes beside it."""
    in_node = linked(cluster) and cluster.nodes == 1
    return rates.COLLECTIVE_PROCESSORS if in_node else rates.NODE_COLLECTIVE_PROCESSORS


def exposed(seconds: float, hidden_by: float, overlap: bool, taken: float = 0.0) -> float:
    """Compute by how much ``seconds`` of communication or copying lengthen ``hidden_by`` seconds of computing.

    Beside each other, computing has 1 - ``taken`` of the GPU: it ends later by what the collective took of it, or, if
    that is longer, waits for the collective's end.
    """
    return max(taken * seconds, seconds - hidden_by) if overlap else seconds
