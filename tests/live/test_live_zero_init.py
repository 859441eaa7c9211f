"""What making a model imports is there before ``zero.Init`` is entered, under which some of it cannot be imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsconf.live.check import check

pytest.importorskip("torch")
pytest.importorskip("deepspeed")

LATE = """
from torch import nn, ones

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, values):
        return self.inner(values).square().mean()

def model():
    import torch._dynamo
    return Late(), {"values": ones(2, 64)}
"""
CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
}


@pytest.mark.launch
@pytest.mark.timeout(200)
def test_a_factory_may_import_as_late_as_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch._dynamo refuses to load while DeepSpeed's own torch.Tensor.__new__ is in place."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "late.py").write_text(LATE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = check(CONFIG, module="late:model", zero_init=True, gpus=2, steps=1)
    assert result.failure is None
    assert result.order is not None
    assert result.order.workload.zero_init
