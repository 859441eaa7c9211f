"""docs/complaints.md lists every complaint, with a test of its thread and a command that can be typed."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from dsconf.cli import group

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "complaints.md"
URL = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+")


class Row(NamedTuple):
    """One line of the table."""

    number: int
    threads: set[str]
    command: str


def rows() -> list[Row]:
    """The table of the page."""
    found = []
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[0].isdigit():
            found.append(Row(int(cells[0]), set(URL.findall(cells[2])), cells[3].strip("`")))
    return found


@cache
def documented() -> dict[int, list[str]]:
    """The docstrings of the tests of each complaint."""
    found: dict[int, list[str]] = {}
    for path in HERE.glob("test_*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (match := re.match(r"test_complaint_(\d\d)_", node.name)):
                found.setdefault(int(match[1]), []).append(ast.get_docstring(node) or "")
    return found


def test_all_41_are_listed_and_tested() -> None:
    assert [row.number for row in rows()] == list(range(1, 42))
    assert sorted(documented()) == list(range(1, 42))


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row.number))
def test_each_test_names_its_thread(row: Row) -> None:
    for docstring in documented()[row.number]:
        named = set(URL.findall(docstring))
        assert named
        # Some also name a thread that shows the same: another complaint's, or the one a figure is from.
        assert named & row.threads


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row.number))
def test_each_command_can_be_typed(row: Row) -> None:
    program, name, *words = shlex.split(row.command)
    command = group.get_command(click.Context(group), name)
    assert (program, command is not None) == ("dsconf", True)
    assert command is not None
    command.make_context(name, words)
