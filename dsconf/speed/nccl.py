"""Seconds of one collective, as NCCL's own tuner estimates them before it chooses an algorithm.

Latencies are those of https://github.com/NVIDIA/nccl/blob/5067397c2676d5aed50042fc39e5c8ee96eb0027/src/graph/tuning.cc
(``ncclTunerConstantsDefaults``, and the sums below them): a start, then one hop for each step of the ring or level of
the tree. Of its protocols LL128 has short hops and 0.92 of the bandwidth, Simple long hops and all of it.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2
from typing import NamedTuple

from dsconf.cluster.spec import Cluster
from dsconf.speed import card_efficiency, rates

LL128_START, SIMPLE_START = 14e-6, 8.4e-6
NVLINK_HOP = (1.9e-6, 3.4e-6)
"""Seconds of one hop of a ring within a node: LL128, Simple."""
PCIE_HOP = (2.5e-6, 5.7e-6)
PCIE_5 = 63.1e9
"""Bytes a second of 16 lanes of PCIe 5.0, 63.0 GB/s, rounded up."""
NODE_HOP = (4.0e-6, 14.0e-6)
TREE_HOP, TREE_NODE_HOP = 1.25e-6, 8.5e-6
"""Seconds of one level of a tree, within a node and across nodes, LL128."""
LL128_BANDWIDTH = 0.92
SWITCH_SECONDS = 40e-6
"""Start of NVLS, in which the switches of a node add up: 39 to 46 µs for up to 1 MiB on 8 H200 (the page below)."""
SWITCH_FRACTION = 0.56
"""Rate of an all-reduce within NVSwitches, as a fraction of the link's: 259 to 270 GB/s of 450 on 5 to 8 H200, 467 to
479 of 900 on 6 to 8 B200, as measured in
https://github.com/stas00/ml-engineering/blob/744d01e18b79512572f64a6bbd8b5f4a725203a7/network/README.md (SHARP)."""
SWITCH_RANKS = 6
"""NCCL takes the switches from 5 (H200) or 6 (B200) ranks on."""


class Fabric(NamedTuple):
    """What joins some ranks of a cluster."""

    bandwidth: float
    """Bytes a second that each rank sends and receives in a ring through all."""
    all_gather: tuple[float, float]
    """Seconds that a ring of one turn (all-gather, reduce-scatter) takes to carry nothing: LL128, Simple."""
    all_reduce: tuple[float, float]
    tree: float
    """The same for the tree of an all-reduce; infinite within a node."""
    switch: float
    """Bytes a second of an all-reduce in the node's switches; 0 where there are none."""


def linked(cluster: Cluster) -> bool:
    """Say whether the GPUs of a node have links of their own, faster than PCIe."""
    return cluster.gpu.link_bandwidth > PCIE_5


def ring_bandwidth(cluster: Cluster, ranks: int | None = None) -> float:
    """Return the bytes a second that each of ``ranks`` (default all) sends and receives in a ring through all of them.

    Within a node that is the GPU's own link. Across nodes NCCL lays one ring through each network adapter, so that a
    node's adapters share the load; the slower of the adapters together and the link decides.
    """
    link = cluster.gpu.link_bandwidth
    if (ranks or cluster.world_size) > cluster.gpus_per_node:
        link = min(link, cluster.gpus_per_node * cluster.network_rate)
    return rates.LINK_FRACTION * link


def fabric(cluster: Cluster, ranks: int) -> Fabric:
    """Return what joins ``ranks`` neighbours; a node's ranks are next to each other."""
    switches = cluster.nvlink_switches and linked(cluster) and card_efficiency.instruction_width(cluster.gpu.name) > 1
    return _fabric(
        linked(cluster),
        SWITCH_FRACTION * cluster.gpu.link_bandwidth if switches else 0.0,
        ring_bandwidth(cluster, ranks),
        cluster.gpus_per_node,
        ranks,
    )


@lru_cache(maxsize=1024)
def _fabric(has_links: bool, switches: float, bandwidth: float, gpus_per_node: int, ranks: int) -> Fabric:
    nodes = ceil(ranks / gpus_per_node)
    hop = NVLINK_HOP if has_links else PCIE_HOP

    def ring(turns: int, protocol: int) -> float:
        across = turns * (nodes - 1)
        start = (LL128_START, SIMPLE_START)[protocol]
        return start + (turns * (ranks - 1) - across) * hop[protocol] + across * NODE_HOP[protocol]

    levels = (ceil(ranks / nodes) - 1) * TREE_HOP + log2(nodes) * TREE_NODE_HOP
    return Fabric(
        bandwidth,
        (ring(1, 0), ring(1, 1)),
        (ring(2, 0), ring(2, 1)),
        LL128_START + 2 * levels if nodes > 1 else float("inf"),
        switches if nodes == 1 and ranks >= SWITCH_RANKS else 0.0,
    )


def all_gather(cluster: Cluster, num_bytes: float, messages: float, ranks: int | None = None) -> float:
    """Compute the seconds of a ring all-gather, or reduce-scatter, of ``num_bytes`` in all in ``messages`` calls.

    Every rank sends (N - 1) / N of them.
    """
    ranks = ranks or cluster.world_size
    if ranks == 1:
        return 0.0
    joined = fabric(cluster, ranks)
    carried = (ranks - 1) / ranks * num_bytes / joined.bandwidth
    calls, (short, long) = max(1.0, messages), joined.all_gather
    return min(carried / LL128_BANDWIDTH + calls * short, carried + calls * long)


def all_reduce(cluster: Cluster, num_bytes: float, messages: float) -> float:
    """Compute the seconds of an all-reduce of ``num_bytes`` in all in ``messages`` calls, by the fastest of ring, tree
    and switches.

    In a ring every rank sends 2 (N - 1) / N of the bytes, in a tree twice all of them.
    """
    ranks = cluster.world_size
    if ranks == 1:
        return 0.0
    joined = fabric(cluster, ranks)
    carried = 2 * (ranks - 1) / ranks * num_bytes / joined.bandwidth
    calls, (short, long) = max(1.0, messages), joined.all_reduce
    ring = min(carried / LL128_BANDWIDTH + calls * short, carried + calls * long)
    tree = 2 * num_bytes / (LL128_BANDWIDTH * joined.bandwidth) + calls * joined.tree
    fastest = min(ring, tree)
    return min(fastest, num_bytes / joined.switch + calls * SWITCH_SECONDS) if joined.switch else fastest


def all_to_all(cluster: Cluster, num_bytes: float, messages: float, ranks: int) -> float:
    """Compute the seconds in which each rank sends ``num_bytes`` in all in ``messages`` calls, an equal part to each of
    ``ranks`` (itself included).

    Pairs of ranks need no ring: the part for other nodes goes through the rank's own adapter.
    """
    if ranks == 1:
        return 0.0
    nodes = ceil(ranks / cluster.gpus_per_node)
    near = ceil(ranks / nodes)
    inside = (near - 1) / ranks * num_bytes / (rates.LINK_FRACTION * cluster.gpu.link_bandwidth)
    outside = (ranks - near) / ranks * num_bytes / (rates.LINK_FRACTION * cluster.network_rate)
    hop = (NODE_HOP if nodes > 1 else NVLINK_HOP if linked(cluster) else PCIE_HOP)[1]
    return max(inside, outside) + messages * (SIMPLE_START + hop)
