"""The newest schema is what the generator writes, refuses what DeepSpeed refuses, takes only what resolve can read."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dsconf.config.finding import Move, Remove, Rename
from dsconf.config.names import TARGETS
from dsconf.config.releases import follow
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


def test_it_is_what_the_generator_writes():
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "tools.schema.generate_schema", "--check"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def parts(schema):
    yield schema
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in inner:
        yield from parts(part)


def test_it_has_no_union_so_that_every_error_has_one_cause():
    assert not [part for part in parts(load_schema()) if isinstance(part, dict) and {"anyOf", "oneOf"} & set(part)]


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


VALUES = ("no such", ["a"], [1], -7, 0, 1, 0.5, {"a": 1}, "12", "5e8", "yes", 2, None, "")
BESIDES = {
    "bf16_master_weights_and_grads": {"zero_optimization": {"stage": 2}},
    "fp16_master_weights_and_grads": {"zero_optimization": {"stage": 2}},
    "ratio": {"zero_optimization": {"stage": 3}},
    "compute_grad_norm": {"zero_optimization": {"stage": 1}},
}
"""What else a key needs to be taken at all."""
RULES = ("train_", "gradient_accumulation", "zenflow.select_", "zenflow.update_", "use_gds", "bf16_optimizer_states")
RULES += ("data_sampling.curriculum_learning.enabled", "data_sampling.dynamic_batching.enabled", "bfloat16.bf16_master")
"""Keys whose values DeepSpeed holds against other keys, or against the machine: the business of rules."""


def merged(config, other):
    for key, value in other.items():
        config[key] = merged(config[key], value) if isinstance(config.get(key), dict) else value
    return config


def leaves(part, path=()):
    """Each key of the schema: its path, and whether pydantic reads its block and its value."""
    for key, inner in part.get("properties", {}).items():
        held = follow(inner)
        yield (*path, key), "patternProperties" not in part and "patternProperties" not in held
        yield from leaves(held, (*path, key))


def cases():
    """Fourteen values at every key of every block, and an unknown key in every pydantic one."""
    for path, pydantic in leaves(load_schema()):
        if any(rule in ".".join(path) for rule in RULES) or path == ("$schema",):
            continue
        for value in VALUES:
            config = value
            for key in reversed(path):
                config = {key: config}
            yield path, value, pydantic, merged(config, {"train_batch_size": 1, **BESIDES.get(path[-1], {})})


@pytest.fixture
def deepspeed_takes(monkeypatch):
    """Whether DeepSpeed's own parser takes a config."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    def takes(config):
        try:
            DeepSpeedConfig(copy.deepcopy(config))
        except Exception:
            return False
        return True

    logging.disable(logging.CRITICAL)
    yield takes
    logging.disable(logging.NOTSET)


def test_deepspeed_and_the_schema_agree_on_every_value_at_every_key(deepspeed_takes):
    """All that DeepSpeed refuses is an error; in pydantic blocks, which drop nothing silently, also the reverse."""
    missed, false_alarms, compared = [], [], 0
    for path, value, pydantic, config in cases():
        compared += 1
        refused = not deepspeed_takes(config)
        found = [problem for problem in schema_problems(config) if problem.severity == "error"]
        if refused and not found:
            missed.append((path, value))
        if found and not refused and pydantic:
            false_alarms.append((path, value, found[0].message))
    assert compared > 5000
    assert missed == []
    assert false_alarms == []


@pytest.mark.parametrize(
    ("config", "fix"),
    [
        ({"zero_optimisation": {}}, (Rename(("zero_optimisation",), "zero_optimization"),)),
        ({"zero_optimisation": {}, "zero_optimization": {}}, ()),
        ({"fp16": {"stage2": 1}}, ()),
        ({"overlap_comm": True}, (Move(("overlap_comm",), ("zero_optimization", "overlap_comm")),)),
        ({"overlap_comm": True, "zero_optimization": {"overlap_comm": False}}, ()),
        ({"overlap_comm": True, "zero_optimization": True}, ()),
        ({"elasticity": {}}, (Remove(("elasticity",)),)),
    ],
)
def test_what_has_one_safe_answer_carries_it(config, fix):
    assert [problem.fix for problem in schema_problems(config) if problem.path[0] != "zero_optimization"] == [fix]
