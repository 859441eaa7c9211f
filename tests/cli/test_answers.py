"""``python -m benchmarks.answers``: what it asks is always the same, and it sees every kind of change."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.answers.ask import ask, ask_with_more
from benchmarks.answers.compare import compare, differences
from benchmarks.answers.estimates import estimates
from benchmarks.answers.question import Answer, Question
from benchmarks.answers.searches import recommendations
from benchmarks.answers.store import rows, writing
from benchmarks.answers.validations import validations

DOCUMENT = {"bytes": 10, "fits": "yes", "why": "10 bytes fit", "terms": [{"name": "gradients", "bytes": 4}]}


def _answer(document: object = DOCUMENT, exit_code: int = 0, stderr: str = "") -> Answer:
    return Answer(exit_code, json.dumps(document), stderr, {})


def _seen(new: Answer) -> list[tuple[str, str]]:
    return [(found.place, found.nature) for found in differences(_answer(), new)]


def test_the_same_seed_asks_the_same() -> None:
    for questions in (estimates, recommendations, validations):
        assert list(islice(questions(200, 3), 60)) == list(islice(questions(200, 3), 60))
        assert list(islice(questions(200, 3), 60)) != list(islice(questions(200, 4), 60))


def test_a_share_of_the_estimates_asks_every_rank() -> None:
    asked = list(estimates(200, 1))
    assert len(asked) == 200
    of_ranks = [question.args for question in asked[-12:]]
    assert all("--rank" in args for args in of_ranks)
    assert of_ranks[0][of_ranks[0].index("--rank") + 1] == "0"


def test_most_questions_are_answered_and_some_refused() -> None:
    codes = Counter(ask(question).exit_code for question in islice(estimates(1000, 2), 60))
    assert codes[0] > 15
    assert codes[1] > 5
    assert 0 < codes[2] < 25


def test_what_was_recorded_is_what_is_asked_again(tmp_path: Path) -> None:
    asked = [*islice(estimates(1000, 5), 8), *islice(validations(1000, 5), 25)]
    found = [ask_with_more(question) for question in asked]
    with writing(tmp_path, "estimates") as write:
        for question, answer in (one for several in found for one in several):
            write(question, answer)
    recorded = list(rows(tmp_path, "estimates"))
    assert len(recorded) >= len(asked)
    assert [one for several in found for one in several] == recorded
    seen = compare((question, answer, ask(question)) for question, answer in recorded)
    assert (seen.answers, seen.equal) == (len(recorded), len(recorded))


def test_written_files_are_part_of_the_answer() -> None:
    question = Question(("recommend", "--params", "1B", "--gpus", "1", "-o", "run", "--for", "deepspeed"), {})
    assert {"run/ds_config.json", "run/launch.sh"} <= set(ask(question).written)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"bytes": 11}, [("stdout.bytes", "number")]),
        ({"bytes": 10.0}, [("stdout.bytes", "number")]),
        ({"bytes": None}, [("stdout.bytes", "value")]),
        ({"fits": "no"}, [("stdout.fits", "word")]),
        ({"why": "11 bytes fit"}, [("stdout.why", "numbers in a text")]),
        ({"why": "it fits"}, [("stdout.why", "text")]),
        ({"terms": []}, [("stdout.terms[]", "length")]),
        ({"terms": [{"name": "gradients", "bytes": 5}]}, [("stdout.terms[].bytes", "number")]),
        ({"more": 1}, [("stdout.more", "key")]),
    ],
)
def test_each_kind_of_change_is_named(change: dict[str, object], expected: list[tuple[str, str]]) -> None:
    assert _seen(_answer(DOCUMENT | change)) == expected


def test_exit_codes_order_and_errors_are_seen() -> None:
    assert _seen(_answer(exit_code=1)) == [("exit code", "number")]
    assert _seen(_answer(stderr="dsconf: no")) == [("stderr", "text")]
    assert _seen(_answer(dict(reversed(DOCUMENT.items())))) == [("stdout", "layout")]
    assert _seen(_answer()._replace(written={"ds_config.json": "{}"})) == [("written ds_config.json", "key")]


def test_numbers_alone_leave_texts_out() -> None:
    question = Question(("estimate",), {})
    worded = _answer(DOCUMENT | {"why": "it fits"}, stderr="dsconf: so")
    assert compare([(question, _answer(), worded)]).equal == 0
    assert compare([(question, _answer(), worded)], numbers_only=True).equal == 1
    for change in ({"bytes": 11}, {"fits": "no"}, {"more": "x y"}):
        assert compare([(question, _answer(), _answer(DOCUMENT | change))], numbers_only=True).equal == 0
