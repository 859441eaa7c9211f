"""Sequences that several ranks share (DeepSpeed's Ulysses), and a loss made in shards.

Both as their classes in DeepSpeed's runtime/sequence_parallel/ulysses_sp.py are meant to be used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad

from dsconf.live.processes.order import Order
from dsconf.memory.layers.tiled_loss import automatic_shards

IGNORED = -100
"""The label that no loss counts (torch.nn.CrossEntropyLoss: ignore_index)."""


def share_sequences(model: Any, order: Order, kernel: str) -> Any:
    """Return the groups of ranks for ``deepspeed.initialize(mpu=…)`` and let ``model`` attend across them; None where
    each rank has whole sequences. ``kernel`` is transformers' name of the attention."""
    if order.sequence_parallel == 1:
        return None
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    whole = getattr(model, "get_base_model", lambda: model)()
    return UlyssesSPAttentionHF.register_with_transformers(
        whole, kernel, order.sequence_parallel, order.workload.micro_batch
    )


def part_of(tokens: torch.Tensor, order: Order) -> dict[str, torch.Tensor]:
    """Return this rank's part of ``tokens`` (sequences × tokens) as a model's inputs; each token is its own label."""
    following = pad(tokens[:, 1:], (0, 1), value=IGNORED)
    length = tokens.size(1) // order.sequence_parallel
    first = order.rank % order.sequence_parallel * length
    here = slice(first, first + length)
    positions = torch.arange(first, first + length, device=tokens.device)
    ids, positions = tokens[:, here].contiguous(), positions[None].expand(tokens.size(0), -1).contiguous()
    return {"input_ids": ids, "labels": ids, "shift_labels": following[:, here].contiguous(), "position_ids": positions}


def tile_loss(model: Any, order: Order) -> None:
    """Have ``model``, a causal model of transformers, make its loss in shards, if ``order`` says so."""
    shards = order.workload.loss_shards
    if shards is None:
        return
    tokens = order.workload.micro_batch * order.workload.seq_len // order.sequence_parallel
    model.forward = tiled(model, shards or automatic_shards(tokens, model.config.vocab_size))


def tiled(model: Any, shards: int) -> Callable[..., Any]:
    """Return the forward of ``model`` with ``TiledFusedLogitsLoss``, used as its docstring has it."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss
    from transformers.modeling_outputs import CausalLMOutput

    head = model.get_output_embeddings()

    def loss_of(this: Any, states: Any, labels: Any) -> Any:
        logits = head(states)
        return this.loss_function(logits, labels=None, vocab_size=this.config.vocab_size, shift_labels=labels)

    def forward(input_ids: Any, labels: Any, shift_labels: Any = None, position_ids: Any = None, **_: Any) -> Any:
        states = model.base_model(input_ids=input_ids, position_ids=position_ids).last_hidden_state
        following = pad(labels[:, 1:], (0, 1), value=IGNORED) if shift_labels is None else shift_labels
        loss = TiledFusedLogitsLoss.apply(loss_of, model, states, following, None, shards, [head.weight], "mean")
        return CausalLMOutput(loss=loss)

    return forward
