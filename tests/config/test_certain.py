"""A config that is called valid without jsonschema is valid to jsonschema, and what dsconf writes is called so."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_settings import some_settings

from dsconf.config.certain import surely_reads, surely_valid
from dsconf.config.names import RELEASES, TARGETS
from dsconf.config.releases import load_schema
from dsconf.config.render import render
from dsconf.config.schema import _validator

VALUES = [
    *(0, 1, -1, 3, 0.5, 1.0, 1e9, 2**70, True, False, None, float("nan"), float("inf")),
    *("auto", "5", "1e9", " 7", "1e999", "nan", "", "cpu", "bf16", "fp32", "/x", "x" * 5000, "9" * 90),
    *([], [1], ["a"], [0.9, 0.999], [1, 2, 3], {}, {"_why": 1}, {"stage": 2}, {"type": "Adam"}, {"x": 1}),
]


def valid(config, release: str) -> bool:
    return not list(_validator(release).iter_errors(config))


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def everything(release: str) -> dict:
    """Each key of ``release`` with its default, where it has one."""
    schema = load_schema(release)

    def block(part):
        name = part.get("$ref", "").rpartition("/")[2]
        inner = schema["$defs"][name] if name else part
        if "properties" in inner:
            return {key: block(sub) for key, sub in inner["properties"].items()}
        return inner.get("default")

    return block(schema)


@given(some_settings(), st.sampled_from(TARGETS))
@hypothesis_settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
def test_what_is_rendered_needs_no_jsonschema(settings, target):
    config = json.loads(render(settings, target))
    assert surely_reads(config, RELEASES[-1])
    assert valid(config, RELEASES[-1])


@pytest.mark.parametrize("release", RELEASES)
def test_a_yes_is_what_jsonschema_says_of_any_value_at_any_place(release):
    whole, yes = everything(release), 0
    for path in places(whole):
        for value in VALUES:
            # The blocks around the place, and in each no other key, so that one value decides.
            config = value
            for key in reversed(path):
                config = {key: config}
            if surely_reads(config, release):
                yes += 1
                assert valid(config, release), config
    assert yes > 1000


def test_a_yes_is_certain_where_one_of_many_keys_is_wrong():
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "betas": [0.9, 0.999], "_why": "tuned"}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}},
    }
    release = RELEASES[-1]
    assert surely_reads(config, release)
    for path in list(places(config))[1:]:
        for value in VALUES:
            changed = copy.deepcopy(config)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
            assert not surely_reads(changed, release) or valid(changed, release), (path, value)
            holder[f"{path[-1]}x"] = holder.pop(path[-1])
            assert not surely_reads(changed, release) or valid(changed, release), (path, value)


def test_an_unknown_keyword_is_not_certain():
    assert surely_valid(3, {"type": "integer"}, {})
    assert not surely_valid(3, {"type": "integer", "multipleOf": 3}, {})
    assert not surely_valid(3, {"type": "integer", "not": {"const": 3}}, {})


def test_the_references_lead_to_definitions():
    whole = {"$defs": {"a": {"type": "string"}}}
    assert surely_valid("x", {"$ref": "#/$defs/a"}, whole)
    assert not surely_valid(1, {"$ref": "#/$defs/a"}, whole)
    assert not surely_valid("x", {"$ref": "https://example.invalid/a"}, whole)
