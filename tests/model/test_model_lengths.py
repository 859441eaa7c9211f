"""How long a sequence may be: positions that are learned or in a table end, the others are computed."""

from __future__ import annotations

from typing import Any

import pytest

import dsconf
from dsconf import InputError
from dsconf.model.lengths import most_positions, sequence_length
from dsconf.model.read import read_model
from dsconf.search.stages import stages

GPTJ = {"model_type": "gptj", "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 64}


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("gpt2", 1024),
        ("facebook/opt-1.3b", 2048),
        (GPTJ, 512),
        ("EleutherAI/pythia-160m", None),
        ("meta-llama/Llama-3.1-8B", None),
        ("bigscience/bloom-560m", None),
    ],
)
def test_most_positions(model: Any, most: int | None) -> None:
    """transformers fails beyond them in each family's own forward: seen with one layer and 16 positions."""
    assert most_positions(read_model(model=model)) == most


def test_the_usual_length_is_as_long_as_the_model_takes() -> None:
    assert sequence_length(None, read_model(model="gpt2")) == 1024
    assert sequence_length(None, read_model(model="facebook/opt-1.3b")) == 2048
    assert sequence_length(None, read_model("7B")) == 2048
    assert sequence_length(100_000, read_model("7B")) == 100_000


@pytest.mark.parametrize("call", [dsconf.recommend, dsconf.estimate, stages])
def test_beyond_the_positions_is_refused_everywhere(call: Any) -> None:
    with pytest.raises(InputError, match=r"^--seq-len 1025: gpt2 has 1024 positions; use at most that$"):
        call(model="gpt2", gpus=1, seq_len=1025)
    call(model="gpt2", gpus=1)


def test_beyond_computed_positions_is_said() -> None:
    said = " ".join(dsconf.recommend(model="EleutherAI/pythia-160m", gpus=1, gpu="h100-80gb", seq_len=4096).notes)
    assert "The model was made for 2048 positions, and --seq-len 4096 goes beyond: scale its rotary embedding" in said
    said = " ".join(dsconf.recommend(model="EleutherAI/pythia-160m", gpus=1, gpu="h100-80gb", seq_len=2048).notes)
    assert "goes beyond" not in said


@pytest.mark.parametrize("call", [dsconf.recommend, dsconf.estimate, stages])
def test_quantized_weights_need_adapters(call: Any) -> None:
    with pytest.raises(InputError, match=r"^--quantize 4bit: quantized weights are frozen; say --lora-rank$"):
        call(params="1B", gpus=1, quantize="4bit")
