"""How long one estimate takes, and how that grows with the number of layers (it should not).

    python -m benchmarks.estimate
    python -m benchmarks.estimate --strict

Microseconds of one call of ``dsconf.memory.estimate.estimate`` on a job that is read already, the best of several
rounds. ``again`` asks for the same job once more. ``another`` asks for one whose bucket and batch size
differ from all earlier ones of the same model, what a search does. ``first`` is a model's first estimate, which
records its layer. ``fullest rank`` looks for the rank with the highest peak among those that can have it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

from tabulate import tabulate

from dsconf.cluster.read import read_cluster
from dsconf.config.resolve import resolve
from dsconf.job import Job
from dsconf.memory.estimate import estimate
from dsconf.model.read import read_model
from dsconf.workload import Workload

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
STAGES = (0, 1, 2, 3)
LAYERS = (8, 32, 128)
WORLD_SIZE = 8
BOUNDS = {"microseconds": 100.0, "growth": 2.0}
"""What --strict holds rank 0's repeated estimate to; growth is from the fewest layers to the most."""


class Times(NamedTuple):
    """Microseconds of one estimate."""

    first: float
    again: float
    another: float


def job(stage: int, layers: int, micro_batch: int = 1, bucket: int = 500_000_000) -> Job:
    """A llama of ``layers`` layers in bf16 on eight GPUs."""
    model = read_model(model={**LLAMA, "num_hidden_layers": layers})
    zero = {"stage": stage, "reduce_bucket_size": bucket}
    config = {"zero_optimization": zero, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {}}}
    workload = Workload(seq_len=2048, micro_batch=micro_batch, checkpointing=True)
    return Job(model, read_cluster(WORLD_SIZE, gpu="h200"), resolve(config, WORLD_SIZE), workload)


def measure(stage: int, layers: int, rank: int | None, rounds: int = 7, calls: int = 50) -> Times:
    """The times of one stage and depth; ``rank`` None is the fullest."""
    one = job(stage, layers)
    first = _seconds([one], rank)
    again = min(_seconds([one] * calls, rank) for _ in range(rounds))
    others = [_other(one, number) for number in range(calls)]
    return Times(1e6 * first, 1e6 * again / calls, 1e6 * _seconds(others, rank) / calls)


def _other(one: Job, number: int) -> Job:
    settings = replace(one.settings, reduce_bucket_size=200_000_000 + 1_000_003 * number)
    return replace(one, settings=settings, workload=replace(one.workload, micro_batch=2 + number))


def _seconds(jobs: list[Job], rank: int | None) -> float:
    start = perf_counter()
    for one in jobs:
        estimate(one, rank=rank)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="exit 1 where rank 0's estimate exceeds its bounds")
    args = parser.parse_args()
    estimate(job(0, 2), rank=0)
    rows, slow = [], False
    for stage in STAGES:
        found = {layers: measure(stage, layers, 0) for layers in LAYERS}
        for layers, times in found.items():
            fullest = measure(stage, layers, None).again
            shown = (times.again, fullest, times.another, times.first)
            rows.append([f"ZeRO {stage}", layers, *(f"{value:.0f}" for value in shown)])
        growth = found[LAYERS[-1]].again / found[LAYERS[0]].again
        slow |= max(times.again for times in found.values()) > BOUNDS["microseconds"] or growth > BOUNDS["growth"]
    print("microseconds of one estimate\n")
    print(
        tabulate(rows, ["stage", "layers", "again, rank 0", "again, fullest rank", "another, rank 0", "first, rank 0"])
    )
    sys.exit(1 if slow and args.strict else 0)


if __name__ == "__main__":
    main()
