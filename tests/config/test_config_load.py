"""A file is read as DeepSpeed reads it, and every way it can be wrong is one line."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.config.load import MAX_DEPTH, DuplicateKeyError, LoadError, load_config, parse, read
from dsconf.config.positions import positions

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=6), st.sampled_from([None, 1, 3]))
def test_strict_json_is_read_as_json_reads_it(config, indent):
    text = json.dumps(config, indent=indent)
    assert parse("f", text) == (config, text, None)


def paths_of(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from paths_of(part, (*path, key))


@given(st.dictionaries(st.text(), JSON, max_size=6), st.sampled_from([None, 1, 3]))
def test_positions_name_every_path_and_point_at_its_key(config, indent):
    text = json.dumps(config, indent=indent)
    found = positions(text)
    assert set(found) == set(paths_of(config))
    lines = text.split("\n")
    for path, (line, column) in found.items():
        if path and isinstance(path[-1], str):
            assert lines[line - 1][column - 1 :].startswith(json.dumps(path[-1]))


def test_positions_count_from_one():
    found = positions('{\n  "a": [1, {"b": {}}],\n  "c": 2\n}')
    assert found == {
        (): (1, 1),
        ("a",): (2, 3),
        ("a", 0): (2, 9),
        ("a", 1): (2, 12),
        ("a", 1, "b"): (2, 13),
        ("c",): (3, 3),
    }


def test_a_duplicate_key_is_refused_with_its_place():
    with pytest.raises(DuplicateKeyError, match="'a' stands twice") as caught:
        parse("f.json", '{"b": {"a": 1,\n "a": 2}, "a": 3}')
    assert (caught.value.line, caught.value.column) == (2, 2)


def test_the_same_key_in_two_objects_is_no_duplicate():
    assert parse("f", '{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}').config["b"][1] == {"a": 2}


def test_hjson_is_read_where_the_package_is_there():
    pytest.importorskip("hjson")
    loaded = parse("f", '{\n  // two ranks\n  train_batch_size: 2,\n  "bf16": {"enabled": true,},\n}')
    assert loaded.config == {"train_batch_size": 2, "bf16": {"enabled": True}}
    assert loaded.not_json is not None
    assert loaded.not_json.startswith("line 2, column 3")


def test_without_hjson_a_comment_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hjson", None)
    with pytest.raises(LoadError, match=r"f, line 1, column 3: .*pip install hjson"):
        parse("f", "{ // a comment\n}")


def test_hjson_refuses_duplicates_too():
    pytest.importorskip("hjson")
    with pytest.raises(DuplicateKeyError):
        parse("f", "{a: 1\n a: 2}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("[1]", "not a JSON object"),
        ("3", "not a JSON object"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "too large a number"),
        ('{"a": ' + "9" * 5000 + "}", "limit"),
        ('{"a" 1}', "line 1, column 6"),
        ('{"a": {"b": [1, 2}', "line 1, column 18"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, problem):
    with pytest.raises(LoadError) as caught:
        parse("ds.json", text)
    message = str(caught.value)
    assert message.startswith("ds.json")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5000, 200_000])
def test_deep_nesting_is_refused(depth):
    with pytest.raises(LoadError, match="levels deep"):
        parse("f", '{"a":' * depth + "1" + "}" * depth)


def test_what_deepspeed_still_reads_is_not_too_deep():
    assert parse("f", '{"a":' * 100 + "1" + "}" * 100).config


def test_files_that_are_not_there_or_not_text(tmp_path):
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(LoadError, match=r"not UTF-8 text \(byte 7\)"):
        read(tmp_path / "latin")
    with pytest.raises(LoadError, match="no such file"):
        read(tmp_path / "none.json")
    with pytest.raises(LoadError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(LoadError, match="cannot be read"):
        read("a\0b")


def test_a_byte_order_mark_is_no_strict_json(tmp_path):
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read(tmp_path / "bom.json").config == {"a": 1}
    assert read(tmp_path / "bom.json").not_json == "begins with a byte order mark"


def test_load_config_takes_paths_stdin_and_mappings(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert load_config(str(tmp_path / "a.json")) == load_config(tmp_path / "a.json") == {"a": 1}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"b": 2}')))
    assert load_config("-") == {"b": 2}
    given_one = {"c": 3}
    loaded = load_config(given_one)
    assert loaded == given_one
    assert loaded is not given_one
