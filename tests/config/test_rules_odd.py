"""No rule fails on any value at any key of the schema."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dsconf.config.rules import RULES
from dsconf.config.rules.case import Case
from dsconf.config.schema import load_schema

ODD = st.one_of(
    st.sampled_from(
        [None, True, False, "auto", "", "x", "no", "1e9", {}, [], {"a": 1}, [[]], ["a"], 0, -1, 1.5, 1e308]
    ),
    st.sampled_from(["cpu", "nvme", "bf16", "fp32", "Muon", "SGD", "Adam", "OneCycle", "StepLR", "step", "sum"]),
    st.integers(-2, 5),
    st.just(10**400),
)


def _paths(part: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, inner in part.get("properties", {}).items():
        yield (*above, key)
        yield from _paths(load_schema()["$defs"].get(inner.get("$ref", "").rpartition("/")[2], inner), (*above, key))


PATHS = sorted(_paths(load_schema()))


def _put(config: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        inner = config.get(key)
        config[key] = config = inner if isinstance(inner, dict) else {}
    config[path[-1]] = value


LIVELY = {
    "zero_optimization": {"stage": 3, "zenflow": {}, "offload_optimizer": {"device": "cpu"}},
    "optimizer": {"type": "AdamW", "params": {}},
    "scheduler": {"type": "WarmupDecayLR", "params": {}},
    "bf16": {"enabled": True},
}


@given(
    st.lists(st.tuples(st.sampled_from(PATHS), ODD), max_size=8),
    st.sampled_from(["deepspeed", "hf", "accelerate"]),
    st.sampled_from([None, 1, 8]),
)
@settings(deadline=None, max_examples=400)
def test_no_rule_fails(values, target, known):
    config: dict[str, Any] = deepcopy(LIVELY)
    for path, value in values:
        _put(config, path, deepcopy(value))
    case = Case(config, target, known, None if known is None else known * 10**6, known)
    for rule in RULES:
        for problem in rule(case):
            assert problem.severity in ("error", "warning", "note")
            assert "\n" not in problem.message
            assert problem.suggestion is None or problem.suggestion.strip()
