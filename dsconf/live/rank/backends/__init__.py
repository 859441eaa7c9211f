"""Ways to train the same model on the same data: DeepSpeed, plain DistributedDataParallel, Accelerate."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from dsconf.live.processes.order import Order

TRAINERS = {"deepspeed": "DeepSpeedTrainer", "ddp": "DdpTrainer", "accelerate": "AccelerateTrainer"}
"""Class of each backend's trainer; their modules are imported only where they are used."""


class Trainer(Protocol):
    """One rank's model and optimizer. ``forward``, ``backward`` and ``step`` are called for every micro-batch."""

    device: torch.device

    def loader(self, data: Dataset[torch.Tensor]) -> Any:
        """Return this rank's share of ``data`` in micro-batches."""

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the mean loss of one micro-batch."""

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of one micro-batch, averaged over accumulation and ranks."""

    def step(self) -> None:
        """Take the optimizer step at the end of an accumulation; do nothing before."""

    @property
    def skipped_steps(self) -> int:
        """Count the optimizer steps left out so far because an fp16 gradient overflowed."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer states of all ranks to ``folder``."""

    def load(self, folder: Path) -> None:
        """Read back what ``save`` wrote."""


def start(order: Order, model: Any) -> Trainer:
    """Wrap ``model`` and its optimizer as ``order.backend`` does."""
    module = import_module(f"dsconf.live.rank.backends.with_{order.backend}")
    trainer: Trainer = getattr(module, TRAINERS[order.backend])(order, model)
    return trainer


def loss_of(output: Any) -> torch.Tensor:
    """Return the loss in what a model returns: a tensor, something with ``.loss``, or a tuple that begins with it."""
    if isinstance(output, (tuple, list)):
        output = output[0]
    loss: torch.Tensor = getattr(output, "loss", output)
    return loss
