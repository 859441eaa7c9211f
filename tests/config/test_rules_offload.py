"""Offload. Verdicts are those of real engines of DeepSpeed 0.19.8, and of its code for what needs a GPU or a disk."""

from __future__ import annotations

import pytest
from rule_rows import CPU, faults, notes, zero

OPTIMIZER = "zero_optimization.offload_optimizer"
NVME = {"device": "nvme", "nvme_path": "/disk"}
STEP = {"select_strategy": "step", "select_interval": 4, "update_interval": 2}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("device", ["none", "cpu", "nvme"])
def test_offloaded_parameters_need_stage_3(stage, device):
    found = faults(zero(stage, offload_param={**NVME, "device": device}))
    assert found == ([("DS401", "zero_optimization.offload_param")] if stage < 3 and device != "none" else [])


def test_the_deprecated_words_are_judged_alike():
    assert ("DS402", OPTIMIZER) in faults(zero(0, cpu_offload=True))
    assert ("DS401", "zero_optimization.offload_param") in faults(zero(2, cpu_offload_param=True))
    assert faults(zero(2, cpu_offload_param=False)) == [("DS107", "zero_optimization.cpu_offload_param")]


def test_the_ratio_is_looked_at_whatever_the_device():
    found = faults(zero(2, offload_optimizer={"device": "none", "ratio": 0.5}))
    assert found == [("DS405", f"{OPTIMIZER}.ratio")]


@pytest.mark.parametrize(
    ("flow", "path"),
    [
        ({}, None),
        (STEP, None),
        (STEP | {"select_interval": 1}, ".select_interval"),
        ({"select_strategy": "step"}, ".select_strategy"),
        ({"select_interval": 1}, ".select_interval"),
        ({"update_interval": 2}, None),
    ],
)
def test_intervals_of_zenflow(flow, path):
    found = faults(zero(2, offload_optimizer=CPU, zenflow=flow))
    assert found == ([] if path is None else [("DS407", f"zero_optimization.zenflow{path}")])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zenflow_needs_offload(stage):
    assert faults(zero(stage, zenflow=STEP)) == [("DS407", "zero_optimization.zenflow")]


def test_gradients_are_contiguous_under_offload_below_stage_3():
    path = "zero_optimization.contiguous_gradients"
    assert faults(zero(2, offload_optimizer=CPU, contiguous_gradients=False)) == [("DS409", path)]
    assert faults(zero(3, offload_optimizer=CPU, contiguous_gradients=False)) == []
    assert faults(zero(2, contiguous_gradients=False)) == []


def test_the_aio_block_is_used_by_nvme_and_by_the_checkpoint_writer():
    aio = {"aio": {"block_size": 1048576}}
    assert ("DS411", "aio") in notes(zero(3) | aio)
    assert ("DS411", "aio") not in notes(zero(3, offload_param=NVME) | aio)
    assert ("DS411", "aio") not in notes(zero(3) | aio | {"checkpoint": {"writer": {"type": "FAST"}}})


def test_a_script_may_bring_any_optimizer_when_told_so():
    config = zero(2, offload_optimizer=CPU)
    assert ("DS410", OPTIMIZER) in notes(config)
    assert ("DS410", OPTIMIZER) not in notes(config | {"zero_force_ds_cpu_optimizer": False})
    assert ("DS410", OPTIMIZER) not in notes(config, target="hf")
