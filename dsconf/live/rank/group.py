"""Joins the ranks: real ones over NCCL or gloo, or one rank of many whose peers are torch's ``fake`` backend."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dsconf.live.processes.order import Order


def join(order: Order, local_rank: int, folder: Path) -> None:
    """Initialise ``torch.distributed``, then have DeepSpeed take this group as it is.

    DeepSpeed must know the world size before ``zero.Init`` reads the batch sizes. Real ranks meet through a file in
    ``folder``, so no port has to be free, guessed or left open.
    """
    _describe(order, local_rank)
    backend = "fake" if order.rehearsed else "nccl" if order.device == "cuda" else "gloo"
    if order.rehearsed:
        _rehearse(order)
    else:
        _meet(backend, order, folder)
    if order.backend == "ddp" or order.task:
        return
    import deepspeed

    if order.device == "cpu":
        # A shared-memory all-reduce for inference that would be compiled for nothing.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend)


def _meet(backend: str, order: Order, folder: Path) -> None:
    if backend == "gloo" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # host names of containers may not resolve
    place = (folder / "rendezvous").as_uri()
    dist.init_process_group(backend, init_method=place, rank=order.rank, world_size=order.world_size)


def leave() -> None:
    """Close the group; only after a run that went well, since it may wait for the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _describe(order: Order, local_rank: int) -> None:
    """Set the variables that torchrun sets; DeepSpeed reads some of them (the address and port are never used)."""
    os.environ.update(
        RANK=str(order.rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(order.world_size),
        LOCAL_WORLD_SIZE=str(order.processes),
        LOCAL_SIZE=str(order.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )


def _rehearse(order: Order) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group(backend="fake", rank=order.rank, world_size=order.world_size, store=FakeStore())
    if order.backend == "ddp":
        return
    _repeat_shards(order.rank)
    if order.sequence_parallel > 1:
        _receive_what_is_sent()
    if order.rank:
        _agree_with_rank_0()


def _repeat_shards(rank: int) -> None:
    """Make stage 3 gather copies of this rank's own shard.

    The fake backend leaves the other ranks' part of a gathered weight as the allocator gave it: whatever was there,
    infinities included, so that fp16 would skip every optimizer step. Copying this rank's shard allocates nothing.
    """
    from deepspeed.runtime.zero import partition_parameters

    gather = partition_parameters._dist_allgather_fn

    def gather_and_repeat(shard: Any, output: Any, group: Any = None) -> Any:
        work = gather(shard, output, group)
        rows, row = output.view(-1, shard.numel()), shard.view(-1)
        rows[:rank].copy_(row)
        rows[rank + 1 :].copy_(row)
        if rows[rank].data_ptr() != row.data_ptr():
            rows[rank].copy_(row)
        return work

    partition_parameters._dist_allgather_fn = gather_and_repeat


def _receive_what_is_sent() -> None:
    """Make ranks that share sequences exchange copies of this rank's own heads.

    As above: left as the allocator gave it, what the others would send may be infinite, so that every optimizer step is
    skipped and no states are made.
    """
    exchange = dist.all_to_all_single

    def exchange_and_copy(output: Any, input: Any, *args: Any, **words: Any) -> Any:  # noqa: A002 (torch's own word)
        work = exchange(output, input, *args, **words)
        output.view(-1).copy_(input.reshape(-1))
        return work

    dist.all_to_all_single = exchange_and_copy


def _agree_with_rank_0() -> None:
    """Give DeepSpeed this rank's own list where it asks rank 0 for one to compare with.

    Stage 3 makes sure that all ranks run their modules in the same order (runtime/zero/utils.py:
    assert_ints_same_as_other_ranks); nobody broadcasts rank 0's here.
    """
    from deepspeed.runtime.zero import utils

    ask = utils.get_lst_from_rank0

    def ask_and_agree(ints: list[int]) -> list[int]:
        ask(ints)
        return ints

    utils.get_lst_from_rank0 = ask_and_agree
    utils.assert_lst_len_same_as_other_ranks = lambda ints: None
