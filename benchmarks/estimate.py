"""How long one estimate takes, and how that grows with the number of layers (it should not).

    python -m benchmarks.estimate
    python -m benchmarks.estimate --strict

Microseconds of one call of ``dsconf.memory.estimate.estimate`` on a job that is read already, the best of several
rounds. ``again`` asks for the same job once more, on rank 0 and on the fullest rank, which is looked for among those
that can be it. The others ask for the fullest rank of a job that has not been seen: ``another batch`` differs from all
earlier ones in its micro-batch and the settings that name it, as a config of its own does; ``another bucket`` in the
size of the reduce bucket, so that every bucket is laid out anew; ``first`` is a model's first, which records its layer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
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
"""What --strict holds estimates to of a job seen before and of another batch; growth is from the fewest layers to the
most."""
HELD = ("again_rank_0", "again", "another_batch")


class Times(NamedTuple):
    """Microseconds of one estimate."""

    again_rank_0: float
    again: float
    another_batch: float
    another_bucket: float
    first: float


def job(stage: int, layers: int, micro_batch: int = 1, bucket: int = 500_000_000) -> Job:
    """Make a llama of ``layers`` layers in bf16 on eight GPUs."""
    model = read_model(model={**LLAMA, "num_hidden_layers": layers})
    zero = {"stage": stage, "reduce_bucket_size": bucket}
    config = {"zero_optimization": zero, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {}}}
    workload = Workload(seq_len=2048, micro_batch=micro_batch, checkpointing=True)
    return Job(model, read_cluster(WORLD_SIZE, gpu="h200"), resolve(config, WORLD_SIZE), workload)


def batches(base: Job) -> Iterator[Job]:
    """Yield ``base`` with ever larger micro-batches, from two sequences on."""
    for size in count(2):
        settings = replace(base.settings, micro_batch=size, accumulation=1, train_batch=size * WORLD_SIZE)
        yield replace(base, settings=settings, workload=replace(base.workload, micro_batch=size))


def buckets(base: Job) -> Iterator[Job]:
    """Yield ``base`` with ever larger reduce buckets, about as large as a layer."""
    for number in count():
        yield replace(base, settings=replace(base.settings, reduce_bucket_size=200_000_000 + 100_003 * number))


def measure(stage: int, layers: int, rounds: int = 15, calls: int = 20) -> Times:
    """Measure the times of one stage and depth."""
    base = job(stage, layers)
    first = _seconds([base], None)
    unseen = [batches(base), buckets(base)]
    for jobs in unseen:
        estimate(next(jobs))
    again = [min(_seconds([base] * calls, rank) for _ in range(rounds)) for rank in (0, None)]
    others = [min(_seconds(list(islice(jobs, calls)), None) for _ in range(rounds)) for jobs in unseen]
    return Times(*(1e6 * seconds / calls for seconds in (*again, *others)), 1e6 * first)


def _seconds(jobs: list[Job], rank: int | None) -> float:
    start = perf_counter()
    for each_job in jobs:
        estimate(each_job, rank=rank)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="exit 1 where an estimate exceeds its bounds")
    args = parser.parse_args()
    estimate(job(0, 2), rank=0)
    rows, slow = [], False
    for stage in STAGES:
        by_layers = {layers: measure(stage, layers) for layers in LAYERS}
        rows += [[f"ZeRO {stage}", layers, *(f"{value:.0f}" for value in times)] for layers, times in by_layers.items()]
        for name in HELD:
            times = [getattr(measured, name) for measured in by_layers.values()]
            slow |= max(times) > BOUNDS["microseconds"] or times[-1] / times[0] > BOUNDS["growth"]
    print("microseconds of one estimate, of the fullest rank where none is named\n")
    print(tabulate(rows, ["stage", "layers", "again, rank 0", "again", "another batch", "another bucket", "first"]))
    sys.exit(1 if slow and args.strict else 0)


if __name__ == "__main__":
    main()
