"""Logits and loss made shard by shard, backward included: DeepSpeed's ``TiledFusedLogitsLoss``.

Its forward runs output projection, loss and their backward for one shard of the tokens after another, so that neither
logits nor what the loss saves outlive a shard. It keeps the gradient of the hidden states, which it makes first; the
output projection's gradient adds up in place (runtime/sequence_parallel/ulysses_sp.py:1126-1223 of DeepSpeed 0.19.8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconf.memory.autograd.figures import Shape
from dsconf.memory.layers.embedding_and_head import TIED, record_final_norm, record_projection
from dsconf.memory.layers.recorder import LayerRecorder

if TYPE_CHECKING:
    from dsconf.memory.autograd.tape import Played, Tape
    from dsconf.model.spec import Model, Param

SHARD_BYTES = 2**30
"""fp32 logits of one shard where nobody says how many shards: the rule of ArcticTraining (trainer/sft_trainer.py)."""


def automatic_shards(tokens: int, vocab: int) -> int:
    """Return as many shards of ``tokens`` as leave each at most 1 GiB of fp32 logits."""
    return max(1, -(-4 * tokens * vocab // SHARD_BYTES))


def tiled_head(model: Model, shape: Shape) -> Played:
    """Record final norm, output projection and loss; the projection's gradients arrive in forward, before the norm's.

    Beside a shard are what the norm saved, the hidden states and their gradient. Backward starts with that gradient.
    """
    states, rows = _states(model, shape), -(-shape.tokens // shape.loss_shards)
    norm, y = _norm(model, shape)
    outside = norm.play([y])
    shard = LayerRecorder(model, shape._replace(batch=1, seq=rows), _ends(model))
    record_projection(shard, x := shard.tape.tensor(rows * model.hidden * shape.width), shifted=True)
    inside = shard.tape.play([x])
    beside = outside.saved + 2 * states
    # A shard is a view of the hidden states, which are counted already.
    highest = max(inside.forward_peak - shard.tape.size(x), inside.backward.grads_freed - inside.saved_input)
    return outside._replace(
        saved=outside.saved + states,
        forward=[*outside.forward, beside + highest],
        grads=(*(g._replace(live=beside + g.live) for g in inside.grads), *outside.grads),
    )


def tiled_keeps(model: Model, shape: Shape) -> tuple[tuple[str, int], ...]:
    """Return what is kept from forward to backward, by operation."""
    norm, _ = _norm(model, shape)
    return (*norm.keeps(), ("gradient of the hidden states", _states(model, shape)))


def _norm(model: Model, shape: Shape) -> tuple[Tape, int]:
    r = LayerRecorder(model, shape, _ends(model))
    record_final_norm(r, y := r.tape.tensor(_states(model, shape)))
    return r.tape, y


def _ends(model: Model) -> tuple[Param, ...]:
    return (*model.parameters.before, *model.parameters.after)


def _states(model: Model, shape: Shape) -> int:
    return shape.tokens * model.hidden * shape.width


def added_up(head: Played, shape: Shape) -> int:
    """Return the bytes of the output projection's gradient so far, beside that of a later shard."""
    if shape.loss_shards < 2:
        return 0
    return sum(g.num_bytes for g in head.grads if g.param.startswith(("lm_head.", TIED)))
