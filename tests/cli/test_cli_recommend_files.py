"""What ``dsconf recommend`` writes, and what it refuses to write over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hjson
import pytest
from click.testing import CliRunner, Result

from dsconf.cli import group

JOB = ("--params", "125M", "--gpus", "16", "--gpu-memory", "24GiB")
ALWAYS = ["ds_config.json", "launch.sh"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, command: str = "recommend") -> Result:
    return CliRunner().invoke(group, [command, *words], prog_name="dsconf")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--for", "deepspeed"), [*ALWAYS, "hostfile"]),
        (("--for", "hf"), [*ALWAYS, "training_args.json"]),
        (("--for", "accelerate"), [*ALWAYS, "accelerate.yaml"]),
        (("--for", "hf", "--slurm"), [*ALWAYS, "training_args.json", "slurm.sh"]),
        (("--comments",), ["ds_config.hjson", "launch.sh", "hostfile"]),
    ],
)
def test_a_folder_is_written_and_every_file_said(words: tuple[str, ...], names: list[str], here: Path) -> None:
    result = run(*JOB, *words, "-o", "run", "--format", "json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["files"] == [f"run/{name}" for name in names]
    assert sorted(contents(here)) == sorted(said["files"])
    assert f"run/{names[0]}" in said["launch"][-1]
    target = words[1] if "--for" in words else "deepspeed"
    valid = run(f"run/{names[0]}", "--gpus", "16", "--for", target, command="validate")
    assert valid.exit_code == 0, valid.output


def test_every_file_names_the_config_that_was_written(here: Path) -> None:
    run(*JOB, "--comments", "--slurm", "-o", "my run")
    run(*JOB, "--for", "hf", "-o", "hf")
    run(*JOB, "--for", "accelerate", "-o", "accelerate")
    assert '"$folder"/ds_config.hjson' in (here / "my run" / "launch.sh").read_text()
    assert '"$folder"/ds_config.hjson' in (here / "my run" / "slurm.sh").read_text()
    assert "export folder='my run'\n" in (here / "my run" / "slurm.sh").read_text()
    assert json.loads((here / "hf" / "training_args.json").read_text())["deepspeed"] == "hf/ds_config.json"
    assert (
        '\n  deepspeed_config_file: "accelerate/ds_config.json"\n' in (here / "accelerate/accelerate.yaml").read_text()
    )


def test_comments_change_no_value(here: Path) -> None:
    assert run(*JOB, "-o", "plain").exit_code == 0
    assert run(*JOB, "--comments", "-o", "commented").exit_code == 0
    written = (here / "commented" / "ds_config.hjson").read_text()
    assert hjson.loads(written) == json.loads((here / "plain" / "ds_config.json").read_text())
    best = json.loads(run(*JOB, "--format", "json").stdout)
    assert written.startswith(f"# {best['why'][0][:60]}"), "the reasons of the recommendation head the file"


def test_the_hours_of_the_run_stand_beside_the_time_limit(here: Path) -> None:
    result = run(*JOB, "--tokens", "20B", "--slurm", "-o", "run", "--format", "json")
    hours: float = json.loads(result.stdout)["cost"]["hours"]
    assert f"predicted to take {hours:.1f} hours" in (here / "run" / "slurm.sh").read_text()


@pytest.mark.parametrize("name", ["launch.sh", "hostfile"])
def test_one_file_in_the_way_and_none_is_written(name: str, here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / name).write_text("mine")
    result = run(*JOB, "--slurm", "-o", "run")
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"dsconf: run/{name} already exists; use --force to replace it, or name another folder with -o\n"
    )
    assert contents(here) == {f"run/{name}": "mine"}
    assert run(*JOB, "--slurm", "-o", "run", "--force").exit_code == 0
    assert sorted(contents(here / "run")) == sorted([*ALWAYS, "hostfile", "slurm.sh"])
    assert "mine" not in contents(here / "run").values()


def test_the_same_command_again_changes_nothing(here: Path) -> None:
    for words in (("-o", "run", "--slurm"), ("-o", "commented", "--comments")):
        first, written = run(*JOB, *words), contents(here)
        again = run(*JOB, *words)
        assert (again.exit_code, again.stdout, again.stderr) == (0, first.stdout, "")
        assert contents(here) == written


def test_what_another_writing_left_is_named_and_stays(here: Path) -> None:
    assert run(*JOB, "--for", "accelerate", "-o", "run").stderr == ""
    (here / "run" / "train.py").write_text("mine")
    before = contents(here / "run")
    forced = run(*JOB, "--comments", "-o", "run", "--force")
    left = "run/ds_config.json, run/accelerate.yaml"
    assert forced.exit_code == 0
    assert forced.stderr == f"dsconf: left from an earlier writing, and no part of this one: {left}\n"
    after = contents(here / "run")
    kept = ("ds_config.json", "accelerate.yaml", "train.py")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_a_folder_that_has_a_files_name_is_refused(here: Path) -> None:
    (here / "run" / "launch.sh").mkdir(parents=True)
    result = run(*JOB, "-o", "run", "--force")
    assert result.exit_code == 2
    assert "Recommended: " in result.stdout
    assert result.stderr == "dsconf: run/launch.sh is a folder; choose another one with -o DIR\n"


def test_a_sweep_writes_a_folder_for_each_number_of_gpus(here: Path) -> None:
    words = ("--params", "125M", "--gpus", "8,16", "--gpu-memory", "24GiB", "--slurm", "-o", "runs")
    assert run(*words).exit_code == 0
    names = {8: [*ALWAYS, "slurm.sh"], 16: [*ALWAYS, "hostfile", "slurm.sh"]}
    wanted = [f"runs/{gpus}-gpus/{name}" for gpus, files in names.items() for name in files]
    assert sorted(contents(here)) == sorted(wanted)


BAD: list[tuple[tuple[Any, ...], str]] = [
    (("--comments",), "--comments writes ds_config.hjson into a folder: name it with -o DIR"),
    (("--slurm",), "--slurm writes slurm.sh into a folder: name it with -o DIR"),
    (("--comments", "--for", "hf"), "--comments: the Hugging Face Trainer reads strict JSON"),
    (("--comments", "--for", "accelerate"), "--comments: Accelerate reads strict JSON"),
    (("-o", ""), "-o is empty; name a folder, or . for the current one"),
    (("-o", "a\nrm -rf ~"), "characters that cannot stand in a script"),
]


@pytest.mark.parametrize(("words", "told"), BAD)
def test_what_cannot_be_written_is_one_line_and_exit_2(words: tuple[str, ...], told: str, here: Path) -> None:
    result = run(*JOB, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr
    assert list(here.iterdir()) == []
