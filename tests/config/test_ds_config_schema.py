"""The shipped schema is a valid one, is what the generator writes, and accepts only what resolve can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dsconf.config.names import TARGETS
from dsconf.config.resolve import resolve
from dsconf.config.schema import load_schema, schema_problems
from dsconf.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SCALARS = [
    0,
    1,
    2,
    3,
    5,
    -1,
    0.5,
    1e9,
    "auto",
    "5",
    "1e9",
    "true",
    "off",
    "cpu",
    "nvme",
    "none",
    "/x",
    True,
    False,
    None,
]
OPTIMIZERS = ["Adam", "AdamW", "SGD", "Lion"]


def test_it_is_a_valid_schema():
    Draft202012Validator.check_schema(load_schema())


def test_it_is_what_the_generator_writes():
    pytest.importorskip("deepspeed")
    command = [sys.executable, str(ROOT / "tools" / "generate_ds_config_schema.py"), "--check"]
    done = subprocess.run(command, env={**os.environ, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def parts(schema):
    yield schema
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in inner:
        yield from parts(part)


def test_it_has_no_union_so_that_every_error_has_one_cause():
    assert not [part for part in parts(load_schema()) if isinstance(part, dict) and {"anyOf", "oneOf"} & set(part)]


def test_every_key_says_what_it_is_for():
    blocks = [load_schema(), *load_schema()["$defs"].values()]
    properties = {name: part for block in blocks for name, part in block.get("properties", {}).items()}
    assert len(properties) > 200
    assert not [name for name, part in properties.items() if not part.get("description", "").endswith(".")]


def test_every_default_is_accepted_where_it_stands():
    schema = load_schema()
    for block in [schema, *schema["$defs"].values()]:
        for name, part in block.get("properties", {}).items():
            if part.get("default") is None:
                continue
            validator = Draft202012Validator({**part, "$defs": schema["$defs"]})
            assert validator.is_valid(part["default"]), name


def values(schema, part) -> st.SearchStrategy:
    """Plausible and implausible values of one key."""
    target = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    if "properties" in target:
        inner = {name: values(schema, sub) for name, sub in target["properties"].items()}
        return st.fixed_dictionaries({}, optional=inner)
    return st.sampled_from([*SCALARS, *target.get("enum", [])]) | st.integers(0, 10**12)


def configs() -> st.SearchStrategy:
    schema = load_schema()
    keys = ("zero_optimization", "bf16", "bfloat16", "fp16", "torch_autocast", "data_types", "gradient_clipping")
    keys += ("communication_data_type", "train_batch_size", "gradient_accumulation_steps", "sequence_parallel_size")
    inner = {key: values(schema, schema["properties"][key]) for key in (*keys, "train_micro_batch_size_per_gpu")}
    params = values(schema, schema["$defs"]["optimizer"]["properties"]["params"])
    inner["optimizer"] = st.fixed_dictionaries({}, optional={"type": st.sampled_from(OPTIMIZERS), "params": params})
    return st.fixed_dictionaries({}, optional=inner)


def pruned(value, validator_errors):
    """``value`` without the keys the schema objects to."""
    for path in validator_errors:
        holder = value
        for key in path[:-1]:
            holder = holder.get(key, {}) if isinstance(holder, dict) else {}
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
    return value


@given(configs(), st.sampled_from(TARGETS), st.integers(1, 64))
@hypothesis_settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
def test_resolve_reads_whatever_the_schema_accepts(config, target, world_size):
    validator = Draft202012Validator(load_schema())
    config = pruned(config, [tuple(error.absolute_path) for error in validator.iter_errors(config)])
    if validator.is_valid(config):
        assert isinstance(resolve(config, world_size, target), Settings)


@pytest.mark.parametrize(
    ("config", "code", "path", "words"),
    [
        ({"zero_optimisation": {}}, "DS101", ("zero_optimisation",), "did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stagee": 3}}, "DS101", ("zero_optimization", "stagee"), "did you mean 'stage'?"),
        ({"train_batch_size\u00a0": 3}, "DS101", ("train_batch_size\u00a0",), "did you mean 'train_batch_size'?"),
        ({"overlap_comm": True}, "DS106", ("overlap_comm",), "belongs under zero_optimization"),
        ({"bf16": {"hysteresis": 2}}, "DS106", ("bf16", "hysteresis"), "belongs under fp16"),
        (
            {"zero_optimization": {"gradient_clipping": 1}},
            "DS106",
            ("zero_optimization", "gradient_clipping"),
            "top level",
        ),
        ({"amp": {"enabled": False}}, "DS105", ("amp",), "use fp16, bf16"),
        ({"zero_optimization": {"mics_shard_size": 8}}, "DS105", ("zero_optimization", "mics_shard_size"), "hpz"),
        ({"train_batch_size": 0}, "DS104", ("train_batch_size",), "at least 1"),
        ({"train_batch_size": "8"}, "DS102", ("train_batch_size",), "a positive whole number"),
        ({"zero_optimization": {"stage": 4}}, "DS103", ("zero_optimization", "stage"), "not one of 0, 1, 2, 3"),
        (
            {"zero_optimization": {"overlap_comm": "maybe"}},
            "DS102",
            ("zero_optimization", "overlap_comm"),
            "true or false",
        ),
        ({"fp16": {"loss_scale": -1}}, "DS104", ("fp16", "loss_scale"), "at least 0"),
        ({"fp16": {"enabled": 2}}, "DS102", ("fp16", "enabled"), "2 is not true or false"),
        (
            {"activation_checkpointing": {"profile": "false"}},
            "DS102",
            ("activation_checkpointing", "profile"),
            "true or",
        ),
        ({"zero_optimization": None}, "DS102", ("zero_optimization",), "null is not an object"),
        (
            {"zero_optimization": {"sub_group_size": "5e8"}},
            "DS102",
            ("zero_optimization", "sub_group_size"),
            "whole",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpuu"}}},
            "DS103",
            ("zero_optimization", "offload_optimizer", "device"),
            "did you mean 'cpu'?",
        ),
    ],
)
def test_a_violation_is_one_problem_in_plain_words(config, code, path, words):
    (problem,) = schema_problems(config)
    assert (problem.code, problem.path) == (code, path)
    assert words in f"{problem.message}; {problem.suggestion}"


def test_comments_are_allowed_where_deepspeed_ignores_them():
    assert schema_problems({"_comment": "x", "optimizer": {"_why": 1, "type": "Adam"}}) == []
    assert [p.path for p in schema_problems({"bf16": {"_why": 1}})] == [("bf16", "_why")]


def mutants():
    """One wrong value at one key of DeepSpeed's own blocks."""
    schema = load_schema()
    for name in ("zero_optimization", "bf16", "fp16", "comms_logger", "compile", "hybrid_engine"):
        for key, part in schema["$defs"][name]["properties"].items():
            if "$ref" in part and part["$ref"].rpartition("/")[2] in ("offload_param", "offload_optimizer"):
                continue
            for value in ("no such", [1], -7, 0.5, {"a": 1}, "12", "yes", 2, None):
                yield name, key, value
        yield name, "no_such_key", 1


def test_deepspeed_and_the_schema_agree_on_wrong_values():
    """Whatever one of the two refuses, the other refuses: on every key of six pydantic blocks and nine values."""
    pytest.importorskip("deepspeed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        from deepspeed.comm.config import CommsLoggerConfig
        from deepspeed.compile.config import CompileConfig
        from deepspeed.runtime.config import HybridEngineConfig
        from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    models = {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "hybrid_engine": HybridEngineConfig,
    }
    disagree = []
    for name, key, value in mutants():
        base = {"stage": 1} if name == "zero_optimization" and key == "compute_grad_norm" else {}
        try:
            models[name](**{**base, key: value})
            refused = False
        except Exception:
            refused = True
        found = [problem for problem in schema_problems({name: {**base, key: value}}) if problem.severity == "error"]
        if refused is not bool(found):
            disagree.append((name, key, json.dumps(value), refused))
    assert disagree == []
