"""Attention of ranks that share each sequence (Ulysses), as DeepSpeed's ``UlyssesSPAttentionHF`` runs it.

Outside attention a rank holds its share of the tokens; inside it all tokens, with its share of the heads. s and H are
the rank's own tokens and all heads, so that one tensor of queries has b × s × H × head_dim elements on either side.
Line references are to runtime/sequence_parallel/ulysses_sp.py of DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsconf.memory.layers.recorder import LayerRecorder

if TYPE_CHECKING:
    from dsconf.memory.layers.recorder import Heads

POSITION_BYTES = 8


def shared_attention(r: LayerRecorder, x: Heads, kernel: Callable[[LayerRecorder, Heads], int]) -> int:
    """Record queries, keys and values exchanged, ``kernel`` over whole sequences, its output exchanged back (231-358).

    The layer's variables keep what it handed in until its output projection is done, though nothing saves it; those of
    the exchange keep what the kernel was given, and whole position ids, gathered as a list and joined (290-292).
    """
    ranks, model = r.shape.ranks, r.model
    heads, kv_heads = model.heads // ranks, max(1, model.kv_heads // ranks)
    r.refer(x.query, x.key, x.value)
    positions = r.tape.op("gathered positions", [], 2 * POSITION_BYTES * r.shape.tokens * ranks)
    query = _sent(r, x.query, "query", heads, model.heads)
    key = _sent(r, x.key, "keys", kv_heads, x.kv_heads)
    value = _sent(r, x.value, "values", kv_heads, x.kv_heads)
    query = _by_head(r, query, "query", heads)
    key, value = _by_head(r, key, "keys", kv_heads), _by_head(r, value, "values", kv_heads)
    size = r.size(query, model.heads * model.head_dim)
    inside = x._replace(query=query, key=key, value=value, kv_heads=kv_heads * ranks, head_major=False, mask="")
    if r.shape.low == 2:
        # FlashAttention's backward wants its output and that gradient token by token
        # (attention_backward.cu: _flash_attention_backward).
        copies = (heads > 1) + (r.shape.batch > 1)
        inside = inside._replace(backward_copies=copies * size)
    return _received(r, kernel(r, inside), heads, [positions, query, key, value])


def _sent(r: LayerRecorder, x: int, name: str, heads: int, all_heads: int) -> int:
    """Exchange shares of the heads for shares of the tokens; ``heads`` per rank, of ``all_heads`` (178-211).

    Keys or values of fewer heads than ranks are repeated. The gradient comes back head by head and is put in order for
    the exchange (sequence/layer.py: _dim_zero_all_to_all_backward), and again where a rank has several heads.
    """
    op, ranks, low = r.tape.op, r.shape.ranks, x in r.low_tensors
    size = r.size(x, max(all_heads, ranks) * r.model.head_dim)
    if all_heads < ranks:
        x = op(f"{name} of every rank", [x], size)
    x = op(f"{name} by rank", [x], size, in_place_grad=heads == 1)
    ordered = heads * r.shape.batch == 1
    x = op(f"{name} exchanged", [x], size, backward_workspace=0 if ordered else size)
    return r.low(x) if low else x


def _by_head(r: LayerRecorder, x: int, name: str, heads: int) -> int:
    """Lay out all tokens head by head (309-311): a copy, unless there is one head and one sequence."""
    if heads * r.shape.batch == 1:
        return x
    y = r.tape.op(f"{name} by head", [x], r.size(x, heads * r.shape.ranks * r.model.head_dim), in_place_grad=True)
    return r.low(y) if x in r.low_tensors else y


def _received(r: LayerRecorder, out: int, heads: int, variables: list[int]) -> int:
    """Return the output with all heads for the rank's own tokens (213-229, 345-358), ready for the output projection.

    Copied token by token as the kernel left it head by head; with several sequences also for the exchange and after
    it. The gradients of these copies are views; the exchange back makes one copy in the order of ranks.
    """
    op, several = r.tape.op, r.shape.batch > 1
    size = r.shape.tokens * r.model.heads * r.model.head_dim * r.shape.low
    flash = r.shape.low == 2
    context = op("attention output copy", [out], size, in_place_grad=True) if flash and heads > 1 else out
    own = op("attention output by rank", [context], size, in_place_grad=True) if several else context
    back = op("attention output exchanged", [own], size, backward_workspace=size)
    joined = op("attention output of all heads", [back], size, reads=[context, own, *variables], in_place_grad=True)
    return op("attention output rows", [joined], size, in_place_grad=True) if several else joined
