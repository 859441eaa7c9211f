"""Questions and answers as compressed JSON lines, one file of each kind; the same content makes the same bytes."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from benchmarks.answers.question import Answer, Question

KINDS = ("help", "estimates", "recommendations", "validations")


class Writer(Protocol):
    """Appends one question and its answer."""

    def __call__(self, question: Question, answer: Answer) -> None: ...


def path_of(folder: Path, kind: str) -> Path:
    """The file of ``kind`` in ``folder``."""
    return folder / f"{kind}.jsonl.gz"


@contextmanager
def writing(folder: Path, kind: str) -> Iterator[Writer]:
    """A function that appends to the file of ``kind``, which is made anew."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        path_of(folder, kind).open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
        io.TextIOWrapper(packed, encoding="ascii") as lines,
    ):
        yield lambda question, answer: print(_line(question, answer), file=lines)


def _line(question: Question, answer: Answer) -> str:
    row = question._asdict() | answer._asdict()
    del row["asks_more"]
    return json.dumps({key: value for key, value in row.items() if value not in (None, {})})


def rows(folder: Path, kind: str) -> Iterator[tuple[Question, Answer]]:
    """What was recorded of ``kind``; nothing where there is no file."""
    if not path_of(folder, kind).is_file():
        return
    with gzip.open(path_of(folder, kind), "rt", encoding="ascii") as lines:
        for line in lines:
            row = json.loads(line)
            question = Question(tuple(row["args"]), row.get("files", {}), row.get("stdin"))
            written = row.get("written", {})
            yield question, Answer(row["exit_code"], row["stdout"], row["stderr"], written, row.get("exception"))
