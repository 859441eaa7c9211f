"""Whether an estimate fits a card, with the headroom that measured out-of-memory runs call for.

The boundary was measured on an H200: training steps were run with the memory of the process capped at a multiple of
the measured peak (tests/measured/h200-oom-boundary.jsonl). With ``expandable_segments:True`` 1.03 was enough for each
of the seven configs tried and 1.01 for four of them; the default allocator failed at 1.12 in two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconf.cluster.spec import Gpu

if TYPE_CHECKING:
    from dsconf.memory.estimate import Estimate

HEADROOM_PERCENT = 3
"""Above the peak, with expandable segments: enough for every config measured."""
CONTEXT_BYTES = 840 * 2**20
"""CUDA context and loaded kernels of one process, outside torch's allocator: 836 MiB measured on an H200 after three
steps of a small Llama (driver 580, CUDA 13, torch 2.11). NCCL's buffers come on top and are not measured yet."""


def reserved(peak_bytes: int) -> int:
    """Bytes torch's allocator needs around a peak, with expandable segments."""
    return peak_bytes + -(-peak_bytes * HEADROOM_PERCENT // 100)


def usable_bytes(gpu: Gpu) -> int:
    """The largest peak that fits ``gpu`` with headroom."""
    return max(0, (gpu.memory_bytes - CONTEXT_BYTES) * 100 // (100 + HEADROOM_PERCENT))


def verdict(estimate: Estimate, gpu: Gpu) -> str:
    """``yes`` with headroom, ``tight`` where only the bare peak fits, else ``no``."""
    if estimate.peak_bytes <= usable_bytes(gpu):
        return "yes"
    return "tight" if estimate.peak_bytes + CONTEXT_BYTES <= gpu.memory_bytes else "no"
