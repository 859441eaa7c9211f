"""Finds, by asking DeepSpeed's parser, what it refuses beyond what its fields declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.schema.reads import Path, takes

_STRATEGIES = ["auto", "step", "epoch"]
_ASK_THE_ENGINE = ("scheduler_params",)
"""Blocks whose null the parser takes and the engine refuses."""


def _nested(path: Path, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _numbers(block: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield the keys of a pydantic block that hold a number without a lower limit: (name, schema, whether it is
    whole)."""
    for key, part in block["properties"].items():
        scalar = str(part.get("$ref", "")).rpartition("/")[2].partition("_")[0]
        if scalar in ("whole", "number") and not {"minimum", "exclusiveMinimum"} & set(part):
            yield key, part, scalar == "whole"


def _limit(path: Path, part: dict[str, Any], whole: bool) -> None:
    """Add the lower limit that a validator of DeepSpeed's sets."""
    if not takes(_nested(path, 1)):
        return
    if not takes(_nested(path, 0)):
        part |= {"minimum": 1} if whole else {"exclusiveMinimum": 0}
    elif not takes(_nested(path, -1)):
        part["minimum"] = 0


def _no_digits_in_text(path: Path, part: dict[str, Any]) -> None:
    """Take back that text may hold the number, where a validator accepts no text but "auto"."""
    if str(part.get("$ref", "")).endswith("_or_auto") and takes(_nested(path, 5)) and not takes(_nested(path, "5")):
        rest = {key: value for key, value in part.items() if key != "$ref"}
        part.clear()
        part |= {"title": "a whole number", "type": ["integer", "string"], "pattern": "^auto$"} | rest


def _texts(block: dict[str, Any], path: Path) -> None:
    """Find names that a validator accepts for a key declared as any text, and lists that may also be one text."""
    for key, part in block["properties"].items():
        if "type" not in part:
            continue
        kinds = part["type"] if isinstance(part["type"], list) else [part["type"]]
        where = (*path, key)
        if "string" in kinds and not takes(_nested(where, "no such name")):
            accepted = [word for word in _STRATEGIES if takes(_nested(where, word))]
            if accepted:
                block["properties"][key] = {"enum": accepted} | {k: v for k, v in part.items() if k != "type"}
        elif "array" in kinds and takes(_nested(where, "a name")):
            part["type"] = [*kinds, "string"]
        elif "null" not in kinds and takes(_nested(where, None)):
            part["type"] = [*kinds, "null"]


def narrow(blocks: dict[str, Any], paths: dict[str, Path]) -> None:
    """Narrow ``blocks`` to what DeepSpeed's parser accepts: null or true for a block, limits and names of
    validators."""
    for name, block in blocks.items():
        path = paths[name]
        if "*" in path:
            continue
        kinds = ["null"] if name not in _ASK_THE_ENGINE and takes(_nested(path, None)) else []
        kinds += ["boolean"] if name == "zero_optimization" and takes(_nested(path, True)) else []
        if kinds:
            block["type"] = ["object", *kinds]
        if "patternProperties" in block:
            if not takes(_nested(path, {})) and takes(_nested(path, {"enabled": False})):
                block["required"] = ["enabled"]
            continue
        numbers = list(_numbers(block))
        for key, part, whole in numbers:
            _limit((*path, key), part, whole)
        _texts(block, path)
        for key, part, _ in numbers:
            _no_digits_in_text((*path, key), part)
