"""Batch sizes, "auto", old keys, checkpoints, loaders, other blocks, sizes."""

from __future__ import annotations

import pytest
from rule_rows import CPU, faults, notes, zero

from dsconf.config.finding import Remove, Rename, SetValue
from dsconf.config.rules import keys, size
from dsconf.config.rules.case import Case


@pytest.mark.parametrize("target", ["hf", "accelerate"])
@pytest.mark.parametrize(
    "path", ["data_types.keep_in_fp32_modules", "zero_optimization.zenflow.select_strategy", "pipeline.stages"]
)
def test_accelerate_refuses_deepspeeds_own_auto(path, target):
    *blocks, key = path.split(".")
    value = {key: "auto"}
    for name in reversed(blocks):
        value = {name: value}
    config = zero(2, offload_optimizer=CPU)
    config["zero_optimization"] |= value.pop("zero_optimization", {})
    assert ("DS110", path) in faults(config | value, target=target)
    assert ("DS110", path) not in faults(config | value, target="deepspeed")


@pytest.mark.parametrize(("key", "accelerate"), [("lr", []), ("betas", ["DS110"]), ("eps", ["DS110"])])
def test_the_trainer_fills_betas_and_eps_and_accelerate_does_not(key, accelerate):
    config = zero(2) | {"optimizer": {"type": "AdamW", "params": {key: "auto"}}}
    assert faults(config, target="hf") == []
    assert [code for code, _ in faults(config, target="accelerate")] == accelerate


@pytest.mark.parametrize(
    ("zero_block", "fix"),
    [
        ({"cpu_offload": True}, (SetValue(("zero_optimization", "offload_optimizer"), CPU),)),
        ({"cpu_offload": False}, ()),
        ({"cpu_offload_use_pin_memory": True}, ()),
    ],
)
def test_old_words_are_said_in_new_ones(zero_block, fix):
    (key,) = zero_block
    case = Case({"zero_optimization": {"stage": 2, **zero_block}}, "deepspeed", None)
    (problem,) = keys.deprecated(case)
    assert problem.fix == (*fix, Remove(("zero_optimization", key)))


def test_an_old_name_is_renamed_where_the_new_one_is_free():
    old = "stage3_gather_fp16_weights_on_model_save"
    case = Case({"bfloat16": {}, "zero_optimization": {"stage": 3, old: True}}, "deepspeed", None)
    new = "stage3_gather_16bit_weights_on_model_save"
    fixes = [problem.fix for problem in keys.deprecated(case)]
    assert fixes == [(Rename(("bfloat16",), "bf16"),), (Rename(("zero_optimization", old), new),)]
    assert [problem.fix for problem in keys.deprecated(case._replace(config={"bfloat16": {}, "bf16": {}}))] == [()]


def test_accelerate_cannot_read_the_oldest_form():
    config = {"train_batch_size": 8, "zero_optimization": True}
    assert faults(config, target="accelerate") == [("DS107", "zero_optimization")]


@pytest.mark.parametrize(("gpus", "size", "fits"), [(8, 3, False), (8, 2, True), (8, 1, True), (6, 4, False)])
def test_tensor_parallel_groups(gpus, size, fits):
    found = faults({"train_micro_batch_size_per_gpu": 1, "tensor_parallel": {"autotp_size": size}}, gpus=gpus)
    assert found == ([] if fits else [("DS203", "tensor_parallel.autotp_size")])


@pytest.mark.parametrize(
    ("stage", "gpus", "before", "universal", "loads"),
    [
        (2, 8, 8, False, True),
        (2, 8, 4, False, False),
        (3, 4, 8, False, False),
        (2, 8, 4, True, True),
        (0, 8, 4, False, True),
    ],
)
def test_resuming_on_another_number_of_gpus(stage, gpus, before, universal, loads):
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    config |= {"checkpoint": {"load_universal": universal}}
    assert faults(config, gpus=gpus, resume_gpus=before) == ([] if loads else [("DS322", "")])


@pytest.mark.parametrize("key", ["stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save"])
@pytest.mark.parametrize(("value", "told"), [(True, False), ("auto", False), (False, True)])
def test_weights_that_stay_in_shards(key, value, told):
    found = notes(zero(3, **{key: value}), target="hf")
    assert (("DS321", "zero_optimization.stage") in found) is told


def test_nothing_is_saved_in_shards_below_stage_3():
    assert "DS321" not in [code for code, _ in notes(zero(2))]


@pytest.mark.parametrize(("target", "codes"), [("deepspeed", ["DS602"]), ("accelerate", ["DS602"]), ("hf", [])])
def test_activation_checkpointing_is_a_note_but_for_the_trainer(target, codes):
    config = zero(2) | {"activation_checkpointing": {"partition_activations": True}}
    assert [code for code, _ in notes(config, target=target) if code == "DS602"] == codes
    assert faults(config, target="hf") == [("DS602", "activation_checkpointing")]


def test_what_the_trainer_compares_is_told_once():
    config = zero(2) | {"gradient_clipping": 0.5, "bf16": {"enabled": True}}
    assert [code for code, _ in notes(config, target="hf")].count("DS603") == 1
    assert "DS603" not in [code for code, _ in notes(config, target="accelerate")]


@pytest.mark.parametrize("level", ["DEBUG", "info", "warning", "Error"])
def test_log_levels_in_any_case(level):
    assert faults({"train_batch_size": 8, "log_level": level}) == []
    assert faults({"train_batch_size": 8, "log_level": level + "s"}) == [("DS613", "log_level")]


LTD = {"enabled": True, "total_layer_num": 2, "random_ltd_layer_num": 1, "random_ltd_schedule": {}}


@pytest.mark.parametrize("missing", [None, "enabled", "total_layer_num", "random_ltd_layer_num", "random_ltd_schedule"])
def test_random_ltd(missing):
    dropping = {key: value for key, value in LTD.items() if key != missing}
    routing = {"enabled": True, "random_ltd": dropping}
    found = faults({"train_batch_size": 8, "data_efficiency": {"enabled": True, "data_routing": routing}})
    path = "data_efficiency.data_routing.random_ltd.enabled"
    assert found == ([] if missing in (None, "enabled") else [("DS609", path)])


def test_a_block_without_enabled_does_nothing():
    for name in ("comms_logger", "flops_profiler", "wandb"):
        assert faults({"train_batch_size": 8, name: {"enabled": False}}) == []
    assert faults({"train_batch_size": 8, "comms_logger": {"verbose": True}}) == [("DS606", "comms_logger")]


def test_sizes_are_held_against_the_model_where_there_is_one():
    assert faults(zero(2)) == []
    assert faults(zero(2), model_params=10**8) == [("DS701", "zero_optimization.reduce_bucket_size")]
    assert faults(zero(2), model_params=10**9) == []
    assert faults(zero(0), model_params=10**8) == []


@pytest.mark.parametrize(("elements", "gpus", "told"), [(10**9, 1, True), (10**8, 1, False), (10**8, 8, True)])
def test_a_sub_group_larger_than_the_share_of_a_rank(elements, gpus, told):
    found = notes(zero(3, sub_group_size=elements), model_params=5 * 10**8, gpus=gpus)
    assert (("DS702", "zero_optimization.sub_group_size") in found) is told


@pytest.mark.parametrize(
    ("kind", "copied", "saved"), [("bf16", "15.37 GiB", "14.81 GiB"), ("fp16", "15.37 GiB", "7.68 GiB")]
)
def test_what_one_sub_group_costs(kind, copied, saved):
    """11 × 10^9 parameters on 4 ranks: 6 bytes of 2.75 × 10^9 at once, or of 10^8; fp16 looks for overflow in 3."""
    config = zero(3, sub_group_size=10**14) | {kind: {"enabled": True}}
    (found,) = list(size.sub_group_larger_than_model(Case(config, "deepspeed", 4, 11 * 10**9)))
    assert copied in found.message
    assert found.suggestion == f"write 100000000: up to {saved} less at the peak of the step"
    offloaded = zero(3, sub_group_size=10**14, offload_optimizer={"device": "cpu"}) | {kind: {"enabled": True}}
    (found,) = list(size.sub_group_larger_than_model(Case(offloaded, "deepspeed", 4, 11 * 10**9)))
    assert "GiB" not in found.message


@pytest.mark.parametrize(("elements", "told"), [(10**9, True), (10**8, False)])
def test_a_ratio_moves_whole_sub_groups(elements, told):
    """10^9 parameters on one rank: one group of 10^9, or ten, of which int(0.3 × 10) stay on the GPU."""
    config = zero(3, sub_group_size=elements, offload_optimizer={"device": "cpu", "ratio": 0.7}) | {
        "optimizer": {"type": "AdamW", "params": {}}
    }
    path = "zero_optimization.offload_optimizer.ratio"
    assert (("DS703", path) in faults(config, model_params=10**9, gpus=1)) is told
