"""The measured training steps of one rank."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from dsconf.live.gauge import Gauge, card_used_bytes
from dsconf.live.journal import Journal
from dsconf.live.order import Order

MAX_SKIPPED_STEPS = 16
"""fp16 starts with a loss scale of 2**16 and skips a step for each halving; a skipped step allocates no states."""


def train(engine: Any, order: Order, gauge: Gauge, journal: Journal) -> None:
    """Run ``order.steps`` optimizer steps that count, and journal the figures of each.

    Raises:
        FloatingPointError: the loss is not finite on real ranks.
    """
    batch = _batch(engine, order)
    iteration = counted = 0
    while counted < order.steps and iteration < order.steps + MAX_SKIPPED_STEPS:
        skipped_before = engine.skipped_steps
        record = _optimizer_step(engine, order, batch, gauge, journal, iteration)
        record["skipped"] = engine.skipped_steps > skipped_before
        journal.write("iteration", **record)
        _require_finite(record["loss"], order, iteration)
        counted += not record["skipped"]
        iteration += 1


def _batch(engine: Any, order: Order) -> dict[str, torch.Tensor]:
    shape = (order.micro_batch, order.seq_len)
    vocab = int(order.hf_config["vocab_size"])
    tokens = torch.randint(vocab, shape, device=engine.device)
    return {"input_ids": tokens, "labels": tokens}


def _optimizer_step(
    engine: Any, order: Order, batch: dict[str, torch.Tensor], gauge: Gauge, journal: Journal, iteration: int
) -> dict[str, Any]:
    record: dict[str, Any] = {"iteration": iteration}
    gauge.synchronize()
    start = time.perf_counter()
    for _ in range(order.accumulation):
        loss = _micro_batch(engine, batch, gauge, journal, record)
    gauge.synchronize()
    record["step_seconds"] = time.perf_counter() - start
    record["loss"] = float(loss)
    record["card_used_bytes"] = card_used_bytes()
    return record


def _micro_batch(
    engine: Any, batch: dict[str, torch.Tensor], gauge: Gauge, journal: Journal, record: dict[str, Any]
) -> torch.Tensor:
    """One forward, backward and (at the boundary) optimizer step; nothing but the loss outlives the forward."""
    journal.phase = "forward"
    gauge.reset()
    loss = engine(**batch).loss
    _note(record, "forward", gauge)
    journal.phase = "backward"
    engine.backward(loss)
    _note(record, "backward", gauge)
    journal.phase = "step"
    engine.step()
    _note(record, "step", gauge)
    detached: torch.Tensor = loss.detach()
    return detached


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
