"""Each file of a written folder, read by the one it is for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch_jobs import called, launch, parsed, write_folder

from dsconf.config.render import accelerate_yaml
from dsconf.launch.folder import launch_files
from dsconf.launch.plan import launch_of

TARGETS = ("deepspeed", "hf", "accelerate")
PLACE = {"NODE_RANK": "1", "MASTER_ADDR": "first"}
ALL = [
    (target, gpus, offload, sharing)
    for target in TARGETS
    for gpus in (1, 8, 12, 16)
    for offload, sharing in (("none", 1), ("cpu", 4 if gpus > 1 else 1))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a space in its name, and the training script beside it."""
    (tmp_path / "train.py").write_text("")
    return tmp_path / "my run"


def start(folder: Path, words: str = "train.py --seed 1", **environment: str) -> Any:
    call = called(f"bash '{folder}/launch.sh' {words}", folder.parent, **PLACE, **environment)
    return call, parsed(call)


def test_which_files_there_are() -> None:
    names = {target: set(launch_files(launch(target, 8), "run", "ds_config.json")) for target in TARGETS}
    assert names["deepspeed"] == {"launch.sh"}
    assert names["hf"] == {"launch.sh", "training_args.json"}
    assert names["accelerate"] == {"launch.sh", "accelerate.yaml"}
    for target in TARGETS:
        several = launch_files(launch(target, 16), "run", "ds_config.json", slurm=True)
        assert set(several) - names[target] - {"slurm.sh"} == ({"hostfile"} if target == "deepspeed" else set())
    assert "accelerate.yaml" not in launch_files(launch("accelerate", 12), "run", "ds_config.json")


@pytest.mark.parametrize("gpus", [1, 4, 16, 12])
def test_launch_sh_for_torchrun(gpus: int, folder: Path) -> None:
    write_folder(launch("hf", gpus, checkpointing=True, offload_optimizer="cpu"), folder)
    call, args = start(folder)
    assert args.training_script == "train.py"
    assert args.training_script_args == [
        *("--deepspeed", f"{folder}/ds_config.json", "--per_device_train_batch_size", "2"),
        *("--gradient_accumulation_steps", "3", "--bf16", "--gradient_checkpointing", "--max_grad_norm", "1.0"),
        *("--seed", "1"),
    ], "a person's own arguments come last, where they win"
    assert call.environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert int(call.environment["OMP_NUM_THREADS"]) >= 1
    last = {16: 8, 12: 4}
    assert args.nproc_per_node == str(last.get(gpus, gpus)), "this is the last node"
    assert args.standalone == (gpus < 9)
    if gpus > 8:
        assert (args.nnodes, args.node_rank, args.rdzv_endpoint) == ("2", 1, "first:29500")


@pytest.mark.parametrize("gpus", [4, 16, 12])
def test_launch_sh_for_the_deepspeed_launcher(gpus: int, folder: Path) -> None:
    write_folder(launch("deepspeed", gpus), folder)
    _, args = start(folder)
    assert args.user_script == "train.py"
    assert args.user_args == ["--deepspeed", "--deepspeed_config", f"{folder}/ds_config.json", "--seed", "1"]
    if gpus == 4:
        assert args.num_gpus == 4
        return
    assert (args.hostfile, args.num_gpus) == (f"{folder}/hostfile", -1)
    start(folder)
    told = (folder.parent / ".deepspeed_env").read_text()
    assert told == "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True\n", "once, however often it is started"


SCRIPT = """
import argparse, json, os, deepspeed
parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int, default=-1)
args = deepspeed.add_config_arguments(parser).parse_args()
rank, stage = os.environ["LOCAL_RANK"], json.load(open(args.deepspeed_config))["zero_optimization"]["stage"]
with open("started" + rank, "w") as log:
    log.write(f"{stage} {args.local_rank}")
"""


@pytest.mark.launch
def test_a_script_as_the_head_describes_it_starts(folder: Path) -> None:
    """Under the real deepspeed launcher, on two ranks."""
    pytest.importorskip("deepspeed")
    write_folder(launch("deepspeed", 2), folder)
    (folder.parent / "train.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(folder / "launch.sh"), "train.py"]
    done = subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(folder.parent / f"started{rank}").read_text() for rank in (0, 1)] == ["3 0", "3 1"]


def test_the_deepspeed_launcher_reads_the_hostfile(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        runner = pytest.importorskip("deepspeed.launcher.runner")
    write_folder(launch("deepspeed", 20), folder)
    nodes = runner.fetch_hostfile(str(folder / "hostfile"))
    assert nodes == {"worker-0": 8, "worker-1": 8, "worker-2": 4}
    assert sum(map(len, runner.parse_inclusion_exclusion(nodes, "", "").values())) == 20


@pytest.mark.parametrize("gpus", [4, 16])
def test_launch_sh_for_accelerate(gpus: int, folder: Path) -> None:
    launching = pytest.importorskip("accelerate.commands.launch")
    write_folder(launch("accelerate", gpus), folder)
    _, args = start(folder)
    args, defaults, precision_from_file = launching._validate_launch_command(args)
    assert not precision_from_file, "Accelerate refuses a precision beside a deepspeed_config_file"
    assert args.use_deepspeed
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    command, environment = launching.prepare_deepspeed_cmd_env(args)
    assert command is None
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == f"{folder}/ds_config.json"
    assert args.training_script_args == ["--seed", "1"]
    assert int(args.nproc_per_node) == min(gpus, 8)
    if gpus > 8:
        assert (args.nnodes, args.node_rank, args.rdzv_endpoint) == ("2", 1, "first:29500")


def test_accelerates_own_loader_reads_the_yaml(tmp_path: Path) -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    path = tmp_path / "accelerate.yaml"
    words = {"world_size": 16, "nodes": 2, "zero3_init": True, "sequence_parallel": 4, "attention": "flash_attention_2"}
    path.write_text(accelerate_yaml("é 😀: #'\"/ds_config.json", **words), encoding="utf-8")
    read = config_args.load_config_from_file(str(path))
    assert read.deepspeed_config == {
        "deepspeed_config_file": "é 😀: #'\"/ds_config.json",
        "zero3_init_flag": True,
        "deepspeed_multinode_launcher": "standard",
    }
    assert (read.num_machines, read.num_processes, read.machine_rank) == (2, 16, 0)
    assert (read.main_process_ip, read.main_process_port) == ("worker-0", 29500)
    assert (read.distributed_type, read.mixed_precision) == ("DEEPSPEED", None)
    launching = pytest.importorskip("accelerate.commands.launch")
    args = launching.launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    args, _, _ = launching._validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = launching.prepare_deepspeed_cmd_env(args)
    assert environment["PARALLELISM_CONFIG_SP_SIZE"] == "4"
    assert environment["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == "4"
    assert environment["PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION"] == "flash_attention_2"


@pytest.mark.parametrize("key", ["mixed_precision", "gradient_clipping", "zero_stage", "offload_optimizer_device"])
def test_accelerate_refuses_what_the_yaml_leaves_out(key: str) -> None:
    """What the YAML's comment says: precision, stage and offload may not stand beside a deepspeed_config_file."""
    dataclasses = pytest.importorskip("accelerate.utils.dataclasses")
    assert key not in accelerate_yaml("ds_config.json", world_size=16, nodes=2, zero3_init=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_CONFIG_DS_FIELDS", f"deepspeed_config_file,{key}")
        with pytest.raises(ValueError, match="will be ignored"):
            dataclasses.DeepSpeedPlugin._deepspeed_config_checks(None)
        patch.setenv(
            "ACCELERATE_CONFIG_DS_FIELDS", "deepspeed_config_file,zero3_init_flag,deepspeed_multinode_launcher"
        )
        dataclasses.DeepSpeedPlugin._deepspeed_config_checks(None)


def test_without_a_training_script_nothing_starts(folder: Path) -> None:
    write_folder(launch("hf", 4), folder)
    done = subprocess.run(
        ["bash", f"{folder}/launch.sh", "trian.py"], cwd=folder.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "launch.sh: there is no trian.py; usage: bash launch.sh TRAINING_SCRIPT [its arguments]\n"


def test_a_node_that_does_not_know_which_it_is_says_so(folder: Path) -> None:
    write_folder(launch("hf", 16), folder)
    for known, missing in ({"NODE_RANK": "0"}, "MASTER_ADDR"), ({"MASTER_ADDR": "first"}, "NODE_RANK"):
        done = subprocess.run(
            ["bash", f"{folder}/launch.sh"], cwd=folder.parent, env=known, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert f"{missing}: is " in done.stderr


def test_what_the_person_has_set_stays(folder: Path) -> None:
    write_folder(launch("hf", 4, offload_optimizer="cpu"), folder)
    call, _ = start(folder, PYTORCH_CUDA_ALLOC_CONF="garbage_collection_threshold:0.8", OMP_NUM_THREADS="3")
    assert call.environment["PYTORCH_CUDA_ALLOC_CONF"] == "garbage_collection_threshold:0.8"
    assert call.environment["OMP_NUM_THREADS"] == "3"


def test_every_script_is_clean(tmp_path: Path) -> None:
    """bash parses each, and shellcheck has nothing to say, not even on style."""
    scripts = []
    for number, (target, gpus, offload, sharing) in enumerate(ALL):
        place = tmp_path / str(number)
        write_folder(launch(target, gpus, offload_optimizer=offload, sequence_parallel=sharing), place, slurm=True)
        scripts += [place / "launch.sh", place / "slurm.sh"]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        lines = script.read_text().replace(str(script.parent), "run").splitlines()
        assert max(map(len, lines)) <= 120
    shellcheck = shutil.which(
        "shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "--severity=style", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_models_name_cannot_leave_its_comment() -> None:
    """It comes from a config.json, which somebody else may have written."""
    job = launch("hf", 4)
    title = launch_of_title("innocent\nrm -rf ~ #")
    files = launch_files(job._replace(title=title), "run", "ds_config.json", slurm=True)
    for name in ("launch.sh", "slurm.sh"):
        assert [line for line in files[name].splitlines() if "rm -rf" in line] == ["# innocent rm -rf ~ #"]


def launch_of_title(title: str) -> str:
    from search_fakes import fake_cluster, fake_model

    from dsconf.job import Job

    job = launch("hf", 4)
    return launch_of(Job(fake_model(), fake_cluster(4), job.settings, job.workload), "hf", title).title
