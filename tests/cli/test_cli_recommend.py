"""``dsconf recommend`` as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dsconf.cli import group
from dsconf.live.processes.launcher import Failure
from dsconf.live.result import CheckResult, Figures
from dsconf.units import GIB, TIB

ROOT = Path(__file__).parents[2]


def run(*words: str) -> Result:
    return CliRunner().invoke(group, ["recommend", *words], prog_name="dsconf")


def answer(*words: str) -> dict[str, Any]:
    result = run(*words, "--format", "json")
    assert result.exit_code in (0, 1), result.output
    assert result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_command_of_the_readme(here: Path) -> None:
    result = run("--params", "70B", "--gpus", "8", "--gpu-memory", "80GiB", "-o", "first")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "optimizer" in result.stdout
    assert "of host memory in each node: give --host-memory to check" in result.stdout
    assert "Wrote first/ds_config.json" in result.stdout
    assert "deepspeed --num_gpus 8 train.py --deepspeed --deepspeed_config first/ds_config.json" in result.stdout
    config = json.loads((here / "first" / "ds_config.json").read_text())
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_nothing_is_written_without_a_folder_and_a_second_question_is_answered_too(here: Path) -> None:
    for gpus in ("2", "16"):
        result = run("--params", "125M", "--gpus", gpus, "--gpu-memory", "24GiB")
        assert result.exit_code == 0, result.output
        assert "Recommended: " in result.stdout
        assert "Launch, once -o DIR has written the files:" in result.stdout
        assert "Wrote" not in result.stdout
        assert list(here.iterdir()) == []


def test_a_full_70b_with_adam_never_fits_eight_80_gb_gpus_without_offload() -> None:
    """16 bytes of each parameter are 1.12 TB, and 8 × 80 GiB are 0.69 TB."""
    found = answer("--params", "70B", "--gpus", "8", "--gpu-memory", "80GiB")
    assert found["recommended"]["estimate"]["host_bytes_per_node"] > 0.8 * TIB
    plain = [c for c in found["candidates"] if "on cpu" not in c["name"]]
    assert plain
    assert all(candidate["fits"] == "no" for candidate in plain)


def test_without_offload_it_is_a_clear_no(here: Path) -> None:
    result = run("--params", "70B", "--gpus", "8", "--gpu-memory", "80GiB", "--offload", "none", "-o", "run")
    assert result.exit_code == 1
    assert "Nothing fits" in result.stdout
    assert "too much on each GPU" in result.stdout
    assert "More GPUs" in result.stdout
    assert "LoRA: --lora-rank 16 would make it fit" in result.stdout
    assert list(here.iterdir()) == []


def test_too_small_a_host_is_a_no_that_names_the_memory_it_takes() -> None:
    found = answer("--params", "70B", "--gpus", "8", "--gpu-memory", "80GiB", "--host-memory", "256GiB")
    assert found["recommended"] is None
    assert found["launch"] == found["files"] == []
    assert any("Host memory" in reason for reason in found["why"])
    enough = answer("--params", "70B", "--gpus", "8", "--gpu-memory", "80GiB", "--host-memory", "4TiB")
    assert enough["recommended"] is not None


def test_json_follows_the_contract_and_writes_only_where_told(here: Path) -> None:
    found = answer("--params", "7B", "--gpus", "8", "--gpu-memory", "80GiB")
    assert list(here.iterdir()) == []
    best = found["recommended"]
    for key in ("config", "estimate", "step_seconds", "tokens_per_second", "fits", "why"):
        assert key in best
        assert all(key in candidate for candidate in found["candidates"])
    assert sum(best["estimate"]["terms"].values()) == best["estimate"]["peak_bytes"]
    assert best["fits"] == "yes"
    assert best["estimate"]["process_bytes"] <= 80 * GIB
    assert found["examined"] >= len(found["candidates"])
    assert answer("--params", "7B", "--gpus", "8", "--gpu-memory", "80GiB", "-o", "run")["files"] == [
        str(Path("run") / name) for name in ("ds_config.json", "launch.sh")
    ]
    assert json.loads(Path("run/ds_config.json").read_text()) == best["config"]


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_stage_asked_for_is_rendered(stage: str) -> None:
    found = answer("--params", "125M", "--gpus", "8", "--gpu", "h100-80gb", "--stage", stage)
    assert found["recommended"]["config"]["zero_optimization"]["stage"] == int(stage)


def test_the_global_batch_is_kept_exactly() -> None:
    config = answer("--params", "1B", "--gpus", "8", "--gpu-memory", "80GiB", "--global-batch-size", "1000")[
        "recommended"
    ]["config"]
    micro, steps = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    assert micro * steps * 8 == config["train_batch_size"] == 1000


def test_tokens_and_price_give_hours_and_cost() -> None:
    found = answer("--params", "1B", "--gpus", "8", "--gpu-memory", "80GiB", "--tokens", "20B", "--price", "2.5")
    seconds = 20e9 / found["recommended"]["tokens_per_second"]
    assert found["cost"]["hours"] == pytest.approx(seconds / 3600)
    assert found["cost"]["gpu_hours"] == pytest.approx(8 * seconds / 3600)
    assert found["cost"]["price"] == pytest.approx(2.5 * 8 * seconds / 3600)


@pytest.mark.parametrize(
    ("target", "launcher"),
    [("deepspeed", "deepspeed --num_gpus"), ("hf", "torchrun"), ("accelerate", "accelerate")],
)
def test_each_loader_gets_its_config_and_launcher(target: str, launcher: str) -> None:
    found = answer("--params", "1B", "--gpus", "8", "--gpu-memory", "80GiB", "--for", target)
    assert launcher in found["launch"][0]
    batch = found["recommended"]["config"]["train_micro_batch_size_per_gpu"]
    assert (batch == "auto") == (target != "deepspeed")


BAD = [
    (["--params", "seventy", "--gpus", "8"], "--params: 'seventy' is not a count"),
    (["--params", "-7B", "--gpus", "8"], "--params: -7B is not a positive number"),
    (["--params", "7B", "--gpus", "0"], "--gpus: 0 is not a positive whole number"),
    (["--params", "7B", "--gpus", "-1"], "--gpus: -1 is not a positive whole number"),
    (["--params", "7B", "--gpus", "8", "--gpu-memory", "-80GiB"], "--gpu-memory: -80GiB is not a positive number"),
    (["--params", "7B", "--gpus", "8", "--gpu", "h10-80gb"], "did you mean"),
    (["--params", "7B"], "--gpus"),
    (["--gpus", "8"], "give either --params SIZE or --model NAME_OR_PATH"),
    (["--model", "missing/config.json", "--gpus", "8"], "missing/config.json"),
    (["--params", "7B", "--gpus", "8", "--global-batch-size", "100"], "nearest: 96 and 104"),
    (["--params", "7B", "--gpus", "8", "--offload", "nvme"], "--offload nvme needs --nvme PATH"),
    (["--params", "7B", "--gpus", "8", "--price", "2"], "--price needs --tokens"),
    (["--params", "7B", "--gpus", "8", "--gpu", "v100-32gb", "--precision", "bf16"], "use --precision fp16"),
    (["--params", "7B", "--gpus", "8", "--gpu-memory", "24"], "--gpu-memory: 24 is 24 bytes; did you mean 24GiB?"),
    (["--params", "7B", "--gpus", "8", "--host-memory", "1024"], "1024 is 1024 bytes; did you mean 1024GiB?"),
    (["--params", "7B", "--gpus", "8", "--nvme", ""], "--nvme: '' is not a path"),
    (["--params", "7B", "--gpus", "8", "--lora-rank", "3585"], "--lora-rank 3585 is more than 3584, the hidden size"),
    (["--params", "7B", "--gpus", "16", "--network", "400"], "--network: '400' has no unit; write it like 400Gbit/s"),
    (["--params", "7B", "--gpus", "16", "--cpu-cores", "0"], "--cpu-cores: 0 is not a positive whole number"),
    (["--params", "7B", "--gpus", "16", "--host-bandwidth", "300GB"], "--host-bandwidth: '300GB' is not a rate"),
]


@pytest.mark.parametrize(("words", "told"), BAD)
def test_a_mistake_is_one_line_and_exit_2(words: list[str], told: str, here: Path) -> None:
    (here / "file").write_text("")
    (here / "full").mkdir()
    (here / "full" / "ds_config.json").write_text("mine")
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert told in result.stderr
    assert sorted(path.name for path in here.rglob("*")) == ["ds_config.json", "file", "full"]
    assert (here / "full" / "ds_config.json").read_text() == "mine"


def test_an_existing_config_is_replaced_only_by_force(here: Path) -> None:
    words, path = ("--params", "125M", "--gpus", "2", "--gpu-memory", "24GiB", "-o", "run"), here / "run/ds_config.json"
    path.parent.mkdir()
    path.write_text("mine")
    refused = run(*words)
    assert refused.exit_code == 2
    assert "Recommended: " in refused.stdout, "what was asked is answered; the writing alone is refused"
    assert "Wrote" not in refused.stdout
    told = "run/ds_config.json already exists; use --force to replace it, or name another folder with -o"
    assert refused.stderr == f"dsconf: {told}\n"
    assert path.read_text() == "mine"
    as_json = run(*words, "--format", "json")
    assert (as_json.exit_code, as_json.stderr) == (2, refused.stderr)
    assert json.loads(as_json.stdout)["files"] == []
    assert run(*words, "--force").exit_code == 0
    written = path.read_text()
    assert json.loads(written)["train_batch_size"] > 0
    again = run(*words)
    assert again.exit_code == 0, "the same answer may be given twice"
    assert path.read_text() == written


def test_a_file_where_the_folder_should_be_leaves_the_answer(here: Path) -> None:
    (here / "file").write_text("")
    result = run("--params", "125M", "--gpus", "2", "--gpu-memory", "24GiB", "-o", "file")
    assert (result.exit_code, result.stderr) == (2, "dsconf: cannot write to file: file is not a folder\n")
    assert "Recommended: " in result.stdout


def test_nothing_is_written_when_the_disk_is_full(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run("--params", "125M", "--gpus", "2", "--gpu-memory", "24GiB", "-o", "a/b")
    assert result.exit_code == 2
    assert result.stderr == "dsconf: cannot write a/b/ds_config.json: No space left on device\n"
    assert "Recommended: " in result.stdout
    assert list(here.iterdir()) == []


def test_the_real_process_prints_the_same(here: Path) -> None:
    words = ["--params", "125M", "--gpus", "2", "--gpu-memory", "24GiB", "--format", "json"]
    process = subprocess.run(
        [sys.executable, "-m", "dsconf", "recommend", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0
    assert process.stderr == ""
    assert json.loads(process.stdout) == answer(*words[:-2])


def test_recommend_loads_no_training_library(here: Path) -> None:
    code = (
        "import sys; from dsconf.search.recommend import recommend; "
        "recommend(params='70B', gpus=8).launch; print(sorted({'torch', 'deepspeed', 'click'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "[]\n"


@pytest.mark.parametrize(
    ("checked", "code", "told"),
    [
        (CheckResult(True, "real", Figures(GIB), Figures(GIB), 0.0, device="a GPU"), 0, "measured peak 1.00 GiB"),
        (
            CheckResult(False, "real", failure=Failure("oom", "out of memory in forward")),
            1,
            "out of memory in forward",
        ),
        (CheckResult(False, "real", failure=Failure("timeout", "ran past 600 s")), 3, "ran past 600 s"),
    ],
)
def test_check_runs_the_winner_and_its_answer_counts(
    checked: CheckResult, code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def check(config: dict[str, Any], **words: Any) -> CheckResult:
        asked.update(words, config=config)
        return checked

    monkeypatch.setattr("dsconf.live.check.check", check)
    words = (
        "--params",
        "125M",
        "--gpus",
        "2",
        "--gpu-memory",
        "24GiB",
        "--seq-len",
        "512",
        "--for",
        "hf",
        "--check",
    )
    result = run(*words)
    assert result.exit_code == code
    assert result.stdout.splitlines()[-1].startswith("Check: ")
    assert told in result.stdout.splitlines()[-1]
    assert asked["config"]["train_batch_size"] > 0, "a launched step has nobody to fill in auto"
    assert asked["gpus"] == 2
    assert asked["seq_len"] == 512
    assert asked["params"] == 125_000_000
    document = json.loads(run(*words, "--format", "json").stdout)
    assert document["check"]["ran"] is checked.ran
