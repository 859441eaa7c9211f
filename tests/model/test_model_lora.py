"""LoRA adapters: counts by hand, order against PEFT."""

from __future__ import annotations

from typing import Any

import pytest
from model_cases import CASES, built, listed

from dsconf.errors import InputError
from dsconf.model.lora import with_lora
from dsconf.model.read import read_model

LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def test_llama_1b_by_hand() -> None:
    """rank × (in + out) for each of q, k, v, o, gate, up, down; 16 layers.

    1,247,086,592 and 11,272,192 are also what PEFT gave on a GPU for this shape.
    """
    model = read_model(model=LLAMA_1B, lora_rank=16)
    pairs = [(2048, 2048), (2048, 512), (2048, 512), (2048, 2048), (2048, 8192), (2048, 8192), (8192, 2048)]
    adapters = 16 * sum(16 * (inputs + outputs) for inputs, outputs in pairs)
    assert adapters == 11_272_192
    assert model.parameters.trainable() == adapters
    assert model.num_params == 1_235_814_400 + adapters == 1_247_086_592
    assert model.lora_rank == 16


def test_adapter_follows_weight_and_bias() -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 101}
    layer = read_model(model={"model_type": "gpt2"} | config, lora_rank=3).parameters.layer
    start = next(i for i, p in enumerate(layer) if p.name.startswith("attn.c_attn"))
    assert [(p.name, p.shape, p.trainable) for p in layer[start : start + 4]] == [
        ("attn.c_attn.base_layer.weight", (64, 192), False),
        ("attn.c_attn.base_layer.bias", (192,), False),
        ("attn.c_attn.lora_A.default.weight", (3, 64), True),
        ("attn.c_attn.lora_B.default.weight", (192, 3), True),
    ]


@pytest.mark.parametrize("rank", [0, -1, True, 1.5])
def test_rank_must_be_positive(rank: int) -> None:
    with pytest.raises(InputError, match=r"--lora-rank .* is not a positive whole number"):
        read_model(model=LLAMA_1B, lora_rank=rank)


def test_a_rank_beyond_the_hidden_size_is_refused() -> None:
    assert read_model(model=LLAMA_1B, lora_rank=2048).lora_rank == 2048
    with pytest.raises(InputError, match=r"^--lora-rank 2049 is more than 2048, the hidden size of config: "):
        read_model(model=LLAMA_1B, lora_rank=2049)


def test_no_adapters_on_adapters() -> None:
    with pytest.raises(InputError, match="has LoRA adapters of rank 4 already"):
        with_lora(read_model(model=LLAMA_1B, lora_rank=4), 8)


@pytest.mark.parametrize(("family", "config"), CASES)
def test_order_and_trainability_are_those_of_peft(family: str, config: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model = read_model(model={"model_type": family} | config, lora_rank=4)
    adapters = peft.LoraConfig(r=4, target_modules="all-linear")
    adapted = peft.get_peft_model(built(family, config), adapters)
    theirs = [
        (name.removeprefix("base_model.model."), tuple(p.shape), p.requires_grad)
        for name, p in adapted.named_parameters()
    ]
    assert listed(model) == [(name, shape) for name, shape, _ in theirs]
    assert model.parameters.trainable() == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    trainable = {name for name, _, grad in theirs if grad}
    assert all(name.rpartition(".lora_")[1] for name in trainable)
