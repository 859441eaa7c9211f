"""Reads what a person says about the cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dsconf.cluster.catalogue import find_gpu, nearest_in_memory
from dsconf.cluster.figures import figures
from dsconf.cluster.spec import Cluster, Gpu
from dsconf.errors import InputError
from dsconf.units import format_bytes, rate, size, whole

DEFAULT_GPU = "H100 SXM 80GB"
_ASSUMED = "assumed"


LARGEST = 2**17
"""GPUs of one job: a gradient larger than its bucket is followed through the slices of its ranks, which takes longer
with more of them."""


def with_rates(
    cluster: Cluster, network: str | None, cpu_cores: int | str | None, host_bandwidth: str | None
) -> Cluster:
    """Return ``cluster`` with the rates that somebody stated; the others keep what is assumed.

    Raises:
        InputError: a rate that cannot be read, or no positive number of cores.
    """
    stated: dict[str, Any] = {}
    if network is not None:
        stated["node_bandwidth"] = rate("--network", network)
    if cpu_cores is not None:
        stated["cpu_cores"] = whole("--cpu-cores", cpu_cores)
    if host_bandwidth is not None:
        stated["host_memory_bandwidth"] = rate("--host-bandwidth", host_bandwidth)
    return replace(cluster, **stated)


def _gpu(name: str | None, memory: int | str | None) -> Gpu:
    if memory is None:
        if name is not None:
            return find_gpu(name)
        known = find_gpu(DEFAULT_GPU)
        return replace(known, name=f"{known.name} ({_ASSUMED}, name yours with --gpu)")
    num_bytes = size("--gpu-memory", memory)
    if name is not None:
        known = find_gpu(name)
        return replace(known, memory_bytes=num_bytes, source=f"memory as given; {known.source}")
    known = nearest_in_memory(num_bytes)
    return replace(
        known,
        name=f"{format_bytes(num_bytes)} GPU (speed {_ASSUMED}: {known.name})",
        memory_bytes=num_bytes,
        source=f"memory as given; speed of {known.name}: {known.source}",
    )


def refuse_too_many(gpus: int) -> None:
    """Nothing, where ``gpus`` are no more than ``LARGEST``.

    Raises:
        InputError: they are more.
    """
    if gpus > LARGEST:
        raise InputError(f"--gpus: {gpus} is more than {LARGEST}, the most that dsconf plans for")


def read_cluster(
    gpus: int | str,
    gpu: str | None = None,
    gpu_memory: int | str | None = None,
    gpus_per_node: int | str = 8,
    host_memory: int | str | None = None,
    nvme: str | None = None,
    network: str | None = None,
    cpu_cores: int | str | None = None,
    host_bandwidth: str | None = None,
) -> Cluster:
    """The cluster of ``gpus`` GPUs in all, at most ``gpus_per_node`` to a node.

    ``gpu_memory`` and ``host_memory`` (of one node) are bytes, or text such as ``80GiB``. With ``gpu`` named,
    ``gpu_memory`` replaces that card's memory; alone, it stands for the catalogue card nearest in memory; with
    neither, a H100 of 80 GB is assumed. ``network`` is what one GPU sends to other nodes, in one direction
    (``400Gbit/s``); ``cpu_cores`` and ``host_bandwidth`` (``300GB/s``) are the cores that the job has in a node and
    what they read and write of its memory; None is what ``Cluster`` assumes. ``assumption`` says what was assumed.

    Raises:
        InputError: a number that is not positive, a size or a rate that cannot be read, an unknown GPU, an empty path.
    """
    world_size, node_gpus = whole("--gpus", gpus), whole("--gpus-per-node", gpus_per_node)
    refuse_too_many(world_size)
    nvme = None if nvme is None else str(nvme)
    if nvme is not None and not nvme.strip():
        raise InputError(f"--nvme: {nvme!r} is not a path; give a folder on a fast local disk of each node")
    cluster = Cluster(
        gpu=_gpu(gpu, gpu_memory),
        world_size=world_size,
        gpus_per_node=min(world_size, node_gpus),
        host_memory_bytes=None if host_memory is None else size("--host-memory", host_memory),
        nvme_path=nvme,
        node_gpus=node_gpus,
    )
    return with_rates(cluster, network, cpu_cores, host_bandwidth)


def assumption(cluster: Cluster, networked: bool = False, offloads: bool = False) -> str | None:
    """One line for a person on what was assumed rather than named: the GPU or its speed, the network where the job is
    ``networked``, cores and memory of the hosts where it ``offloads``; None where nothing was."""
    gpu = [f"GPU: {cluster.gpu.name}"] if _ASSUMED in cluster.gpu.name else []
    rates = [figure.text for figure in figures(cluster, networked, offloads) if figure.assumed]
    return "; ".join([*gpu, *rates]) or None
