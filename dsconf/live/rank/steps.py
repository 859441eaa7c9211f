"""The measured training steps of one rank."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsconf.live.processes.journal import Journal
from dsconf.live.processes.order import Order
from dsconf.live.rank.backends import Trainer
from dsconf.live.rank.gauge import Gauge, card_used_bytes, process_bytes

MAX_SKIPPED_STEPS = 16
"""fp16 starts with a loss scale of 2**16 and skips a step for each halving; a skipped step allocates no states."""


def train(trainer: Trainer, order: Order, gauge: Gauge, journal: Journal, batches: Iterator[dict[str, Any]]) -> None:
    """Run ``order.steps`` optimizer steps that count, and journal the figures of each.

    Raises:
        FloatingPointError: the loss is not finite on real ranks.
    """
    iteration = counted = order.resume_at
    while counted < order.steps and iteration < order.steps + MAX_SKIPPED_STEPS:
        skipped_before = trainer.skipped_steps
        record = _optimizer_step(trainer, order, batches, gauge, journal, iteration)
        record["skipped"] = trainer.skipped_steps > skipped_before
        journal.write("iteration", **record)
        _require_finite(record["loss"], order, iteration)
        counted += not record["skipped"]
        iteration += 1
        if counted == order.save_after and not record["skipped"]:
            journal.enter("save")
            trainer.save(Path(order.checkpoint))
            journal.enter("train")


def _optimizer_step(
    trainer: Trainer,
    order: Order,
    batches: Iterator[dict[str, Any]],
    gauge: Gauge,
    journal: Journal,
    iteration: int,
) -> dict[str, Any]:
    record: dict[str, Any] = {"iteration": iteration}
    losses = []
    gauge.synchronize()
    start = time.perf_counter()
    for number in range(1, order.workload.accumulation + 1):
        at_boundary = number == order.workload.accumulation
        losses.append(_micro_batch(trainer, next(batches), gauge, journal, record, at_boundary))
    gauge.synchronize()
    record["step_seconds"] = time.perf_counter() - start
    record["loss"] = _mean(losses, order)
    record["card_used_bytes"] = card_used_bytes()
    record["process_bytes"] = process_bytes()
    record["reserved_end_bytes"] = gauge.reserved_bytes()
    return record


def _micro_batch(
    trainer: Trainer,
    batch: dict[str, Any],
    gauge: Gauge,
    journal: Journal,
    record: dict[str, Any],
    at_boundary: bool,
) -> torch.Tensor:
    """One forward, backward and (at the boundary) optimizer step; nothing but the loss outlives the forward.

    Before the boundary ``step`` does nothing, and what backward left alive is no figure of the step.
    """
    journal.phase = "forward"
    gauge.reset()
    loss = trainer.forward(batch)
    _note(record, "forward", gauge)
    journal.phase = "backward"
    trainer.backward(loss)
    _note(record, "backward", gauge)
    journal.phase = "step"
    trainer.step()
    if at_boundary:
        _note(record, "step", gauge)
    detached: torch.Tensor = loss.detach()
    return detached


def _mean(losses: list[torch.Tensor], order: Order) -> float:
    """The mean loss of the micro-batches of all ranks: what one rank with the whole batch would see."""
    mean = torch.stack(losses).float().mean()
    if order.world_size > 1 and not order.rehearsed:
        dist.all_reduce(mean)
        mean /= order.world_size
    return float(mean)


def _note(record: dict[str, Any], phase: str, gauge: Gauge) -> None:
    """Keep the largest figures of ``phase`` over the micro-batches, and start the next phase."""
    reserved = gauge.reserved_bytes()
    record[f"{phase}_bytes"] = max(record.get(f"{phase}_bytes", 0), gauge.peak_bytes())
    record[f"{phase}_end_bytes"] = gauge.now_bytes()
    if reserved is not None:
        record["reserved_bytes"] = max(record.get("reserved_bytes", 0), reserved)
    gauge.reset()


def _require_finite(loss: float, order: Order, iteration: int) -> None:
    if not order.rehearsed and not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} in iteration {iteration + 1}")
