"""``dsconf check`` as a person sees it; a fake runner stands in for the training processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dsconf.cli import group
from dsconf.live import check as check_module
from dsconf.live.processes.launcher import Failure

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))
from live_fakes import H200, TINY, FakeRunner


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}}))
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    return tmp_path


def run(
    files: Path, monkeypatch: pytest.MonkeyPatch, runner: FakeRunner, *options: str, file: str = "ds.json"
) -> Result:
    monkeypatch.setattr(check_module, "SubprocessRunner", lambda variables: runner)
    words = ["check", str(files / file), "--model", str(files / "model.json"), "--gpus", "8", "--seq-len", "32"]
    return CliRunner().invoke(group, [*words, *options])


def test_the_table_has_a_row_for_each_phase(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(files, monkeypatch, FakeRunner(H200, (3 * 2**30,)))
    assert result.exit_code == 0
    assert result.stdout.startswith("rank 0 of 8, rehearsed on NVIDIA H200")
    rows = {line.split()[0] for line in result.stdout.splitlines() if line}
    assert {"forward", "backward", "step", "peak", "reserved"} <= rows
    assert "3.00 GiB" in result.stdout
    assert "fake run" in result.stderr
    assert "fake run" not in result.stdout


def test_json_stands_alone_on_standard_output(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(files, monkeypatch, FakeRunner(H200, (3000,)), "--format", "json")
    document = json.loads(result.stdout)
    assert (document["ran"], document["ranks"]) == (True, "rehearsed")
    for side in ("predicted", "measured"):
        assert set(document[side]) == {"peak_bytes", "reserved_bytes", "step_seconds", "init_bytes", "process_bytes"}
    assert document["measured"]["peak_bytes"] == 3000
    assert document["error_percent"] == pytest.approx(
        100 * (document["predicted"]["peak_bytes"] - 3000) / 3000, abs=0.01
    )
    assert document["failure"] is None


def test_a_failure_is_one_line_on_standard_error(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure("died", "rank 0 ended by SIGKILL in train", "train", 0)
    result = run(files, monkeypatch, FakeRunner(H200, (3000,), failure), "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failure"]["kind"] == "died"
    assert result.stderr.splitlines()[-1] == "dsconf: rank 0 ended by SIGKILL in train"


def test_not_a_number_becomes_null_in_json(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import live_fakes

    original = live_fakes.iteration
    monkeypatch.setattr(live_fakes, "iteration", lambda number, peak: original(number, peak, float("nan")))
    result = run(files, monkeypatch, FakeRunner(H200, (3000,)), "--format", "json")
    assert "NaN" not in result.stdout
    assert json.loads(result.stdout)["loss"] is None


@pytest.mark.parametrize(
    ("options", "file", "code"),
    [
        (("--steps", "0"), "ds.json", 2),
        (("--timeout", "soon"), "ds.json", 2),
        (("--attention", "flesh"), "ds.json", 2),
        ((), "missing.json", 2),
        (("--quantize", "4bit"), "ds.json", 2),
    ],
)
def test_mistakes_are_one_line_with_their_exit_code(
    files: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], file: str, code: int
) -> None:
    result = run(files, monkeypatch, FakeRunner(), *options, file=file)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("dsconf: ")
    assert len(result.stderr.splitlines()) == 1


UNTIL_THE_SPAWN = """
import os, subprocess, time
def spawn(words, **_):
    assert words[2] == "dsconf.live.rank.worker", words
    print(time.process_time(), flush=True)
    os._exit(0)
subprocess.Popen = spawn
from dsconf.cli import group
group(["check", "ds.json", "--model", "model.json", "--gpus", "8"], prog_name="dsconf")
"""
YARDSTICK = "import click, jsonschema, time; print(time.process_time())"
QUIET = 0.115
"""Seconds of processor time that the yardstick takes on a quiet 2-core machine, where the command takes 0.2."""


def test_the_first_process_is_started_within_three_tenths_of_a_second(files: Path) -> None:
    """Processor time from the start of Python on, the best of some; a slow machine slows the yardstick as well."""

    def seconds(code: str) -> float:
        variables = os.environ | {"TMPDIR": str(files)}
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, cwd=files, env=variables, check=True)
        return float(done.stdout)

    pairs = [(seconds(UNTIL_THE_SPAWN), seconds(YARDSTICK)) for _ in range(4)]
    mine, yardstick = (min(column) for column in zip(*pairs, strict=True))
    assert mine < 0.3 * max(1.0, yardstick / QUIET)
