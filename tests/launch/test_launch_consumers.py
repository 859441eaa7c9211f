"""What the HF Trainer and Accelerate make of a written folder is what was recommended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch_jobs import called, launch, parsed, write_folder

from dsconf.config.render import render

HERE = Path(__file__).parent
NODE = {"NODE_RANK": "0", "MASTER_ADDR": "first"}
# name: (who loads it, GPUs, what is special about it)
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "hf-zero3": ("hf", 8, {"stage": 3, "checkpointing": True, "gradient_clipping": 0.5}),
    "hf-zero2-fp16": ("hf", 16, {"stage": 2, "precision": "fp16", "offload_optimizer": "cpu"}),
    "hf-zero1-fp32": ("hf", 1, {"stage": 1, "precision": "fp32"}),
    "accelerate-zero3": ("accelerate", 8, {"stage": 3, "gradient_clipping": 0.5, "offload_optimizer": "cpu"}),
    "accelerate-zero2-fp16": ("accelerate", 16, {"stage": 2, "precision": "fp16"}),
    "accelerate-uneven": ("accelerate", 12, {"stage": 3, "bf16_master": True, "bf16_optimizer_states": True}),
}


def environment_of_launch(words: list[str]) -> dict[str, str]:
    """What ``accelerate launch`` puts into the environment of every rank."""
    launching = pytest.importorskip("accelerate.commands.launch")
    args, defaults, from_config = launching._validate_launch_command(
        launching.launch_command_parser().parse_args(words)
    )
    assert not from_config
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    command, environment = launching.prepare_deepspeed_cmd_env(args)
    assert command is None
    return {name: value for name, value in environment.items() if name.startswith("ACCELERATE")}


def case(name: str, folder: Path) -> dict[str, Any]:
    target, gpus, fields = CASES[name]
    job = launch(target, gpus, **fields)
    write_folder(job, folder)
    call = called(f"bash {folder}/launch.sh train.py", folder, **NODE)
    said: dict[str, Any] = {"folder": str(folder), "world_size": gpus, "micro_batch": 2}
    if target == "hf":
        return said | {"flags": parsed(call).training_script_args}
    if call.words[0] == "accelerate":
        return said | {"environment": environment_of_launch(call.words[2:])}
    return said | {
        "environment": {name: value for name, value in call.environment.items() if name.startswith("ACCELERATE")}
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One process for all: importing the libraries is what takes time."""
    pytest.importorskip("transformers")
    pytest.importorskip("deepspeed")
    home = tmp_path_factory.mktemp("consumers")
    for name in CASES:
        (home / name).mkdir()
        (home / name / "train.py").write_text("")
    (home / "cases.json").write_text(json.dumps([case(name, home / name) for name in CASES]))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(HERE / "consumers.py"), str(home / "cases.json")]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(CASES, map(json.loads, lines), strict=True))


def recommended(name: str) -> dict[str, Any]:
    """The config with every value filled in, as plain DeepSpeed gets it."""
    _, gpus, fields = CASES[name]
    config: dict[str, Any] = json.loads(render(launch("deepspeed", gpus, **fields).settings, "deepspeed"))
    return config


def without_loaders_own(config: dict[str, Any]) -> dict[str, Any]:
    """Accelerate turns DeepSpeed's own printing off, and adds the precision blocks that are missing as disabled."""
    assert config["steps_per_print"] == float("inf")
    off = {"enabled": False}
    return {key: value for key, value in config.items() if key != "steps_per_print" and value != off}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_auto_and_all_is_as_recommended(name: str, answers: dict[str, dict[str, Any]]) -> None:
    assert "error" not in answers[name], answers[name]["error"]
    config = answers[name]["config"]
    assert "auto" not in json.dumps(config)
    wanted = {key: value for key, value in recommended(name).items() if value != {"enabled": False}}
    assert without_loaders_own(config) == wanted


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("hf")])
def test_the_arguments_file_and_the_flags_say_the_same(name: str, answers: dict[str, dict[str, Any]]) -> None:
    found, (_, _, fields) = answers[name], CASES[name]
    assert found["file"] == found["yaml"]
    assert {**found["file"], "deepspeed": ""} == {**found["flags"], "deepspeed": ""}
    assert Path(found["file"]["deepspeed"]).samefile(found["flags"]["deepspeed"])
    assert found["file"]["gradient_checkpointing"] == fields.get("checkpointing", False)
    assert found["dtype"] == {"fp16": "torch.float16", "fp32": "torch.float32"}.get(
        fields.get("precision", "bf16"), "torch.bfloat16"
    )


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("accelerate")])
def test_accelerate_takes_precision_and_accumulation_from_the_config(
    name: str, answers: dict[str, dict[str, Any]]
) -> None:
    """Left "auto", both would be what the launch command says, which is fp32 and 1."""
    found, (_, _, fields) = answers[name], CASES[name]
    assert found["mixed_precision"] == fields.get("precision", "bf16")
    assert found["accumulation"] == 3
    assert found["zero3_init"] == (fields["stage"] == 3)
