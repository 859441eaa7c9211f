"""The machine that the measurements are made on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any

from dsconf.cluster.catalogue import find_gpu, nearest_in_memory
from dsconf.errors import InputError, UnavailableError

Row = dict[str, Any]
QUIET = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""NVLink multicast off, in NCCL, torch and NVSHMEM."""
ASKED = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,pci.bus_id"
TORCH = """
import json, torch
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try: return version(name)
    except PackageNotFoundError: return None
there = torch.cuda.is_available()
cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if there else []
print(json.dumps({
    "gpus": [{"name": card.name, "memory_bytes": card.total_memory} for card in cards],
    "cuda": torch.version.cuda,
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if there else None,
    "versions": {name: of(name) for name in ("torch", "deepspeed", "transformers", "accelerate")},
}))
"""


def describe() -> Row:
    """Describe GPUs, driver, links, processor, memory and versions; torch is asked in a process that ends again.

    Raises:
        UnavailableError: there is no torch.
    """
    asked = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=False, timeout=300)
    if asked.returncode:
        raise UnavailableError(f"torch cannot be asked what is here: {asked.stderr.strip().splitlines()[-1:]}")
    return {
        **json.loads(asked.stdout),
        "smi": _said("nvidia-smi", f"--query-gpu={ASKED}", "--format=csv"),
        "topology": _said("nvidia-smi", "topo", "-m"),
        "cpu": _cpu(),
        "cpu_cores": cores(),
        "memory_bytes": memory("MemTotal"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith("NCCL_")},
    }


def same_kind(one: Row, other: Row) -> bool:
    """Say whether measurements of both belong into one folder: the same card and the same versions, any number of
    GPUs."""
    return _kind(one) == _kind(other)


def _kind(machine: Row) -> tuple[Any, ...]:
    names = {card["name"] for card in machine["gpus"]}
    return (sorted(names), machine["versions"], machine["nccl"])


def in_a_row(machine: Row) -> Row:
    """Return the machine as ``benchmarks.speed.accuracy`` reads it; a card not in the catalogue as the nearest in
    memory."""
    if not machine["gpus"]:
        return {"cpu_cores": machine["cpu_cores"]}
    card = machine["gpus"][0]
    node: Row = {"gpus_per_node": len(machine["gpus"]), "cpu_cores": machine["cpu_cores"], "nvlink_switches": False}
    try:
        return {"gpu": find_gpu(card["name"]).name, **node}
    except InputError:
        nearest = nearest_in_memory(card["memory_bytes"])
        return {"gpu": nearest.name, "figures": {"memory_bytes": card["memory_bytes"]}, **node}


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(name: str) -> int | None:
    """Return the bytes of one line of /proc/meminfo; None where there is none."""
    place = Path("/proc/meminfo")
    for line in place.read_text(encoding="ascii").splitlines() if place.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


class HostMemory:
    """While entered, notes the most that the machine's memory was in use beyond what it was before."""

    SECONDS = 0.2

    def __init__(self) -> None:
        self.used_bytes = 0
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HostMemory:
        self._before = _in_use()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.SECONDS):
            self.used_bytes = max(self.used_bytes, _in_use() - self._before)


def _in_use() -> int:
    """Return the memory in use. MemTotal grows with use on some virtual machines, so the difference is what counts."""
    return (memory("MemTotal") or 0) - (memory("MemAvailable") or 0)


def _said(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _cpu() -> str:
    place = Path("/proc/cpuinfo")
    lines = place.read_text(encoding="utf-8", errors="replace").splitlines() if place.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
