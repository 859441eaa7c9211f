"""Tells of most valid configs that they are valid, at once: importing jsonschema takes longer than a whole estimate.

Yes is certain: jsonschema would find nothing. No only means that jsonschema has to look, which is so for every config
with a mistake, for what the few lines here do not judge (text that is a number), and for keywords they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dsconf.config.releases import load_schema

Schema = Mapping[str, Any]
Check = Callable[[Any, Any, Schema, Schema], bool]
"""Tells whether a value surely passes a keyword: value, what the keyword says, its schema, the whole schema."""

_LONGEST_TEXT = 80
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def surely_reads(config: Any, release: str) -> bool:
    """Tell whether the DeepSpeed ``release`` certainly reads ``config`` without an objection.

    Raises:
        InputError: an unknown release.
    """
    schema = load_schema(release)
    return surely_valid(config, schema, schema)


def surely_valid(value: Any, schema: Schema, whole: Schema) -> bool:
    """Tell whether ``value`` certainly is what ``schema`` asks for; its references lead into ``whole``."""
    return all(
        keyword in _SILENT or (keyword in _CHECKS and _CHECKS[keyword](value, limit, schema, whole))
        for keyword, limit in schema.items()
    )


def _type(value: Any, kinds: str | list[str], _schema: Schema, _whole: Schema) -> bool:
    found = [_TYPES.get(kind, ()) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    # To Python true is a whole number, but to JSON it is none.
    return any(bool in types if isinstance(value, bool) else isinstance(value, types) for types in found)


def _enum(value: Any, choices: list[Any], _schema: Schema, _whole: Schema) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _reference(value: Any, name: str, _schema: Schema, whole: Schema) -> bool:
    start, _, key = name.rpartition("/")
    return start == "#/$defs" and surely_valid(value, whole["$defs"][key], whole)


def _properties(value: Any, known: Mapping[str, Schema], _schema: Schema, whole: Schema) -> bool:
    return not isinstance(value, dict) or all(
        surely_valid(value[key], inner, whole) for key, inner in known.items() if key in value
    )


def _additional(value: Any, others: bool | Schema, schema: Schema, whole: Schema) -> bool:
    """Judge keys beside those that have a name; a pattern of names is looked at where it allows everything."""
    if not isinstance(value, dict) or others is True:
        return True
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [key for key in value if key not in known]
    if others is False:
        return all(isinstance(key, str) and any(re.search(pattern, key) for pattern in patterns) for key in extra)
    return not patterns and all(surely_valid(value[key], others, whole) for key in extra)


def _patterns(_value: Any, patterns: Mapping[str, Schema], _schema: Schema, _whole: Schema) -> bool:
    return not any(patterns.values())


def _items(value: Any, inner: Schema, _schema: Schema, whole: Schema) -> bool:
    return not isinstance(value, list) or all(surely_valid(item, inner, whole) for item in value)


def _required(value: Any, keys: list[str], _schema: Schema, _whole: Schema) -> bool:
    return not isinstance(value, dict) or all(key in value for key in keys)


def _pattern(value: Any, pattern: str, _schema: Schema, _whole: Schema) -> bool:
    return not isinstance(value, str) or (_plain(value) and re.search(pattern, value) is not None)


def _range(within: Callable[[float, float], bool], value: Any, limit: float, _schema: Schema, _whole: Schema) -> bool:
    return _plain(value) if isinstance(value, str) else type(value) not in (int, float) or within(value, limit)


def _length(within: Callable[[float, float], bool], value: Any, limit: int, _schema: Schema, _whole: Schema) -> bool:
    return not isinstance(value, list) or within(len(value), limit)


def _plain(text: str) -> bool:
    """Tell whether ``text`` is short and no number: DeepSpeed reads some that are."""
    if len(text) > _LONGEST_TEXT:
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


_CHECKS: dict[str, Check] = {
    "type": _type,
    "enum": _enum,
    "$ref": _reference,
    "properties": _properties,
    "additionalProperties": _additional,
    "patternProperties": _patterns,
    "items": _items,
    "required": _required,
    "pattern": _pattern,
    "minimum": partial(_range, lambda value, limit: value >= limit),
    "exclusiveMinimum": partial(_range, lambda value, limit: value > limit),
    "maximum": partial(_range, lambda value, limit: value <= limit),
    "exclusiveMaximum": partial(_range, lambda value, limit: value < limit),
    "minItems": partial(_length, lambda value, limit: value >= limit),
    "maxItems": partial(_length, lambda value, limit: value <= limit),
}
_SILENT = {"$schema", "$id", "$defs", "title", "description", "default", "deprecated", "examples"}
"""Keywords that forbid nothing."""
