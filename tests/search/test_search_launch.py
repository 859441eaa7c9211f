"""The launch lines are the launchers' own options."""

from __future__ import annotations

import pytest
from search_fakes import FAKES, fake_cluster, fake_model

from dsconf.search.candidates import Candidate, examine
from dsconf.search.launch import launch_lines
from dsconf.search.space import Wish, combinations

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"


def candidate(gpus: int, stage: int = 3, checkpointing: bool = False) -> Candidate:
    model, cluster = fake_model(), fake_cluster(gpus)
    wish = Wish(stage=stage, offload="none", checkpointing=checkpointing, global_batch=gpus * 6, micro_batch=2)
    found = examine(model, cluster, combinations(model, cluster, wish), FAKES).candidates
    return next(c for c in found if c.settings.engine == "deepspeed")


def test_one_node() -> None:
    assert launch_lines(candidate(4), "deepspeed", "run/ds_config.json") == (
        f"{ALLOCATOR} deepspeed --num_gpus 4 train.py --deepspeed --deepspeed_config run/ds_config.json",
    )
    assert launch_lines(candidate(4, checkpointing=True), "hf") == (
        f"{ALLOCATOR} torchrun --nproc_per_node 4 train.py --deepspeed ds_config.json "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 3 --bf16 --gradient_checkpointing "
        "--max_grad_norm 1.0",
    )
    assert launch_lines(candidate(4), "accelerate") == (
        f"{ALLOCATOR} accelerate launch --use_deepspeed --deepspeed_config_file ds_config.json "
        "--num_processes 4 --num_machines 1 --zero3_init_flag true train.py",
    )


def test_several_nodes() -> None:
    assert launch_lines(candidate(16), "deepspeed") == (
        f"echo {ALLOCATOR} >> .deepspeed_env",
        "deepspeed --hostfile hostfile --num_nodes 2 --num_gpus 8 train.py --deepspeed "
        "--deepspeed_config ds_config.json",
    )
    rendezvous = "--rdzv_backend c10d --rdzv_endpoint $MASTER_ADDR:29500"
    torchrun = launch_lines(candidate(16), "hf")[0]
    assert torchrun.startswith(f"{ALLOCATOR} torchrun --nnodes 2 --nproc_per_node 8 {rendezvous} train.py ")
    assert launch_lines(candidate(16, stage=2), "accelerate") == (
        f"{ALLOCATOR} accelerate launch --use_deepspeed --deepspeed_config_file ds_config.json --num_processes 16 "
        "--num_machines 2 --machine_rank $NODE_RANK --main_process_ip $MASTER_ADDR --main_process_port 29500 "
        "train.py",
    )


def test_a_last_node_that_is_not_full_is_spelt_out() -> None:
    lines = launch_lines(candidate(12), "hf")
    assert lines[0].startswith(f"{ALLOCATOR} torchrun --nnodes 2 --nproc_per_node 8 ")
    assert lines[1] == "# on the last node: --nproc_per_node 4"
    lines = launch_lines(candidate(12), "deepspeed")
    assert lines[1] == "printf 'node1 slots=8\\nnode2 slots=4\\n' > hostfile  # the names of your nodes"
    assert lines[2] == "deepspeed --hostfile hostfile train.py --deepspeed --deepspeed_config ds_config.json"


@pytest.mark.parametrize("target", ["deepspeed", "hf", "accelerate"])
def test_a_path_with_a_space_is_quoted(target: str) -> None:
    assert "'my run/ds_config.json'" in launch_lines(candidate(2), target, "my run/ds_config.json")[-1]
