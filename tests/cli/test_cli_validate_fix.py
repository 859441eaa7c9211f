"""``dsconf validate --fix`` on real files: shown first, whole or not at all, nothing but what it says."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from dsconf.cli import group

BROKEN = """\
{
  "train_micro_batch_size_per_gpu": 4, // four
  "gradient_clipping": 1.0,
  "zero_optimisation": {
    "stage": 2
  },
  "overlap_comm": true
}
"""
REPAIRED = """\
{
  "train_micro_batch_size_per_gpu": 4, // four
  "gradient_clipping": 1.0,
  "zero_optimization": {
    "stage": 2,
    "overlap_comm": true
  }
}
"""


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(BROKEN)
    return path


def run(*words, **options):
    return CliRunner().invoke(group, ["validate", *map(str, words)], **options)


def test_the_change_is_shown_and_made_and_the_rest_is_reported(broken):
    result = run(broken, "--fix")
    assert result.exit_code == 0
    assert broken.read_text() == REPAIRED
    diff, _, findings = result.stdout.partition(f"{broken}:2:40")
    assert diff.startswith(f"--- {broken}\n+++ {broken}\n@@ ")
    assert '-  "zero_optimisation": {\n' in diff
    assert '+  "zero_optimization": {\n+    "stage": 2,\n+    "overlap_comm": true\n' in diff
    assert "note DS004" in findings
    assert "DS101" not in findings
    assert result.stderr.startswith("dsconf: repaired DS101 zero_optimisation, DS106 overlap_comm")


def test_the_second_time_there_is_nothing_to_do(broken):
    run(broken, "--fix")
    before = broken.stat()
    result = run(broken, "--fix")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "@@" not in result.stdout
    assert broken.stat().st_mtime_ns == before.st_mtime_ns
    assert broken.stat().st_ino == before.st_ino


def test_diff_writes_nothing_and_the_exit_code_is_of_the_file_as_it_is(broken):
    for words in (["--diff"], ["--fix", "--diff"]):
        result = run(broken, *words)
        assert result.exit_code == 1
        assert '+    "overlap_comm": true' in result.stdout
        assert "error DS101 zero_optimisation" in result.stdout
        assert broken.read_text() == BROKEN


def test_what_has_no_safe_answer_stays_an_error(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": 8, "zero_optimization": {"stage": 7}, "xyzzy": 1}')
    result = run(path, "--fix")
    assert result.exit_code == 1
    assert path.read_text() == '{"train_batch_size": 8, "zero_optimization": {"stage": 7}, "xyzzy": 1}'
    assert "error DS103 zero_optimization.stage" in result.stdout


@pytest.mark.parametrize("output_format", ["json", "sarif"])
def test_for_programs_stdout_holds_the_document_alone(broken, output_format):
    result = run(broken, "--fix", "--format", output_format)
    assert json.loads(result.stdout)
    assert result.stderr.startswith("--- ")
    assert broken.read_text() == REPAIRED


def test_standard_input_comes_out_repaired():
    result = run("-", "--fix", input=BROKEN)
    assert (result.exit_code, result.stdout) == (0, REPAIRED)
    assert "--- <stdin>" in result.stderr
    assert "1 file: 0 errors" in result.stderr
    assert run("-", "--fix", input=REPAIRED).stdout == REPAIRED


def test_standard_input_that_cannot_be_read_comes_out_as_nothing():
    result = run("-", "--fix", input='{"a": [1 "b"')
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error DS002" in result.stderr


@pytest.mark.parametrize("words", [["--format", "json"], ["other.json"]])
def test_standard_input_is_repaired_by_itself(words):
    result = run("-", "--fix", *words, input=BROKEN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--fix -: prints the repaired file" in result.stderr


def test_a_file_keeps_its_permissions_and_a_link_stays(broken, tmp_path):
    broken.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(broken)
    run(link, "--fix")
    assert link.is_symlink()
    assert broken.read_text() == REPAIRED
    assert broken.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ds.json", "link.json"]


def test_bytes_that_are_not_changed_are_the_same(tmp_path):
    path = tmp_path / "ds.json"
    path.write_bytes(b'\xef\xbb\xbf{\r\n  "train_batch_size": 8,\r\n  "zero_optimisation": {"stage": 1}\r\n}')
    assert run(path, "--fix", "--for", "deepspeed").exit_code == 0
    assert path.read_bytes() == (
        b'\xef\xbb\xbf{\r\n  "train_batch_size": 8,\r\n  "zero_optimization": {"stage": 1}\r\n}'
    )


def test_a_write_that_fails_leaves_the_file(broken, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run(broken, "--fix")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert broken.read_text() == BROKEN


def test_one_that_cannot_be_read_does_not_keep_the_others_from_being_repaired(broken, tmp_path):
    result = run(tmp_path / "none.json", broken, "--fix")
    assert result.exit_code == 2
    assert "error DS001: no such file" in result.stdout
    assert broken.read_text() == REPAIRED


def test_the_batch_that_follows_from_the_other_two(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(
        '{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2,'
        ' "zero_optimization": {"stage": 1}}'
    )
    assert run(path, "--gpus", 4, "--fix").exit_code == 0
    assert json.loads(path.read_text())["train_batch_size"] == 32
