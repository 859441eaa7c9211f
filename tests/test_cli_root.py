"""The command line as a whole: help, version, typing errors, exit codes, pipes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import dsconf
from dsconf.cli import COMMANDS, group

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


def test_the_program_alone_prints_its_help() -> None:
    done = subprocess.run([*DSCONF], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: dsconf")


ESTIMATE = ("estimate", "--params", "8B", "--gpus", "8", "--stage", "2")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_closed_stream_is_no_mistake(closed: str) -> None:
    line = " ".join([*map(shlex.quote, (*DSCONF, *ESTIMATE)), closed])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_input_is_an_empty_file() -> None:
    line = " ".join([*map(shlex.quote, DSCONF), "validate", "-", "<&-"])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_a_terminal_without_the_signs_gets_question_marks(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*DSCONF, *ESTIMATE], capture_output=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Host memory of each node" in done.stdout or b"Peak of rank" in done.stdout


def test_a_name_that_is_no_utf_8_is_reported_in_every_format(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/x\xff.json"
    with open(path, "w") as file:
        file.write("{}")
    for form in ("text", "json", "sarif"):
        done = subprocess.run([*DSCONF, "validate", path, "--format", form], capture_output=True, timeout=120)
        assert b"Traceback" not in done.stderr, form


def test_memory_that_runs_out_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dsconf.read_job.read_job", full)
    result = CliRunner().invoke(group, list(ESTIMATE), prog_name="dsconf")
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert "memory" in result.stderr


def test_shards_without_bound_are_refused() -> None:
    result = CliRunner().invoke(group, [*ESTIMATE, "--tiled-loss", "99999999999"], prog_name="dsconf")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "number of shards from 1 to 65536" in result.stderr


def test_a_term_is_explained_in_json_too() -> None:
    result = CliRunner().invoke(group, [*ESTIMATE, "--explain", "parameters", "--format", "json"], prog_name="dsconf")
    answer = json.loads(result.stdout)
    assert answer["term"] == "parameters"
    assert answer["lines"][0].startswith("parameters: ")
