"""Reads how much memory one rank uses. All figures are bytes, of this process unless they say otherwise."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path
from typing import Protocol

import torch

from dsconf.live.rank.tracker import LiveTensors

HISTORY = 1_000_000
"""Allocations that a snapshot keeps; a step of a large model makes some ten thousand."""


class Gauge(Protocol):
    """A device's memory: peak since ``reset``, now, and what the allocator holds."""

    source: str

    def reset(self) -> None:
        """Start a new peak from what is allocated now."""

    def peak_bytes(self) -> int:
        """Return the largest allocation since ``reset``."""

    def now_bytes(self) -> int:
        """Return what is allocated at this moment."""

    def reserved_bytes(self) -> int | None:
        """Return the largest reservation of the caching allocator since ``reset``; None where there is no such
        thing."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked."""

    def cap(self, num_bytes: int) -> None:
        """Let this process allocate at most ``num_bytes``; 0: as much as there is."""

    def record(self, snapshot: str) -> None:
        """Keep the history of allocations from here on, unless ``snapshot`` is empty."""

    def save(self, snapshot: str) -> bool:
        """Write the history to the file ``snapshot``, and say whether there was one to write."""


class CudaGauge:
    """torch's caching allocator on the current CUDA device."""

    source = "cuda allocator"

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_allocated())

    def now_bytes(self) -> int:
        return int(torch.cuda.memory_allocated())

    def reserved_bytes(self) -> int | None:
        return int(torch.cuda.max_memory_reserved())

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def cap(self, num_bytes: int) -> None:
        if num_bytes:
            total = torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total))

    def record(self, snapshot: str) -> None:
        if snapshot:
            torch.cuda.memory._record_memory_history(max_entries=HISTORY)

    def save(self, snapshot: str) -> bool:
        if snapshot:
            torch.cuda.memory._dump_snapshot(snapshot)
        return bool(snapshot)


class CpuGauge:
    """Live tensors, counted by a dispatch mode that stays on from here to the end of the process."""

    source = "live tensors on the CPU"

    def __init__(self) -> None:
        self._tensors = LiveTensors()
        self._tensors.__enter__()  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        self._tensors.reset_peak()

    def peak_bytes(self) -> int:
        return self._tensors.peak

    def now_bytes(self) -> int:
        return self._tensors.now

    def reserved_bytes(self) -> int | None:
        return None

    def synchronize(self) -> None:
        return

    def cap(self, num_bytes: int) -> None:
        return

    def record(self, snapshot: str) -> None:
        return

    def save(self, snapshot: str) -> bool:
        return False


def host_peak_bytes() -> int:
    """Return the largest resident memory that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_bytes() -> int | None:
    """Return what the driver holds for this process, as nvidia-smi lists it; None where it cannot be asked."""
    if not torch.cuda.is_available():
        return None
    try:
        match = re.search(rf"^process +{os.getpid()} uses +([\d.]+) MB", torch.cuda.list_gpu_processes(), re.MULTILINE)
    except Exception:  # no NVML, or one that will not tell a container: each driver has its own error for it
        return None
    return int(float(match[1]) * 2**20) if match else None


def card_used_bytes() -> int | None:
    """Return the memory in use on the whole card, other processes and contexts included; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return int(total - free)
