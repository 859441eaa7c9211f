"""Asks questions through the command line, in this process, each in an empty folder of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from click.testing import CliRunner

from benchmarks.answers.estimates import as_table, explained, terms_to_explain
from benchmarks.answers.question import Answer, Question
from dsconf.cli import group

Answered = tuple[Question, Answer]
_SURROUNDINGS = {"COLUMNS": "120", "LINES": "50", "NO_COLOR": "1"}
_AT_A_TIME = 4


def ask(question: Question) -> Answer:
    """The answer to one question. Files are named relative to its folder, so that answers do not depend on where."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        given = {name: text.encode("utf-8", "surrogateescape") for name, text in question.files.items()}
        for name, data in given.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        os.chdir(folder)
        try:
            stdin = None if question.stdin is None else question.stdin.encode("utf-8", "surrogateescape")
            result = CliRunner(env=_SURROUNDINGS).invoke(group, list(question.args), input=stdin, prog_name="dsconf")
        finally:
            os.chdir(before)
        written = dict(_written(Path(folder), given))
    error = result.exception
    let_through = None if error is None or isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    return Answer(result.exit_code, result.stdout, result.stderr, written, let_through)


def _written(folder: Path, given: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """What is new or other in ``folder``."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and given.get(name) != (data := path.read_bytes()):
            yield name, data.decode("utf-8", "surrogateescape")


def ask_with_more(question: Question) -> list[Answered]:
    """The question and, if it ``asks_more``, the same as a table and about each term of the answer."""
    answer = ask(question)
    found = [(question._replace(asks_more=False), answer)]
    if question.asks_more and answer.exit_code in (0, 1):
        more = [as_table(question)]
        if question.args[0] == "estimate":
            terms = list(json.loads(answer.stdout)["terms"])
            more += [explained(question, term) for term in terms_to_explain(question, terms)]
        found += [(other, ask(other)) for other in more]
    return found


def ask_all(questions: Iterable[Question], processes: int) -> Iterator[Answered]:
    """Every question and its answer, in order."""
    if processes == 1:
        for question in questions:
            yield from ask_with_more(question)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for found in pool.imap(ask_with_more, questions, _AT_A_TIME):
            yield from found
