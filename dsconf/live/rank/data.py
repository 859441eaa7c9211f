"""The data all strategies train on: the random tokens of one optimizer step, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from dsconf.live.processes.order import Order


class Tokens(Dataset[torch.Tensor]):
    """The sequences of one optimizer step over all ranks; number i is the same on every rank and in each run."""

    def __init__(self, order: Order, vocab: int) -> None:
        self.count = order.workload.micro_batch * order.workload.accumulation * order.world_size
        self.seq_len, self.vocab, self.seed = order.workload.seq_len, vocab, order.seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return torch.randint(self.vocab, (self.seq_len,), generator=generator)


def share(data: Dataset[torch.Tensor], order: Order) -> Any:
    """The part of ``data`` that this rank trains on, in micro-batches.

    Rank r of N takes sequences r, r + N, r + 2N …, so that the k-th micro-batches of all ranks together are the same
    sequences as N micro-batches of a single rank.
    """
    sampler: DistributedSampler[torch.Tensor] = DistributedSampler(
        data,
        num_replicas=order.world_size,
        rank=order.rank,
        shuffle=False,
    )
    return DataLoader(data, batch_size=order.workload.micro_batch, sampler=sampler)


def endless(loader: Any, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """The micro-batches of ``loader`` on ``device``, from the start again after the last; each is its own label."""
    while True:
        for tokens in loader:
            here = tokens.to(device)
            yield {"input_ids": here, "labels": here}
