"""Joins the ranks: real ones over NCCL or gloo, or one rank of many whose peers are torch's ``fake`` backend."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dsconf.live.order import Order


def join(order: Order, rank: int, folder: Path) -> None:
    """Initialise ``torch.distributed`` before DeepSpeed does, so that DeepSpeed takes this group as it is.

    Real ranks meet through a file in ``folder``: no port to be free, to be guessed or to be left open.
    """
    _describe(order, rank)
    if order.rehearsed:
        return _rehearse(order.world_size)
    if order.device == "cpu" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        backend="nccl" if order.device == "cuda" else "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=order.world_size,
    )
    return None


def leave() -> None:
    """Close the group; only after a run that went well, since it may wait for the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _describe(order: Order, rank: int) -> None:
    """The variables torchrun sets; DeepSpeed reads some of them (the address and port are never used)."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(order.world_size),
        LOCAL_WORLD_SIZE=str(order.processes),
        LOCAL_SIZE=str(order.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )


def _rehearse(world_size: int) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group(backend="fake", rank=0, world_size=world_size, store=FakeStore())
    _repeat_shards()


def _repeat_shards() -> None:
    """Make stage 3 gather copies of this rank's own shard.

    The fake backend leaves the other ranks' part of a gathered weight as the allocator gave it: whatever lay there,
    infinities included, so that fp16 would skip every optimizer step. Copying the own shard allocates nothing.
    """
    from deepspeed.runtime.zero import partition_parameters

    gather = partition_parameters._dist_allgather_fn

    def gather_and_repeat(shard: Any, output: Any, group: Any = None) -> Any:
        work = gather(shard, output, group)
        rows = output.view(-1, shard.numel())
        rows[1:].copy_(rows[0] if shard.data_ptr() == output.data_ptr() else shard.view(-1))
        if shard.data_ptr() != output.data_ptr():
            rows[0].copy_(shard.view(-1))
        return work

    partition_parameters._dist_allgather_fn = gather_and_repeat
