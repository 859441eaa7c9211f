"""Network and hosts of a cluster in words: what somebody stated, and what was assumed where it decides the speed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dsconf.cluster.spec import CORES, Cluster
from dsconf.units import format_rate


class Figure(NamedTuple):
    """One figure: ``network 400 Gbit/s a GPU (assumed, --network)``."""

    text: str
    assumed: bool


def figures(cluster: Cluster, networked: bool, offloads: bool) -> Iterator[Figure]:
    """Every figure that was stated; of the assumed ones the network's where a job is ``networked``, that is on several
    nodes, and those of the hosts where it ``offloads``."""
    network, host = format_rate(cluster.network_rate, "bit"), format_rate(cluster.host_rate)
    whole = cluster.cpu_cores is not None or cluster.gpus_per_node == (cluster.node_gpus or cluster.gpus_per_node)
    cores = f"{cluster.cores} CPU cores a node" if whole else f"{cluster.cores} of a node's {CORES} CPU cores"
    rows = (
        (cluster.node_bandwidth, networked, f"network {network} a GPU", "--network"),
        (cluster.cpu_cores, offloads, cores, "--cpu-cores"),
        (cluster.host_memory_bandwidth, offloads, f"{host} of host memory bandwidth a node", "--host-bandwidth"),
    )
    for stated, matters, text, option in rows:
        if stated is not None:
            yield Figure(text, False)
        elif matters:
            yield Figure(f"{text} (assumed, {option})", True)


def figures_text(cluster: Cluster, networked: bool, offloads: bool) -> str:
    """``figures`` as the end of a sentence, each after a comma; empty where there are none."""
    return "".join(f", {figure.text}" for figure in figures(cluster, networked, offloads))
