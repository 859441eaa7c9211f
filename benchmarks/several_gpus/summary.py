"""Says in tables what the records hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks.several_gpus import store
from benchmarks.several_gpus.cases import predicted
from benchmarks.several_gpus.machine import Row
from benchmarks.several_gpus.store import Records
from benchmarks.speed import accuracy as speed
from dsconf.memory.allocator import CONTEXT_BYTES
from dsconf.units import MIB, format_bytes

REHEARSAL_PERCENT = 0.1
"""How near the peak of a rehearsed rank must be to that of the real one."""
PHASES = ("fwd_mib", "bwd_mib", "step_mib")


def summary(records: Records, not_run: Iterable[str] = ()) -> list[str]:
    """Return all tables and lines. Predictions are those of the models as they are now."""
    rows = [row for row in records.rows(store.CASES) if "error" not in row]
    real = [row for row in rows if not row["rehearsed"]]
    rehearsed = {(row["case"], row["rank"]): row for row in rows if row["rehearsed"]}
    lines = [*_machine(records), *_cases(real, rehearsed)]
    lines += [*_bandwidths(records.rows(store.COLLECTIVES)), *_strategies(records.rows(store.BENCH))]
    failed = [row for name in (store.CASES, store.COLLECTIVES, store.BENCH) for row in records.rows(name)]
    lines += [f"failed: {row['unit']}: {row['error']}" for row in failed if "error" in row]
    return lines + [f"not run: {line}" for line in not_run]


def missed(records: Records) -> list[str]:
    """List the ranks whose rehearsal is further from the real rank than ``REHEARSAL_PERCENT``."""
    rows = [row for row in records.rows(store.CASES) if "error" not in row]
    real = {(row["case"], row["rank"]): row for row in rows if not row["rehearsed"]}
    pairs = [(real[key], row) for row in rows if row["rehearsed"] and (key := (row["case"], row["rank"])) in real]
    return [real_row["name"] for real_row, other in pairs if abs(apart(real_row, other)) > REHEARSAL_PERCENT]


def apart(real: Row, rehearsed: Row) -> float:
    """Return by how many percent the rehearsed peak is above the real one."""
    return _error(rehearsed["measured"]["peak_mib"], real["measured"]["peak_mib"])


def phases_apart(real: Row, rehearsed: Row) -> float:
    """Return the same for the phase that is furthest off, in any iteration."""
    pairs = zip(real["measured"]["iterations"], rehearsed["measured"]["iterations"], strict=False)
    errors = [_error(other[phase], real_phases[phase]) for real_phases, other in pairs for phase in PHASES]
    return max(errors, key=abs, default=0.0)


def _error(value: float, reference: float) -> float:
    return 100 * (value / reference - 1)


def _machine(records: Records) -> Iterator[str]:
    for machine in records.rows(store.MACHINES):
        cards = [card["name"] for card in machine["gpus"]]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
        what = f"{len(cards)} {cards[0]}" if cards else "no CUDA device: tiny models, real ranks over gloo"
        yield f"{what}; {machine['cpu']}, {machine['cpu_cores']} cores; NCCL {machine['nccl']}; {versions}"


def _cases(real: list[Row], rehearsed: dict[tuple[str, int], Row]) -> Iterator[str]:
    by_case: dict[str, list[Row]] = {}
    for row in real:
        by_case.setdefault(row["case"], []).append(row)
    if not by_case:
        return
    now = {row["name"]: predicted(row) for row in real}
    table = [_case(case, ranks, now, rehearsed) for case, ranks in by_case.items()]
    heads = ["case", "ranks", "peak MiB", "median %", "worst %", "rehearsed %", "phase %", "init %", "reserved %"]
    heads += ["NCCL MiB", "pred.", "host GiB", "pred.", "step s", "pred. s", "error %"]
    yield "\n" + tabulate(table, heads, floatfmt=".2f", missingval="")
    yield from _lines(real, now, rehearsed)


def _case(case: str, ranks: list[Row], now: dict[str, Row], rehearsed: dict[tuple[str, int], Row]) -> list[Any]:
    fullest = max(ranks, key=lambda row: float(row["measured"]["peak_mib"]))
    of = now[fullest["name"]]
    errors = [error for row in ranks if (error := peak_error(row, now[row["name"]])) is not None]
    again = [(row, rehearsed[key]) for row in ranks if (key := (case, row["rank"])) in rehearsed]
    seconds = speed.measured(fullest)
    on_cpu = fullest["device"] == "CPU"
    return [
        case,
        len(ranks),
        fullest["measured"]["peak_mib"],
        median(map(abs, errors)) if errors else None,
        max(errors, key=abs, default=None),
        max((apart(*pair) for pair in again), key=abs, default=None),
        max((phases_apart(*pair) for pair in again), key=abs, default=None),
        _off(of["init_peak_mib"], fullest["measured"]["init_peak_mib"]),
        _off(of["reserved_mib"], fullest["measured"]["max_reserved_mib"]),
        nccl_mib(fullest, rehearsed.get((case, fullest["rank"]))),
        None if on_cpu else of["nccl_mib"],
        fullest["node"]["host_used_mib"] / 1024,
        None if on_cpu else of["host_mib"] / 1024,
        seconds,
        None if on_cpu else of["step_seconds"],
        None if on_cpu else _error(of["step_seconds"], seconds),
    ]


def _lines(real: list[Row], now: dict[str, Row], rehearsed: dict[tuple[str, int], Row]) -> Iterator[str]:
    errors = [abs(error) for row in real if (error := peak_error(row, now[row["name"]])) is not None]
    if errors:
        spread = f"median error {median(errors):.2f} %, worst {max(errors):.2f} %"
        yield f"\npeak of every rank: {len(errors)} ranks, {spread}"
    pairs = [(row, rehearsed[key]) for row in real if (key := (row["case"], row["rank"])) in rehearsed]
    if pairs:
        worst = max(abs(apart(*pair)) for pair in pairs)
        verdict = "within" if worst <= REHEARSAL_PERCENT else "NOT WITHIN"
        yield f"rehearsed against real: {len(pairs)} ranks, worst {worst:.3f} %, {verdict} {REHEARSAL_PERCENT} %"
    timed = [row for row in real if row["device"] != "CPU" and row["rank"] == 0]
    if timed:
        off = [abs(_error(now[row["name"]]["step_seconds"], speed.measured(row))) for row in timed]
        yield f"step time: {len(off)} cases, median error {median(off):.1f} %, worst {max(off):.1f} %"


def peak_error(row: Row, of: Row) -> float | None:
    """Return by how many percent the predicted peak is too high; None where it cannot be compared."""
    return None if of["peak_mib"] is None else _error(of["peak_mib"], row["measured"]["peak_mib"])


def _off(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else _error(value, reference)


def nccl_mib(real: Row, rehearsed: Row | None) -> float | None:
    """Return what NCCL holds: how much more the real process holds beside torch's allocator than the rehearsed one.

    Where it was not rehearsed, more than CUDA's context and kernels as the memory model has them.
    """
    outside = real["measured"]["outside_mib"]
    if outside is None:
        return None
    without = rehearsed["measured"]["outside_mib"] if rehearsed else None
    return float(outside - (CONTEXT_BYTES / MIB if without is None else without))


def _bandwidths(rows: list[Row]) -> Iterator[str]:
    rows = [row for row in rows if "error" not in row]
    for ranks in sorted({row["world_size"] for row in rows}):
        table = []
        for row in rows:
            if row["world_size"] != ranks:
                continue
            wanted = row["predicted_seconds"]
            line = [row["collective"], format_bytes(row["bytes"]), 1e6 * row["seconds"]]
            line += [wanted and 1e6 * wanted, wanted and _error(wanted, row["seconds"])]
            reached = row["predicted_bus_bytes_per_second"]
            table.append([*line, row["bus_bytes_per_second"] / 1e9, reached and reached / 1e9])
        table.sort(key=lambda line: str(line[0]))
        heads = [f"{ranks} ranks", "size", "µs", "predicted µs", "error %", "bus GB/s", "predicted GB/s"]
        yield "\n" + tabulate(table, heads, floatfmt=".1f", missingval="")


def _strategies(rows: list[Row]) -> Iterator[str]:
    rows = [row for row in rows if "error" not in row]
    if not rows:
        return
    alone = next((row["tokens_per_second"] for row in rows if row["strategy"] == "single"), None)
    table = []
    for row in rows:
        apart_ = [abs(a - b) for a, b in zip(row["losses"], rows[0]["losses"], strict=False)]
        speed_up = row["tokens_per_second"] / alone if alone else None
        line = [row["strategy"], row["world_size"], row["step_seconds"], row["tokens_per_second"], speed_up]
        table.append([*line, row["peak_bytes"] / MIB, max(apart_, default=None)])
    heads = ["strategy", "ranks", "step s", "tokens/s", "speed-up", "peak MiB", "loss apart"]
    yield "\n" + tabulate(table, heads, floatfmt=("", "", ".4f", ",.0f", ".2f", ".1f", ".4f"), missingval="")
