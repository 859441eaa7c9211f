"""Prints, as JSON, what DeepSpeed holds between two steps of a tiny model, and at the highest point of a step.

Run as a program with a JSON list of (model's config, ds_config). The process is rank 0 of two; the other rank is
torch's ``fake`` process group. Every live tensor on the CPU is counted. torch's optimizers are told that they may
use lists of tensors here, as they do on a GPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any


def run(config: dict[str, Any], ds_config: dict[str, Any]) -> dict[str, int]:
    """Bytes after the third step, and most bytes in it."""
    import deepspeed
    import torch
    import transformers

    from dsconf.live.rank.tracker import LiveTensors

    tracker = LiveTensors()
    with tracker:
        of = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        dtype = torch.bfloat16 if "bf16" in ds_config else torch.float32
        model = transformers.AutoModelForCausalLM.from_config(of, dtype=dtype)
        parameters = list(model.parameters())
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=parameters, config=ds_config, dist_init_required=False
        )
        ids = torch.zeros((1, 8), dtype=torch.long)
        for _ in range(3):
            loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
            engine.backward(loss)
            del loss
            gc.collect()
            tracker.reset_peak()
            engine.step()
        found = {"rest": tracker.now, "step": tracker.peak}
        engine.destroy()
    return found


if __name__ == "__main__":
    os.environ.update(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    import torch.distributed
    from torch.optim import Optimizer
    from torch.testing._internal.distributed.fake_pg import FakeStore

    # torch.optim deletes the name of this module of its own.
    base: Any = sys.modules[Optimizer.__module__]
    base._get_foreach_kernels_supported_devices = lambda: ["cpu"]
    torch.distributed.init_process_group(backend="fake", rank=0, world_size=2, store=FakeStore())
    print(json.dumps([run(*case) for case in json.loads(sys.argv[1])]))
