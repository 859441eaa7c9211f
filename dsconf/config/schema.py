"""Checks a config against the JSON Schema of DeepSpeed 0.19.8's ds_config and says it in a person's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from dsconf.config.finding import Path, Problem, dotted
from dsconf.config.removed import REMOVED
from dsconf.errors import nearest
from dsconf.resources import text

if TYPE_CHECKING:
    from jsonschema import ValidationError

SCHEMA = "ds_config-0.19.8.schema.json"
_SUGGESTIONS = 50
"""Unknown keys of one object that get a did-you-mean; a file with more is no ds_config."""
_PLACES = 3
"""A key known in more places than this (``enabled``) says nothing about where it belongs."""


@cache
def load_schema() -> dict[str, Any]:
    """The schema as shipped."""
    schema: dict[str, Any] = json.loads(text("schemas", SCHEMA))
    return schema


def _follow(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """``part`` with its reference into $defs replaced by what it names."""
    name = part.get("$ref", "").rpartition("/")[2]
    return {**load_schema()["$defs"][name], **part} if name else part


def _properties(part: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for key, inner in part.get("properties", {}).items():
        followed = _follow(inner)
        yield (*path, key), followed
        yield from _properties(followed, (*path, key))


@cache
def _known_places() -> dict[str, list[Path]]:
    """Every key of the schema with the blocks it stands in."""
    places: dict[str, list[Path]] = {}
    for path, _ in _properties(load_schema()):
        places.setdefault(str(path[-1]), []).append(path[:-1])
    return places


def property_at(path: Path) -> Mapping[str, Any] | None:
    """The schema of the key at ``path``, or None where the schema knows none."""
    part: Mapping[str, Any] = load_schema()
    for key in path:
        if key not in part.get("properties", {}):
            return None
        part = _follow(part["properties"][key])
    return part


def _unknown(path: Path, known: list[str], suggest: bool) -> Problem:
    key = str(path[-1])
    if dotted(path) in REMOVED:
        return Problem("DS105", "error", path, "removed in DeepSpeed 0.19.8", REMOVED[dotted(path)])
    places = _known_places().get(key, [])
    if 0 < len(places) <= _PLACES:
        names = " or ".join(dotted(place) or "the top level" for place in places)
        return Problem("DS106", "error", path, "unknown key here", f"it belongs under {names}")
    hint = nearest(key.strip(), known).removeprefix("; ") if suggest else ""
    return Problem("DS101", "error", path, "unknown key", hint or None)


def _unknown_keys(error: ValidationError) -> Iterator[Problem]:
    schema, instance = cast(Mapping[str, Any], error.schema), cast(Mapping[str, Any], error.instance)
    known = list(schema["properties"])
    comments = "patternProperties" in schema
    extra = [key for key in instance if key not in known and not (comments and key.startswith("_"))]
    for number, key in enumerate(extra):
        yield _unknown((*error.absolute_path, key), known, number < _SUGGESTIONS)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


_TYPES = {"object": "an object", "array": "a list", "string": "a string", "integer": "a whole number"}
_TYPES |= {"number": "a number", "boolean": "true or false"}
_RANGES = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
_RANGES |= {"exclusiveMaximum": "less than"}


def _wanted(schema: Mapping[str, Any]) -> str:
    if "title" in schema:
        return str(schema["title"])
    kinds = schema.get("type", "value")
    kinds = [kinds] if isinstance(kinds, str) else [kind for kind in kinds if kind != "null"]
    return " or ".join(_TYPES.get(kind, kind) for kind in kinds)


def _described(error: ValidationError) -> Problem:
    """One schema violation other than an unknown key."""
    path, value, schema = tuple(error.absolute_path), _shown(error.instance), cast(Mapping[str, Any], error.schema)
    if error.validator == "enum":
        choices = [choice for choice in cast(list[Any], error.validator_value) if choice not in (None, "auto")]
        hint = nearest(str(error.instance), [str(c) for c in choices]).removeprefix("; ")
        listed = ", ".join(dict.fromkeys(str(choice) for choice in choices))
        return Problem("DS103", "error", path, f"{value} is not one of {listed}", hint or None)
    if error.validator in _RANGES and _wanted(schema) != "true or false":
        limit = f"{_RANGES[error.validator]} {error.validator_value}"
        return Problem("DS104", "error", path, f"{value} is out of range; it must be {limit}")
    return Problem("DS102", "error", path, f"{value} is not {_wanted(schema)}")


def schema_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Every violation, one for each path. A wrong "auto" is left to the rule about "auto"."""
    from jsonschema import Draft202012Validator

    found: dict[Path, Problem] = {}
    for error in Draft202012Validator(load_schema()).iter_errors(config):
        if error.validator == "additionalProperties":
            problems: list[Problem] = list(_unknown_keys(error))
        else:
            problems = [] if error.instance == "auto" else [_described(error)]
        for problem in problems:
            found.setdefault(problem.path, problem)
    return list(found.values())
