"""Prints the traced activations of models under ``UlyssesSPAttentionHF``, as JSON; run in a process of its own.

``python traced_by_ulysses.py RANKS '[[config, batch, own tokens], …]'``. The peers are torch's ``fake`` backend: sizes
are all that a trace needs.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """As the module says."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    ranks = int(sys.argv[1])
    import deepspeed
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    deepspeed.init_distributed("fake")
    print(json.dumps([_traced(ranks, *case) for case in json.loads(sys.argv[2])]), flush=True)
    os._exit(0)  # the fake backend has nothing to wait for


def _traced(ranks: int, config: dict[str, Any], batch: int, tokens: int) -> dict[str, Any]:
    import torch
    from deepspeed.runtime.sequence_parallel import parallel_state_sp
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from dsconf.memory.autograd.figures import Shape
    from dsconf.memory.layers.activations import activations
    from dsconf.memory.trace.module import read_module

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="sdpa")
    parallel_state_sp._release_sequence_parallel_groups()
    UlyssesSPAttentionHF.register_with_transformers(model, "sdpa", ranks, batch)
    ids = torch.zeros(batch, tokens, dtype=torch.int64)
    positions = torch.arange(tokens)[None].expand(batch, -1).contiguous()
    traced = read_module(model, {"input_ids": ids, "labels": ids, "shift_labels": ids, "position_ids": positions})
    found = activations(traced, Shape(batch, tokens, 2, False, "sdpa"), "")
    ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
    return found._asdict()


if __name__ == "__main__":
    main()
