"""Checks a config against the JSON Schema of a DeepSpeed release's ds_config and says what is wrong in plain words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from math import isinf
from typing import TYPE_CHECKING, Any, cast

from dsconf.config.certain import surely_reads
from dsconf.config.finding import Edit, Move, Path, Problem, Remove, Rename, SetValue, dotted
from dsconf.config.releases import (
    INSTEAD,
    NEWEST,
    history,
    known_places,
    known_release,
    load_schema,
    property_at,
)
from dsconf.errors import closest, nearest

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

__all__ = ["load_schema", "property_at", "schema_problems"]

_SUGGESTIONS = 50
"""Unknown keys of one object that get a did-you-mean; a file with more is not a ds_config."""
_LISTED = 500
"""Unknown keys of one object that are named one by one."""
_LONGEST = 80
"""Characters of a key that may be a misspelling."""
_LONGEST_TEXT = 4096
_VIOLATIONS = 2000
"""Most violations that are read: a list of a million wrong numbers would take half a minute."""
_PLACES = 3
"""A key known in more places than this (``enabled``) says nothing about where it belongs."""
_CERTAIN_COUNT = 1000
"""A count with a fraction, if at least this large, was computed and not rounded."""
_DECIMAL = r"-?\d{1,15}(\.\d{1,15})?([eE][+-]?\d{1,2})?"
_CERTAIN = 0.85
"""Similarity from which on a misspelling has one answer: ``zero_optimisation``, but not ``stage2`` for ``stage``."""


def _at(config: Any, path: Path) -> Any:
    for key in path:
        if isinstance(config, list) and isinstance(key, int):
            config = config[key]
        else:
            config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _move(config: Mapping[str, Any], path: Path, to: Path) -> tuple[Edit, ...]:
    """Move the key at ``path`` if its place is free and can be made."""
    holders = [_at(config, to[:length]) for length in range(1, len(to))]
    free = _at(config, to) is None and all(holder is None or isinstance(holder, dict) for holder in holders)
    return (Move(path, to),) if free else ()


def _renamed(config: Mapping[str, Any], path: Path, meant: str) -> tuple[Edit, ...]:
    """Rename the key at ``path`` if it is surely ``meant`` and no such key is there."""
    from difflib import SequenceMatcher

    alike = SequenceMatcher(None, str(path[-1]).strip().lower(), meant.lower()).ratio()
    return (Rename(path, meant),) if alike >= _CERTAIN and meant not in _at(config, path[:-1]) else ()


def _says_nothing(block: Any) -> bool:
    """Say whether a removed block was off, so that nothing is lost without it."""
    return not block or (isinstance(block, dict) and block.get("enabled", False) in (False, None))


def _of_another_release(config: Mapping[str, Any], path: Path, release: str) -> Problem | None:
    """Describe a key that another release reads, or that was removed long ago."""
    instead = INSTEAD.get(dotted(path))
    seen = history(path, release)
    if seen is None and instead is None:
        return None
    if seen is not None and seen.came is not None:
        return Problem("DS101", "error", path, f"not known to DeepSpeed {release}; it was added in {seen.came}")
    removed = seen.removed if seen is not None else NEWEST if release == NEWEST else None
    message = f"removed in DeepSpeed {removed}" if removed else f"DeepSpeed {release} does not read it any more"
    advice = instead or "leave it out"
    safe = advice.startswith("leave it out") or _says_nothing(_at(config, path))
    return Problem("DS105", "error", path, message, advice, (Remove(path),) if safe else ())


def _unknown(config: Mapping[str, Any], path: Path, known_keys: list[str], suggest: bool, release: str) -> Problem:
    key = str(path[-1])
    other = _of_another_release(config, path, release)
    if other is not None:
        return other
    places = known_places(release).get(key, [])
    if 0 < len(places) <= _PLACES:
        names = " or ".join(dotted(place) or "the top level" for place in places)
        fix = _move(config, path, (*places[0], key)) if len(places) == 1 else ()
        return Problem("DS106", "error", path, "unknown key here", f"it belongs under {names}", fix)
    meant = closest(key.strip(), known_keys) if suggest and len(key) <= _LONGEST else None
    if meant is None:
        return Problem("DS101", "error", path, "unknown key")
    return Problem("DS101", "error", path, "unknown key", f"did you mean {meant!r}?", _renamed(config, path, meant))


def _unknown_keys(config: Mapping[str, Any], error: ValidationError, release: str) -> Iterator[Problem]:
    schema, instance = cast(Mapping[str, Any], error.schema), cast(Mapping[str, Any], error.instance)
    known_keys, place = schema["properties"], tuple(error.absolute_path)
    comments = "patternProperties" in schema
    extra = [key for key in instance if key not in known_keys and not (comments and key.startswith("_"))]
    for number, key in enumerate(extra[:_LISTED]):
        yield _unknown(config, (*place, key), list(known_keys), number < _SUGGESTIONS, release)
    if len(extra) > _LISTED:
        yield Problem("DS101", "error", place, f"{len(extra) - _LISTED} more unknown keys; this is not a ds_config")


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    shown = json.dumps(value[:60] if isinstance(value, str) else value, ensure_ascii=False)
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


def _meant(value: Any, schema: Mapping[str, Any]) -> int | float | None:
    """Return the one number that ``value`` can mean where ``schema`` wants a number: "8" for 8, 15099494.4 for
    15099494.

    A fraction says nothing of a count of a thousand or more; below that, and of true or false, nothing is certain.
    """
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value.strip()) and {"integer", "number"} & set(kinds):
        return int(value)
    if isinstance(value, str) and re.fullmatch(_DECIMAL, value.strip()) and "number" in kinds:
        return float(value)
    if isinstance(value, float) and _CERTAIN_COUNT <= value < 2**53 and "integer" in kinds and "number" not in kinds:
        return int(value)
    return None


def _described(error: ValidationError, release: str) -> Problem:
    """Describe one schema violation other than an unknown key."""
    path, value, schema = tuple(error.absolute_path), _shown(error.instance), cast(Mapping[str, Any], error.schema)
    if error.validator == "enum":
        choices = [choice for choice in cast(list[Any], error.validator_value) if choice not in (None, "auto")]
        hint = nearest(str(error.instance)[:_LONGEST], [str(c) for c in choices]).removeprefix("; ")
        listed = ", ".join(dict.fromkeys(str(choice) for choice in choices))
        return Problem("DS103", "error", path, f"{value} is not one of {listed}", hint or None)
    if error.validator == "required":
        missing = next(key for key in cast(list[str], error.validator_value) if key not in cast(Any, error.instance))
        return Problem("DS102", "error", path, f"lacks {missing!r}, which DeepSpeed requires")
    if error.validator in _RANGES and _wanted(schema) != "true or false":
        limit = f"{_RANGES[error.validator]} {error.validator_value}"
        return Problem("DS104", "error", path, f"{value} is out of range; it must be {limit}")
    message, meant = f"{value} is not {_wanted(schema)}", _meant(error.instance, schema)
    if meant is None or not _validator(release).evolve(schema=schema).is_valid(meant):
        return Problem("DS102", "error", path, message)
    return Problem("DS102", "error", path, message, f"write {meant}", (SetValue(path, meant),))


def _of_numbers_in_text(keyword: str) -> Any:
    """Make ``keyword`` look at text that DeepSpeed reads as a number, too: compare ``"12"`` with a limit like
    ``12``."""
    from jsonschema import Draft202012Validator

    plain = Draft202012Validator.VALIDATORS[keyword]

    def check(validator: Any, limit: Any, instance: Any, schema: Any) -> Any:
        if isinstance(instance, str):
            try:
                instance = float(instance[:_LONGEST])
            except ValueError:
                return ()
        return plain(validator, limit, instance, schema) or ()

    return check


def _short_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    """Apply ``pattern``, but refuse text longer than any path: matching it would take seconds."""
    from jsonschema import Draft202012Validator, ValidationError

    if isinstance(instance, str) and len(instance) > _LONGEST_TEXT:
        return (ValidationError("too long"),)
    if "number" in schema.get("type", ()) and isinstance(instance, str) and _is_infinite(instance):
        return (ValidationError("infinite"),)
    return Draft202012Validator.VALIDATORS["pattern"](validator, pattern, instance, schema) or ()


def _is_infinite(text: str) -> bool:
    try:
        return isinf(float(text))
    except ValueError:
        return False


def _is_whole(_checker: Any, value: Any) -> bool:
    """Test for JSON's whole numbers; one with a point or an exponent has to fit into 64 bits, or pydantic refuses
    it."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**63
    return isinstance(value, int) and not isinstance(value, bool)


@cache
def _validator(release: str) -> Validator:
    from jsonschema import Draft202012Validator, validators

    extend: Any = validators.extend
    changed: dict[str, Any] = {word: _of_numbers_in_text(word) for word in _RANGES}
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole)
    kind: type[Validator] = extend(Draft202012Validator, changed | {"pattern": _short_pattern}, type_checker=types)
    return kind(load_schema(release))


def schema_problems(config: Mapping[str, Any], version: str = NEWEST) -> list[Problem]:
    """List every violation of what DeepSpeed ``version`` reads, one for each path; a wrong "auto" is left to a rule.

    Raises:
        InputError: an unknown version.
    """
    release = known_release(version)
    if surely_reads(config, release):
        return []
    first_at: dict[Path, Problem] = {}
    for error in islice(_validator(release).iter_errors(config), _VIOLATIONS):
        if error.validator == "additionalProperties":
            problems: list[Problem] = list(_unknown_keys(config, error, release))
        else:
            problems = [] if error.instance == "auto" else [_described(error, release)]
        for problem in problems:
            first_at.setdefault(problem.path, problem)
    return list(first_at.values())
