"""What the training script must do, said with the recommendation."""

from __future__ import annotations

import re

import pytest

from dsconf import recommend
from dsconf.search.answer import Recommendation


def notes(found: Recommendation) -> str:
    return " ".join(found.notes)


SEVENTY = {"params": "70B", "gpus": 16, "gpu": "a100-80gb"}


def test_stage_3_is_built_in_shards() -> None:
    """70B in bf16 is 130.5 GiB on each GPU of 80 where nothing shards it while it is built."""
    said = notes(recommend(**SEVENTY))
    assert "Build the model under deepspeed.zero.Init: otherwise each GPU holds all of it while it starts" in said
    assert "130.48 GiB, which does not fit." in said
    assert "Import torch._dynamo before: " in said
    assert "Make the TrainingArguments before the model" in notes(recommend(**SEVENTY, target="hf"))
    assert "torch._dynamo" not in notes(recommend(**SEVENTY, target="hf"))
    assert "Make the Accelerator before the model" in notes(recommend(**SEVENTY, target="accelerate"))
    assert "zero.Init" not in notes(recommend(params="1B", gpus=8, gpu="a100-80gb", stage=2))


def test_adapters_and_how_they_are_stored() -> None:
    words = {"model": "meta-llama/Llama-3.1-8B", "gpus": 4, "gpu": "rtx-4090", "lora_rank": 8}
    plain = notes(recommend(**words, offload="none", stage=3))
    assert (
        "LoRA of rank 8: the training script must wrap it with peft's LoraConfig(r=8, target_modules=\"all-l" in plain
    )
    quantized = notes(recommend(**words, quantize="4bit"))
    assert "load the model with dtype=torch.bfloat16 and BitsAndBytesConfig(load_in_4bit=True, " in quantized
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    (made,) = re.findall(r"BitsAndBytesConfig\(.*?\)", quantized)
    told = eval(made, {"torch": torch, "BitsAndBytesConfig": transformers.BitsAndBytesConfig})
    assert (told.bnb_4bit_quant_type, told.bnb_4bit_use_double_quant) == ("nf4", True)
    assert told.bnb_4bit_compute_dtype == told.bnb_4bit_quant_storage == torch.bfloat16
    assert "BitsAndBytesConfig(load_in_8bit=True)" in notes(recommend(**words, quantize="8bit"))
    assert "LoRA" not in notes(recommend(params="1B"))


@pytest.mark.parametrize(("target", "says"), [("deepspeed", "gradient_checkpointing_enable()"), ("hf", "--gradient_")])
def test_checkpointing_is_turned_on_where_the_target_does_it(target: str, says: str) -> None:
    found = recommend(**SEVENTY, target=target, activation_checkpointing=True)
    assert says in notes(found)


def test_who_sets_up_shared_sequences() -> None:
    words = {"model": "Qwen/Qwen2.5-7B", "gpus": 8, "gpu": "h200", "seq_len": 131072, "sequence_parallel": 4}
    assert "UlyssesSPAttentionHF.register_with_transformers" in notes(recommend(**words))
    accelerate = notes(recommend(**words, target="accelerate"))
    assert "UlyssesSPAttentionHF" not in accelerate
    assert "4 ranks share each sequence: Accelerate sets that up" in accelerate


def test_a_host_that_cannot_load_what_it_could_train() -> None:
    """Eight processes with 2 bytes of each of 6.74 billion parameters, and a process's own: 109 GiB."""
    words = {"model": "meta-llama/Llama-2-7b-hf", "gpus": 8, "gpu": "a100-80gb"}
    assert "Loading takes up to 109.00 GiB of host memory in each node" in notes(
        recommend(**words, host_memory="64GiB")
    )
    assert "Loading" not in notes(recommend(**words, host_memory="128GiB"))
    assert "Loading" not in notes(recommend(**words))


def test_the_fastest_is_not_said_to_be_so_where_something_faster_is_held_back() -> None:
    """Offload that nobody gave memory for is held back where something almost as fast fits without."""
    words = SEVENTY | {"gpu": "h100-80gb"}
    (first, *_) = recommend(**words).why
    assert "the fastest without offload" in first
    assert "give --host-memory to have it considered" in first
    offloaded = recommend(**words, host_memory="2TiB")
    assert offloaded.recommended is not None
    assert offloaded.recommended.offloads
