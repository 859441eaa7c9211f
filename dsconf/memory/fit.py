"""Whether an estimate fits a card, with the headroom that measured out-of-memory runs call for.

The boundary was measured on an H200: training steps were run with the memory of the process capped at a multiple of
the measured peak (tests/measured/h200-oom-boundary.jsonl, 25 configs of nine families). With
``expandable_segments:True`` 1.03 was enough for all but one, a peak of 2.9 GiB that needed between 88 and 147 MiB more.
The default allocator failed at up to 1.3: it cannot join free blocks of different segments, so its need follows the
largest single request and not the peak. Less than two such requests more was enough for each config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconf.cluster.spec import Cluster, Gpu

if TYPE_CHECKING:
    from dsconf.memory.estimate import Estimate


def shortfall_bytes(estimate: Estimate, gpu: Gpu) -> int:
    """By how much ``gpu`` is too small for the estimate with its headroom; 0 where it fits."""
    return max(0, estimate.process_bytes - gpu.memory_bytes)


def host_shortfall_bytes(estimate: Estimate, cluster: Cluster) -> int:
    """By how much a node has too little memory, where nobody stated it by how much any has; 0 where it fits."""
    return max(0, estimate.host_bytes_per_node - cluster.host_limit_bytes)


def verdict(estimate: Estimate, gpu: Gpu) -> str:
    """Return ``yes`` with headroom, ``tight`` where only the bare peak of initialisation and steps fits, else
    ``no``."""
    if not shortfall_bytes(estimate, gpu):
        return "yes"
    outside = estimate.process_bytes - estimate.reserved_bytes
    return "tight" if max(estimate.peak_bytes, estimate.init_peak_bytes) + outside <= gpu.memory_bytes else "no"
