"""Reads a ds_config file the way its loader does.

DeepSpeed reads HJSON and refuses a key that appears twice in one object (runtime/config.py:444,
runtime/config_utils.py: dict_raise_error_on_duplicate_keys). HF Trainer and Accelerate read it with ``json.load`` in
UTF-8 (transformers training_args.py:1678 through accelerate utils/deepspeed.py: HfDeepSpeedConfig), which takes strict
JSON, NaN and Infinity, and keeps the last of two equal keys.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from dsconf.config.finding import Path
from dsconf.config.positions import MAX_DEPTH, HjsonError, Lines, Places, constants, decode, without_constants
from dsconf.errors import InputError

MAX_BYTES = 64 * 2**20
"""Largest file that is read."""
MAX_PLACED = 256 * 2**10
"""Characters of the longest text in which findings get a line, fifty times a long ds_config. hjson is pure Python and
reads half a MiB a second, so a longer text has to be strict JSON."""
_MAX_VALUES = 400_000
"""Most values in a text longer than MAX_PLACED: each takes a hundred bytes and more."""
_HJSON_BEGINS = "#/'"


class LoadError(InputError):
    """A file that nobody can read; ``line`` and ``column`` count from 1 and are None where there is no text."""

    def __init__(
        self, name: str, problem: str, line: int | None = None, column: int | None = None, code: str = "DS001"
    ) -> None:
        place = f", line {line}, column {column}" if line else ""
        super().__init__(f"{name}{place}: {problem}")
        self.problem, self.line, self.column, self.code = problem, line, column, code


class DuplicateKeyError(LoadError):
    """One object has the same key twice; DeepSpeed refuses it, ``json.load`` keeps the last."""


class NotJson(NamedTuple):
    """Why and where a text is not strict JSON."""

    problem: str
    line: int
    column: int


class Loaded(NamedTuple):
    """A config as ``target`` reads it, and the text it came from."""

    config: dict[str, Any]
    text: str
    """With the newlines as ``open`` gives them, without a byte order mark; empty where it is longer than MAX_PLACED."""
    target: str
    not_json: NotJson | None = None
    twice: bool = False
    """Some object has a key twice; ``config`` has the last value, as ``json.load`` keeps it."""
    not_finite: tuple[Path, ...] = ()
    """The paths of NaN and infinite numbers, which ``json.load`` reads."""
    repeated: str | None = None
    """A key that appears twice, in a text too long to say where."""

    def places(self) -> Places:
        """Find where each key and value stands in ``text``; only the whole file where hjson cannot read what json
        reads."""
        text = without_constants(self.text) if self.not_finite else self.text
        try:
            return decode(text)[1]
        except (HjsonError, RecursionError):
            return Places({}, ())


def read_text(source: str | FilePath) -> str:
    """Read the text of a file, or of standard input for ``-``, with its byte order mark and newlines as they are.

    Raises:
        LoadError: missing, a folder, not permitted, larger than MAX_BYTES, not UTF-8.
    """
    name = name_of(source)
    data = _read_bytes(source)
    if len(data) > MAX_BYTES:
        raise LoadError(name, f"is larger than {MAX_BYTES // 2**20} MiB, which no ds_config is", 1, 1)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode("utf-8")) + 1
        kind = "is UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"is not UTF-8 text (byte {error.start})"
        raise LoadError(name, f"{kind}; save it as UTF-8", line, column) from None


def name_of(source: str | FilePath) -> str:
    """Return what messages call ``source``."""
    return "<stdin>" if str(source) == "-" else str(source)


def _read_bytes(source: str | FilePath) -> bytes:
    """Read at most one byte more than MAX_BYTES: a device or a pipe may have no end."""
    try:
        if str(source) == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with open(source, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise LoadError(str(source), "no such file") from None
    except IsADirectoryError:
        raise LoadError(str(source), "is a folder; name the ds_config file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LoadError(name_of(source), f"cannot be read: {reason}") from None


class _Json(NamedTuple):
    """What ``json.load`` made of a text."""

    value: Any
    twice: tuple[str, ...]
    """A key that appears twice in its object, if there is one."""
    constants: bool


def _as_json(text: str) -> _Json:
    """Read ``text`` as ``json.load`` does, and note the two things that it takes and hjson does not."""
    twice: list[str] = []
    words: list[str] = []

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs) and not twice:
            times = Counter(key for key, _ in pairs)
            twice.append(next(key for key in members if times[key] > 1))
        return members

    def constant(word: str) -> float:
        words.append(word)
        return float(word)

    value = json.loads(text, object_pairs_hook=to_dict, parse_constant=constant)
    return _Json(value, tuple(twice), bool(words))


def _number(text: str) -> float:
    """Read a number with a point or an exponent as hjson does (hjson/decoder.py: scantfnns).

    Raises:
        OverflowError: infinite.
    """
    number = float(text)
    return int(number) if int(number) == number and abs(number) < 1e10 else number


def _too_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner = [v for v in level if isinstance(v, (dict, list))]
        level = [child for v in inner for child in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth > MAX_DEPTH


def _not_finite(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(inner, (*path, key))


def parse(name: str, text: str, target: str | None = None) -> Loaded:
    """Read the config in ``text`` as ``target`` does; ``name`` is what messages call it.

    Without a target it is ``hf`` where an "auto" has to be filled in, else ``deepspeed``. What only HF Trainer and
    Accelerate refuse, or only they accept, is part of the answer and not an error.

    Raises:
        LoadError: empty, neither JSON nor HJSON, not an object, nested too deeply, a number that is too large.
    """
    begins_with_mark = text.startswith("\ufeff")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise LoadError(name, "is empty; DeepSpeed needs at least a batch size", 1, 1)
    not_json = NotJson("begins with a byte order mark", 1, 1) if begins_with_mark else None
    if len(text) > MAX_PLACED:
        return _parse_large(name, text, target, not_json)
    try:
        strict = _as_json(text)
    except json.JSONDecodeError as error:
        not_json = not_json or NotJson(_why_not_json(error), error.lineno, error.colno)
        value, twice = _from_hjson(name, text, error)
        _check(name, value)
        return Loaded(value, text, target or _loader(value), not_json, twice)
    except RecursionError:
        raise _deep(name) from None
    except ValueError as error:  # a whole number of more digits than Python converts
        raise LoadError(name, str(error).partition(";")[0], *_digits(text), code="DS002") from None
    _check(name, strict.value)
    target = target or _loader(strict.value)
    if target != "deepspeed":
        return Loaded(strict.value, text, target, not_json, bool(strict.twice), tuple(_not_finite(strict.value)))
    value = _as_deepspeed(name, text, strict.constants)
    return Loaded(value, text, target, not_json, bool(strict.twice))


def _parse_large(name: str, text: str, target: str | None, not_json: NotJson | None) -> Loaded:
    """Do what ``parse`` does for a text so long that finding places in it would take seconds.

    Raises:
        LoadError: also for what is not strict JSON, and for more than _MAX_VALUES values.
    """
    size = f"is larger than {MAX_PLACED // 2**10} KiB and"
    if _holds_too_much(text):
        raise LoadError(name, f"{size} holds more than {_MAX_VALUES} values, which no ds_config does", 1, 1)
    try:
        strict = _as_json(text)
        _check(name, strict.value)
        target = target or _loader(strict.value)
        if target == "deepspeed" and strict.constants:
            raise LoadError(name, "NaN or Infinity, which HJSON does not have", code="DS002")
        value = json.loads(text, parse_float=_number) if target == "deepspeed" else strict.value
    except json.JSONDecodeError as error:
        problem = f"{size} not strict JSON ({_why_not_json(error)}): dsconf does not read HJSON in a file of this size"
        raise LoadError(name, problem, error.lineno, error.colno, code="DS002") from None
    except RecursionError:
        raise _deep(name) from None
    except (ValueError, OverflowError) as error:  # a number of more digits, or larger, than Python converts
        if isinstance(error, LoadError):
            raise
        raise LoadError(name, str(error).partition(";")[0], code="DS002") from None
    return Loaded(
        value,
        "",
        target,
        not_json,
        twice=bool(strict.twice),
        not_finite=tuple(_not_finite(value)) if target != "deepspeed" else (),
        repeated=next(iter(strict.twice), None),
    )


def _values(text: str) -> int:
    """Count the values in JSON, possibly one too few for each block that is not empty."""
    return text.count(",") + text.count("[") + text.count("{")


def _holds_too_much(text: str) -> bool:
    """Say whether strict JSON holds more than _MAX_VALUES values, without building them."""
    if _values(text) <= _MAX_VALUES:
        return False
    plain = text.replace("\\\\", "").replace('\\"', "")  # JSON has backslashes in strings alone
    if plain.count('"') > 4 * _MAX_VALUES:  # a key and its value have four
        return True
    return sum(map(_values, plain.split('"')[::2])) > _MAX_VALUES


def _why_not_json(error: json.JSONDecodeError) -> str:
    rest = error.doc[error.pos : error.pos + 2]
    if rest[:1] == "#" or rest in ("//", "/*"):
        return "a comment"
    if rest[:1].isalpha() and (error.pos == 0 or "property name" in error.msg):
        return "a key without quotes" if error.pos else "no braces around it"
    return error.msg[:1].lower() + error.msg[1:]


def _loader(config: Mapping[str, Any]) -> str:
    from dsconf.config.rules.auto import autos

    return "hf" if any(autos(config)) else "deepspeed"


def _check(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise LoadError(name, "is not a JSON object: a ds_config begins with { and ends with }", 1, 1)
    if _too_deep(value):
        raise _deep(name)


def _deep(name: str) -> LoadError:
    return LoadError(name, f"is nested more than {MAX_DEPTH} levels deep", 1, 1)


def _digits(text: str) -> tuple[int, int]:
    limit = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else 0
    match = re.search(f"[0-9]{{{limit + 1}}}", text)
    return Lines(text).place(match.start()) if match else (1, 1)


def _as_deepspeed(name: str, text: str, has_constants: bool) -> Any:
    """Read as hjson does what ``json`` can read: numbers differ, and there is no word for NaN or Infinity."""
    try:
        if not has_constants:
            return json.loads(text, parse_float=_number)
        value = decode(text)[0]
    except (HjsonError, OverflowError) as error:
        if has_constants:
            word, offset = constants(text)[0]
            raise LoadError(
                name, f"{word} is not a number in JSON or HJSON", *Lines(text).place(offset), code="DS002"
            ) from None
        problem, offset = _hjson_problem(text) or (str(error), 0)
        raise LoadError(name, problem, *Lines(text).place(offset), code="DS002") from None
    _check(name, value)
    return value


def _hjson_problem(text: str) -> tuple[str, int] | None:
    try:
        decode(text)
    except HjsonError as error:
        return str(error), error.offset
    return None


def _from_hjson(name: str, text: str, error: json.JSONDecodeError) -> tuple[Any, bool]:
    """Read ``text``, which ``json`` refused with ``error``, as hjson does, and say whether a key stands twice."""
    try:
        value, places = decode(text)
    except RecursionError:
        raise _deep(name) from None
    except HjsonError as other:
        problem, offset = error.msg, error.pos
        char = text[offset : offset + 1]
        if char in _HJSON_BEGINS or char.isalpha() or char == "_":  # JSON stopped at what HJSON has: not the mistake
            problem, offset = str(other), other.offset
        problem = problem[:1].lower() + problem[1:]
        raise LoadError(name, f"not JSON: {problem}", *Lines(text).place(offset), code="DS002") from None
    return value, bool(places.twice)


def read(source: str | FilePath, target: str | None = None) -> Loaded:
    """Read the config in the file ``source``, or on standard input for ``-``.

    Raises:
        LoadError: what ``read_text`` and ``parse`` raise.
    """
    return parse(name_of(source), read_text(source), target)


def load_config(source: str | FilePath | Mapping[str, Any]) -> dict[str, Any]:
    """Read the config in a file or on standard input (``-``), or copy the mapping given.

    Raises:
        InputError: one line that says what cannot be read and why.
    """
    if isinstance(source, Mapping):
        return dict(source)
    loaded = read(source)
    lines = Lines(loaded.text)
    if loaded.repeated is not None:
        message = f"key {loaded.repeated!r} appears twice in one object"
        raise DuplicateKeyError(name_of(source), message, code="DS003")
    if loaded.twice:
        path, offset = loaded.places().twice[0]
        message = f"key {path[-1]!r} appears twice in one object"
        raise DuplicateKeyError(name_of(source), message, *lines.place(offset), code="DS003")
    if loaded.not_finite:
        path = loaded.not_finite[0]
        raise LoadError(name_of(source), f"{'.'.join(map(str, path))} is not a finite number", code="DS005")
    return loaded.config
