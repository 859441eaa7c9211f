"""Schedulers. Verdicts are those of real engines of DeepSpeed 0.19.8."""

from __future__ import annotations

import pytest
from rule_rows import BF16, faults, scheduler, zero

from dsconf.config.rules.arguments import PYTHON_SCHEDULERS, REQUIRED, SCHEDULERS, TORCH_SCHEDULERS


@pytest.mark.parametrize("name", [*SCHEDULERS, *TORCH_SCHEDULERS])
def test_without_arguments_those_without_a_default_are_missing(name):
    assert faults(scheduler(name)) == ([("DS522", "scheduler.type")] if name in REQUIRED else [])
    assert faults({"train_batch_size": 8, "scheduler": {"type": name}}) == [("DS522", "scheduler.type")]


@pytest.mark.parametrize("name", PYTHON_SCHEDULERS)
def test_no_file_can_hold_a_function(name):
    assert faults(scheduler(name, lr_lambda="x")) == [("DS512", "scheduler.type")]


@pytest.mark.parametrize("name", ["warmuplr", "os", "math", "Cosine"])
def test_names_are_exact(name):
    assert faults(scheduler(name)) == [("DS512", "scheduler.type")]


@pytest.mark.parametrize(
    ("config", "works"), [({}, True), (zero(0), True), (BF16, False), ({"fp16": {"enabled": True}}, False)]
)
def test_torchs_schedulers_want_a_torch_optimizer(config, works):
    found = faults(scheduler("CosineAnnealingLR", T_max=10) | config)
    assert found == ([] if works else [("DS523", "scheduler.type")])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_no_torch_optimizer(stage):
    assert faults(zero(stage) | scheduler("StepLR", step_size=3)) == [("DS523", "scheduler.type")]
    assert faults(zero(stage) | scheduler("WarmupLR")) == []


@pytest.mark.parametrize(
    ("name", "params", "path"),
    [
        ("WarmupLR", {"warmup_num_steps": 0}, "warmup_num_steps"),
        ("WarmupLR", {"warmup_num_steps": 1.5}, "warmup_num_steps"),
        ("WarmupLR", {"warmup_num_steps": "10"}, "warmup_num_steps"),
        ("WarmupLR", {"warmup_num_steps": 10}, None),
        ("WarmupLR", {"warmup_max_lr": None}, None),
        ("WarmupLR", {"total_num_steps": 10}, "total_num_steps"),
        ("WarmupCosineLR", {"total_num_steps": 10, "warmup_num_steps": 2, "warmup_max_lr": 1}, "warmup_max_lr"),
        ("LRRangeTest", {"lr_range_test_step_size": 0}, "lr_range_test_step_size"),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_first_step_size": 0}, "cycle_first_step_size"),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_second_step_size": 0}, None),
        ("StepLR", {"step_size": 3, "nope": 1}, "nope"),
    ],
)
def test_arguments(name, params, path):
    found = [where for _, where in faults(scheduler(name, **params))]
    assert found == ([] if path is None else [f"scheduler.params.{path}"])


@pytest.mark.parametrize(
    ("total", "warmup", "ends"), [(10, 5, False), (5, 10, True), (500, None, True), (1000, None, False)]
)
def test_training_that_ends_inside_the_warmup(total, warmup, ends):
    params = {"total_num_steps": total} | ({} if warmup is None else {"warmup_num_steps": warmup})
    found = faults(scheduler("WarmupDecayLR", **params))
    assert found == ([("DS524", "scheduler.params.total_num_steps")] if ends else [])
