"""``dsconf validate`` as people and scripts call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from dsconf.cli import group
from dsconf.resources import text

ROOT = Path(__file__).resolve().parents[2]
GOOD = '{"train_batch_size": 8, "gradient_clipping": 1.0, "zero_optimization": {"stage": 2}}\n'
BAD = '{\n  "train_batch_size": 8, "gradient_clipping": 1.0,\n  "zero_optimization": {"stagee": 2}\n}\n'


@pytest.fixture
def files(tmp_path):
    (tmp_path / "good.json").write_text(GOOD)
    (tmp_path / "bad.json").write_text(BAD)
    return tmp_path


def run(*words, **options):
    return CliRunner().invoke(group, ["validate", *map(str, words)], **options)


def test_a_valid_file_is_exit_0_and_a_summary(files):
    result = run(files / "good.json", "--gpus", 8)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "1 file: 0 errors, 0 warnings, 0 notes (read as deepspeed)\n"


def test_an_error_is_exit_1_and_a_line_an_editor_can_follow(files):
    result = run(files / "bad.json")
    first, summary = result.stdout.splitlines()
    assert result.exit_code == 1
    assert (
        first == f"{files / 'bad.json'}:3:25: error DS101 zero_optimization.stagee: unknown key; did you mean 'stage'?"
    )
    assert summary.startswith("1 file: 1 error, 0 warnings")


def test_warnings_alone_are_exit_0(files):
    (files / "old.json").write_text('{"train_batch_size": 8, "zero_optimization": true}')
    result = run(files / "old.json")
    assert result.exit_code == 0
    assert "warning DS107 zero_optimization" in result.stdout


def test_many_files_and_the_worst_decides(files):
    assert run(files / "good.json", files / "bad.json").exit_code == 1
    result = run(files / "good.json", files / "none.json", files / "bad.json")
    assert result.exit_code == 2
    assert f"{files / 'none.json'}: error DS001: no such file" in result.stdout
    assert "3 files: 2 errors" in result.stdout


def test_json_has_the_keys_of_the_contract(files):
    result = run(files / "good.json", files / "bad.json", "--format", "json")
    document = json.loads(result.stdout)
    assert list(document) == ["files"]
    good, bad = document["files"]
    assert good == {"file": str(files / "good.json"), "valid": True, "findings": []}
    assert (bad["file"], bad["valid"], len(bad["findings"])) == (str(files / "bad.json"), False, 1)
    assert bad["findings"][0] == {
        "code": "DS101",
        "severity": "error",
        "path": "zero_optimization.stagee",
        "message": "unknown key",
        "line": 3,
        "column": 25,
        "suggestion": "did you mean 'stage'?",
        "fix": [{"edit": "rename", "path": "zero_optimization.stagee", "to": "zero_optimization.stage"}],
    }


def test_json_is_what_its_schema_says(files):
    schema = json.loads(text("schemas", "validate.schema.json"))
    (files / "cut.json").write_text(BAD[:50])
    (files / "odd.json").write_text(
        '{"zero_optimization": {"stage": 9, "cpu_offload": true}, "amp": {}, "bf16": {"auto": 1}}'
    )
    names = [files / name for name in ("good.json", "bad.json", "cut.json", "odd.json", "none.json")]
    document = json.loads(run(*names, "--gpus", 4, "--params", "7B", "--format", "json").stdout)
    jsonschema.Draft202012Validator(schema).validate(document)
    codes = [{finding["code"] for finding in file["findings"]} for file in document["files"]]
    assert codes[:3] == [{"DS901"}, {"DS101", "DS901"}, {"DS002"}]
    assert codes[3] >= {"DS103", "DS105", "DS107", "DS201", "DS901"}
    assert codes[4] == {"DS001"}


def test_standard_input():
    result = run("-", input=BAD)
    assert result.exit_code == 1
    assert result.stdout.startswith("<stdin>:3:25: error DS101")


def test_gpus_and_for_reach_the_rules(files):
    assert run(files / "good.json", "--gpus", 3).exit_code == 1
    (files / "auto.json").write_text('{"train_batch_size": "auto", "zero_optimization": {"stage": 1}}')
    assert run(files / "auto.json").exit_code == 0
    assert run(files / "auto.json", "--for", "deepspeed").exit_code == 1


def test_standard_input_can_be_named_once(files):
    result = run("-", files / "good.json", "-", input=GOOD)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "name it once" in result.stderr


def test_the_same_file_twice_and_a_folder(files):
    result = run(files / "good.json", files, files / "good.json")
    assert result.exit_code == 2
    assert f"{files}: error DS001: is a folder; name the ds_config file in it" in result.stdout
    assert "3 files: 1 error," in result.stdout


def test_who_loads_it_is_said_and_decides(files):
    (files / "nan.json").write_text('{"train_batch_size": "auto", "gradient_clipping": NaN}')
    result = run(files / "nan.json")
    assert f"{files / 'nan.json'}:1:30: error DS005 gradient_clipping: HF Trainer reads nan" in result.stdout
    assert result.stdout.endswith("(read as hf)\n")
    result = run(files / "nan.json", "--for", "deepspeed")
    assert f"{files / 'nan.json'}:1:51: error DS002: NaN is not a number in JSON or HJSON" in result.stdout
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("target", "severity", "says"),
    [("deepspeed", "error", "DeepSpeed refuses the file"), ("hf", "error", "HF Trainer keeps the last value")],
)
def test_a_key_that_stands_twice(files, target, severity, says):
    (files / "twice.json").write_text(
        '{"train_batch_size": 8, "gradient_clipping": 1,\n "zero_optimization": {"stage": 1, "stage": 2}}'
    )
    result = run(files / "twice.json", "--for", target)
    assert result.exit_code == 1
    assert (
        f":2:36: {severity} DS003 zero_optimization.stage: the key appears twice in one object; {says}" in result.stdout
    )


def test_comments_are_a_note_for_deepspeed_and_an_error_for_the_others(files):
    (files / "why.json").write_text('{\n  // two\n  "train_batch_size": 8, "zero_optimization": {"stage": 2}\n}')
    assert ":2:3: note DS004: not strict JSON (a comment): DeepSpeed reads it" in run(files / "why.json").stdout
    result = run(files / "why.json", "--for", "accelerate")
    assert result.exit_code == 1
    assert ":2:3: error DS004: not strict JSON (a comment): Accelerate cannot read it" in result.stdout


def test_another_release_reads_other_keys(files):
    (files / "old.json").write_text('{"train_batch_size": 8, "amp": {"enabled": false}}')
    assert "DS105 amp" in run(files / "old.json").stdout
    assert "DS105" not in run(files / "old.json", "--deepspeed-version", "0.16").stdout


def test_whether_it_fits_is_a_finding(files):
    words = ["--gpus", 8, "--gpu", "h100", "--seq-len", 4096]
    result = run(files / "good.json", "--params", "1B", *words)
    assert result.exit_code == 0
    assert "good.json:1:1: note DS901: fits: a GPU needs " in result.stdout
    result = run(files / "good.json", "--params", "70B", *words)
    assert result.exit_code == 1
    assert "good.json:1:1: error DS901: does not fit: a GPU needs " in result.stdout


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--params", "7B"], "--gpus: give the total number of GPUs"),
        (["--params", "7B", "--gpus", "8", "--gpu", "h1000"], "h1000"),
        (["--gpu", "h100"], "--gpu: says whether the job fits; name the model too"),
        (["--model", "no/such", "--gpus", "8"], "no/such"),
        (["--deepspeed-version", "0.9"], "'0.9' is not known"),
        (["--resume-gpus", "0"], "--resume-gpus: 0 is not a positive whole number"),
        (["--gpus", "0"], "--gpus: 0 is not a positive whole number"),
        (["--gpus", "-1"], "--gpus: -1 is not a positive whole number"),
        (["--gpus", "many"], "--gpus: 'many' is not a positive whole number"),
        (["--for", "trainer"], "'trainer' is not one of"),
        (["--format", "xml"], "'xml' is not one of"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(files, words, problem):
    result = run(files / "good.json", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_file_is_wrong_usage():
    result = run()
    assert result.exit_code == 2
    assert "FILE" in result.stderr


def test_as_a_process_with_a_key_no_terminal_can_show(files):
    (files / "odd.json").write_text('{"train_batch_size": 8, "\\ud800": 1}')
    command = [sys.executable, "-m", "dsconf", "validate", str(files / "odd.json")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "error DS101 \\ud800: unknown key" in done.stdout


def test_what_it_imports_stays_small(files):
    """The time of the command is the time of click: nothing that is slow may come in for a config without a mistake."""
    script = "import sys; from dsconf.cli import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    command = [sys.executable, "-c", script, "validate", str(files / "good.json")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    unwanted = {"torch", "deepspeed", "jinja2", "jsonschema", "tabulate", "hjson", "pydantic", "transformers"}
    assert loaded.isdisjoint(unwanted)
