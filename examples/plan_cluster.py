"""Which jobs fit a cluster, and how long they take: 100 000 combinations of model, GPUs and sequence length.

    python examples/plan_cluster.py
    python examples/plan_cluster.py --every 50 --jsonl jobs.jsonl

Needs dsconf alone, no torch and no GPU. Every job is answered with the memory of its fullest rank and the time of a
step, at the smallest ZeRO stage that fits. The table says what a capacity planner asks: for each size of model, the
fewest GPUs that hold the longest sequence, and what a billion tokens cost there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import dsconf

SIZES = [round(0.5e9 * 1.15**step) for step in range(40)]
GPUS = range(8, 408, 8)
LENGTHS = range(512, 25_601, 512)
PRICE = 2.5
"""Of one GPU for one hour."""


def summary(jobs: Iterable[dsconf.PlannedJob]) -> list[str]:
    """A line for each model: the fewest GPUs on which its longest sequence fits with headroom."""
    best: dict[str, dsconf.PlannedJob] = {}
    for job in jobs:
        known = best.get(job.model)
        if job.fits == "yes" and (known is None or (-job.seq_len, job.gpus) < (-known.seq_len, known.gpus)):
            best[job.model] = job
    return [_line(job) for job in best.values()]


def _line(job: dsconf.PlannedJob) -> str:
    cost = 1e9 / job.tokens_per_second / 3600 * job.gpus * PRICE
    figures = f"{job.seq_len:>7,} {job.gpus:>5} {job.stage:>6} {job.process_bytes / 2**30:>8.1f}"
    return f"{job.model:>7} {figures} {job.step_seconds:>8.3g} {job.tokens_per_second:>12,.0f} {cost:>8,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th of the 40 sizes of model")
    parser.add_argument("--stage", type=int, choices=range(4), help="one ZeRO stage for all [default: the smallest]")
    parser.add_argument("--jsonl", type=Path, help="write every job as a line of JSON, too")
    args = parser.parse_args()
    start = perf_counter()
    jobs = list(
        dsconf.plan(
            params=SIZES[:: args.every],
            gpus=GPUS,
            seq_len=LENGTHS,
            stage=args.stage,
            gpu="h100-80gb",
            activation_checkpointing=True,
        )
    )
    seconds = perf_counter() - start
    print("  model seq_len  GPUs  stage  GPU GiB  s/step     tokens/s   1B tokens cost")
    print("\n".join(summary(jobs)))
    fitting = sum(job.fits == "yes" for job in jobs)
    print(f"{len(jobs):,} jobs ({fitting:,} fit) in {seconds:.1f} s, {1e6 * seconds / len(jobs):.0f} microseconds each")
    if args.jsonl is not None:
        args.jsonl.write_text("".join(f"{json.dumps(asdict(job))}\n" for job in jobs), encoding="utf-8")


if __name__ == "__main__":
    main()
