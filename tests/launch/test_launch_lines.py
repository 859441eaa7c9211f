"""The launch lines are what a shell and the launchers' own parsers take."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from launch_jobs import Called, called, launch, parsed

from dsconf.launch.command import launch_lines

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
PLACE = {"NODE_RANK": "1", "MASTER_ADDR": "first"}


def ran(lines: tuple[str, ...], cwd: Path) -> tuple[Called, Namespace]:
    call = called("\n".join(lines), cwd, **PLACE)
    return call, parsed(call)


def test_one_node() -> None:
    assert launch_lines(launch("deepspeed", 4), "run/ds_config.json") == (
        f"{ALLOCATOR} deepspeed --num_gpus 4 train.py --deepspeed --deepspeed_config run/ds_config.json",
    )
    assert launch_lines(launch("hf", 4, checkpointing=True)) == (
        f"{ALLOCATOR} torchrun --standalone --nproc-per-node 4 train.py --deepspeed ds_config.json "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 3 --bf16 --gradient_checkpointing "
        "--max_grad_norm 1.0",
    )
    assert launch_lines(launch("accelerate", 4)) == (
        f"{ALLOCATOR} accelerate launch --use_deepspeed --deepspeed_config_file ds_config.json "
        "--num_processes 4 --num_machines 1 --zero3_init_flag true train.py",
    )


def test_several_nodes() -> None:
    assert launch_lines(launch("deepspeed", 16), "my run/ds_config.json") == (
        f"echo {ALLOCATOR} >> .deepspeed_env",
        "# hostfile has a line for each node: worker-0 slots=8 … worker-1 slots=8",
        "deepspeed --hostfile 'my run/hostfile' train.py --deepspeed --deepspeed_config 'my run/ds_config.json'",
    )
    rendezvous = "--node-rank $NODE_RANK --rdzv-endpoint $MASTER_ADDR:29500"
    torchrun = launch_lines(launch("hf", 16))[0]
    assert torchrun.startswith(f"{ALLOCATOR} torchrun --nnodes 2 {rendezvous} --nproc-per-node 8 train.py ")
    assert launch_lines(launch("accelerate", 16, stage=2)) == (
        f"{ALLOCATOR} accelerate launch --use_deepspeed --deepspeed_config_file ds_config.json --num_processes 16 "
        "--num_machines 2 --deepspeed_multinode_launcher standard --machine_rank $NODE_RANK "
        "--main_process_ip $MASTER_ADDR --main_process_port 29500 train.py",
    )


@pytest.mark.parametrize(("gpus", "nodes"), [(4, 1), (16, 2), (12, 2)])
def test_torchrun_reads_them(gpus: int, nodes: int, tmp_path: Path) -> None:
    call, args = ran(launch_lines(launch("hf", gpus), "my run/ds_config.json"), tmp_path)
    assert call.environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert args.nproc_per_node == str(min(gpus, 8))
    assert args.training_script_args[:2] == ["--deepspeed", "my run/ds_config.json"]
    assert args.standalone == (nodes == 1)
    if nodes > 1:
        assert (args.nnodes, args.node_rank, args.rdzv_backend) == ("2", 1, "static")
        assert args.rdzv_endpoint == "first:29500"


@pytest.mark.parametrize("gpus", [4, 16, 12])
def test_the_deepspeed_launcher_reads_them(gpus: int, tmp_path: Path) -> None:
    call, args = ran(launch_lines(launch("deepspeed", gpus), "my run/ds_config.json"), tmp_path)
    assert args.user_script == "train.py"
    assert args.user_args == ["--deepspeed", "--deepspeed_config", "my run/ds_config.json"]
    if gpus == 4:
        assert args.num_gpus == 4
        assert call.environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    else:
        assert (args.hostfile, args.num_gpus, args.num_nodes) == ("my run/hostfile", -1, -1)
        assert (tmp_path / ".deepspeed_env").read_text() == f"{ALLOCATOR}\n"


@pytest.mark.parametrize("gpus", [4, 16])
def test_accelerate_reads_them_and_starts_every_rank(gpus: int, tmp_path: Path) -> None:
    launching = pytest.importorskip("accelerate.commands.launch")
    _, args = ran(launch_lines(launch("accelerate", gpus), "my run/ds_config.json"), tmp_path)
    args, _, _ = launching._validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ""
    command, environment = launching.prepare_deepspeed_cmd_env(args)
    assert command is None, "with one, Accelerate would call the deepspeed launcher and need a hostfile"
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == "my run/ds_config.json"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "true"
    assert (int(args.nproc_per_node), int(getattr(args, "nnodes", 1) or 1)) == (min(gpus, 8), -(-gpus // 8))


def test_a_last_node_that_is_not_full_is_spelt_out(tmp_path: Path) -> None:
    for target in ("hf", "accelerate"):
        lines = launch_lines(launch(target, 12))
        assert lines[1] == "# on the last node: --nproc-per-node 4"
    assert launch_lines(launch("deepspeed", 12))[1].endswith("worker-0 slots=8 … worker-1 slots=4")
    call, _ = ran(launch_lines(launch("accelerate", 12), "my run/ds_config.json"), tmp_path)
    assert call.words[0] == "torchrun", "accelerate launch would start six ranks on each node"
    assert call.environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert call.environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == "my run/ds_config.json"


@pytest.mark.parametrize("target", ["deepspeed", "hf"])
def test_a_host_optimizer_gets_its_share_of_the_cores(target: str, tmp_path: Path) -> None:
    """The cores of a node over its ranks, rounded up: never none."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "nproc").write_text("#!/bin/sh\necho 96\n")
    (tmp_path / "programs" / "nproc").chmod(0o755)
    call, _ = ran(launch_lines(launch(target, 8, offload_optimizer="cpu")), tmp_path)
    assert call.environment["OMP_NUM_THREADS"] == "12"
    call, _ = ran(launch_lines(launch(target, 1, offload_optimizer="cpu")), tmp_path)
    assert call.environment["OMP_NUM_THREADS"] == "96"
    call, _ = ran(launch_lines(launch(target, 8)), tmp_path)
    assert "OMP_NUM_THREADS" not in call.environment


@pytest.mark.parametrize("target", ["hf", "accelerate"])
def test_sequence_parallelism_is_told_to_accelerate(target: str, tmp_path: Path) -> None:
    parallelism = pytest.importorskip("accelerate.parallelism_config")
    call, _ = ran(launch_lines(launch(target, 8, sequence_parallel=4, attention="flash")), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in call.environment.items():
            if name.startswith("PARALLELISM"):
                patch.setenv(name, value)
        read = parallelism.ParallelismConfig()
    assert call.environment["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
    assert (read.sp_size, read.sp_backend, read.data_parallel_size, read.total_size) == (4, "deepspeed", 2, 8)
    assert read.sp_handler.sp_attn_implementation == "flash_attention_2"
