"""What limits the speed of a config: each resource of the cluster made faster in turn, and the step timed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from dsconf.cluster.catalogue import find_gpu
from dsconf.cluster.spec import Cluster
from dsconf.search.candidates import Candidate, CostModels

NVLINK_OF = "a100-80gb"
"""The card whose NVLink stands for NVLink where a card has none of its own."""


class Limit(NamedTuple):
    """What a resource twice as fast would do; ``gain`` 0.19 is 19 % more tokens a second."""

    resource: str
    gain: float


def limits(winner: Candidate, tools: CostModels) -> tuple[Limit, ...]:
    """Try every resource, the one that would gain most first."""
    cluster = winner.job.cluster
    gains = [Limit(resource, gain(winner, faster(cluster), tools)) for resource, faster in TWICE.items()]
    return tuple(sorted(gains, key=lambda limit: -limit.gain))


def gain(winner: Candidate, cluster: Cluster, tools: CostModels) -> float:
    """Return how many more tokens a second the same config gives on ``cluster``, as a part of those it has now."""
    return winner.step.seconds / tools.step_time(replace(winner.job, cluster=cluster)).seconds - 1


def with_nvlink(cluster: Cluster) -> Cluster | None:
    """Link the same cards as ``NVLINK_OF`` is; None where they reach each other over more than the host's PCIe."""
    gpu, linked = cluster.gpu, find_gpu(NVLINK_OF)
    if gpu.link_bandwidth > gpu.host_bandwidth or gpu.link_bandwidth >= linked.link_bandwidth:
        return None
    return replace(cluster, gpu=replace(gpu, link_bandwidth=linked.link_bandwidth))


def _matrix(cluster: Cluster) -> Cluster:
    gpu = cluster.gpu
    return replace(cluster, gpu=replace(gpu, bf16_flops=2 * gpu.bf16_flops, fp32_flops=2 * gpu.fp32_flops))


def _memory(cluster: Cluster) -> Cluster:
    return replace(cluster, gpu=replace(cluster.gpu, memory_bandwidth=2 * cluster.gpu.memory_bandwidth))


def _link(cluster: Cluster) -> Cluster:
    return replace(cluster, gpu=replace(cluster.gpu, link_bandwidth=2 * cluster.gpu.link_bandwidth))


def _network(cluster: Cluster) -> Cluster:
    return replace(cluster, node_bandwidth=2 * cluster.network_rate)


def _host_link(cluster: Cluster) -> Cluster:
    return replace(cluster, gpu=replace(cluster.gpu, host_bandwidth=2 * cluster.gpu.host_bandwidth))


def _host(cluster: Cluster) -> Cluster:
    return replace(cluster, cpu_cores=2 * cluster.cores, host_memory_bandwidth=2 * cluster.host_rate)


def _drive(cluster: Cluster) -> Cluster:
    read, write = 2 * cluster.nvme_read_bandwidth, 2 * cluster.nvme_write_bandwidth
    return replace(cluster, nvme_read_bandwidth=read, nvme_write_bandwidth=write)


TWICE: dict[str, Callable[[Cluster], Cluster]] = {
    "matrix_products": _matrix,
    "gpu_memory_bandwidth": _memory,
    "link_in_node": _link,
    "network_between_nodes": _network,
    "link_to_host": _host_link,
    "host_cpu": _host,
    "nvme": _drive,
}
"""Each resource by the name it has in JSON, and the cluster that has twice as much of it."""
