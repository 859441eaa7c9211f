"""What a job runs on: GPUs, nodes and the links in and between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

MOST_HOST_BYTES = 4 * 2**40
"""The most memory that a node is assumed to have where nobody said: the 32 slots of a DGX B200 hold 2 TB as it is sold
and 4 TB at most (https://docs.nvidia.com/dgx/dgxb200-user-guide/introduction-to-dgxb200.html)."""

NETWORK = 50e9
"""Bytes a second that one GPU sends to another node where nobody says: 400 Gbit/s InfiniBand for each, as in a DGX
H100."""
CORES = 64
"""CPU cores of a node with all its GPUs, where nobody says."""
HOST_RATE = 300e9
"""Bytes a second of a node's memory where nobody says: eight channels of DDR5-4800 have 307 GB/s."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator. FLOP/s are dense (no sparsity); bandwidths are bytes a second."""

    name: str
    memory_bytes: int
    """Memory that ``torch.cuda.mem_get_info`` can report as total (less than the marketing figure)."""
    bf16_flops: float
    """Dense bf16 (fp16 where the card has no bf16) matrix FLOP/s."""
    fp32_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    """Bytes a second one GPU sends to its peers in a node, one direction (NVLink, else PCIe)."""
    host_bandwidth: float
    """Bytes a second between one GPU and host memory, one direction (PCIe or C2C)."""
    has_bf16: bool = True
    source: str = ""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # The models of memory and speed look cards and clusters up for each job.
        return hash(tuple(vars(self).values()))


@dataclass(frozen=True)
class Cluster:
    """``world_size`` GPUs of one kind, ``gpus_per_node`` to a node."""

    gpu: Gpu
    world_size: int
    gpus_per_node: int
    host_memory_bytes: int | None = None
    """Memory of one node; None when nobody said."""
    nvme_path: str | None = None
    nvme_read_bandwidth: float = 6.0e9
    """Bytes a second from the NVMe drive of a node: one data-centre drive on PCIe 4.0 x4, whose datasheets say 6.5 to 7
    GB/s."""
    nvme_write_bandwidth: float = 3.5e9
    """Bytes a second to it, of the same drive, whose datasheets say 3.5 to 5 GB/s."""
    node_bandwidth: float | None = None
    """Bytes a second one GPU sends to another node, one direction; None when nobody said."""
    cpu_cores: int | None = None
    """Cores of one node for this job; None when nobody said."""
    host_memory_bandwidth: float | None = None
    """Bytes a second that a node's cores read and write of its memory; None when nobody said."""
    nvlink_switches: bool = True
    """Whether NCCL may add up inside the NVSwitches of a node; False where NCCL_NVLS_ENABLE is 0."""
    node_gpus: int | None = None
    """GPUs that a node has, whether the job uses them or not; None: as many as the job uses of it."""

    @property
    def nodes(self) -> int:
        """Return the number of nodes, of which the last may not be full."""
        return -(-self.world_size // self.gpus_per_node)

    @property
    def network_rate(self) -> float:
        """Return ``node_bandwidth``, or what is assumed."""
        return NETWORK if self.node_bandwidth is None else self.node_bandwidth

    @property
    def cores(self) -> int:
        """Return ``cpu_cores``, or the share of a full node's assumed cores that belongs to the GPUs the job uses."""
        if self.cpu_cores is not None:
            return self.cpu_cores
        used = min(self.gpus_per_node, self.world_size)
        return max(1, CORES * used // (self.node_gpus or self.gpus_per_node))

    @property
    def host_rate(self) -> float:
        """Return ``host_memory_bandwidth``, or what is assumed."""
        return HOST_RATE if self.host_memory_bandwidth is None else self.host_memory_bandwidth

    @property
    def host_limit_bytes(self) -> int:
        """Return the memory of one node that a job may take: as stated, else the most that a node is assumed to
        have."""
        return MOST_HOST_BYTES if self.host_memory_bytes is None else self.host_memory_bytes

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(vars(self).values()))
