"""The schema of each release: what it says of every key, and what validate says of keys that came or went."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from dsconf.config.finding import Remove
from dsconf.config.names import RELEASES
from dsconf.config.releases import (
    INSTEAD,
    follow,
    history,
    known_places,
    known_release,
    load_schema,
    optimizers,
    property_at,
    removed_optimizers,
)
from dsconf.config.schema import schema_problems
from dsconf.config.validate import ValidationOptions, validate
from dsconf.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "configs"


def keys(schema):
    """Each key of each block: (name, schema)."""
    for block in [schema, *schema["$defs"].values()]:
        yield from block.get("properties", {}).items()


@pytest.mark.parametrize("release", RELEASES)
class TestEverySchema:
    def test_is_a_valid_one(self, release):
        schema = load_schema(release)
        Draft202012Validator.check_schema(schema)
        assert schema["title"] == f"ds_config of DeepSpeed {release}"

    def test_says_of_every_key_what_it_is_for_and_its_default(self, release):
        found = dict(keys(load_schema(release)))
        assert len(found) > 250
        assert [name for name, part in found.items() if not part.get("description", "").endswith(".")] == []
        assert [name for name, part in found.items() if "default" not in part] == []

    def test_says_of_every_key_its_type(self, release):
        schema = load_schema(release)
        untyped = {name for name, part in keys(schema) if not {"type", "enum"} & set(follow(part, release))}
        assert untyped <= {"datastates_ckpt", "mpu", "tp_group", "lower_precision_safe_modules"}

    def test_takes_its_own_defaults(self, release):
        schema = load_schema(release)
        for name, part in keys(schema):
            if part["default"] is not None:
                assert Draft202012Validator({**part, "$defs": schema["$defs"]}).is_valid(part["default"]), name

    def test_takes_what_an_editor_wants_and_comments(self, release):
        config = {"$schema": "schemas/ds_config.schema.json", "_comment": "x", "train_batch_size": 8}
        assert schema_problems(config, release) == []


def test_deepspeed_ignores_what_an_editor_wants():
    pytest.importorskip("deepspeed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        from deepspeed.runtime.config import DeepSpeedConfig
    assert DeepSpeedConfig({"$schema": "x", "train_batch_size": 8}).train_batch_size == 8


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("0.16", "0.16.9"),
        ("0.16.0", "0.16.9"),
        ("0.17.6", "0.17.6"),
        ("v0.18.2", "0.18.9"),
        ("0.19", "0.19.8"),
        ("0.19.0", "0.19.6"),
        ("0.19.6", "0.19.6"),
        ("0.19.7", "0.19.8"),
        ("0.19.99", "0.19.8"),
        ("0.19.8+cu130", "0.19.8"),
        (" 0.19.8\n", "0.19.8"),
    ],
)
def test_a_version_means_the_nearest_patch_of_its_minor(version, release):
    assert known_release(version) == release
    assert load_schema(version) is load_schema(release) or load_schema(version) == load_schema(release)


@pytest.mark.parametrize("version", ["0.15.4", "0.20", "1.0", "19", "", "latest", "0.19.x", "0.1" + "9" * 9999, "०.१९"])
def test_an_unknown_version_names_the_known_ones(version):
    with pytest.raises(InputError, match=r"is not known; use one of 0\.16, 0\.17, 0\.18, 0\.19, or a patch") as caught:
        known_release(version)
    assert len(str(caught.value)) < 200


def test_the_message_for_each_key_that_went_or_came():
    def said(config, version):
        return [(p.code, ".".join(p.path), p.message) for p in schema_problems(config, version)]

    elastic = {"elasticity": {"enabled": False}}
    assert said(elastic, "0.16") == said(elastic, "0.19.6") == []
    assert said(elastic, "0.19.8") == [("DS105", "elasticity", "removed in DeepSpeed 0.19.8")]
    assert said({"zero_optimization": {"mics_shard_size": 8}}, "0.18") == []
    autocast = {"torch_autocast": {"enabled": True}}
    assert said(autocast, "0.17") == []
    assert said(autocast, "0.16.4") == [
        ("DS101", "torch_autocast", "not known to DeepSpeed 0.16.9; it was added in 0.17"),
    ]
    norm = {"zero_optimization": {"compute_grad_norm": True}}
    came = "zero_optimization.compute_grad_norm"
    assert said(norm, "0.19.6") == [("DS101", came, "not known to DeepSpeed 0.19.6; it was added in 0.19.8")]
    assert said({"eigenvalue": {}}, "0.19.8") == [("DS105", "eigenvalue", "removed in DeepSpeed 0.19.8")]
    assert said({"eigenvalue": {}}, "0.16") == [("DS105", "eigenvalue", "DeepSpeed 0.16.9 does not read it any more")]


def test_a_value_is_judged_by_its_release():
    """reduce_bucket_size 0 was allowed up to 0.18; ``passes`` has taken autotp since 0.19."""
    none = {"zero_optimization": {"reduce_bucket_size": 0}}
    assert schema_problems(none, "0.18") == []
    assert [p.code for p in schema_problems(none, "0.19.8")] == ["DS104"]
    passes = {"compile": {"passes": ["autotp"]}}
    assert [p.code for p in schema_problems(passes, "0.18")] == ["DS103"]
    assert schema_problems(passes, "0.19.8") == []
    assert property_at(("gradient_clipping",), "0.18")["default"] == 0.0
    assert property_at(("gradient_clipping",), "0.19")["default"] == 1.0


def test_a_key_every_release_has_has_no_history():
    assert history(("train_batch_size",), "0.16") is None
    assert history(("no_such",), "0.19.8") is None
    assert () in known_places("0.16")["elasticity"]
    assert "elasticity" not in known_places("0.19.8")


def test_advice_is_given_for_exactly_what_deepspeed_refuses_by_name():
    pytest.importorskip("deepspeed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        from deepspeed.runtime import config
    nested = {f"zero_optimization.{key}" for key in config._REMOVED_ZERO_CONFIG_KEYS}
    assert set(INSTEAD) == set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS) | nested


@pytest.mark.parametrize("dotted", INSTEAD)
def test_what_was_removed_is_called_so_and_may_be_taken_out_where_it_is_off(dotted):
    path = tuple(dotted.split("."))
    config = 0
    for key in reversed(path):
        config = {key: config}
    (problem,) = schema_problems(config)
    assert (problem.code, problem.path, problem.message) == ("DS105", path, "removed in DeepSpeed 0.19.8")
    assert problem.suggestion == INSTEAD[dotted]
    assert problem.fix == (Remove(path),)


def test_optimizers_that_went():
    """DeepSpeed 0.19.8 calls them unsupported when the engine is built (runtime/engine.py:1985, 2016)."""
    assert removed_optimizers("0.19.8") == dict.fromkeys(("onebitadam", "onebitlamb", "zerooneadam"), "0.19.8")
    assert removed_optimizers("0.19.6") == removed_optimizers("0.16") == {}
    assert "muon" in optimizers("0.17")
    assert "muon" not in optimizers("0.16")


@pytest.mark.parametrize(
    ("kind", "version", "wanted"),
    [
        ("OneBitAdam", "0.19.8", ("DS105", "OneBitAdam was removed in DeepSpeed 0.19.8")),
        ("OneBitLamb", "0.16", None),
        ("ZeroOneAdam", "0.19.6", None),
        ("Muon", "0.19", None),
        ("Muon", "0.16", ("DS511", "DeepSpeed 0.16.9 does not have Muon yet")),
        ("Adamw2", "0.16", ("DS511", "DeepSpeed has no optimizer 'Adamw2'")),
    ],
)
def test_an_optimizer_is_judged_by_the_release_that_runs(kind, version, wanted):
    config = {"train_batch_size": 8, "optimizer": {"type": kind, "params": {"lr": 0.1}}}
    report = validate(config, options=ValidationOptions(version=version)).files[0]
    found = [(f.code, f.message) for f in report.findings]
    assert [one for one in found if one[0] in ("DS105", "DS511")] == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("target", "version", "message"),
    [
        ("deepspeed", "0.19.8", "gradients are clipped at a norm of 1.0, the default of DeepSpeed 0.19.8"),
        ("deepspeed", "0.19.6", "gradients are clipped at a norm of 1.0, the default of DeepSpeed 0.19.6"),
        ("deepspeed", "0.16", None),
        ("accelerate", "0.18", None),
        ("hf", "0.16", "gradients are not clipped, the default of DeepSpeed 0.16.9, whatever max_grad_norm says"),
    ],
)
def test_the_default_of_clipping_is_the_releases_own(target, version, message):
    found = validate({"train_batch_size": 8}, options=ValidationOptions(target, version=version)).files[0].findings
    assert [one.message for one in found if one.code == "DS601"] == ([message] if message else [])


@pytest.mark.parametrize(
    ("path", "value", "safe"),
    [
        ("amp", {"enabled": True}, False),
        ("amp", {"enabled": False, "opt_level": "O1"}, True),
        ("amp", {}, True),
        ("elasticity", {"enabled": True, "max_train_batch_size": 8}, False),
        ("elasticity", {"max_train_batch_size": 8}, True),
        ("curriculum_learning", {"enabled": True}, False),
        ("eigenvalue", {"enabled": True}, True),
        ("zero_optimization.mics_shard_size", 4, False),
        ("zero_optimization.mics_hierarchical_params_gather", True, True),
    ],
)
def test_only_what_nothing_replaces_or_what_was_off_is_taken_out(path, value, safe):
    """Source: DeepSpeed 0.16 amp, elasticity and curriculum learning are off unless ``enabled`` is true."""
    keys = tuple(path.split("."))
    for key in reversed(keys):
        value = {key: value}
    (problem,) = schema_problems(value)
    assert (problem.code, problem.path) == ("DS105", keys)
    assert problem.fix == ((Remove(keys),) if safe else ())


def test_what_later_readers_look_up_is_known_too():
    metric = {"min_difficulty": 8, "schedule_config": {"total_step": 9}}
    sampling = {"curriculum_learning": {"enabled": True, "curriculum_metrics": {"seqlen": metric}}}
    specs = [{"patterns": ["x"], "partition_type": "Row"}, {"pattern": ["y"]}]
    config = {"data_efficiency": {"data_sampling": sampling}}
    config["tensor_parallel"] = {"autotp_size": 2, "partition_config": {"layer_specs": specs}}
    found = {".".join(map(str, p.path)): p.suggestion for p in schema_problems(config)}
    metrics = "data_efficiency.data_sampling.curriculum_learning.curriculum_metrics"
    assert found == {
        f"{metrics}.seqlen.schedule_config.total_step": "did you mean 'max_step'?",
        "tensor_parallel.partition_config.layer_specs.1.pattern": "did you mean 'patterns'?",
    }


def seconds(config) -> float:
    start = time.perf_counter()
    problems = schema_problems(config)
    assert 0 < len(problems) <= 2000
    return time.perf_counter() - start


@pytest.mark.parametrize(
    "config",
    [
        {f"key{number}": number for number in range(100_000)},
        {"zero_optimization": {f"stagee{number}": number for number in range(100_000)}},
        {"zero_optimization": {"sub_group_size": "1" * 5_000_000 + "x"}},
        {"fp16": {"loss_scale": "1" * 5_000_000 + "x"}},
        {"zero_optimization": {"offload_param": {"device": "c" * 5_000_000}}},
        {"a" * 5_000_000: 1},
        {"optimizer": {"type": "Adam", "params": {"betas": ["x"] * 300_000}}},
        {"fp16": list(range(500_000))},
    ],
    ids=["keys", "inner keys", "digits", "number", "name", "key", "list", "no object"],
)
def test_a_hostile_config_is_judged_within_seconds(config):
    assert seconds(config) < 3


def test_a_usual_config_takes_milliseconds():
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}
    config = {"zero_optimization": zero, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 4}
    schema_problems(config)
    start = time.perf_counter()
    for _ in range(50):
        assert schema_problems(config) == []
    assert (time.perf_counter() - start) / 50 < 0.01


@pytest.mark.skipif(
    not (SHARED / "verdicts.jsonl").exists(), reason="other people's configs are not part of the project"
)
def test_files_that_deepspeed_accepts_and_reads_whole_are_clean():
    hjson = pytest.importorskip("hjson")
    lines = (SHARED / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    accepted = [v for v in map(json.loads, lines) if v["verdict"].startswith("accept") and not v["ignored"]]
    assert len(accepted) > 50
    for verdict in accepted:
        config = hjson.loads((SHARED / verdict["file"]).read_text(encoding="utf-8-sig"))
        assert [p for p in schema_problems(config) if p.severity == "error"] == [], verdict["file"]
