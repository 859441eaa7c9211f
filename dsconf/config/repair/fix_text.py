"""Makes an edit in the text of a config; everything else in it, comments and layout, stays as it was."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from dsconf.config.finding import Edit, Move, Path, Remove, Rename, SetValue
from dsconf.config.positions import HjsonError, Places, Span, decode, next_token
from dsconf.config.repair.fix_value import CannotFixError, applied, deepest, value_at

_BARE = re.compile(r"[A-Za-z_][\w.-]*")
_ONE_LINE = 60
"""Characters of the longest new value that stays on one line."""


class _Text(NamedTuple):
    """A text, what it means, and where everything stands in it."""

    text: str
    config: dict[str, Any]
    places: Places

    def span(self, path: Path) -> Span:
        if path not in self.places.spans:
            raise CannotFixError("not there")
        return self.places.spans[path]

    def line_start(self, offset: int) -> int:
        return self.text.rfind("\n", 0, offset) + 1

    def indent(self, offset: int) -> str:
        """Return the blanks that the line of ``offset`` begins with."""
        start = self.line_start(offset)
        return self.text[start : start + len(self.text[start:offset]) - len(self.text[start:offset].lstrip())]

    def first_of_line(self, offset: int) -> bool:
        return not self.text[self.line_start(offset) : offset].strip()

    def members(self, path: Path) -> list[Span]:
        """List the members of the block at ``path`` in the order of the text."""
        spans = (self.span((*path, key)) for key in value_at(self.config, path))
        return sorted(spans, key=lambda span: span.key)


def _read(text: str) -> _Text:
    try:
        config, places = decode(text)
    except (HjsonError, RecursionError):
        raise CannotFixError("what is made of it cannot be read") from None
    if not isinstance(config, dict) or places.twice:
        raise CannotFixError("a key stands twice")
    return _Text(text, config, places)


def rewritten(text: str, edits: tuple[Edit, ...]) -> str:
    """Make ``edits`` in ``text``, one after the other, and check each: read again, it must mean what it should.

    Strict JSON stays strict JSON.

    Raises:
        CannotFixError: an edit does not apply, or the text does not come out right; nothing is made then.
    """
    for edit in edits:
        before = _read(text)
        wanted = applied(before.config, edit)
        text = _made(before, edit)
        if _same_value(_read(text).config) != _same_value(wanted):
            raise CannotFixError("the text does not come out right")
        if _is_json(before.text) and not _is_json(text):
            raise CannotFixError("what is made of it is no JSON")
    return text


def _same_value(config: Any) -> str:
    return json.dumps(config, sort_keys=True)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _made(before: _Text, edit: Edit) -> str:
    if isinstance(edit, Rename):
        return _renamed(before, edit)
    if isinstance(edit, Remove):
        return _removed(before, edit.path)
    if isinstance(edit, Move):
        span = before.span(edit.path)
        if before.text[span.key_end : span.value].strip() != ":":
            raise CannotFixError("a comment between key and value would be lost")
        source = before.text[span.value : span.value_end]
        moved = _inserted(before, edit.to, source, before.indent(span.key))
        return _removed(_read(moved), edit.path)
    if edit.path in before.places.spans:
        span = before.span(edit.path)
        return before.text[: span.value] + _dumped(edit.value, before.indent(span.key)) + before.text[span.value_end :]
    return _inserted(before, edit.path, None, "", edit)


def _renamed(before: _Text, edit: Rename) -> str:
    span = before.span(edit.path)
    quote = before.text[span.key]
    new = json.dumps(edit.key, ensure_ascii=False)
    if quote == "'" and not {"'", "\\"} & set(edit.key):
        new = f"'{edit.key}'"
    elif quote != '"' and _BARE.fullmatch(edit.key):
        new = edit.key
    return before.text[: span.key] + new + before.text[span.key_end :]


def _dumped(value: Any, indent: str) -> str:
    """Write ``value`` as JSON in a member whose line begins with ``indent``."""
    short = json.dumps(value, ensure_ascii=False)
    if len(short) <= _ONE_LINE:
        return short
    return json.dumps(value, ensure_ascii=False, indent=2).replace("\n", f"\n{indent}")


def _removed(before: _Text, path: Path) -> str:
    """Remove the member at ``path`` and the comma that it no longer needs; a line left empty goes too."""
    text, span = before.text, before.span(path)
    if not isinstance(value_at(before.config, path[:-1]), dict):
        raise CannotFixError("an item of a list")
    char, position = next_token(text, span.value_end)
    cuts = [(span.key, span.value_end)]
    if char == ",":
        cuts.append((position, position + 1))
    else:
        earlier = [member for member in before.members(path[:-1]) if member.key < span.key]
        if earlier:
            char, position = next_token(text, earlier[-1].value_end)
            cuts += [(position, position + 1)] if char == "," else []
    cuts.sort()
    return _cut(before, span, cuts)


def _cut(before: _Text, span: Span, cuts: list[tuple[int, int]]) -> str:
    text, start, end = before.text, span.key, max(span.value_end, cuts[-1][1])
    line_start, line_end = before.line_start(start), text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    kept = _without(text, [cut for cut in cuts if cut[0] >= start], start, end)
    rest = text[end:line_end]
    if before.first_of_line(start) and not (kept + rest).strip():
        start, end, kept = (line_start, line_end + 1, "") if line_start else (0, line_end + 1, "")
    elif not kept.strip() and rest.strip()[:1] not in ("", "}") and cuts[-1][0] >= span.value_end:
        end += len(rest) - len(rest.lstrip())
    elif not kept.strip() and not before.first_of_line(start):
        start = len(text[:start].rstrip(" \t"))
    outside = [cut for cut in cuts if cut[0] < span.key]
    return _without(text[:start], outside, 0, start) + kept + text[end:]


def _without(text: str, cuts: list[tuple[int, int]], start: int, end: int) -> str:
    kept = []
    for cut_start, cut_end in cuts:
        kept.append(text[start:cut_start])
        start = cut_end
    return "".join([*kept, text[start:end]])


def _inserted(before: _Text, path: Path, source: str | None, old_indent: str, edit: SetValue | None = None) -> str:
    """Insert a new member at ``path``: the text ``source`` of a value that had ``old_indent``, or what ``edit``
    says."""
    depth = deepest(before.config, path)
    block, names = path[:depth], path[depth:]
    members = before.members(block)
    if not members:
        return _first(before, block, names, source, edit)
    last = members[-1]
    own_line = before.first_of_line(last.key)
    indent = before.indent(last.key)
    unit = _unit(before)
    value = (
        _dumped(edit.value, indent) if edit else _indented(str(source), old_indent, indent + unit * (len(names) - 1))
    )
    member = _nested(names, value, indent, unit if own_line else "")
    value_end = last.value_end
    char, position = next_token(before.text, value_end)
    bare = before.text[last.value] not in "\"'{[" and isinstance(_value_of(before, last), str)
    start = position + 1 if char == "," else value_end
    comma = "" if char == "," or bare else ","
    if not own_line:
        return before.text[:start] + comma + " " + member + before.text[start:]
    line_end = before.text.find("\n", start)
    line_end = len(before.text) if line_end < 0 else line_end
    follows, offset = next_token(before.text, start)
    if follows and offset < line_end:
        line_end = start
    trailing = "," if char == "," else ""
    return (
        before.text[:start]
        + comma
        + before.text[start:line_end]
        + f"\n{indent}{member}{trailing}"
        + before.text[line_end:]
    )


def _value_of(before: _Text, span: Span) -> Any:
    path = next(path for path, other in before.places.spans.items() if other == span and path)
    return value_at(before.config, path)


def _first(before: _Text, block: Path, names: Path, source: str | None, edit: SetValue | None) -> str:
    """Insert into an empty block, on its own line."""
    start = before.span(block).value
    if before.text[start] != "{":
        raise CannotFixError("a block without braces")
    value = _dumped(edit.value, "") if edit else str(source)
    member = _nested(names, value, "", "")
    return before.text[: start + 1] + member + before.text[start + 1 :]


def _nested(names: Path, value: str, indent: str, unit: str) -> str:
    """Write ``"a": {"b": value}`` for the names a and b; on lines of their own where there is a ``unit`` of
    indentation."""
    key, *inner = (json.dumps(name, ensure_ascii=False) for name in names)
    if not inner:
        return f"{key}: {value}"
    body = _nested(names[1:], value, indent + unit, unit)
    return f"{key}: {{\n{indent}{unit}{body}\n{indent}}}" if unit else f"{key}: {{{body}}}"


def _indented(source: str, old: str, new: str) -> str:
    first, *others = source.split("\n")
    return "\n".join([first, *(new + line[len(old) :] if line.startswith(old) else line for line in others)])


def _unit(before: _Text) -> str:
    """Return one step of the text's own indentation: that of the first member that begins a line."""
    for span in sorted(before.places.spans.values()):
        indent = before.indent(span.key)
        if indent and before.first_of_line(span.key):
            return indent
    return "  "
