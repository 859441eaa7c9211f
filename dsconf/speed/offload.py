"""Seconds of offload: copies between GPU and host, the optimizer on the CPU, reads and writes of NVMe."""

from __future__ import annotations

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.speed import rates
from dsconf.speed.communication import gathers
from dsconf.speed.optimizer import ADAM_BYTES, element_bytes, share_on_cpu, trained, update_bytes


def host_link(cluster: Cluster) -> float:
    """Return the bytes a second between one GPU and pinned host memory, in one direction."""
    return rates.HOST_LINK_FRACTION * cluster.gpu.host_bandwidth


def cpu_bandwidth(cluster: Cluster) -> float:
    """Return the bytes a second that one rank's share of a node's cores, and of its memory bandwidth, moves in the
    step."""
    cores = cluster.cores / cluster.gpus_per_node
    return min(cores * rates.CPU_BYTES_PER_CORE, cluster.host_rate / cluster.gpus_per_node)


def _shard(job: Job) -> float:
    return share_on_cpu(job.settings) * trained(job.model)[0] / job.cluster.world_size


def gradient_copy(job: Job) -> float:
    """Compute the seconds to copy a micro-batch's gradients to the host: in fp32 at stages 1 and 2, in the model's type
    at 3."""
    width = element_bytes(job.settings) if job.settings.stage == 3 else 4
    return width * _shard(job) / host_link(job.cluster)


def parameter_copy(job: Job) -> tuple[float, float]:
    """Compute the seconds to copy offloaded parameters to the GPU, in forward and in backward."""
    if job.settings.offload_param == "none" or job.settings.stage != 3:
        return 0.0, 0.0
    size = element_bytes(job.settings) * job.model.num_params / job.cluster.world_size
    forward, backward = gathers(job) if job.cluster.world_size > 1 else (1.0, 1.0)
    return forward * size / host_link(job.cluster), backward * size / host_link(job.cluster)


def cpu_bytes(settings: Settings) -> int:
    """Return the host memory moved for each element in the step, in bytes.

    Clip in place (8), the optimizer (28 for Adam), cast to the model's type (4 + w); stage 3 also casts the
    gradients to fp32 (w + 4).
    """
    width = element_bytes(settings)
    update = update_bytes(settings) if settings.optimizer_fused else ADAM_BYTES
    return 8 + update + 4 + width + (width + 4 if settings.stage == 3 else 0)


def cpu_step(job: Job) -> float:
    """Compute the seconds of the optimizer step on the CPU, and of copying new parameters to the GPU unless they live
    on the host."""
    elements = _shard(job)
    computed = cpu_bytes(job.settings) * elements / cpu_bandwidth(job.cluster)
    if job.settings.offload_param != "none" and job.settings.stage == 3:
        return computed
    return computed + element_bytes(job.settings) * elements / host_link(job.cluster)


def _node_shard(job: Job, elements: float) -> float:
    return elements * job.cluster.gpus_per_node / job.cluster.world_size


def nvme_step(job: Job) -> float:
    """Compute the seconds to read and write the optimizer states on the drive of each node: fp32 master and two moments
    both ways, gradients once.

    Only stage 3 uses NVMe; below it DeepSpeed keeps everything in host memory.
    """
    if job.settings.offload_optimizer != "nvme" or job.settings.stage != 3:
        return 0.0
    elements, cluster = _node_shard(job, trained(job.model)[0]), job.cluster
    return elements * (16 / cluster.nvme_read_bandwidth + 16 / cluster.nvme_write_bandwidth)


def nvme_parameters(job: Job) -> tuple[float, float, float]:
    """Compute the seconds to read parameters in forward and in backward, and to write them after the step."""
    if job.settings.offload_param != "nvme" or job.settings.stage != 3:
        return 0.0, 0.0, 0.0
    size = element_bytes(job.settings) * _node_shard(job, job.model.num_params)
    forward, backward = gathers(job) if job.cluster.world_size > 1 else (1.0, 1.0)
    read, write = job.cluster.nvme_read_bandwidth, job.cluster.nvme_write_bandwidth
    return forward * size / read, backward * size / read, size / write
