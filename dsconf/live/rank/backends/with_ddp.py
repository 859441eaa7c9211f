"""torch's DistributedDataParallel with AdamW; one rank alone trains the bare model.

16-bit training is torch's mixed precision: fp32 weights under autocast, with a gradient scaler for fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import Dataset

from dsconf.live.processes.order import Order
from dsconf.live.rank.backends import loss_of
from dsconf.live.rank.data import share

ADAMW = ("lr", "betas", "eps", "weight_decay")
CLIPPING = 1.0
"""DeepSpeed's default (runtime/constants.py: GRADIENT_CLIPPING_DEFAULT), so that both clip alike."""


class Trainer:
    """See ``dsconf.live.rank.backends.Trainer``; learning rate, precision and clipping are those of the ds_config."""

    def __init__(self, order: Order, model: Any) -> None:
        self.order = order
        on_cuda = order.device == "cuda"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
        config = order.ds_config
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        self.half = next((halves[name] for name in halves if _enabled(config, name)), None)
        self.model = model.to(self.device)
        self.wrapped: Any = self.model
        if order.world_size > 1:
            on = [self.device.index] if on_cuda else None
            self.wrapped = DistributedDataParallel(self.model, device_ids=on)
            if order.rehearsed:  # the fake group's own all-reduce promises no tensor, which DDP waits for
                from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook

                self.wrapped.register_comm_hook(None, noop_hook)
        params = config.get("optimizer", {}).get("params", {})
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            **{name: params[name] for name in ADAMW if name in params},
        )
        self.clipping = config.get("gradient_clipping", CLIPPING)
        self.scaler = torch.amp.GradScaler(order.device, enabled=self.half is torch.float16)
        self.micro_batches = 0
        self._skipped = 0

    def loader(self, data: Dataset[torch.Tensor]) -> Any:
        return share(data, self.order)

    def _at_boundary(self) -> bool:
        return (self.micro_batches + 1) % self.order.workload.accumulation == 0

    def _quietly(self) -> AbstractContextManager[Any]:
        """Ranks exchange gradients in the last micro-batch only; forward and backward must agree on it."""
        if self.order.world_size == 1 or self._at_boundary():
            return nullcontext()
        context: AbstractContextManager[Any] = self.wrapped.no_sync()
        return context

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        enabled = self.half is not None
        with self._quietly(), torch.autocast(self.order.device, self.half or torch.bfloat16, enabled=enabled):
            return loss_of(self.wrapped(**batch))

    def backward(self, loss: torch.Tensor) -> None:
        with self._quietly():
            self.scaler.scale(loss / self.order.workload.accumulation).backward()

    def step(self) -> None:
        boundary = self._at_boundary()
        self.micro_batches += 1
        if not boundary:
            return
        self.scaler.unscale_(self.optimizer)
        if self.clipping:
            clip_grad_norm_(self.model.parameters(), self.clipping)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._skipped += self.scaler.get_scale() < scale
        self.optimizer.zero_grad()

    @property
    def skipped_steps(self) -> int:
        return self._skipped

    def save(self, folder: Path) -> None:
        if self.order.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({name: part.state_dict() for name, part in self._parts().items()}, folder / "ddp.pt")
        if self.order.world_size > 1:
            dist.barrier()

    def load(self, folder: Path) -> None:
        saved = torch.load(folder / "ddp.pt", map_location=self.device, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}


def _enabled(config: Mapping[str, Any], name: str) -> bool:
    return bool(config.get(name, {}).get("enabled"))
