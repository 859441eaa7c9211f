"""Bandwidth of the collectives by size, on real ranks, beside what the speed model predicts."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.several_gpus.machine import Row
from benchmarks.speed.accuracy import cluster_of
from dsconf.live.processes.launcher import Runner
from dsconf.live.task import call
from dsconf.speed import nccl

KINDS = ("all-reduce", "all-gather", "reduce-scatter")
SMALLEST = 1024
SECONDS = 0.05
"""How long one timing of one size lasts, at least: a clock is read before and after, not for each call."""
FEWEST, MOST, TIMINGS = 3, 500, 3
TASK = "benchmarks.several_gpus.collectives:bandwidths"


def sizes(largest: int) -> list[int]:
    """Return the powers of two from 1 KiB up to ``largest``."""
    powers = [SMALLEST]
    while 2 * powers[-1] <= largest:
        powers.append(2 * powers[-1])
    return powers


def measure(
    ranks: int, largest: int, machine: Row, limit: float, tell: Callable[[str], None], runner: Runner, launcher: str
) -> list[Row]:
    """Return a row for each collective and size, of the slowest rank, or one with the error."""
    from benchmarks.several_gpus.cases import error_of

    unit = f"collectives-w{ranks}"
    outcome = call(TASK, {"largest": largest}, ranks, limit, tell, runner, launcher)
    if outcome.failure is not None:
        return [{"unit": unit, "name": unit, "world_size": ranks, **error_of(outcome.failure)}]
    assert outcome.probe is not None
    about = {"unit": unit, "world_size": ranks, "device": outcome.probe.device_name, **machine}
    slowest = [max(of_ranks, key=lambda timing: float(timing[2])) for of_ranks in zip(*outcome.answers, strict=True)]
    return [row(kind, size, seconds, about) for kind, size, seconds in slowest]


def row(kind: str, size: int, seconds: float, about: Row) -> Row:
    """Make one line. Bus bandwidth is counted as nccl-tests does: what each link carries, whatever the number of
    ranks."""
    ranks = about["world_size"]
    on_bus = (2 if kind == "all-reduce" else 1) * (ranks - 1) / ranks * size
    predicted = predicted_seconds(kind, size, about)
    figures = {"collective": kind, "bytes": size, "seconds": seconds, "bus_bytes_per_second": on_bus / seconds}
    figures["predicted_seconds"] = predicted
    figures["predicted_bus_bytes_per_second"] = on_bus / predicted if predicted else None
    return {"name": f"{kind} {size}", **about, **figures}


def predicted_seconds(kind: str, size: int, about: Row) -> float | None:
    """Return what the speed model predicts for one such call; nothing on the CPU, whose links it does not know."""
    if "gpu" not in about:
        return None
    of = nccl.all_reduce if kind == "all-reduce" else nccl.all_gather
    return of(cluster_of(about), size, 1)


def bandwidths(largest: int) -> list[tuple[str, int, float]]:
    """Run on every rank: measure each collective at each size in bytes (of the whole), and return the seconds of one
    call."""
    import torch
    import torch.distributed as dist

    ranks, on_gpu = dist.get_world_size(), dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    whole = torch.zeros(largest // dtype.itemsize, dtype=dtype, device=device)
    parts = torch.zeros(whole.numel() // ranks, dtype=dtype, device=device)

    def calls(size: int) -> list[Callable[[], Any]]:
        all_, part = whole[: size // dtype.itemsize], parts[: size // dtype.itemsize // ranks]
        return [
            lambda: dist.all_reduce(all_),
            lambda: dist.all_gather_into_tensor(all_, part),
            lambda: dist.reduce_scatter_tensor(part, all_),
        ]

    def seconds(repeats: int, once: Callable[[], Any]) -> float:
        dist.barrier()
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            once()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    def timed(once: Callable[[], Any]) -> float:
        """Repeat ``once`` as often as the slowest rank needs, which all ranks agree on."""
        seconds(1, once)
        slowest = torch.tensor([seconds(FEWEST, once)], device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        repeats = min(MOST, max(FEWEST, round(SECONDS / float(slowest))))
        return median(seconds(repeats, once) for _ in range(TIMINGS))

    return [(kind, size, timed(once)) for size in sizes(largest) for kind, once in zip(KINDS, calls(size), strict=True)]
