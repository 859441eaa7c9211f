"""What surrounds the peak: torch's allocator and NCCL."""

from __future__ import annotations

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.memory.allocator import MIB
from dsconf.memory.layers.tiled_loss import SHARD_BYTES
from dsconf.memory.zero.wrapper import widths, wrapper

HEADROOM_PERCENT = 3
HEADROOM_BYTES = 64 * MIB
"""Above the peak, with expandable segments. The fixed part is for the pools of small blocks and the last, partly
used segment of each stream, which do not grow with the model."""

LARGEST_REQUESTS = 2
"""Largest requests above the peak, with torch's default allocator."""

NCCL_BYTES = 558 * MIB
"""NCCL's kernels and the communicator itself: the first all-reduce of a process added this on an H200, measured with
one rank (NCCL 2.28.9, 64 channels)."""

NCCL_CHANNELS = 24
"""Channels of a ring over NVLink, as NCCL chooses them on DGX A100 and H100; 2 over PCIe."""

NCCL_CLONE_BYTES = 484 * MIB // NCCL_CHANNELS
"""Of each channel of a second communicator: real ranks of stages 0 to 2 on four H200 hold 484 MiB more outside torch's
allocator than those of stage 3 and of DDP. DeepSpeed reduces in a clone of the world's group (utils/groups.py:723-735)
and checks for overflow in the world's own."""

NCCL_CONNECTION_BYTES = 512 * 2**10 + 4_915_200 + 4 * MIB
"""Buffers of one connection of one channel, for the protocols LL, LL128 and SIMPLE (NCCL src/init.cc:
computeBuffSizes, src/include/device.h: NCCL_LL_LINES_PER_THREAD, NCCL_LL128_ELEMS_PER_THREAD, DEFAULT_BUFFSIZE)."""


def nccl_bytes(cluster: Cluster, settings: Settings) -> int:
    """Return the bytes that NCCL holds outside torch's allocator.

    Kernels, and the buffers of one ring's connections; at stages 0 to 2 those of a second communicator.

    Four H200 held 766 MiB with one communicator (778 here) and 1250 with both (1262). Between nodes, where trees can
    add to it, nothing is measured.
    """
    if cluster.world_size == 1:
        return NCCL_BYTES
    channels = NCCL_CHANNELS if cluster.gpu.link_bandwidth > cluster.gpu.host_bandwidth else 2
    cloned = settings.engine == "deepspeed" and settings.stage < 3
    return NCCL_BYTES + channels * (NCCL_CONNECTION_BYTES + cloned * NCCL_CLONE_BYTES)


def largest_request(job: Job) -> int:
    """Return the bytes of the largest tensor that a step makes anew: fp32 logits, reduce bucket or fp32 gradient."""
    settings, workload, width = job.settings, job.workload, widths(job.settings)
    tokens = workload.micro_batch * workload.seq_len // settings.sequence_parallel
    logits = 4 * tokens * job.model.vocab
    if workload.loss_shards is not None:
        logits = min(logits, SHARD_BYTES) if workload.loss_shards == 0 else -(-logits // workload.loss_shards)
    if wrapper(settings) == "ddp":
        return logits
    bucket = width.communicate * settings.reduce_bucket_size
    part = -(-job.model.parameters.trainable() // job.cluster.world_size)
    gradient = 0 if settings.offload_optimizer != "none" else min(part, settings.sub_group_size)
    return max(logits, bucket, width.master * gradient)


def reserved(job: Job, peak_bytes: int) -> int:
    """Return the bytes that torch's allocator needs around a peak, under the allocator that ``job`` is run with."""
    if job.workload.allocator == "default":
        return peak_bytes + LARGEST_REQUESTS * largest_request(job)
    return peak_bytes + -(-peak_bytes * HEADROOM_PERCENT // 100) + HEADROOM_BYTES
