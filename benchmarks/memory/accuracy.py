"""How far the predicted peaks are from measured ones, case by case, beside DeepSpeed's own estimators.

    python -m benchmarks.memory.accuracy tests/measured/h200-ten-families.jsonl

One case a line: ``model`` (a Hugging Face config), ``world_size``, ``micro_batch_size``, ``seq_len``,
``gradient_accumulation_steps``, ``gradient_checkpointing``, ``attention``, ``ds_config`` (null where ``strategy`` is
``ddp``) and ``measured.peak_mib``, the largest ``torch.cuda.max_memory_allocated`` of ``rank`` (0 where none is named)
over the first steps; where ``device`` is ``CPU``, the live tensors of that rank. Cases with an ``error`` are left out,
and those of a CPU with offload, where everything lies in the same memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tabulate import tabulate

from dsconf.cluster.read import read_cluster
from dsconf.config.resolve import resolve
from dsconf.errors import DsconfError
from dsconf.job import Job
from dsconf.live.predict import of_estimate
from dsconf.memory.estimate import estimate
from dsconf.model.read import read_model
from dsconf.workload import Workload

MIB = 2**20
BOUNDS = {"median": 1.0, "worst": 5.0}
"""Percent; what --strict holds the case set to."""

Row = dict[str, Any]


class Result(NamedTuple):
    """One case. Sizes are bytes; ``theirs`` is None where DeepSpeed has no estimator for the stage."""

    name: str
    job: Job
    measured: int
    predicted: int
    theirs: int | None

    @property
    def error(self) -> float:
        """Return by how many percent the prediction is too high."""
        return 100 * (self.predicted / self.measured - 1)

    @property
    def their_error(self) -> float | None:
        """Return by how many percent DeepSpeed's estimator is too high."""
        return None if self.theirs is None else 100 * (self.theirs / self.measured - 1)


def job_of(row: Row) -> Job:
    """Make the job that ``row`` measured. Plain DDP ran torch's AdamW over fp32 parameters."""
    lora = row.get("lora")
    model = read_model(model=row["model"], lora_rank=lora["r"] if lora else None)
    settings = resolve(row["ds_config"] or {}, row["world_size"])
    if row.get("strategy") == "ddp":
        precision = "autocast" if row.get("autocast_bf16") else row["load_dtype"]
        settings = replace(settings, engine="ddp", precision=precision, optimizer="adamw", optimizer_fused=False)
    workload = Workload(
        seq_len=row["seq_len"],
        micro_batch=row["micro_batch_size"],
        accumulation=row["gradient_accumulation_steps"],
        checkpointing=row["gradient_checkpointing"],
        reentrant=bool(row.get("checkpoint_use_reentrant")),
        attention=row["attention"],
        load_dtype=row.get("load_dtype"),
        quantize=row.get("quantize"),
        zero_init=row.get("zero_init"),
    )
    return Job(model, read_cluster(row["world_size"], gpu="h200"), settings, workload)


def comparable(row: Row) -> bool:
    """Say whether ``row`` has a peak that is predicted."""
    zero = (row.get("ds_config") or {}).get("zero_optimization", {})
    offloaded = any(name.startswith("offload_") for name in zero)
    return "error" not in row and not (row.get("device") == "CPU" and offloaded)


def result_of(row: Row) -> Result:
    """Predict the rank of ``row``, beside what was measured."""
    job = job_of(row)
    measured = round(row["measured"]["peak_mib"] * MIB)
    prediction = of_estimate(estimate(job, rank=row.get("rank", 0)), "cpu" if row.get("device") == "CPU" else "cuda")
    assert prediction.peak_bytes is not None
    return Result(row["name"], job, measured, prediction.peak_bytes, deepspeed_bytes(job))


def deepspeed_bytes(job: Job) -> int | None:
    """Return what DeepSpeed 0.19.8's estimators say one GPU needs.

    runtime/zero/stage_1_and_2.py: estimate_zero2_model_states_mem_needs; runtime/zero/stage3.py:
    estimate_zero3_model_states_mem_needs. There is none for stages 0 and 1.
    """
    total, ranks, settings = job.model.num_params, job.cluster.world_size, job.settings
    offloaded = settings.offload_optimizer != "none"
    if settings.stage == 2:
        return 2 * total if offloaded else 2 * total + 18 * total // ranks
    if settings.stage != 3:
        return None
    largest = 4 * _largest_module(job)
    if offloaded and settings.offload_param != "none":
        return largest
    return largest + (2 if offloaded else 18) * total // ranks


def _largest_module(job: Job) -> int:
    """Count the elements that the module with the most parameters of its own holds."""
    sizes: dict[str, int] = {}
    params = job.model.parameters
    for block, prefix in ((params.before, ""), (params.layer, "layer "), (params.after, "")):
        for p in block:
            module = prefix + p.name.rpartition(".")[0]
            sizes[module] = sizes.get(module, 0) + p.numel
    return max(sizes.values())


GROUPS: dict[str, Callable[[Result], str]] = {
    "stage": lambda r: "DDP" if r.job.settings.engine == "ddp" else f"ZeRO {r.job.settings.stage}",
    "family": lambda r: r.job.model.family,
    "checkpointing": lambda r: "on" if r.job.workload.checkpointing else "off",
    "attention": lambda r: r.job.workload.attention,
    "offload": lambda r: _offload(r.job),
    "precision": lambda r: r.job.settings.precision,
}
"""What the errors are broken down by, and how a case is sorted in."""


def _offload(job: Job) -> str:
    if job.settings.offload_param != "none":
        return "optimizer and parameters"
    return "optimizer" if job.settings.offload_optimizer != "none" else "none"


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that ``share`` of all values do not exceed."""
    return sorted(values)[ceil(share * len(values)) - 1]


def spread(errors: Iterable[float | None]) -> list[str]:
    """Return number, median, 95th percentile and largest of the absolute errors, in percent."""
    sizes = [abs(error) for error in errors if error is not None]
    if not sizes:
        return ["0", "", "", ""]
    return [str(len(sizes)), *(f"{x:.2f}" for x in (median(sizes), percentile(sizes, 0.95), max(sizes)))]


def summary(results: list[Result]) -> list[list[str]]:
    """Make a row for all cases, then one for each value of each group: dsconf's spread, then DeepSpeed's."""
    rows = [["all", *_both(results)]]
    for group, value_of in GROUPS.items():
        for value in sorted({value_of(r) for r in results}):
            rows.append([f"{group}: {value}", *_both([r for r in results if value_of(r) == value])])
    return rows


def _both(results: list[Result]) -> list[str]:
    return [*spread(r.error for r in results), *spread(r.their_error for r in results)]


def cases(results: list[Result]) -> list[list[str]]:
    """Make a row for each case, the largest error last."""
    rows = []
    for r in sorted(results, key=lambda r: abs(r.error)):
        theirs = "none" if r.their_error is None else f"{r.their_error:+.1f} %"
        rows.append([r.name, f"{r.measured / MIB:.0f}", f"{r.predicted / MIB:.0f}", f"{r.error:+.2f} %", theirs])
    return rows


CASE_HEADERS = ("case", "measured MiB", "dsconf MiB", "dsconf", "DeepSpeed's estimator")
NOTE = "theirs: DeepSpeed's own estimators, which exist for ZeRO stages 2 and 3 only."
SUMMARY_HEADERS = ("absolute error in %", "cases", "median", "95th", "worst", "theirs", "median", "95th", "worst")


def report(results: list[Result], style: str) -> str:
    """Return both tables as text, in one of tabulate's styles."""
    every = table(CASE_HEADERS, cases(results), style)
    return f"{every}\n\n{table(SUMMARY_HEADERS, summary(results), style)}\n\n{NOTE}"


def table(headers: tuple[str, ...], rows: list[list[str]], style: str) -> str:
    """Lay out a table as text: words to the left, figures to the right, each as it is."""
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt=style, colalign=align, headersalign=align, disable_numparse=True)


def read(path: Path) -> list[Row]:
    """Read the cases of one file; end the program with one line where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="CASES.jsonl")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--strict", action="store_true", help="exit 1 where median or worst exceed their bounds")
    args = parser.parse_args()
    rows = [row for path in args.files for row in read(path)]
    try:
        results = [result_of(row) for row in rows if comparable(row)]
    except DsconfError as error:
        sys.exit(f"{args.files[0]}: {error}")
    except KeyError as error:
        sys.exit(f"{args.files[0]}: a case has no {error}")
    if not results:
        sys.exit(f"{args.files[0]}: no cases")
    print(report(results, "github" if args.markdown else "simple"))
    errors = [abs(r.error) for r in results]
    missed = median(errors) > BOUNDS["median"] or max(errors) > BOUNDS["worst"]
    sys.exit(1 if missed and args.strict else 0)


if __name__ == "__main__":
    main()
