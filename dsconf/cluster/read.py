"""Reads what a person says about the cluster."""

from __future__ import annotations

from dataclasses import replace

from dsconf.cluster.catalogue import find_gpu, nearest_in_memory
from dsconf.cluster.spec import Cluster, Gpu
from dsconf.errors import InputError
from dsconf.units import format_bytes, parse_bytes

DEFAULT_GPU = "H100 SXM 80GB"
_ASSUMED = "assumed"


LARGEST = 2**17
"""GPUs of one job: each rank's slice of the model is looked at, which takes seconds from here on."""


def _positive(value: int | str, option: str) -> int:
    try:
        number = int(value)
        whole = number == float(value)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(f"{option}: {value!r} is not a whole number")
    if number <= 0:
        raise InputError(f"{option}: {number} is not a positive number")
    return number


def _bytes(value: int | str, option: str) -> int:
    if not isinstance(value, str):
        return _positive(value, option)
    try:
        return parse_bytes(value)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None


def _gpu(name: str | None, memory: int | str | None) -> Gpu:
    if memory is None:
        if name is not None:
            return find_gpu(name)
        known = find_gpu(DEFAULT_GPU)
        return replace(known, name=f"{known.name} ({_ASSUMED}, name yours with --gpu)")
    size = _bytes(memory, "--gpu-memory")
    if name is not None:
        known = find_gpu(name)
        return replace(known, memory_bytes=size, source=f"memory as given; {known.source}")
    known = nearest_in_memory(size)
    return replace(
        known,
        name=f"{format_bytes(size)} GPU (speed {_ASSUMED}: {known.name})",
        memory_bytes=size,
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
) -> Cluster:
    """The cluster of ``gpus`` GPUs in all, at most ``gpus_per_node`` to a node.

    ``gpu_memory`` and ``host_memory`` (of one node) are bytes, or text such as ``80GiB``. With ``gpu`` named,
    ``gpu_memory`` replaces that card's memory; alone, it stands for the catalogue card nearest in memory; with
    neither, a H100 of 80 GB is assumed. ``assumption`` says which of these happened.

    Raises:
        InputError: a number that is not positive, a size that cannot be read, an unknown GPU.
    """
    world_size, node_gpus = _positive(gpus, "--gpus"), _positive(gpus_per_node, "--gpus-per-node")
    refuse_too_many(world_size)
    return Cluster(
        gpu=_gpu(gpu, gpu_memory),
        world_size=world_size,
        gpus_per_node=min(world_size, node_gpus),
        host_memory_bytes=None if host_memory is None else _bytes(host_memory, "--host-memory"),
        nvme_path=nvme,
        node_gpus=node_gpus,
    )


def assumption(cluster: Cluster) -> str | None:
    """One line for a person when the GPU, or its speed, was assumed rather than named; else None."""
    return f"GPU: {cluster.gpu.name}" if _ASSUMED in cluster.gpu.name else None
