"""Hugging Face Accelerate driving DeepSpeed, from the same YAML that ``accelerate launch`` reads."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dsconf.config.accelerate import accelerate_yaml
from dsconf.live.processes.order import Order
from dsconf.live.rank.backends import loss_of


def _plugin(order: Order) -> Any:
    """The plugin that Accelerate's own reading of the YAML leads to (accelerate/commands/launch.py)."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DeepSpeedPlugin

    folder = Path(mkdtemp())
    config, launched = folder / "ds_config.json", folder / "accelerate.yaml"
    config.write_text(json.dumps(order.ds_config), encoding="utf-8")
    text = accelerate_yaml(str(config), world_size=order.world_size, use_cpu=order.device == "cpu")
    launched.write_text(text, encoding="utf-8")
    said = load_config_from_file(str(launched)).deepspeed_config
    return DeepSpeedPlugin(hf_ds_config=said["deepspeed_config_file"], zero3_init_flag=said["zero3_init_flag"])


class Trainer:
    """See ``dsconf.live.rank.backends.Trainer``. Accelerate's backward takes the optimizer step itself (DeepSpeed's
    engine step), so that phase holds both."""

    def __init__(self, order: Order, model: Any) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DummyOptim, InitProcessGroupKwargs

        self.order = order
        # Not cpu=True, which would be plain DDP: DeepSpeed finds its device itself.
        group = InitProcessGroupKwargs(backend="gloo" if order.device == "cpu" else "nccl")
        self.accelerator: Any = Accelerator(deepspeed_plugin=_plugin(order), kwargs_handlers=[group])
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.engine, self.optimizer = self.accelerator.prepare(model, DummyOptim(trained))
        self.device: torch.device = self.accelerator.device

    def loader(self, data: Dataset[torch.Tensor]) -> Any:
        return self.accelerator.prepare_data_loader(DataLoader(data, batch_size=self.order.workload.micro_batch))

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        with self.accelerator.accumulate(self.engine):
            return loss_of(self.engine(**batch))

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def skipped_steps(self) -> int:
        return int(self.engine.skipped_steps)

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))
