"""Prints, as JSON, what DeepSpeed holds gathered in each layer of a tiny model's third step.

Run as a program with a JSON list of (model's config, zero_optimization block). The process is rank 0 of two; the
other rank is torch's ``fake`` process group, whose collectives move nothing, so every decision of DeepSpeed is real.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

LAYER = "model.layers."


def run(config: dict[str, Any], zero: dict[str, Any]) -> dict[str, Any]:
    """Elements gathered or being gathered: most in each layer forward, at the loss, and after backward."""
    import deepspeed
    import torch
    import transformers
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    family = config.pop("model_type")
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **config))
    ds_config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, **zero},
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, dist_init_required=False)
    parameters = list(engine.module.parameters())

    def gathered() -> int:
        return sum(p.ds_numel for p in parameters if p.ds_status != ZeroParamStatus.NOT_AVAILABLE)

    layers = [0] * config["num_hidden_layers"]
    for name, module in engine.module.named_modules():
        if name.startswith(LAYER):
            number = int(name[len(LAYER) :].split(".")[0])

            def entered(*_: Any, number: int = number) -> None:
                layers[number] = max(layers[number], gathered())

            module.register_forward_pre_hook(entered)
    found: dict[str, Any] = {}
    ids = torch.zeros((1, 8), dtype=torch.long)
    for _ in range(3):
        layers[:] = [0] * len(layers)
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        found = {"forward": list(layers), "loss": gathered()}
        engine.backward(loss)
        found["end"] = gathered()
        engine.step()
    return found


if __name__ == "__main__":
    os.environ.update(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    import torch.distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group(backend="fake", rank=0, world_size=2, store=FakeStore())
    print(json.dumps([run(*case) for case in json.loads(sys.argv[1])]))
