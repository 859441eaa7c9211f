"""DeepSpeed's engine, made from the ds_config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dsconf.live.processes.order import Order
from dsconf.live.rank.backends import loss_of
from dsconf.live.rank.build import ATTENTION
from dsconf.live.rank.data import share
from dsconf.live.rank.sequences import share_sequences

TAG = "dsconf"


class DeepSpeedTrainer:
    """A ``Trainer``."""

    def __init__(self, order: Order, model: Any) -> None:
        import deepspeed

        self.order = order
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = share_sequences(model, order, ATTENTION[order.workload.attention])
        words = {"model": model, "model_parameters": trained, "config": order.ds_config, "mpu": groups}
        self.engine: Any = deepspeed.initialize(**words)[0]
        self.device: torch.device = self.engine.device

    def loader(self, data: Dataset[torch.Tensor]) -> Any:
        return share(data, self.order)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        return loss_of(self.engine(**batch))

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss)

    def step(self) -> None:
        self.engine.step()

    @property
    def skipped_steps(self) -> int:
        return int(self.engine.skipped_steps)

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG)

    def load(self, folder: Path) -> None:
        self.engine.load_checkpoint(str(folder), tag=TAG)
