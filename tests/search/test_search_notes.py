"""What a person must know or do before training, said with the recommendation."""

from __future__ import annotations

import pytest
from search_said import codes, figures

from dsconf import recommend
from dsconf.units import GIB

SEVENTY = {"params": "70B", "gpus": 16, "gpu": "a100-80gb"}


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_stage_3_is_built_in_shards(target: str) -> None:
    """70B in bf16 is 130.5 GiB on each GPU of 80 where nothing shards it while it is built."""
    said = figures(recommend(**SEVENTY, target=target).notes, "script_zero_init")
    assert said == {"target": target, "start_bytes": pytest.approx(130.48 * GIB, rel=1e-4), "fits": False}
    assert "script_zero_init" not in codes(recommend(params="1B", gpus=8, gpu="a100-80gb", stage=2).notes)


def test_adapters_and_how_they_are_stored() -> None:
    words = {"model": "meta-llama/Llama-3.1-8B", "gpus": 4, "gpu": "rtx-4090", "lora_rank": 8}
    plain = figures(recommend(**words, offload="none", stage=3).notes, "script_lora")
    assert plain == {"rank": 8, "quantize": None, "precision": "bf16"}
    for quantize in ("4bit", "8bit"):
        assert figures(recommend(**words, quantize=quantize).notes, "script_lora") == plain | {"quantize": quantize}
    assert "script_lora" not in codes(recommend(params="1B").notes)


@pytest.mark.parametrize("target", ["deepspeed", "hf"])
def test_checkpointing_is_turned_on_where_the_target_does_it(target: str) -> None:
    found = recommend(**SEVENTY, target=target, activation_checkpointing=True)
    assert figures(found.notes, "script_checkpointing") == {"target": target}
    off = recommend(params="1B", gpus=8, gpu="a100-80gb", activation_checkpointing=False)
    assert "script_checkpointing" not in codes(off.notes)


@pytest.mark.parametrize("target", ["deepspeed", "accelerate"])
def test_who_sets_up_shared_sequences(target: str) -> None:
    words = {"model": "Qwen/Qwen2.5-7B", "gpus": 8, "gpu": "h200", "seq_len": 131072, "sequence_parallel": 4}
    notes = recommend(**words, target=target).notes
    assert figures(notes, "script_ulysses") == {"ranks": 4, "target": target}
    assert "script_tiled_loss" in codes(notes)


def test_a_host_that_cannot_load_what_it_could_train() -> None:
    """Eight processes with 2 bytes of each of 6.74 billion parameters, and a process's own: 109 GiB."""
    words = {"model": "meta-llama/Llama-2-7b-hf", "gpus": 8, "gpu": "a100-80gb"}
    said = figures(recommend(**words, host_memory="64GiB").notes, "loading")
    assert said == {"needed_bytes": pytest.approx(109 * GIB, rel=1e-4), "stated_bytes": 64 * GIB}
    assert "loading" not in codes(recommend(**words, host_memory="128GiB").notes)
    assert "loading" not in codes(recommend(**words).notes)


def test_the_fastest_is_not_said_to_be_so_where_something_faster_is_held_back() -> None:
    """Offload that nobody gave memory for is held back where something almost as fast fits without."""
    words = SEVENTY | {"gpu": "h100-80gb"}
    first = recommend(**words).why[0]
    assert first.code == "fastest"
    assert first.figures["config"]["offload"] == "none"
    assert first.figures["held_back"]["offload"].endswith("optimizer on cpu")
    assert first.figures["held_back"]["gain"] > 0.03
    offloaded = recommend(**words, host_memory="2TiB")
    assert offloaded.recommended is not None
    assert offloaded.recommended.offloads
