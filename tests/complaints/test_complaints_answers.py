"""Every command of docs/complaints.md is run, and what it prints has the figures and codes of its answer."""

from __future__ import annotations

import re

import pytest
from asking import ask
from page_files import CONFIGS, ELSEWHERE, MODELS, OTHERS
from test_complaints_page import PAGE, Row, rows

MEASURED = re.compile(r"\([^()]*measured[^()]*\)")
CODE = re.compile(r"DS\d{3}")
FIGURE = re.compile(r"(?<![\w.-])\d{1,3}(?: \d{3})+(?![\w.])|(?<![\w.-])\d+(?:\.\d+)+|(?<![\w.-])\d{2,}(?![\w.])")
NOT_PRINTED = {35: ("0.1", "1.0"), 36: ("16384", "0.16.3", "20480")}
"""Inputs of the runs that an answer compares, and the first release that DS309 applies to."""


def answers() -> dict[int, str]:
    """The last column of the page, without what threads measured and without code."""
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        if match := re.match(r"\| (\d+) \|.* \| (.+) \|$", line):
            found[int(match[1])] = re.sub(r"`[^`]*`", "", MEASURED.sub("", match[2]))
    return found


def printed(row: Row) -> str:
    """The output of the row's command, and of the other commands that its answer speaks of."""
    config, models = CONFIGS.get(row.number), MODELS.get(row.number, {})
    if row.command.startswith("dsconf validate") or "ds_config.json" in row.command:
        assert config is not None
    texts = [ask(row.command, config, **models).text]
    for old, new, other in OTHERS.get(row.number, ()):
        assert old in row.command
        line = row.command.replace(old, new) if old else row.command
        texts.append(ask(line, other or config, **models).text)
    texts += [ask(line, other).text for line, other in ELSEWHERE.get(row.number, ())]
    return "\n".join(texts)


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row.number))
def test_the_answer_is_what_is_printed(row: Row) -> None:
    answer, text = answers()[row.number], printed(row)
    assert text.strip()
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    figures = {figure.replace(" ", "") for figure in FIGURE.findall(answer)} - set(NOT_PRINTED.get(row.number, ()))
    missing = [one for one in figures if not re.search(rf"(?<![\d.]){re.escape(one)}(?!\d)", plain)]
    assert missing == []
    assert [code for code in CODE.findall(answer) if code not in text] == []
    assert [words for words in re.findall(r'"([^"…]{4,})"', answer) if words not in text] == []


VERDICTS = {29: "no", 30: "no", 31: "no", 36: "no", 39: "no"}


@pytest.mark.parametrize("number", VERDICTS)
def test_the_verdict_is_the_answers(number: int) -> None:
    (row,) = [row for row in rows() if row.number == number]
    found = ask(row.command, CONFIGS.get(number))
    assert found.code == 1
    assert re.search(r"^Fits .+: no$", found.text, re.M)
