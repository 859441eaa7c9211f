"""Configs made ready to be launched, and models made small: pure functions, no process."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.errors import InputError
from dsconf.live import prepare, scale
from dsconf.live.plan import CheckRequest, RunPlan, make_plan, settled
from dsconf.live.processes.crew import environment
from dsconf.live.processes.order import Probe
from dsconf.model.catalogue import names
from dsconf.model.read import read_model
from dsconf.workload import Workload

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}
CPU = Probe()
ONE_GPU = Probe(1, "NVIDIA H200", 150_000_000_000)


def config(**changes: object) -> dict[str, object]:
    return {"train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}, **changes}


def plan(
    probe: Probe, config: dict[str, object], model: object = TINY, world_size: int = 2, **words: object
) -> RunPlan:
    step = {word: words.pop(word) for word in ("seq_len", "attention") if word in words}
    request = CheckRequest(config, read_model(model=model), world_size, Workload(**{"seq_len": 32} | step))
    return make_plan(settled(request._replace(**words)), probe)


def test_auto_becomes_what_the_trainer_would_put() -> None:
    ready = prepare.launchable(
        {
            "train_batch_size": "auto",
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
            "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"},
        },
        hidden=100,
    )
    assert "auto" not in str(ready)
    assert "train_batch_size" not in ready
    assert (ready["bf16"]["enabled"], ready["fp16"]["enabled"]) == (True, False)
    assert ready["optimizer"]["params"]["betas"] == [0.9, 0.999]
    assert ready["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 10_000,
        "stage3_prefetch_bucket_size": 9_000,
    }


def test_launchable_brings_an_optimizer_and_leaves_the_given_config_alone() -> None:
    given = config(wandb={"enabled": True}, memory_breakdown=True)
    ready = prepare.launchable(given, 64)
    assert ready["optimizer"]["type"] == "AdamW"
    assert "wandb" not in ready
    assert ready["memory_breakdown"] is False
    assert given == config(wandb={"enabled": True}, memory_breakdown=True)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64))
def test_the_three_batch_sizes_always_agree(micro: int, accumulation: int, world_size: int) -> None:
    ready: dict[str, object] = {"train_batch_size": 999}
    prepare.set_batch(ready, world_size, micro, accumulation)
    assert ready == {
        "train_batch_size": micro * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }


def test_options_win_over_the_batch_sizes_of_the_config() -> None:
    sizes = {"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2}
    assert prepare.batch_of(sizes, 4, micro_batch=3, accumulation=5) == (3, 5)
    with pytest.raises(InputError, match="batch sizes"):
        prepare.batch_of(sizes, 4, None, None)


@given(st.floats(1, 1e6))
def test_shrunk_buckets_are_even_and_positive(factor: float) -> None:
    ready = {"zero_optimization": {"stage": 3, "prefetch_bucket_size": 5e7, "reduce_bucket_size": 1e6}}
    prepare.shrink_buckets(ready, factor)
    zero = ready["zero_optimization"]
    assert "prefetch_bucket_size" not in zero
    assert all(zero[key] >= 2 and zero[key] % 2 == 0 for key in prepare.ELEMENT_COUNTS)
    assert zero["reduce_bucket_size"] <= max(2, 1e6 / factor)


def test_enough_gpus_are_real_ranks_and_too_few_a_rehearsal() -> None:
    real = plan(ONE_GPU, config(), world_size=1).order
    assert (real.device, real.rehearsed, real.processes) == ("cuda", False, 1)
    rehearsed = plan(ONE_GPU, config(), world_size=64)
    assert (rehearsed.order.rehearsed, rehearsed.order.processes, rehearsed.order.world_size) == (True, 1, 64)
    assert rehearsed.order.ds_config["train_batch_size"] == 128
    assert rehearsed.job.cluster.gpu.memory_bytes == 150_000_000_000
    assert rehearsed.job.cluster.world_size == 64


def test_without_a_gpu_two_ranks_run_and_the_batch_follows() -> None:
    made = plan(CPU, config(), world_size=8)
    assert (made.order.device, made.order.processes, made.order.world_size) == ("cpu", 2, 2)
    assert made.order.ds_config["train_batch_size"] == 4
    assert made.scaled_down == ()
    assert any("2 ranks run where 8" in note for note in made.notes)


def test_what_this_cpu_cannot_do_is_replaced_and_said() -> None:
    weak = Probe(fp16=False, can_build=False)
    made = plan(weak, {"train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True}}, attention="flash")
    assert made.order.ds_config["bf16"] == {"enabled": True}
    assert "fp16" not in made.order.ds_config
    assert made.order.ds_config["optimizer"]["params"]["torch_adam"] is True
    assert made.order.workload.attention == "sdpa"
    assert made.job.settings.precision == "bf16"
    assert len(made.notes) == 4


def test_a_large_model_is_scaled_down_in_proportion() -> None:
    large = read_model(params="70B")
    made = plan(CPU, config(), model=large.hf_config, seq_len=4096, micro_batch=16)
    small = made.job.model
    assert small.num_params < scale.SMALL_ENOUGH
    assert small.family == large.family
    assert small.heads // small.kv_heads == large.heads // large.kv_heads
    assert (made.order.workload.seq_len, made.order.workload.micro_batch) == (scale.MAX_SEQ_LEN, scale.MAX_MICRO_BATCH)
    assert len(made.scaled_down) == 4


@pytest.mark.parametrize("name", names())
def test_every_known_model_scales_down_to_one_that_reads_back(name: str) -> None:
    model = read_model(model=name)
    small = read_model(model=scale.small_hf_config(model))
    assert small.family == model.family
    assert small.num_params <= min(model.num_params, scale.SMALL_ENOUGH)
    assert small.layers <= scale.MAX_LAYERS


@pytest.mark.parametrize("name", names())
def test_every_scaled_model_is_built_by_transformers_with_as_many_parameters(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = scale.small_hf_config(read_model(model=name))
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config, pad_token_id=None)
        )
    assert sum(p.numel() for p in built.parameters()) == read_model(model=config).num_params


def test_a_sequence_longer_than_learned_positions_is_refused() -> None:
    with pytest.raises(InputError, match="1024 positions"):
        plan(ONE_GPU, config(), model="openai-community/gpt2", seq_len=1025)


@pytest.mark.parametrize(
    ("variable", "value", "setting", "allocator"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "", "expandable_segments:True", "expandable"),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64", "max_split_size_mb:64", "default"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:True", "expandable_segments:True", "expandable"),
    ],
)
def test_the_allocator_is_the_launch_lines_unless_the_person_says(
    variable: str, value: str, setting: str, allocator: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert environment(tmp_path)["PYTORCH_CUDA_ALLOC_CONF"] == setting
    job = plan(ONE_GPU, config()).job
    assert job is not None
    assert job.workload.allocator == allocator


@pytest.mark.parametrize(
    ("model", "asked", "attention"),
    [
        ({"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256}, "sdpa", "eager"),
        (
            {"model_type": "gptj", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 16},
            "sdpa",
            "eager",
        ),
        (TINY, "sdpa", "sdpa"),
        (TINY, "eager", "eager"),
    ],
)
def test_a_family_without_sdpa_is_not_asked_for_it(model: object, asked: str, attention: str) -> None:
    """transformers raises ValueError where it is."""
    assert plan(ONE_GPU, config(), model, world_size=1, attention=asked).order.workload.attention == attention
