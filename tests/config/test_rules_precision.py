"""Precision. Verdicts are those of real engines of DeepSpeed 0.19.8."""

from __future__ import annotations

import pytest
from rule_rows import BF16, CPU, faults, optimizer, zero

MASTER = "bf16_master_weights_and_grads"
STATES = "bf16_optimizer_states"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_16_bit_masters(stage):
    config = zero(stage) | {"bf16": {"enabled": True, MASTER: True}}
    assert faults(config) == [("DS505", f"bf16.{MASTER}")]
    assert faults(zero(stage) | {"bf16": {"enabled": False, MASTER: True}}) == [("DS505", f"bf16.{MASTER}")]
    assert faults(zero(stage) | {"bf16": {"enabled": True, MASTER: True, STATES: True}}) == []
    assert faults(zero(stage, offload_optimizer=CPU) | {"bf16": {"enabled": True, MASTER: True}}) == []


def test_masters_on_the_cpu_want_deepspeeds_adam():
    config = optimizer("Adam", 2, torch_adam=True) | {"bf16": {"enabled": True, MASTER: True}}
    config["zero_optimization"]["offload_optimizer"] = CPU
    assert faults(config) == [("DS520", f"bf16.{MASTER}")]
    config["optimizer"]["params"] = {}
    assert faults(config) == []


@pytest.mark.parametrize(
    ("fp16", "key"),
    [
        ({"enabled": True, "min_loss_scale": 0}, "min_loss_scale"),
        ({"enabled": True, "loss_scale_window": 0}, "loss_scale_window"),
        ({"enabled": True, "initial_scale_power": 64}, "initial_scale_power"),
        ({"enabled": True, "initial_scale_power": 63}, None),
        ({"enabled": True, "min_loss_scale": 0, "loss_scale": 128}, None),
        ({"enabled": False, "min_loss_scale": 0}, None),
        ({"min_loss_scale": 0}, None),
    ],
)
def test_dynamic_loss_scaling(fp16, key):
    assert faults(zero(2) | {"fp16": fp16}) == ([] if key is None else [("DS510", f"fp16.{key}")])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("precision", "other"), [("bf16", "float32"), ("bf16", "fp16"), (None, "bfloat16")])
def test_types_that_differ_from_the_precision(stage, precision, other):
    config = zero(stage) | ({precision: {"enabled": True}} if precision else {})
    assert faults(config | {"data_types": {"param_dtype": other}}) == [("DS508", "data_types.param_dtype")]
    found = faults(config | {"data_types": {"grad_accum_dtype": other}})
    assert found == ([("DS509", "data_types.grad_accum_dtype")] if stage == 0 else [])


def test_auto_cast_acts_with_fp16_off():
    assert faults(zero(1) | BF16 | {"fp16": {"auto_cast": True}}) == [("DS507", "fp16.auto_cast")]
    assert faults(zero(1) | {"fp16": {"enabled": True, "auto_cast": True}}) == []
    assert faults(zero(1) | {"fp16": {"auto_cast": True}}) == []


def test_precisions_that_the_trainer_decides_are_not_judged():
    config = {"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}
    assert faults(config | {"data_types": {"param_dtype": "bf16"}}, target="hf") == []
    assert ("DS508", "data_types.param_dtype") in faults(
        config | {"data_types": {"param_dtype": "bf16"}}, target="deepspeed"
    )
