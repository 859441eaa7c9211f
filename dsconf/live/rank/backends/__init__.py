"""Ways to train the same model on the same data: DeepSpeed, plain DistributedDataParallel, Accelerate."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from dsconf.live.processes.order import Order


class Trainer(Protocol):
    """One rank's model and optimizer. ``forward``, ``backward`` and ``step`` are called for every micro-batch."""

    device: torch.device

    def loader(self, data: Dataset[torch.Tensor]) -> Any:
        """This rank's share of ``data`` in micro-batches."""

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """The mean loss of one micro-batch."""

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of one micro-batch, averaged over accumulation and ranks."""

    def step(self) -> None:
        """The optimizer step, at the end of an accumulation; nothing before."""

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps left out so far because an fp16 gradient overflowed."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer states of all ranks to ``folder``."""

    def load(self, folder: Path) -> None:
        """Read back what ``save`` wrote."""


def start(order: Order, model: Any) -> Trainer:
    """``model`` and its optimizer, wrapped as ``order.backend`` does it."""
    trainer: Trainer = import_module(f"dsconf.live.rank.backends.with_{order.backend}").Trainer(order, model)
    return trainer


def loss_of(output: Any) -> torch.Tensor:
    """The loss in what a model returns: a tensor, something with ``.loss``, or a tuple that begins with it."""
    if isinstance(output, (tuple, list)):
        output = output[0]
    loss: torch.Tensor = getattr(output, "loss", output)
    return loss
