"""The three batch sizes and the rule that binds them: train = micro × accumulation × data-parallel ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsconf.config.coerce import as_int


class Batch(NamedTuple):
    """Sequences of one optimizer step over all ranks, of one micro-batch on one rank, and micro-batches a step."""

    train: int | None
    micro: int | None
    accumulation: int | None


def solve(batch: Batch, ranks: int) -> Batch:
    """Work out what is missing in ``batch`` as DeepSpeed does (runtime/config.py:607-656).

    Divisions round down, so the result need not satisfy the rule: ask ``problem``. What comes out as 0 stays None.
    """
    train, micro, accumulation = batch
    if train and micro:
        accumulation = accumulation or train // micro // ranks
    elif train:
        micro = train // ranks // (accumulation or 1)
        accumulation = accumulation or 1
    elif micro:
        accumulation = accumulation or 1
        train = micro * accumulation * ranks
    return Batch(train or None, micro or None, accumulation or None)


def problem(batch: Batch, ranks: int) -> str | None:
    """Say in one line why DeepSpeed would refuse ``batch`` on ``ranks`` data-parallel ranks, or return None."""
    if batch.train is None and batch.micro is None:
        return "neither train_batch_size nor train_micro_batch_size_per_gpu is given"
    train, micro, accumulation = solve(batch, ranks)
    if train and micro and accumulation and train == micro * accumulation * ranks:
        return None
    if batch.train and not batch.micro and not batch.accumulation:
        return f"train_batch_size {batch.train} is not a multiple of {ranks} GPUs"
    given = f"{batch.micro or 'micro-batch'} × {batch.accumulation or 'accumulation'} × {ranks} GPUs"
    if batch.micro and batch.accumulation:
        return f"train_batch_size {batch.train} is not {given} = {batch.micro * batch.accumulation * ranks}"
    return f"train_batch_size {batch.train} cannot be split as {given}"


def data_parallel_ranks(config: Mapping[str, Any], world_size: int) -> int:
    """Return the ranks that see different data: the world over ``sequence_parallel_size``
    (runtime/config.py:456-474)."""
    degree = config.get("sequence_parallel_size", 1)
    return max(1, world_size // max(1, as_int("sequence_parallel_size", degree)))
