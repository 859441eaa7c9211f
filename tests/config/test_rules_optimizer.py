"""Optimizers. Verdicts are those of real engines of DeepSpeed 0.19.8; Lamb and Lion, which need a GPU, of its code."""

from __future__ import annotations

import inspect

import pytest
from rule_rows import CPU, faults, optimizer, zero

from dsconf.config.rules import arguments

TORCH = tuple(arguments.TORCH_OPTIMIZERS)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["Adam", "adamw", "ADAGRAD", "Lion", "Lamb", *TORCH])
def test_optimizers_zero_was_not_tested_with(kind, stage):
    untested = stage > 0 and kind in ("Lamb", *TORCH)
    assert faults(optimizer(kind, stage)) == ([("DS517", "optimizer.type")] if untested else [])
    assert faults(optimizer(kind, stage) | {"zero_allow_untested_optimizer": True}) == []


@pytest.mark.parametrize("kind", TORCH)
def test_torchs_names_are_spelled_as_torch_spells_them(kind):
    assert faults(optimizer(kind.swapcase())) == [("DS511", "optimizer.type")]


EITHER = ("amsgrad", "adam_w_mode", "fp32_optimizer_states", "torch_adam")


@pytest.mark.parametrize(
    ("key", "refusing"),
    [
        *((key, ()) for key in EITHER),
        *((key, ("fused", "cpu")) for key in ("foreach", "fused", "maximize", "capturable", "differentiable")),
        ("set_grad_none", ("torch", "cpu")),
        ("bias_correction", ("torch",)),
        ("adamw_mode", ("fused", "torch", "cpu")),
    ],
)
@pytest.mark.parametrize("kind", ["fused", "torch", "cpu"])
def test_adam_is_three_classes(key, refusing, kind):
    params = {key: False} | ({"torch_adam": True} if kind == "torch" else {})
    config = optimizer("Adam", 2, **params)
    if kind == "cpu":
        config["zero_optimization"]["offload_optimizer"] = CPU
    assert faults(config) == ([("DS513", f"optimizer.params.{key}")] if kind in refusing else [])


def test_muon_drops_what_it_does_not_know():
    params = {"lr": 0.02, "momentum": 0.95, "muon_lr": 0.02, "adam_lr": 3e-4, "ns_method": "gram", "foreach": True}
    assert faults(optimizer("Muon", 2, **params)) == []
    assert faults(optimizer("Muon", 2, momntum=0.9)) == [("DS513", "optimizer.params.momntum")]
    assert faults(optimizer("Muon", 2, ns_method="newton")) == [("DS525", "optimizer.params.ns_method")]


def test_muon_and_reduce_scatter_meet_at_stage_3():
    assert faults(optimizer("Muon", 3)) == [("DS518", "optimizer.type")]
    assert faults(zero(3, reduce_scatter=False) | {"optimizer": {"type": "muon", "params": {}}}) == []


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"lr": 0}, None),
        ({"lr": -1e-3}, "lr"),
        ({"eps": -1}, "eps"),
        ({"eps": 0}, None),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"betas": [0.0, 0.999]}, None),
        ({"betas": [0.9, 1.0]}, "betas.1"),
        ({"betas": [-0.1, 0.9]}, "betas.0"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 0.99, 0.999]}, "betas"),
        ({"lr": "1e-3"}, "lr"),
        ({"weight_decay": "0.1"}, "weight_decay"),
    ],
)
def test_values_of_parameters(params, path):
    """The schema says it first where it can: what counts is that it is an error, and where."""
    assert [found for _, found in faults(optimizer("AdamW", 2, **params))] == (
        [] if path is None else [f"optimizer.params.{path}"]
    )


@pytest.mark.parametrize(
    ("kind", "torch_adam", "has"), [("Adam", False, True), ("Adam", True, False), ("Lamb", False, True)]
)
def test_amsgrad(kind, torch_adam, has):
    params = {"amsgrad": True} | ({"torch_adam": True} if torch_adam else {})
    assert faults(optimizer(kind, **params)) == ([("DS515", "optimizer.params.amsgrad")] if has else [])
    assert faults(optimizer(kind, amsgrad=False)) == []


def test_lamb_looks_at_the_loss_scale_with_fp16_off_too():
    for enabled in (True, False):
        config = optimizer("Lamb") | {"fp16": {"enabled": enabled, "loss_scale": 128}}
        assert faults(config) == [("DS519", "fp16.loss_scale")]


def test_legacy_fusion_only_fails_in_the_16_bit_wrapper():
    legacy = {"optimizer": {"type": "Adam", "params": {}, "legacy_fusion": True}, "bf16": {"enabled": True}}
    assert faults(zero(0) | legacy) == [("DS516", "optimizer.legacy_fusion")]
    assert faults(zero(1) | legacy) == []


def test_sgd_with_nesterov():
    assert faults(optimizer("SGD", nesterov=True, momentum=0.9)) == []
    assert faults(optimizer("SGD", nesterov=True, momentum=0.9, dampening=0.1)) != []


@pytest.mark.parametrize(
    ("params", "flow", "works"), [({}, {}, True), ({"torch_adam": True}, {}, False), ({}, {"zenflow": {}}, False)]
)
def test_partial_offload_wants_deepspeeds_adam(params, flow, works):
    config = optimizer("Adam", 3, **params)
    config["zero_optimization"] |= {"offload_optimizer": {"device": "cpu", "ratio": 0.5}, **flow}
    assert faults(config) == ([] if works else [("DS520", "zero_optimization.offload_optimizer.ratio")])


def test_the_arguments_of_torchs_classes_are_torchs():
    torch = pytest.importorskip("torch")
    for table, module in (
        (arguments.TORCH_OPTIMIZERS, torch.optim),
        (arguments.TORCH_SCHEDULERS, torch.optim.lr_scheduler),
    ):
        for name, words in table.items():
            assert set(words) == set(inspect.signature(getattr(module, name)).parameters) - {"params", "optimizer"}


def test_the_arguments_of_deepspeeds_classes_are_deepspeeds(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    schedules = pytest.importorskip("deepspeed.runtime.lr_schedules")
    for name, words in arguments.SCHEDULERS.items():
        assert set(words) == set(inspect.signature(getattr(schedules, name)).parameters) - {"optimizer"}
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion

    engine = {"torch_adam", "adam_w_mode", "adamw_mode", "fp32_optimizer_states"}
    for kind, words in (
        (FusedAdam, arguments.FUSED_ADAM),
        (DeepSpeedCPUAdam, arguments.CPU_ADAM),
        (FusedLamb, (*(arguments.OWN["lamb"] or ()), "max_grad_norm")),
        (FusedLion, arguments.OWN["lion"]),
        (DeepSpeedCPULion, (*arguments.CPU_LION,)),
    ):
        taken = set(inspect.signature(kind).parameters) - {"params", "model_params"}
        assert set(words or ()) - engine == taken - engine
