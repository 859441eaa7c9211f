"""What the HF Trainer and Accelerate make of the files of a folder: ``python consumers.py CASES.json``.

A case is a folder with the arguments or the environment that its launcher gave, and the world size to answer for.
Each runs in a fork of its own, since both keep their state in the process; one line of JSON for each is printed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import deepspeed
import torch
from accelerate.utils import DummyOptim, InitProcessGroupKwargs
from transformers import HfArgumentParser, TrainingArguments

HIDDEN = 64
FIELDS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16"),
    *("gradient_checkpointing", "deepspeed"),
)


def of_trainer(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The config after the Trainer's two passes, and the fields as the file and as the flags set them."""
    TrainingArguments.world_size = property(lambda self: case["world_size"])
    on_cpu = {"use_cpu": True, "output_dir": str(folder / "out")}
    values = json.loads((folder / "training_args.json").read_text()) | on_cpu
    (folder / "on_cpu.json").write_text(json.dumps(values))
    parser = HfArgumentParser(TrainingArguments)
    (args,) = parser.parse_json_file(folder / "on_cpu.json")
    (as_yaml,) = parser.parse_yaml_file(folder / "on_cpu.json")
    flags = [*case["flags"], "--use_cpu", "true", "--output_dir", str(folder / "out")]
    (told,) = parser.parse_args_into_dataclasses(args=flags)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=HIDDEN))
    args.hf_deepspeed_config.trainer_config_finalize(args, model, num_training_steps=10)
    read = {"file": args, "yaml": as_yaml, "flags": told}
    fields = {name: {field: getattr(one, field) for field in FIELDS} for name, one in read.items()}
    return {"config": args.hf_deepspeed_config.config, "dtype": str(args.hf_deepspeed_config.dtype()), **fields}


def of_accelerate(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The config that Accelerate gives to ``deepspeed.initialize``, after reading the launcher's environment."""
    os.environ.update(case["environment"])
    given: dict[str, Any] = {}

    def initialize(**words: Any) -> None:
        given.update(words)
        raise InterruptedError

    deepspeed.initialize = initialize
    accelerate.Accelerator.num_processes = property(lambda self: case["world_size"])
    accelerator = accelerate.Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    model = torch.nn.Linear(2, 2)
    loader = torch.utils.data.DataLoader([torch.ones(2)] * 8, batch_size=case["micro_batch"])
    with suppress(InterruptedError):
        accelerator.prepare(model, DummyOptim(model.parameters(), lr=5e-5), loader)
    return {
        "config": given["config_params"],
        "mixed_precision": accelerator.mixed_precision,
        "accumulation": accelerator.gradient_accumulation_steps,
        "zero3_init": accelerator.state.deepspeed_plugin.is_zero3_init_enabled(),
    }


def in_fork(read: Callable[[], dict[str, Any]]) -> str:
    """One line of JSON from a process of its own, which is rank 0 of a world of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            answer = read()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(theirs, json.dumps(answer).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        line = pipe.read()
    os.waitpid(child, 0)
    return line


if __name__ == "__main__":
    import_module("transformers.integrations.deepspeed")  # once, before the forks
    # Nothing is sent; each fork would load it for a second. deepspeed.comm.torch, as an attribute, is torch itself.
    vars(import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    for case in json.loads(Path(sys.argv[1]).read_text()):
        read = of_trainer if "flags" in case else of_accelerate
        print(in_fork(lambda case=case, read=read: read(Path(case["folder"]), case)), flush=True)
