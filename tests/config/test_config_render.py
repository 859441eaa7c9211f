"""A rendered config says what the settings say, and DeepSpeed, the schema and the rules accept it."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_settings import PARTITIONS, REDUCTION, STAGE3, some_settings

from dsconf.config.render import render
from dsconf.config.resolve import resolve
from dsconf.config.settings import Settings
from dsconf.config.validate import validate
from dsconf.errors import InputError

ALWAYS = ("stage", "precision", "optimizer", "optimizer_fused", "momentum", "gradient_clipping")
ALWAYS += ("grad_accum_dtype", "communication_dtype", "micro_batch", "accumulation", "train_batch", "sequence_parallel")
LEFT_TO_LOADER = {
    "deepspeed": (),
    "hf": ("gradient_clipping", "micro_batch", "accumulation", "train_batch", "sequence_parallel"),
    "accelerate": ("micro_batch", "train_batch", "sequence_parallel"),
}


def fields_that_matter(settings: Settings) -> set[str]:
    """The settings that DeepSpeed acts on at this stage, precision and offload."""
    fields = set(ALWAYS)
    if settings.precision == "bf16":
        fields |= {"immediate_grad_update", "bf16_master", "bf16_optimizer_states"}
    if settings.precision == "fp16":
        fields |= {"fp16_master"}
    if settings.stage:
        fields |= {*REDUCTION, "offload_optimizer"}
    if settings.stage in (1, 2):
        fields |= set(PARTITIONS)
    if settings.stage == 3:
        fields |= {*STAGE3, "offload_param"}
    if settings.offload_optimizer != "none":
        fields |= {"offload_optimizer_pinned"}
        fields -= {"optimizer_fused"}
    if settings.offload_optimizer == "nvme":
        fields |= {"offload_optimizer_buffers", "nvme_path"}
    if settings.offload_param != "none":
        fields |= {"offload_param_pinned"}
    if settings.offload_param == "nvme":
        fields |= {"offload_param_buffers", "offload_param_buffer_size", "offload_param_max_in_cpu", "nvme_path"}
    if settings.stage == 3 and settings.offload_optimizer != "none":
        fields |= {"offload_optimizer_ratio"}
    return fields


@given(some_settings(), st.sampled_from(["deepspeed", "hf", "accelerate"]))
@hypothesis_settings(deadline=None, max_examples=200)
def test_resolving_what_was_rendered_gives_the_settings_back(settings, target):
    resolved = asdict(resolve(json.loads(render(settings, target)), world_size=8, target=target))
    fields = fields_that_matter(settings) - set(LEFT_TO_LOADER[target])
    wanted = asdict(settings)
    assert {name: resolved[name] for name in fields} == {name: wanted[name] for name in fields}


@given(some_settings(), st.sampled_from(["deepspeed", "hf", "accelerate"]))
@hypothesis_settings(deadline=None, max_examples=100)
def test_the_schema_and_the_batch_rules_accept_it(settings, target):
    """The other rules judge settings, and these are random: test_search_accepted does it for those that are not."""
    report = validate(json.loads(render(settings, target)), gpus=8, target=target)
    found = [f for f in report.files[0].findings if f.severity == "error" and f.code.startswith(("DS1", "DS2"))]
    assert found == []


@given(some_settings())
@hypothesis_settings(deadline=None, max_examples=200)
def test_deepspeed_accepts_it_and_reads_the_same(deepspeed_config, settings):
    found = deepspeed_config(json.loads(render(settings)), 8)
    zero = found.zero_config
    assert (found.train_batch_size, found.train_micro_batch_size_per_gpu, found.gradient_accumulation_steps) == (
        settings.train_batch,
        settings.micro_batch,
        settings.accumulation,
    )
    assert (zero.stage, found.gradient_clipping) == (settings.stage, settings.gradient_clipping)
    assert found.float16_config.enabled == (settings.precision == "fp16")
    assert found.bfloat16_config.enabled == (settings.precision == "bf16")
    for block, device in (
        (zero.offload_optimizer, settings.offload_optimizer),
        (zero.offload_param, settings.offload_param),
    ):
        assert (block.device if block else "none") == device
    if settings.stage:
        assert zero.reduce_bucket_size == settings.reduce_bucket_size
        assert zero.overlap_comm == settings.overlap_comm
    if settings.stage == 3:
        assert zero.sub_group_size == settings.sub_group_size
        assert zero.param_persistence_threshold == settings.param_persistence_threshold
        assert zero.zero_hpz_partition_size == settings.hpz_partition_size
        assert zero.zero_quantized_weights == settings.quantized_weights
        assert zero.zero_quantized_nontrainable_weights == settings.quantized_nontrainable_weights
        assert zero.zero_quantized_gradients == settings.quantized_gradients
        if zero.offload_optimizer:
            assert zero.offload_optimizer.ratio == settings.offload_optimizer_ratio
    assert found.bfloat16_config.bf16_master_weights_and_grads == settings.bf16_master
    assert found.bfloat16_config.bf16_optimizer_states == settings.bf16_optimizer_states
    assert found.world_size == 8 / settings.sequence_parallel, "ranks that share a sequence count as one"


def test_deepspeeds_own_defaults_are_the_defaults(deepspeed_config):
    """The defaults in Settings, read off DeepSpeed's own config object."""
    for stage in (1, 2, 3):
        found = deepspeed_config({"train_batch_size": 1, "zero_optimization": {"stage": stage}}, 1)
        zero, settings = found.zero_config, resolve({"zero_optimization": {"stage": stage}})
        for name in (*REDUCTION, "allgather_bucket_size", "round_robin_gradients", "parameter_alignment"):
            assert getattr(zero, name) == getattr(settings, name)
        for name in (*STAGE3[:7], "memory_efficient_linear", "module_granularity_threshold"):
            assert getattr(zero, name) == getattr(settings, name)
        assert zero.zero_hpz_partition_size == settings.hpz_partition_size
        assert found.gradient_clipping == settings.gradient_clipping


@pytest.fixture(scope="session")
def deepspeed_config():
    """DeepSpeed's own reading of a config on ``world_size`` ranks, without processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        module = pytest.importorskip("deepspeed.runtime.config")

    def read(config, world_size):
        with pytest.MonkeyPatch.context() as patch:
            world = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: world_size)
            patch.setattr(module, "dist", world)
            return module.DeepSpeedConfig(config)

    return read


def test_only_keys_that_matter_at_the_stage():
    zero = {stage: json.loads(render(Settings(stage=stage, micro_batch=1)))["zero_optimization"] for stage in range(4)}
    assert zero[0] == {"stage": 0}
    reduction = {"stage", "contiguous_gradients", "overlap_comm", "reduce_scatter", "reduce_bucket_size"}
    assert set(zero[1]) == set(zero[2]) == {*reduction, "allgather_bucket_size"}
    assert {key for key in zero[3] if not key.startswith("stage3_")} == {*reduction, "sub_group_size"}


def test_what_the_loader_fills_in_is_auto():
    settings = Settings(stage=2, precision="bf16", micro_batch=3, accumulation=4)
    hf, accelerate = (json.loads(render(settings, target)) for target in ("hf", "accelerate"))
    assert hf["train_micro_batch_size_per_gpu"] == hf["train_batch_size"] == "auto"
    assert set(hf["optimizer"]["params"].values()) == {"auto"}
    assert hf["train_micro_batch_size_per_gpu"] == accelerate["train_micro_batch_size_per_gpu"] == "auto"
    assert hf["gradient_accumulation_steps"] == hf["gradient_clipping"] == hf["bf16"]["enabled"] == "auto"
    assert accelerate["gradient_accumulation_steps"] == 4, "Accelerate would put 1"
    assert (accelerate["gradient_clipping"], accelerate["bf16"]["enabled"]) == (1.0, True)
    assert accelerate["optimizer"]["params"] == {
        "lr": "auto",
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": "auto",
    }


def test_the_optimizers_numbers_are_written():
    text = render(Settings(micro_batch=1), learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    params = json.loads(text)["optimizer"]["params"]
    assert params == {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-6, "weight_decay": 0.1}


def test_the_text_is_pretty_and_ends_with_a_newline():
    text = render(Settings(stage=1, micro_batch=2))
    assert text.startswith('{\n  "train_micro_batch_size_per_gpu": 2,\n')
    assert text.endswith("  }\n}\n")


@pytest.mark.parametrize(
    ("settings", "target", "problem"),
    [
        (Settings(), "deepspeed", "needs a micro-batch size"),
        (Settings(micro_batch=1), "trainer", "unknown target"),
        (Settings(micro_batch=1, engine="ddp"), "deepspeed", "engine ddp"),
        (Settings(micro_batch=1, stage=3, offload_param="nvme"), "deepspeed", "--nvme"),
        (Settings(micro_batch=1, offload_optimizer="cpu"), "deepspeed", "ZeRO stage 1, 2 or 3"),
        (Settings(micro_batch=1, optimizer="adamw8"), "deepspeed", "did you mean 'adamw'"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(settings, target, problem):
    with pytest.raises(InputError, match=problem):
        render(settings, target)
