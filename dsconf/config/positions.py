"""Reads HJSON with hjson's own decoder, which is DeepSpeed's, and notes where each key and value stands.

hjson parses; its hooks for objects and lists are wrapped to keep the offsets that it passes around. JSON is HJSON too,
so strict JSON gets its positions in the same way.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, NamedTuple

from dsconf.config.finding import Path

MAX_DEPTH = 400
"""DeepSpeed's hjson takes two Python frames a level and so fails near level 490, whatever it was called from."""
_MAX_BARE = 2048
"""hjson looks at a value without quotes once for each comma or bracket in it, so long ones are refused, not read."""
_FRAMES = 6 * MAX_DEPTH
_ROOT = -1
"""Stands for the offset of an outermost object without braces."""
_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity|[0-9][-+.0-9eE]*)')


class HjsonError(ValueError):
    """Not HJSON; ``offset`` is where in the text."""

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(problem)
        self.offset = offset


class Span(NamedTuple):
    """Offsets of a key and of its value, both ends exclusive; an item of a list and the whole have an empty key."""

    key: int
    key_end: int
    value: int
    value_end: int


class Places(NamedTuple):
    """Where everything stands in one text."""

    spans: dict[Path, Span]
    """The last one where a key appears twice, as ``json`` and ``dict`` keep the last value."""
    twice: tuple[tuple[Path, int], ...]
    """Every key that its object already had, with its offset, in file order."""


Scan = Callable[[str, int], tuple[Any, int]]
Inner = dict[int, list[tuple[str | int, Span]]]


class _PositionRecorder:
    """Wraps the hooks of one decoder; ``inner`` has the members of the object or list that begins at an offset."""

    def __init__(self, decoder: Any) -> None:
        self.inner: Inner = {}
        self._hjson = decoder

    def object(self, state: tuple[str, int], encoding: str, strict: bool, scan: Scan, *rest: Any) -> tuple[Any, int]:
        text, start = state
        values: list[tuple[int, int]] = []
        parsed: tuple[Any, int] = self._hjson.JSONObject(state, encoding, strict, _noting(scan, values), *rest)
        members: list[tuple[str | int, Span]] = []
        for value, value_end in values:
            char, key = self._hjson.getNext(text, start)
            if char == "," and members:
                _, key = self._hjson.getNext(text, key + 1)
            name, key_end = self._hjson.scanKeyName(text, key, encoding, strict)
            members.append((name, Span(key, key_end, value, _stripped(text, value, value_end))))
            start = value_end
        without_braces = len(rest) > 3
        self.inner[_ROOT if without_braces else state[1] - 1] = members
        return parsed

    def array(self, state: tuple[str, int], scan: Scan) -> tuple[Any, int]:
        text, start = state
        values: list[tuple[int, int]] = []
        parsed: tuple[Any, int] = self._hjson.JSONArray(state, _noting(scan, values))
        self.inner[start - 1] = [
            (number, Span(value, value, value, _stripped(text, value, end)))
            for number, (value, end) in enumerate(values)
        ]
        return parsed

    def bare(self, context: Any, text: str, start: int) -> tuple[Any, int]:
        window = text[start : start + _MAX_BARE]
        try:
            value, length = self._hjson.scantfnns(context, window, 0)
        except self._hjson.HjsonDecodeError as error:
            raise HjsonError(_in_words(error.msg, window, error.pos), start + error.pos) from None
        except OverflowError:
            raise HjsonError(f"{_digits(window)} is too large a number", start) from None
        if length >= _MAX_BARE - 1:
            raise HjsonError(f"a value without quotes of more than {_MAX_BARE - 2} characters", start)
        return value, start + length


def _digits(text: str) -> str:
    word = re.match(r"[-+.0-9eE]*", text)
    return word[0][:40] if word else ""


def _noting(scan: Scan, values: list[tuple[int, int]]) -> Scan:
    def scan_and_note(text: str, start: int) -> tuple[Any, int]:
        value, end = scan(text, start)
        values.append((start, end))
        return value, end

    return scan_and_note


def _stripped(text: str, start: int, end: int) -> int:
    """Move ``end`` before the blanks that hjson reads as part of a value without quotes."""
    while end > start and text[end - 1] in " \t\r\n":
        end -= 1
    return end


@contextmanager
def _room_to_recurse() -> Iterator[None]:
    """Allow deeper recursion: noting offsets takes more frames a level than hjson alone, and the depth a config may
    have must not depend on that."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _FRAMES + 1000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def decode(text: str) -> tuple[Any, Places]:
    """Read ``text`` as hjson does, where the last of a repeated key wins, and find where everything stands.

    Raises:
        HjsonError: hjson cannot read it.
        RecursionError: nested far more than MAX_DEPTH levels deep.
    """
    from hjson import HjsonDecodeError, HjsonDecoder, decoder

    recorder, reader = _PositionRecorder(decoder), HjsonDecoder()
    reader.parse_object, reader.parse_array, reader.parse_tfnns = recorder.object, recorder.array, recorder.bare
    reader.scan_once, reader.scan_object_once = decoder.make_scanner(reader)
    try:
        with _room_to_recurse():
            value = reader.decode(text)
    except HjsonDecodeError as error:
        raise HjsonError(_in_words(error.msg, text, error.pos), error.pos) from None
    except IndexError:  # how hjson meets the end of the text inside a comment or a multi-line string
        raise HjsonError("the text ends inside a comment or a string", len(text)) from None
    return value, _places(text, recorder.inner)


def _in_words(problem: str, text: str, offset: int) -> str:
    problem = problem.replace("%r", repr(text[offset : offset + 1]))
    return problem.partition(" (")[0].removesuffix(" at").replace("(eof)", "at the end of the text")


def _places(text: str, inner: Inner) -> Places:
    root = _ROOT if _ROOT in inner else min(inner, default=0)
    begin = inner[_ROOT][0][1].key if root == _ROOT else root
    spans: dict[Path, Span] = {(): Span(begin, begin, begin, len(text))}
    twice: list[tuple[Path, int]] = []
    waiting: list[tuple[Path, int]] = [((), root)]
    while waiting:
        path, offset = waiting.pop()
        members: dict[str | int, Span] = {}
        for name, span in inner.get(offset, ()):
            if name in members:
                twice.append(((*path, name), span.key))
            members[name] = span
        spans.update({(*path, name): span for name, span in members.items()})
        waiting += [((*path, name), span.value) for name, span in members.items()]
    return Places(spans, tuple(sorted(twice, key=lambda key: key[1])))


def next_token(text: str, offset: int) -> tuple[str, int]:
    """Find the first character from ``offset`` on that is neither blank nor in a comment, and its offset; "" at the
    end."""
    from hjson.decoder import getNext

    try:
        char, position = getNext(text, offset)
    except IndexError:
        return "", len(text)
    return char, position


def without_constants(text: str) -> str:
    """Replace everything in JSON ``text`` that ``json`` reads as NaN or infinite by digits of the same length."""
    return _CONSTANT.sub(lambda word: "1" * len(word[0]) if _is_constant(word[0]) else word[0], text)


def constants(text: str) -> list[tuple[str, int]]:
    """List everything in JSON ``text`` that ``json`` reads as NaN or infinite, with its offset."""
    return [(word[0], word.start()) for word in _CONSTANT.finditer(text) if _is_constant(word[0])]


def _is_constant(word: str) -> bool:
    return word[0] != '"' and (word[-1] in "Ny" or not isfinite(float(word)))


class Lines:
    """Turns offsets of one text into lines and columns, both from 1."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, offset: int) -> tuple[int, int]:
        """Return line and column of the character at ``offset``."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1
