"""The documents tell the truth: commands exist, examples run, transcripts are real, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dsconf.cli import COMMANDS

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
CHANGELOG = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO)}
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def _blocks(kind: str) -> list[str]:
    return [text for language, text in BLOCK.findall(README) if language == kind]


def _examples() -> list[str]:
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("dsconf ")]


def _anchors(text: str) -> set[str]:
    """The anchors that a Markdown page's headings make."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def _run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``line`` as a person would type it in ``folder``."""
    command = [sys.executable, "-m", *shlex.split(line)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every example, run in the README's order in one folder, since later ones read what earlier ones wrote."""
    folder = tmp_path_factory.mktemp("readme")
    return {line: _run(line, folder) for line in _examples()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"[`dsconf {name}`](#{name})" in README
    assert any(line.split()[1] == name for line in _examples())


@pytest.mark.launch
@pytest.mark.parametrize("line", _examples())
def test_every_example_runs(line: str, ran: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = ran[line]
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_name_no_unknown_command() -> None:
    mentioned = set(re.findall(r"\bdsconf ([a-z]+)\b", " ".join([*_blocks("sh"), *_blocks("console")])))
    assert mentioned <= set(COMMANDS)


def test_the_python_examples_run(tmp_path: Path) -> None:
    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        program = [sys.executable, "-c", block]
        done = subprocess.run(program, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_the_transcripts_are_what_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.docs.transcripts"], cwd=REPO, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr


def test_the_second_command_is_what_ci_runs() -> None:
    assert "bash tools/test\n" in "".join(_blocks("sh"))
    assert (REPO / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "exec bash tools/test"


def test_the_exit_codes_are_in_the_readme() -> None:
    rows = re.findall(r"^\| (\d) \| .+ \|$", README, re.MULTILINE)
    assert rows == ["0", "1", "2", "3"]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_inside_the_project_lead_somewhere(name: str) -> None:
    text = (REPO / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in _anchors(text)
        elif not target.startswith("https://"):
            assert (REPO / target).exists()


def test_contributing_names_every_part() -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = {path.name for path in (REPO / "dsconf").iterdir() if (path / "__init__.py").exists()}
    assert {part for part in parts if f"`dsconf/{part}/`" not in text} == set()


def test_changelog_form() -> None:
    """Keep a Changelog: Unreleased first, then releases newest first with a date, known headings under each."""
    lines = CHANGELOG.splitlines()
    assert lines[0] == "# Changelog"
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    for line in releases[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", line), line
    dates = [line.split(" - ")[1] for line in releases[1:]]
    assert dates == sorted(dates, reverse=True)
    assert {line.removeprefix("### ") for line in lines if line.startswith("### ")} <= SECTIONS
    assert not any(line.startswith("####") for line in lines)


def test_contributing_names_files_that_are_there() -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)`", text))
    assert len(named) > 30
    assert {name for name in named if not any((REPO / root / name).is_file() for root in ("", "dsconf"))} == set()
