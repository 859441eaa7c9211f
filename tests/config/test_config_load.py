"""A file is read as DeepSpeed reads it, and every way it can be wrong is one line."""

from __future__ import annotations

import io
import json
import re
import sys
from time import perf_counter

import hjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsconf.config.load import MAX_BYTES, MAX_PLACED, DuplicateKeyError, LoadError, load_config, parse, read
from dsconf.config.positions import MAX_DEPTH, Lines, decode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


CONFIGS = st.dictionaries(st.text(), JSON, max_size=6)


@given(CONFIGS, st.sampled_from([None, 1, 3]))
def test_strict_json_is_read_as_json_reads_it(config, indent):
    text = json.dumps(config, indent=indent)
    loaded = parse("f", text, "hf")
    assert (loaded.config, loaded.not_json, loaded.twice, loaded.not_finite) == (config, None, False, ())


def _once(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _by_deepspeed(text):
    """What DeepSpeed's one line of reading makes of ``text`` (runtime/config.py:444), or None where it raises."""
    try:
        read = hjson.loads(io.StringIO(text, newline=None).read(), object_pairs_hook=_once)
    except (ValueError, IndexError, OverflowError, RecursionError):
        return None
    return read if isinstance(read, dict) and text.strip("\ufeff \t\r\n") else None


def _by_trainer(text):
    try:
        read = json.load(io.StringIO(text, newline=None))
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _by_dsconf(text, target):
    """The config as dsconf says that ``target`` reads it, or None where it says that it cannot."""
    try:
        loaded = parse("f", text, target)
    except LoadError:
        return None
    refused = loaded.twice if target == "deepspeed" else loaded.not_json
    return None if refused else loaded.config


SEEDS = (
    '{"a": 1, "b": {"c": [1, 2.5e8, 8.0, "x"]}}',
    '{\n  // why\n  "a": 1, /* x */ "b": \'y\',\n}',
    "{a: 1\n b: {c: [1\n 2]}}",
    "a: 1\nb: {c: 2}",
    "{\n  a: '''\n  xx\n  yy'''\n  b: -0.0\n}",
)
PIECES = ("NaN", "Infinity", "1e999", "//x\n", "/*", "*/", "#c\n", "'''", '"', "{", "}", "[", "]", ",", ":", "\n")
PIECES += ("\\", "true", "1", ".5", '"a":1,', "\r", "\ufeff", "-", "\0", "a: b\n", "\u00a0", "\u2028")


@st.composite
def broken_texts(draw):
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 4))):
        at, gone = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
        text = text[:at] + draw(st.sampled_from(("", *PIECES))) + text[at + gone :]
    return text


@settings(max_examples=500, deadline=None)
@given(broken_texts())
def test_it_reads_what_each_loader_reads_and_nothing_else(text):
    """Types too: hjson makes 8 of 8.0, ``json`` does not."""
    assert repr(_by_dsconf(text, "deepspeed")) == repr(_by_deepspeed(text))
    assert repr(_by_dsconf(text, "hf")) == repr(_by_trainer(text))


def paths_of(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from paths_of(part, (*path, key))


def at(config, path):
    for key in path:
        config = config[key]
    return config


@given(CONFIGS, st.sampled_from([None, 1, 3]))
def test_places_name_every_path_and_point_at_its_key_and_value(config, indent):
    text = json.dumps(config, indent=indent)
    spans = decode(text)[1].spans
    assert set(spans) == set(paths_of(config))
    for path, span in spans.items():
        assert json.loads(text[span.value : span.value_end]) == at(config, path)
        if path and isinstance(path[-1], str):
            assert text[span.key : span.key_end] == json.dumps(path[-1])


def test_places_in_hjson():
    text = "# of the team\n{\n  a: 1  // one\n  'b': [x\n 2], c: no quotes, here \n}"
    value, places = decode(text)
    assert value == {"a": 1, "b": ["x", 2], "c": "no quotes, here"}
    shown = {path: (text[s.key : s.key_end], text[s.value : s.value_end]) for path, s in places.spans.items() if path}
    assert shown == {
        ("a",): ("a", "1"),
        ("b",): ("'b'", "[x\n 2]"),
        ("b", 0): ("", "x"),
        ("b", 1): ("", "2"),
        ("c",): ("c", "no quotes, here"),
    }
    assert Lines(text).place(places.spans["c",].key) == (5, 6)


def test_places_in_an_outermost_object_without_braces():
    text = "# first\ntrain_batch_size: 8\nbf16: {enabled: true}"
    value, places = decode(text)
    assert value == {"train_batch_size": 8, "bf16": {"enabled": True}}
    lines = Lines(text)
    assert {path: lines.place(span.key) for path, span in places.spans.items()} == {
        (): (2, 1),
        ("train_batch_size",): (2, 1),
        ("bf16",): (3, 1),
        ("bf16", "enabled"): (3, 8),
    }


def test_a_repeated_key_has_a_place_and_the_last_value_wins():
    text = '{"b": {"a": 1,\n "a": 2}, "c": {"x": 1}, "c": {"x": 2}}'
    value, places = decode(text)
    assert value == {"b": {"a": 2}, "c": {"x": 2}}
    twice = [(path, Lines(text).place(offset)) for path, offset in places.twice]
    assert twice == [(("b", "a"), (2, 2)), (("c",), (2, 26))]


def test_load_config_refuses_a_duplicate_key_with_its_place(tmp_path):
    (tmp_path / "f.json").write_text('{"b": {"a": 1,\n "a": 2}, "a": 3}')
    with pytest.raises(DuplicateKeyError, match="'a' appears twice") as caught:
        load_config(tmp_path / "f.json")
    assert (caught.value.line, caught.value.column) == (2, 2)


def test_the_same_key_in_two_objects_is_no_duplicate():
    assert not parse("f", '{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}').twice


def test_the_loader_is_told_by_the_file():
    assert parse("f", '{"train_batch_size": "auto"}').target == "hf"
    assert parse("f", "train_batch_size: auto").target == "hf"
    assert parse("f", '{"_comment": "auto", "train_batch_size": 8}').target == "deepspeed"
    assert parse("f", '{"train_batch_size": 8}', "accelerate").target == "accelerate"


def test_hjson_is_read_and_said_to_be_no_json():
    loaded = parse("f", '{\n  // two ranks\n  train_batch_size: 2,\n  "bf16": {"enabled": true,},\n}')
    assert loaded.config == {"train_batch_size": 2, "bf16": {"enabled": True}}
    assert loaded.not_json is not None
    assert loaded.not_json[1:] == (2, 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("[1]", "not a JSON object"),
        ("3", "not a JSON object"),
        ('{"a": NaN}', "line 1, column 7: NaN is not a number in JSON"),
        ('{"a": "NaN", "b": [-Infinity]}', "line 1, column 20: -Infinity is not a number"),
        ('{"a": 1,\n "b": 1e999}', "line 2, column 7: 1e999 is too large a number"),
        ('{"a": ' + "9" * 5000 + "}", "line 1, column 7: Exceeds the limit"),
        ('{"a" 1}', "line 1, column 6: not JSON: expecting ':' delimiter"),
        ('{"a": {"b": [1, 2}', "line 1, column 18"),
        ('{ // why\n"a" 1}', "line 2, column 5: not JSON: expecting ':' delimiter"),
        ('{"a": 1 /* no end', "line 1, column 18: not JSON: the text ends inside a comment"),
        ("{a: " + "x" * 3000 + "}", "line 1, column 5: not JSON: a value without quotes of more than 2046 characters"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(text, problem):
    with pytest.raises(LoadError) as caught:
        parse("ds.json", text)
    message = str(caught.value)
    assert message.startswith("ds.json, line ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1000, 5000, 60_000])
@pytest.mark.parametrize("key", ['"a":', "a:"])
def test_deep_nesting_is_refused(depth, key):
    with pytest.raises(LoadError, match="levels deep"):
        parse("f", f"{{{key}" * depth + "1" + "}" * depth)


@pytest.mark.parametrize("key", ['"a":', "a:"])
def test_what_deepspeed_still_reads_is_not_too_deep(key):
    depth = MAX_DEPTH - 1
    loaded = parse("f", f"{{{key}" * depth + "1" + "}" * depth)
    assert len(loaded.places().spans) == depth + 1


SLOW = ("[" + "1}" * 2**18, "{a: " + "n," * 2**18, "{a: " + "1" * 2**18 + "}" * 2**18, "/*" * 2**18, "'''" * 2**17)


@pytest.mark.parametrize("text", SLOW, ids=["brackets", "commas", "digits", "comments", "strings"])
def test_what_makes_hjson_slow_is_over_soon(text):
    """hjson reads a value without quotes again at each comma and bracket in it: minutes for half a MiB."""
    start = perf_counter()
    with pytest.raises(LoadError):
        parse("f", text)
    assert perf_counter() - start < 5


def test_files_that_are_not_there_or_not_text(tmp_path):
    (tmp_path / "latin").write_bytes(b'{"b": 1,\n "a": "\xe9"}')
    with pytest.raises(LoadError, match=r"line 2, column 8: is not UTF-8 text \(byte 16\)"):
        read(tmp_path / "latin")
    (tmp_path / "wide").write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(LoadError, match="is UTF-16; save it as UTF-8"):
        read(tmp_path / "wide")
    with pytest.raises(LoadError, match="no such file"):
        read(tmp_path / "none.json")
    with pytest.raises(LoadError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(LoadError, match="cannot be read"):
        read("a\0b")


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2 * MAX_BYTES)
    for source in (tmp_path / "huge.json", "/dev/zero"):
        with pytest.raises(LoadError, match="is larger than 64 MiB"):
            read(source)


def padded(text):
    """``text`` with so much white space that nothing is placed in it."""
    return text + " " * MAX_PLACED


def test_a_large_text_is_read_as_strict_json_without_places():
    at_the_limit = '{"a": 1' + " " * (MAX_PLACED - 8) + "}"
    assert parse("f", at_the_limit) == ({"a": 1}, at_the_limit, "deepspeed", None, False, (), None)
    assert parse("f", padded('{"a": 1.0, "b": "auto"}')) == ({"a": 1.0, "b": "auto"}, "", "hf", None, False, (), None)
    assert type(parse("f", padded('{"a": 1.0}')).config["a"]) is int
    assert parse("f", padded('{"a": NaN, "b": 1, "b": 2}'), "hf").not_finite == (("a",),)
    assert parse("f", padded('{"a": {"b": 1, "b": 2}}')).repeated == "b"
    commas = parse("f", json.dumps({"_comment": "[1, 2], " * 400_000, "a": "\\"}))
    assert sorted(commas.config) == ["_comment", "a"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{a: 1}", "line 1, column 2: is larger than 256 KiB and not strict JSON .*: dsconf does not read HJSON"),
        ('{"a": NaN}', "which HJSON does not have"),
        ('{"a": 1e999}', "infinity"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"a": ' + "[" * 2000 + "]" * 2000 + "}", "nested more than 400 levels"),
        ("[1]", "not a JSON object"),
        ('{"a": [' + "0," * 400_000 + "0]}", "more than 400000 values"),
    ],
)
def test_a_large_text_that_nobody_can_read_says_why(text, why):
    with pytest.raises(LoadError, match=why):
        parse("f", padded(text))


def test_load_config_names_a_repeated_key_of_a_large_file(tmp_path):
    (tmp_path / "f.json").write_text(padded('{"a": 1, "a": 2}'))
    with pytest.raises(DuplicateKeyError, match="key 'a' appears twice"):
        load_config(tmp_path / "f.json")


def test_newlines_are_read_as_open_reads_them():
    assert parse("f", '{\r\n"a": 1,\r"b": 2}').text == '{\n"a": 1,\n"b": 2}'
    with pytest.raises(LoadError, match="line 3, column 5"):
        parse("f", '{\r\n"a": 1,\r"b" 2}')


def test_nan_is_read_by_json_load_and_named():
    loaded = parse("f", '{"a": {"b": [1, NaN]}, "c": -Infinity, "d": [-2.5, 1e999]}', "hf")
    assert loaded.not_finite == (("a", "b", 1), ("c",), ("d", 1))
    spans = loaded.places().spans
    assert (spans["a", "b", 1].value, spans["c",].key, spans["d", 1].value) == (16, 23, 51)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1", "no braces around it"),
        ("{a: 1}", "a key without quotes"),
        ("# x\n{}", "a comment"),
        ('{"a": 1 /* x */}', "a comment"),
        ('{"a": 1,}', "property name|trailing comma"),
        ("{'a': 1}", "property name"),
    ],
)
def test_why_it_is_no_json_is_said(text, why):
    assert re.search(why, parse("f", text, "hf").not_json.problem)


def test_a_byte_order_mark_is_no_strict_json(tmp_path):
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read(tmp_path / "bom.json").config == {"a": 1}
    assert read(tmp_path / "bom.json").not_json == ("begins with a byte order mark", 1, 1)


def test_load_config_takes_paths_stdin_and_mappings(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert load_config(str(tmp_path / "a.json")) == load_config(tmp_path / "a.json") == {"a": 1}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"b": 2}')))
    assert load_config("-") == {"b": 2}
    given_one = {"c": 3}
    loaded = load_config(given_one)
    assert loaded == given_one
    assert loaded is not given_one
