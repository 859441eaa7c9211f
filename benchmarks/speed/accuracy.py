"""How far the predicted step times are from measured ones, case by case.

    python -m benchmarks.speed.accuracy [CASES.jsonl …]

One case a line, in the form of ``benchmarks.memory.accuracy`` with ``measured.step_seconds``: seconds of each
optimizer step, of which the first two are left out where there are more (lazy optimizer state, stage 3's first trace).

Cases with an ``error`` (``benchmarks.speed.grid`` writes them where a run failed) and those of a CPU are left out.
Those without a ``source`` were measured on one H200 of a machine with 16 cores, with torch's ``fake`` process group
where ``world_size`` is above 1: nothing was sent, so the predicted communication is left out of it, unless they
say ``rehearsed: false``. ``benchmarks.several_gpus`` writes such, with ``gpu``, ``gpus_per_node``, ``cpu_cores`` and
``nvlink_switches`` (false where NCCL was kept from adding up in them).
Cases with a ``source`` were published by others and have besides: ``url``, ``gpu`` (a name of the catalogue),
``gpus_per_node``, and as far as known ``node_bandwidth`` (bytes a second of a GPU), ``cpu_cores`` (of a node),
``figures`` (of the GPU, where theirs differ from the catalogue's), ``kernels`` (``eager``, ``fused`` or ``compiled``),
``recomputed`` (share of the layers' forward that runs again, where it is neither none nor all), ``quantize``, and
``held_out`` (true where nobody looked at the case while the model was made).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.memory.accuracy import Row, percentile, read, table
from benchmarks.memory.accuracy import job_of as job_of_memory
from dsconf.cluster.read import read_cluster
from dsconf.cluster.spec import Cluster
from dsconf.errors import DsconfError
from dsconf.job import Job
from dsconf.speed.step_time import StepTime, step_time

MEASURED = Path(__file__).parents[2] / "tests" / "measured"
FILES = (
    *sorted(MEASURED.glob("h200-step-times*.jsonl")),
    MEASURED / "h100-step-times-grid.jsonl",
    MEASURED / "h200-real-ranks.jsonl",
    MEASURED / "published-throughput.jsonl",
)
BOUNDS = {"own": 15.0, "published": 25.0}
"""Percent of the median that --strict holds cases to that were measured here, and by others."""
OWN = "own H200"
OWN_H100 = "own H100"
OWN_RANKS = "own H200, real ranks"
SETS = {OWN: "own", OWN_H100: "own, H100", OWN_RANKS: "own, real ranks"}
OWN_CORES = 16


class Result(NamedTuple):
    """One case, in seconds of one optimizer step."""

    name: str
    source: str
    held_out: bool
    job: Job
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Return by how many percent the prediction is too slow."""
        return 100 * (self.predicted / self.measured - 1)


def cluster_of(row: Row) -> Cluster:
    """Make the cluster that ``row`` ran on. One process of a rehearsal has all the cores of its machine."""
    if "gpus_per_node" not in row:
        cluster = read_cluster(row["world_size"], gpu="h200")
        return replace(cluster, cpu_cores=OWN_CORES * cluster.gpus_per_node)
    cluster = read_cluster(row["world_size"], gpu=row["gpu"], gpus_per_node=row["gpus_per_node"])
    words = ("node_bandwidth", "cpu_cores", "host_memory_bandwidth", "nvlink_switches")
    given = {key: row[key] for key in words if key in row}
    return replace(cluster, gpu=replace(cluster.gpu, **row.get("figures", {})), **given)


def job_of(row: Row) -> Job:
    """Make the job that ``row`` measured; a row of ``benchmarks.speed.grid`` names engine and adapters in its own
    words."""
    if row.get("lora_rank"):
        row = {**row, "lora": {"r": row["lora_rank"]}}
    if row.get("engine") == "ddp":
        row = {**row, "strategy": "ddp", "autocast_bf16": True}
    job = job_of_memory(row)
    return replace(job, cluster=cluster_of(row), workload=replace(job.workload, quantize=row.get("quantize")))


def seconds_of(row: Row, step: StepTime) -> float:
    """Return the predicted step, without communication where nothing was sent."""
    sent = "source" in row or row.get("rehearsed") is False
    return step.seconds if sent else step.seconds - step.parts["communication"]


def predicted(row: Row, job: Job) -> float:
    """Predict the seconds of one step; where a share of the layers is recomputed, interpolate between none and all."""

    def at(checkpointing: bool) -> float:
        work = replace(job.workload, checkpointing=checkpointing)
        return seconds_of(row, step_time(replace(job, workload=work), row.get("kernels", "eager")))

    share = row.get("recomputed", float(job.workload.checkpointing))
    return (1 - share) * at(False) + share * at(True)


def measured(row: Row) -> float:
    """Return the median step, without the first two where there are more."""
    seconds = row["measured"]["step_seconds"]
    return float(median(seconds[2:] or seconds))


def timed(row: Row) -> bool:
    """Say whether ``row`` has a time that the model predicts: of a GPU, of a run that went well, of its first rank."""
    return "error" not in row and row.get("device") != "CPU" and row.get("rank", 0) == 0


def result_of(row: Row) -> Result:
    """Predict ``row`` beside what was measured."""
    job = job_of(row)
    together = row.get("rehearsed") is False and row["world_size"] > 1
    own = OWN_RANKS if together else OWN_H100 if row.get("gpu", "").startswith("H100") else OWN
    source = row.get("source", own)
    return Result(row["name"], source, row.get("held_out", False), job, measured(row), predicted(row, job))


def _set(result: Result) -> str:
    published = "published, held out" if result.held_out else "published, looked at"
    return SETS.get(result.source, published)


def _nodes(job: Job) -> str:
    nodes = job.cluster.nodes
    return "1" if nodes == 1 else "2 to 8" if nodes <= 8 else "9 and more"


def _offload(job: Job) -> str:
    if job.settings.offload_param != "none":
        return "optimizer and parameters"
    return "optimizer" if job.settings.offload_optimizer != "none" else "none"


def _size(job: Job) -> str:
    billions = job.model.num_params / 1e9
    return (
        "below 1B"
        if billions < 1
        else "1B to 10B"
        if billions < 10
        else "10B to 100B"
        if billions < 100
        else "above 100B"
    )


GROUPS: dict[str, Callable[[Result], str]] = {
    "set": _set,
    "source": lambda r: r.source,
    "stage": lambda r: "DDP" if r.job.settings.engine == "ddp" else f"ZeRO {r.job.settings.stage}",
    "model": lambda r: r.job.model.family,
    "size": lambda r: _size(r.job),
    "GPU": lambda r: r.job.cluster.gpu.name,
    "nodes": lambda r: _nodes(r.job),
    "checkpointing": lambda r: "on" if r.job.workload.checkpointing else "off",
    "offload": lambda r: _offload(r.job),
    "adapters": lambda r: ("QLoRA" if r.job.workload.quantize else "LoRA") if r.job.model.lora_rank else "none",
}
"""What the errors are broken down by, and how a case is sorted in."""


def spread(results: Iterable[Result]) -> list[str]:
    """Return number, median, 95th percentile and largest of the absolute errors, and the median with its sign, in
    percent."""
    errors = [r.error for r in results]
    sizes = [abs(error) for error in errors]
    figures = (median(sizes), percentile(sizes, 0.95), max(sizes))
    return [str(len(errors)), *(f"{x:.1f}" for x in figures), f"{median(errors):+.1f}"]


def summary(results: list[Result]) -> list[list[str]]:
    """Make a row for each value of each group in which the cases differ."""
    rows = []
    for group, value_of in GROUPS.items():
        values = sorted({value_of(r) for r in results})
        for value in values:
            rows.append([f"{group}: {value}", *spread(r for r in results if value_of(r) == value)])
    return rows


def cases(results: list[Result]) -> list[list[str]]:
    """Make a row for each case, the largest error last."""
    ordered = sorted(results, key=lambda r: abs(r.error))
    return [[r.source, r.name, f"{r.measured:.4g}", f"{r.predicted:.4g}", f"{r.error:+.1f} %"] for r in ordered]


CASE_HEADERS = ("source", "case", "measured s", "predicted s", "error")
SUMMARY_HEADERS = ("absolute error in %", "cases", "median", "95th", "worst", "signed median")


def medians(results: list[Result]) -> dict[str, float]:
    """Return the median absolute error in percent of the project's cases and of published ones, as far as there are
    any."""
    sets = {
        "own": [r for r in results if r.source in SETS],
        "published": [r for r in results if r.source not in SETS],
    }
    return {name: median(abs(r.error) for r in found) for name, found in sets.items() if found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="CASES.jsonl", help="default: all of tests/measured")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--summary", action="store_true", help="leave the single cases out")
    parser.add_argument("--strict", action="store_true", help=f"exit 1 where a median exceeds {BOUNDS} percent")
    args = parser.parse_args()
    files = args.files or FILES
    try:
        results = [result_of(row) for path in files for row in read(path) if timed(row)]
    except DsconfError as error:
        sys.exit(f"{files[0]}: {error}")
    except KeyError as error:
        sys.exit(f"{files[0]}: a case has no {error}")
    if not results:
        sys.exit(f"{files[0]}: no cases")
    style = "github" if args.markdown else "simple"
    if not args.summary:
        print(table(CASE_HEADERS, cases(results), style), end="\n\n")
    print(table(SUMMARY_HEADERS, summary(results), style))
    missed = any(error > BOUNDS[name] for name, error in medians(results).items())
    sys.exit(1 if missed and args.strict else 0)


if __name__ == "__main__":
    main()
