"""The command line as a whole: help, version, typing errors, exit codes, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dsconf
from dsconf.cli import COMMANDS

DSCONF = [sys.executable, "-m", "dsconf"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands may write into the folder they run in."""
    monkeypatch.chdir(tmp_path)


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DSCONF, *args], capture_output=True, text=True, timeout=120)


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The single line on stderr that a person's mistake is answered with."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("dsconf: ")
    return line


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command_and_the_exit_codes(flag: str) -> None:
    done = _run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    for name, summary in COMMANDS.items():
        assert f" {name} {summary.split()[0]} " in words
    assert "Exit codes: 0 yes, 1 no" in words
    assert "3 cannot be run here" in words


def test_version() -> None:
    done = _run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dsconf {dsconf.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_each_command_explains_itself(name: str, flag: str) -> None:
    done = _run(name, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: dsconf {name} ")
    assert " --format " in done.stdout


@pytest.mark.parametrize(("typed", "meant"), [("estimat", "estimate"), ("recomend", "recommend"), ("stage", "stages")])
def test_a_mistyped_command_names_the_nearest(typed: str, meant: str) -> None:
    done = _run(typed)
    assert done.returncode == 2
    assert f"{typed!r}; did you mean {meant!r}?" in _one_line(done)


def test_an_unknown_command_with_nothing_near() -> None:
    done = _run("xyzzy")
    assert done.returncode == 2
    line = _one_line(done)
    assert "'xyzzy'" in line
    assert "did you mean" not in line
    assert "dsconf --help" in line


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["estimate"], "--gpus"),
        (["estimate", "--gpus", "8", "--frobnicate"], "--frobnicate"),
        (["estimate", "--params", "70B", "--gpuss", "8"], "--gpus"),
        (["estimate", "--params", "70B", "--gpus", "0"], "--gpus"),
        (["estimate", "--params", "70B", "--gpus", "-1"], "--gpus"),
        (["estimate", "--params", "seventy", "--gpus", "8"], "--params"),
        (["estimate", "--params", "-7B", "--gpus", "8"], "--params"),
        (["estimate", "--params", "7B", "--gpus", "8", "--gpu-memory", "-80GiB"], "--gpu-memory"),
        (["estimate", "--params", "7B", "--gpus", "8", "--format", "yaml"], "--format"),
        (["estimate", "--gpus", "8"], "--params"),
        (["recommend", "--params", "7B", "--gpus", "8", "--gpu", "h1000"], "h1000"),
        (["recommend", "--params", "7B", "--gpus", "8", "surplus"], "surplus"),
        (["validate"], "FILE"),
        (["check", "no-such-file.json", "--params", "1B", "--gpus", "1"], "no-such-file.json"),
        (["--frobnicate"], "--frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_names_it(args: list[str], names: str) -> None:
    done = _run(*args)
    assert done.returncode == 2
    assert names in _one_line(done)


def test_no_command_shows_the_help_and_is_wrong_usage() -> None:
    done = _run()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["recommend", "--help"],
        ["estimate", "--params", "70B", "--gpus", "8", "--stage", "3", "--format", "json"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_is_quiet(args: list[str]) -> None:
    """As in ``dsconf ... | true``: the reader is gone before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([*DSCONF, *args], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.stderr == ""


def test_output_that_cannot_be_written_is_no_success() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("wb") as disk:
        done = subprocess.run([*DSCONF, "--help"], stdout=disk, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode not in (0, 1)
    assert "Traceback" not in done.stderr


def test_the_summaries_are_the_commands_own() -> None:
    """They are written twice so that --help imports nothing; they must agree."""
    from importlib import import_module

    for name, summary in COMMANDS.items():
        command = import_module(f"dsconf.cli.{name}").command
        assert command.name == name
        assert command.help
        assert command.get_short_help_str(limit=200).rstrip(".") == summary.rstrip(".")
