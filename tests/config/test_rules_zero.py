"""ZeRO keys by stage. Each verdict is DeepSpeed 0.19.8's own, from engines built around a tiny model."""

from __future__ import annotations

import pytest
from rule_rows import CPU, faults, notes, zero

ZERO_PLUS_PLUS = {
    "zero_quantized_weights": True,
    "zero_quantized_nontrainable_weights": "yes",
    "zero_quantized_gradients": 1,
    "zero_hpz_partition_size": 2,
}


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("key", ZERO_PLUS_PLUS)
def test_zero_plus_plus_needs_stage_3(key, stage):
    assert faults(zero(stage, **{key: ZERO_PLUS_PLUS[key]})) == [("DS304", f"zero_optimization.{key}")]
    assert faults(zero(3, **{key: ZERO_PLUS_PLUS[key]})) == []


def test_switched_off_it_may_stand_at_any_stage():
    off = {"zero_quantized_weights": False, "zero_quantized_gradients": "no", "zero_hpz_partition_size": 1}
    assert faults(zero(1, **off)) == []


@pytest.mark.parametrize(("gpus", "size", "divides"), [(8, 3, False), (8, 4, True), (8, 16, True), (6, 4, False)])
def test_groups_larger_than_the_world_are_the_world(gpus, size, divides):
    found = faults(zero(3, zero_hpz_partition_size=size) | {"train_batch_size": gpus}, gpus=gpus)
    assert found == ([] if divides else [("DS305", "zero_optimization.zero_hpz_partition_size")])


def test_a_prefix_makes_a_key_a_warning_and_none_a_note():
    assert faults(zero(1, stage3_max_live_parameters=1)) == [("DS303", "zero_optimization.stage3_max_live_parameters")]
    assert ("DS306", "zero_optimization.max_live_parameters") in notes(zero(1, max_live_parameters=1))
    assert faults(zero(1, max_live_parameters=1)) == []


@pytest.mark.parametrize(
    ("stage", "unused"),
    [
        (0, ["overlap_comm", "reduce_bucket_size", "round_robin_gradients", "sub_group_size"]),
        (1, ["sub_group_size"]),
        (2, ["sub_group_size"]),
        (3, ["round_robin_gradients"]),
    ],
)
def test_keys_of_other_stages_are_notes(stage, unused):
    given = {"overlap_comm": True, "reduce_bucket_size": 9, "round_robin_gradients": True, "sub_group_size": 9}
    found = notes(zero(stage, **given))
    assert [path.rpartition(".")[2] for code, path in found if code == "DS306"] == unused


def test_a_stage_that_is_not_known_yet_is_not_judged():
    config = {"train_batch_size": "auto", "zero_optimization": {"stage": "auto", "offload_param": CPU}}
    assert faults(config, target="hf") == []
