"""Repairs change what they say and nothing else, come out readable, and are done after one time."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dsconf.config.finding import Move, Problem, Remove, Rename, SetValue
from dsconf.config.load import parse
from dsconf.config.positions import decode
from dsconf.config.repair.fix import repair, replacement
from dsconf.config.repair.fix_text import rewritten
from dsconf.config.repair.fix_value import CannotFixError, applied
from dsconf.config.validate import ValidationOptions

COMMENTED = """\
{
  // who knows why
  "train_batch_size": 8, // eight
  "zero_optimisation": {
    "stage": 2, /* two */
    "overlap_comm": true
  },
  "amp": {"enabled": false}
}
"""

# Each row: text, edit, what comes out.
EDITS = [
    (COMMENTED, Rename(("zero_optimisation",), "zero_optimization"), COMMENTED.replace("optimisation", "optimization")),
    ("{a: 1}", Rename(("a",), "b"), "{b: 1}"),
    ("{a: 1}", Rename(("a",), "b c"), '{"b c": 1}'),
    ("{'a': 1}", Rename(("a",), "b"), "{'b': 1}"),
    (COMMENTED, Remove(("amp",)), COMMENTED.replace('true\n  },\n  "amp": {"enabled": false}\n', "true\n  }\n")),
    (COMMENTED, Remove(("train_batch_size",)), COMMENTED.replace('"train_batch_size": 8, // eight', "// eight")),
    ('{"a": 1, "b": 2, "c": 3}', Remove(("a",)), '{"b": 2, "c": 3}'),
    ('{"a": 1, "b": 2, "c": 3}', Remove(("b",)), '{"a": 1, "c": 3}'),
    ('{"a": 1, "b": 2, "c": 3}', Remove(("c",)), '{"a": 1, "b": 2}'),
    ('{"a": {"b": [1,\n 2]}}', Remove(("a", "b")), '{"a": {}}'),
    ("a: 1\nb: no quotes\nc: 3\n", Remove(("b",)), "a: 1\nc: 3\n"),
    ('{\n  "a": 1,\n  "b": 2,\n}', Remove(("b",)), '{\n  "a": 1,\n}'),
    ('{"a": 1}', SetValue(("a",), [1, "x"]), '{"a": [1, "x"]}'),
    ('{"a": 1}', SetValue(("b",), {"c": None}), '{"a": 1, "b": {"c": null}}'),
    ('{\n    "a": 1\n}', SetValue(("b",), True), '{\n    "a": 1,\n    "b": true\n}'),
    ('{\n  "a": 1 // last\n}', SetValue(("b",), 2), '{\n  "a": 1, // last\n  "b": 2\n}'),
    ('{\n  "a": 1,\n}', SetValue(("b",), 2), '{\n  "a": 1,\n  "b": 2,\n}'),
    ("{\n  a: no quotes\n}", SetValue(("b",), 2), '{\n  a: no quotes\n  "b": 2\n}'),
    ('{\n  "a": 1 }', SetValue(("b",), 2), '{\n  "a": 1,\n  "b": 2 }'),
    ("{}", SetValue(("a", "b"), 1), '{"a": {"b": 1}}'),
    ('{"a": [{"b": 1}, {"b": 2}]}', Rename(("a", 1, "b"), "c"), '{"a": [{"b": 1}, {"c": 2}]}'),
    ('{"a": [{"b": 1, "d": 0}]}', Remove(("a", 0, "b")), '{"a": [{"d": 0}]}'),
    ('{"a": [{"b": 1}], "d": 0}', Move(("d",), ("a", 0, "d")), '{"a": [{"b": 1, "d": 0}]}'),
    (
        '{\n  "a": {\n    "b": 1\n  }\n}',
        Move(("a", "b"), ("c", "b")),
        '{\n  "a": {\n  },\n  "c": {\n    "b": 1\n  }\n}',
    ),
    (
        '{\n  "top": {\n    "x": 1, // one\n    "y": 2\n  },\n  "zero": {\n    "stage": 3\n  }\n}',
        Move(("top",), ("zero", "top")),
        '{\n  "zero": {\n    "stage": 3,\n    "top": {\n      "x": 1, // one\n      "y": 2\n    }\n  }\n}',
    ),
    ('{"a": {"b": 1}, "c": 2}', Move(("a", "b"), ("b",)), '{"a": {}, "c": 2, "b": 1}'),
]


@pytest.mark.parametrize(("text", "edit", "wanted"), EDITS)
def test_an_edit_changes_that_place_alone(text, edit, wanted):
    after = rewritten(text, (edit,))
    assert after == wanted
    assert decode(after)[0] == applied(decode(text)[0], edit)


@pytest.mark.parametrize(
    ("text", "edit", "why"),
    [
        ('{"a": 1}', Rename(("b",), "c"), "b is not there"),
        ('{"a": 1, "b": 2}', Rename(("a",), "b"), "b is there already"),
        ('{"a": 1, "b": {"a": 2}}', Move(("a",), ("b", "a")), "a is there already"),
        ('{"a": 1, "b": 2}', Move(("a",), ("b", "a")), "no object"),
        ('{"a": {}}', Move(("a",), ("a", "b")), "into itself"),
        ('{"a": [1]}', Remove(("a", 0)), "an item of a list"),
        ('{"a": [1]}', SetValue(("a", 1), 2), "no object"),
        ('{"a": [1]}', Rename(("a", 1), "b"), "not there"),
        ('{"a": 1, "a": 2}', Remove(("a",)), "twice"),
        ("a: 1", Remove(("b", "c")), "not there"),
        ("{a: [1 2", Remove(("a",)), "cannot be read"),
        ("{a: text}", SetValue(("b",), 1), "cannot be read"),
    ],
)
def test_an_edit_that_cannot_be_made_changes_nothing(text, edit, why):
    with pytest.raises(CannotFixError, match=why):
        rewritten(text, (edit,))


NAMES = st.sampled_from(["a", "b", "c", "é", "two words", "x:y", '"'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, "text", "# x", "}", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
PATHS = st.lists(NAMES | NAMES | st.integers(0, 1), min_size=1, max_size=3).map(tuple)


@st.composite
def commented(draw):
    """An object as JSON with comments and blanks wherever they may stand, so that no layout is taken for granted."""
    filler = st.sampled_from(["", "", " ", "\n", " // it's 1, {\n", "/* }, [ */", "\n# note\n", "\t"])

    def shown(value):
        gap = draw(filler)
        if isinstance(value, dict):
            members = [
                f"{draw(filler)}{json.dumps(k)}{draw(filler)}:{shown(v)}{draw(filler)}" for k, v in value.items()
            ]
            return f"{gap}{{{','.join(members)}{draw(filler)}}}"
        if isinstance(value, list):
            return f"{gap}[{','.join(shown(item) + draw(filler) for item in value)}{draw(filler)}]"
        return gap + json.dumps(value)

    config = draw(st.dictionaries(NAMES, VALUES, max_size=4))
    return shown(config)


EDIT = st.one_of(
    st.builds(Rename, PATHS, NAMES),
    st.builds(Remove, PATHS),
    st.builds(Move, PATHS, PATHS),
    st.builds(SetValue, PATHS, VALUES),
)


def _comments(text):
    return sorted(mark for mark in ("it's 1, {", "/* }, [ */", "# note") for _ in range(text.count(mark)))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(commented(), EDIT)
def test_whatever_the_layout_an_edit_means_what_it_says_or_is_refused(text, edit):
    """And every comment outside what is taken out or replaced stays."""
    try:
        config = decode(text)[0]
    except ValueError:
        assume(False)
    try:
        after = rewritten(text, (edit,))
    except CannotFixError:
        return
    assert json.dumps(decode(after)[0], sort_keys=True) == json.dumps(applied(config, edit), sort_keys=True)
    if isinstance(edit, Rename | Move):
        assert _comments(after) == _comments(text)


@given(st.dictionaries(NAMES, VALUES, max_size=4), EDIT, st.sampled_from([None, 1, 2, 4]))
def test_in_strict_json_an_edit_that_makes_sense_is_always_made(config, edit, indent):
    text = json.dumps(config, indent=indent)
    try:
        wanted = applied(config, edit)
    except CannotFixError:
        with pytest.raises(CannotFixError):
            rewritten(text, (edit,))
        return
    assert json.loads(rewritten(text, (edit,))) == wanted


@given(st.dictionaries(NAMES, VALUES, max_size=4), EDIT, st.sampled_from([None, 2]))
def test_a_replacement_is_the_same_change_in_one_piece(config, edit, indent):
    text = json.dumps(config, indent=indent)
    change = replacement(text, (edit,))
    if change is None:
        with pytest.raises(CannotFixError):
            rewritten(text, (edit,))
    else:
        assert text[: change.start] + change.new + text[change.end :] == rewritten(text, (edit,))


def _tidy(case):
    """Renames _a to _b, moves _b into _c, takes out _d; each repair brings the next one to light."""
    if "_a" in case.config:
        yield Problem("DS991", "error", ("_a",), "old", None, (Rename(("_a",), "_b"),))
    elif "_b" in case.config:
        yield Problem("DS992", "error", ("_b",), "misplaced", None, (Move(("_b",), ("_c", "_b")),))
    if "_d" in case.config:
        yield Problem("DS993", "warning", ("_d",), "removed", None, (Remove(("_d",)),))


def asked(*rules, **words):
    return ValidationOptions(rules=rules, **words)


def test_repairs_follow_from_repairs():
    made = repair("f", '{"_a": 1, "_d": 2, "train_batch_size": 8}', asked(_tidy))
    assert made.after == '{"train_batch_size": 8, "_c": {"_b": 1}}'
    assert made.repaired == ("DS991 _a", "DS993 _d", "DS992 _b")
    assert repair("f", made.after, asked(_tidy)).repaired == ()


def test_a_repair_that_repairs_nothing_ends():
    def swapped(case):
        old, new = ("_x", "_y") if "_x" in case.config else ("_y", "_x")
        yield Problem("DS994", "error", (old,), "wrong", None, (Rename((old,), new),))

    text = '{"_x": 1, "train_batch_size": 8}'
    made = repair("f", text, asked(swapped))
    assert made.after.replace("_y", "_x") == text


def test_what_cannot_be_made_is_left():
    text = '{"_a": 1, "_b": 2, "train_batch_size": 8}'
    assert repair("f", text, asked(_tidy)) == (text, text, (), parse("f", text))


def test_lines_end_as_they_did():
    made = repair("f", '{\r\n  "_d": 1,\r\n  "train_batch_size": 8\r\n}\r\n', asked(_tidy))
    assert made.after == '{\r\n  "train_batch_size": 8\r\n}\r\n'
    mixed = '{\r\n  "_d": 1,\n  "train_batch_size": 8\n}'
    assert repair("f", mixed, asked(_tidy)).after == mixed


def test_a_byte_order_mark_goes_only_where_it_cannot_be_read():
    text = '\ufeff{"_d": 1, "train_batch_size": 8}'
    assert repair("f", text, asked(_tidy, target="deepspeed")).after == '\ufeff{"train_batch_size": 8}'
    made = repair("f", text, asked(_tidy, target="hf"))
    assert (made.after, made.repaired) == ('{"train_batch_size": 8}', ("DS004", "DS993 _d"))


@pytest.mark.parametrize("text", ['{"_d": 1, "_d": 2}', '{"_d": NaN}'])
def test_a_text_with_two_meanings_is_left_alone(text):
    assert repair("f", text, asked(_tidy, target="hf")).after == text


def test_a_diff_shows_each_line_and_a_missing_newline():
    made = repair("ds.json", '{\n  "_d": 1,\n  "train_batch_size": 8\n}', asked(_tidy))
    assert made.diff("ds.json").splitlines() == [
        "--- ds.json",
        "+++ ds.json",
        "@@ -1,4 +1,3 @@",
        " {",
        '-  "_d": 1,',
        '   "train_batch_size": 8',
        " }",
        "\\ No newline at end of file",
    ]
    assert repair("ds.json", "{train_batch_size: 8}", asked()).diff("ds.json") == ""


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_repairing_twice_is_repairing_once(data):
    """Over misspelt and misplaced keys of a real config."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 5,
        "zero_optimization": {"stage": 3, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "eps": 1e-8}},
    }
    key = data.draw(st.sampled_from(sorted(config)))
    drop = data.draw(st.integers(0, len(key) - 1))
    misspelt = {(name[:drop] + name[drop + 1 :] if name == key else name): value for name, value in config.items()}
    if data.draw(st.booleans()):
        misspelt["contiguous_gradients"] = True
    text = json.dumps(misspelt, indent=data.draw(st.sampled_from([None, 2])))
    once = repair("f", text, asked(gpus=2))
    assert repair("f", once.after, asked(gpus=2)).after == once.after
