"""Models built with quantized linear layers, in this process and on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
from live_fakes import TINY, FakeRunner

from dsconf.errors import InputError
from dsconf.live.check import check
from dsconf.live.processes.order import Order
from dsconf.live.record import record

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 64}
CONFIG = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}


def order_of(model: dict[str, Any], quantize: str, stage: int = 2) -> Order:
    runner = FakeRunner()
    config = CONFIG | {"zero_optimization": {"stage": stage}}
    result = check(config, model=model, gpus=2, seq_len=32, lora_rank=4, quantize=quantize, runner=runner)
    assert result.failure is None
    assert runner.order is not None
    assert runner.order.workload.quantize == quantize
    assert not runner.order.workload.zero_init
    assert record(result)["quantize"] == quantize
    return runner.order


@pytest.mark.parametrize(
    ("model", "quantize", "stage", "dtype", "num_bytes"),
    [
        (TINY, "4bit", 2, "uint8", 64 * 128 / 2),
        (TINY, "8bit", 2, "int8", 64 * 128),
        (GPT2, "4bit", 3, "bfloat16", 64 * 256 / 2),  # four times as wide inside; its layers are Conv1D
    ],
    ids=["llama-4bit", "llama-8bit", "gpt2-4bit-stage3"],
)
def test_all_but_the_output_layer_is_quantized(
    model: dict[str, Any], quantize: str, stage: int, dtype: str, num_bytes: float
) -> None:
    for name in ("bitsandbytes", "accelerate", "transformers", "peft"):
        pytest.importorskip(name)
    import torch

    from dsconf.live.rank.build import build

    built = build(order_of(model, quantize, stage)).model
    stored = {p.dtype for name, p in built.named_parameters() if "attn" in name and name.endswith("base_layer.weight")}
    assert stored == {getattr(torch, dtype)}
    name = "mlp.up_proj.base_layer.weight" if model is TINY else "mlp.c_fc.base_layer.weight"
    [wide, _] = [p for full, p in built.named_parameters() if full.endswith(name)]
    assert wide.numel() * wide.element_size() == num_bytes
    assert built.get_output_embeddings().weight.dtype == torch.bfloat16
    assert not any(p.is_meta for p in (*built.parameters(), *built.buffers()))
    trained = [name for name, p in built.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    tokens = torch.arange(32).view(1, 32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = built(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert 5 < float(loss.detach()) < 6  # ln 256 = 5.5: the weights are small


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({}, "say --lora-rank"),
        ({"lora_rank": 4, "zero_init": True}, "leave --zero-init out"),
        ({"lora_rank": 4, "quantize": "2bit"}, "--quantize: '2bit' is not one of"),
    ],
)
def test_what_does_not_go_with_quantized_weights_is_refused(words: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        check(CONFIG, **{"model": TINY, "gpus": 2, "quantize": "4bit", "runner": FakeRunner()} | words)
