"""What a rule looks at, and safe ways to look: a config may hold anything; its types are the schema's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsconf.config.coerce import as_bool, as_int
from dsconf.errors import InputError


class Case(NamedTuple):
    """A config, who loads it, and on how many GPUs (None: nobody said)."""

    config: Mapping[str, Any]
    target: str
    gpus: int | None


def block(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The object at ``path``, or an empty one where there is none."""
    for key in path:
        inner = config.get(key)
        if not isinstance(inner, dict):
            return {}
        config = inner
    return config


def whole(value: Any) -> int | None:
    """``value`` as DeepSpeed's pydantic blocks read a whole number, or None."""
    try:
        return as_int("", value)
    except InputError:
        return None


def flag(value: Any) -> bool | None:
    """``value`` as DeepSpeed's pydantic blocks read a boolean, or None."""
    try:
        return as_bool("", value)
    except InputError:
        return None


def stage(config: Mapping[str, Any]) -> int | None:
    """The ZeRO stage, 0 by default; None where it cannot be told ("auto", or no stage at all)."""
    zero = config.get("zero_optimization", {})
    return int(zero) if isinstance(zero, bool) else whole(block(config, "zero_optimization").get("stage", 0))
