"""Peaks of live tensors of one rank that shares sequences, on the CPU: the cases of tests/measured/cpu-ulysses.jsonl.

``python -m benchmarks.memory.ulysses '{...}'`` measures one case and prints it with what was measured; ``--write``
measures all of the file again. Needs torch, transformers and deepspeed. With ``"gloo": true`` all ranks are real
processes; else the peers of rank 0 are torch's ``fake`` backend, whose collectives move nothing and allocate as much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FILE = Path(__file__).parents[2] / "tests" / "measured" / "cpu-ulysses.jsonl"
ITERATIONS = 3
Case = dict[str, Any]


def measure(case: Case) -> dict[str, int]:
    """Measure the largest bytes of live tensors in forward and backward of rank 0's last iteration."""
    with TemporaryDirectory() as folder:
        ranks = range(case["world"] if case.get("gloo") else 1)
        running = [_start(case, rank, folder) for rank in ranks]
        printed = [process.communicate(timeout=600)[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{case}: a rank failed")
    peaks: dict[str, int] = json.loads(printed[0].splitlines()[-1])
    return peaks


def _start(case: Case, rank: int, folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--rank", str(rank), folder, json.dumps(case)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _run(case: Case, rank: int, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    _join(case, rank, folder)
    from dsconf.live.rank.tracker import LiveTensors

    with LiveTensors() as tracker:
        engine = _engine(case)
        for _ in range(ITERATIONS):
            ids = torch.randint(0, case["model"]["vocab_size"], (case["batch"], case["seq_len"] // case["ranks"]))
            first = rank % case["ranks"] * ids.size(1)
            positions = torch.arange(first, first + ids.size(1))[None].expand(ids.size(0), -1).contiguous()
            tracker.reset_peak()
            loss = engine(input_ids=ids, position_ids=positions, labels=ids, shift_labels=ids).loss
            forward = tracker.peak
            tracker.reset_peak()
            engine.backward(loss)
            backward = tracker.peak
            del loss
            engine.step()
    print(json.dumps({"forward": forward, "backward": backward}), flush=True)
    os._exit(0)


def _join(case: Case, rank: int, folder: str) -> None:
    world = case["world"]
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "LOCAL_SIZE": world}
    os.environ.update({key: str(value) for key, value in named.items()})
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import deepspeed
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if case.get("gloo"):
        place = (Path(folder) / "rendezvous").as_uri()
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    else:
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    deepspeed.init_distributed("gloo" if case.get("gloo") else "fake")


def _engine(case: Case) -> Any:
    import deepspeed
    import torch
    import torch._dynamo  # which transformers imports with the model's class, and which cannot be under zero.Init
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
    from transformers import AutoConfig, AutoModelForCausalLM

    from dsconf.live.rank.sequences import tiled

    config = AutoConfig.for_model(**case["model"], use_cache=False)
    settings = ds_config(case)
    with _typed(torch.bfloat16), deepspeed.zero.Init(config_dict_or_path=settings, enabled=case["stage"] == 3):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if case["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if case["shards"]:
        model.forward = tiled(model, case["shards"])
    groups = UlyssesSPAttentionHF.register_with_transformers(model, "sdpa", case["ranks"], case["batch"])
    return deepspeed.initialize(model=model.train(), config=settings, mpu=groups)[0]


@contextmanager
def _typed(dtype: Any) -> Iterator[None]:
    import torch

    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


def ds_config(case: Case) -> dict[str, Any]:
    """Return the config of ``case``."""
    return {
        "train_micro_batch_size_per_gpu": case["batch"],
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": case["stage"], "reduce_bucket_size": case["bucket"]},
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
    }


def main() -> None:
    """Run what the module's docstring says."""
    if sys.argv[1] == "--rank":
        _run(json.loads(sys.argv[4]), int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "--write":
        rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
        rows = [row | {"measured": measure(row)} for row in rows]
        FILE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        case = json.loads(sys.argv[1])
        print(json.dumps(case | {"measured": measure(case)}))


if __name__ == "__main__":
    main()
