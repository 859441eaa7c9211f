"""How long a sequence may be: positions that are learned or in a table end, the others are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from search_said import codes, figures

import dsconf
from dsconf import InputError
from dsconf.model.read import read_model
from dsconf.model.spec import most_positions, sequence_length
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
    words = {"model": "EleutherAI/pythia-160m", "gpus": 1, "gpu": "h100-80gb"}
    said = figures(dsconf.recommend(**words, seq_len=4096).notes, "beyond_positions")
    assert said == {"positions": 2048, "seq_len": 4096}
    assert "beyond_positions" not in codes(dsconf.recommend(**words, seq_len=2048).notes)


@pytest.mark.parametrize("call", [dsconf.recommend, dsconf.estimate, stages])
def test_quantized_weights_need_adapters(call: Any) -> None:
    with pytest.raises(InputError, match=r"^--quantize 4bit: quantized weights are frozen; say --lora-rank$"):
        call(params="1B", gpus=1, quantize="4bit")


def test_a_plan_asks_for_no_more_than_the_positions() -> None:
    (job,) = dsconf.plan(model="gpt2", gpus=1)
    assert job.seq_len == 1024
    with pytest.raises(InputError, match=r"^--seq-len 4096: gpt2 has 1024 positions"):
        list(dsconf.plan(model="gpt2", gpus=1, seq_len=[512, 4096]))


@pytest.mark.parametrize(
    "words",
    [
        {"params": "1B", "precision": "fp32"},
        {"model": "bigscience/bloom-560m"},
        {"params": "1B", "gpu": "v100-32gb", "precision": "fp16"},
    ],
)
def test_flash_attention_that_cannot_run_is_refused_by_estimate_and_plan(words: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^--attention flash: "):
        dsconf.estimate(**words, gpus=1, attention="flash")
    shape = {key: words.pop(key) for key in ("params", "model") if key in words}
    with pytest.raises(InputError, match=r"^--attention flash: "):
        list(dsconf.plan(**shape, gpus=1, attention="flash", **words))


@pytest.mark.parametrize(
    ("word", "value"), [("gpu", 5), ("precision", 16), ("attention", None), ("target", None), ("offload", 1)]
)
def test_a_word_of_another_type_is_a_mistake_that_is_named(word: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^--{'for' if word == 'target' else word}: {value!r} is not "):
        dsconf.recommend(params="1B", gpus=1, **{word: value})


def test_a_drive_may_be_a_path() -> None:
    assert dsconf.recommend(params="1B", gpus=1, nvme=Path("/local")).cluster.nvme_path == "/local"
