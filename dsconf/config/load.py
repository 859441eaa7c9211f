"""Reads a ds_config file as DeepSpeed does: JSON, else HJSON where that package is there, and never a key twice."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsconf.config.positions import first_duplicate
from dsconf.errors import InputError

MAX_DEPTH = 400
"""DeepSpeed reads files with hjson, which takes two Python frames a level and so fails near level 490."""


class LoadError(InputError):
    """A file that DeepSpeed cannot read; ``line`` and ``column`` count from 1 and are None where unknown."""

    def __init__(self, name: str, problem: str, line: int | None = None, column: int | None = None) -> None:
        place = f", line {line}, column {column}" if line else ""
        super().__init__(f"{name}{place}: {problem}")
        self.problem, self.line, self.column = problem, line, column


class DuplicateKeyError(LoadError):
    """Well-formed JSON in which one object has the same key twice; DeepSpeed refuses it, ``json.load`` does not."""


class Loaded(NamedTuple):
    """A config, the text it came from, and why that text is not strict JSON (None when it is)."""

    config: dict[str, Any]
    text: str
    not_json: str | None = None


def _read_bytes(source: str | Path) -> bytes:
    if str(source) == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise LoadError(str(source), "no such file") from None
    except IsADirectoryError:
        raise LoadError(str(source), "is a folder; name the ds_config file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LoadError(str(source), f"cannot be read: {reason}") from None


def _depth_allowed(value: Any) -> bool:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner = [v for v in level if isinstance(v, (dict, list))]
        level = [child for v in inner for child in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth <= MAX_DEPTH


def _constant(word: str) -> Any:
    raise ValueError(f"{word} is not a number in JSON")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _from_hjson(name: str, text: str, error: json.JSONDecodeError) -> Any:
    """HJSON's reading of ``text``, which strict JSON refused with ``error``."""
    from importlib import import_module

    try:
        hjson = import_module("hjson")
    except ImportError:
        hint = "; comments, trailing commas and the like need `pip install hjson`"
        raise LoadError(name, f"not JSON: {error.msg}{hint}", error.lineno, error.colno) from None
    try:
        return hjson.loads(text, object_pairs_hook=_no_duplicates)
    except hjson.HjsonDecodeError:
        raise LoadError(name, f"not JSON: {error.msg}", error.lineno, error.colno) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _TwiceError(twice)
    return found


class _TwiceError(Exception):
    """Carries the key that an object has twice."""


def parse(name: str, text: str) -> Loaded:
    """The config in ``text``; ``name`` is what messages call it.

    Raises:
        LoadError: empty, neither JSON nor HJSON, not an object, NaN or infinite numbers, nested too deeply.
        DuplicateKeyError: a key twice in one object.
    """
    not_json = "begins with a byte order mark" if text.startswith("\ufeff") else None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise LoadError(name, "is empty; DeepSpeed needs at least a batch size")
    try:
        try:
            config = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_constant, parse_float=_number)
        except json.JSONDecodeError as error:
            not_json = f"line {error.lineno}, column {error.colno}: {error.msg}"
            config = _from_hjson(name, text, error)
    except _TwiceError as twice:
        line, column = (None, None) if ": " in (not_json or "") else first_duplicate(text)
        raise DuplicateKeyError(name, f"key {twice.args[0]!r} stands twice in one object", line, column) from None
    except RecursionError:
        raise LoadError(name, f"is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise LoadError(name, str(error)) from None
    if not isinstance(config, dict):
        raise LoadError(name, "is not a JSON object: a ds_config begins with { and ends with }")
    if not _depth_allowed(config):
        raise LoadError(name, f"is nested more than {MAX_DEPTH} levels deep")
    return Loaded(config, text, not_json)


def read(source: str | Path) -> Loaded:
    """The config in the file ``source``, or on standard input for ``-``.

    Raises:
        LoadError: missing, a folder, unreadable, not UTF-8, or what ``parse`` raises.
    """
    name = "<stdin>" if str(source) == "-" else str(source)
    try:
        text = _read_bytes(source).decode("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(name, f"is not UTF-8 text (byte {error.start})") from None
    return parse(name, text)


def load_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The config in a file, on standard input (``-``), or a copy of the mapping given.

    Raises:
        InputError: one line that says what cannot be read and why.
    """
    return dict(source) if isinstance(source, Mapping) else read(source).config
