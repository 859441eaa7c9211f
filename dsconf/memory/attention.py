"""Scaled dot-product attention, as the kernel torch picks on CUDA runs it.

S is b × heads × s² elements of scores. Which kernel runs follows torch's own order (aten/src/ATen/native/transformers/
cuda/sdp_utils.cpp): FlashAttention-2 for 16 bit without a mask, the memory-efficient kernel with a mask or in fp32, and
the plain formula in fp32 where keys and values are shared by several heads and no kernel takes that.
"""

from __future__ import annotations

from typing import NamedTuple

from dsconf.memory.recorder import Recorder


class Heads(NamedTuple):
    """Queries, keys and values of one attention, and how they lie in memory."""

    query: int
    key: int
    value: int
    kv_heads: int
    head_major: bool = False
    """Stored head by head (b, heads, s, dim): FlashAttention's output then is copied back token by token."""
    mask: str = ""
    """Empty: the causal flag. ``bool``: each call turns it into an additive one. ``float``: shared by all layers."""
    repeats: bool = True
    """Keys and values are repeated to all heads before a kernel that cannot group them (repeat_kv)."""
    softmax_fp32: bool = True
    """Eager softmax in fp32; GPT-2 and Falcon stay in the activations' type."""
    adds_in_fp32: bool = False
    """Eager scores are scaled and masked in fp32 before a softmax in the activations' type."""
    dropout_module: str = ""
    """Dropout of the eager weights that is a module."""
    never_drops: bool = False
    """The eager weights pass no dropout whatever the config says."""
    returned: bool = False
    """The layer returns the eager weights."""


def attend(r: Recorder, x: Heads) -> int:
    """Output of the attention, tokens × (heads × head_dim), ready for the output projection."""
    grouped = x.kv_heads != r.model.heads
    size = _size(r)
    some = size * x.kv_heads // r.model.heads
    query, key = r.cast(x.query, "attention query", size), r.cast(x.key, "attention keys", some)
    x = x._replace(query=query, key=key, value=r.cast(x.value, "attention values", some))
    return r.low(_attention(r, x, grouped))


def _attention(r: Recorder, x: Heads, grouped: bool) -> int:
    if runs_eager(r.model.family, r.shape.attention):
        return _eager(r, x)
    if grouped and not x.repeats:
        return _plain(r, x)
    if grouped and x.mask:
        return _fused(r, _repeated(r, x))
    if grouped and r.shape.low == 4:
        return _plain(r, x)
    return _fused(r, x)


def attend_in_fp32(r: Recorder, x: Heads) -> int:
    """GPT-J's and GPT-Neo's own attention, which SDPA does not replace: scores and softmax in fp32, from fp32 copies.

    transformers: GPTJAttention._attn, GPTNeoSelfAttention._attn.
    """
    if r.shape.attention == "flash":
        return _fused(r, x)
    op, size, elements = r.tape.op, _size(r), _scores(r)
    full, scores = 4 * size // r.shape.low, 4 * elements
    query, key = x.query, x.key
    if r.shape.low == 2:
        query, key = op("attention query fp32", [query], full), op("attention keys fp32", [key], full)
    query, key = op("attention query copy", [query], full), op("attention keys copy", [key], full)
    raw = op("attention scores", [query, key], scores, saves=[query, key])
    raw = op("attention scale" if r.model.family == "gptj" else "attention window", [raw], scores)
    raw = op("attention mask", [raw], scores, passes=True)
    weights = r.tape.save_output(op("attention softmax", [raw], scores, backward_workspace=scores))
    if r.shape.low == 2:
        weights = op("attention softmax downcast", [weights], 2 * elements)
    r.visits.append("attn.attn_dropout" if r.model.family == "gptj" else "attn.attention.attn_dropout")
    if r.model.attention_dropout:
        weights = op("attention dropout", [weights], elements * r.shape.low, extra=elements)
    value = op("attention values copy", [x.value], size)
    out = op("attention product", [weights, value], size, saves=[weights, value])
    return op("attention output copy", [out], size)


def runs_eager(family: str, attention: str) -> bool:
    """Whether scores are made one by one: asked for, or the family's only way beside FlashAttention's package."""
    return attention == "eager" or (attention == "sdpa" and family in ("bloom", "gptj", "gpt_neo"))


def _size(r: Recorder) -> int:
    return r.shape.tokens * r.model.heads * r.model.head_dim * r.shape.low


def _scores(r: Recorder) -> int:
    return r.shape.batch * r.model.heads * r.shape.seq * r.shape.seq


def _repeated(r: Recorder, x: Heads) -> Heads:
    key = r.tape.op("repeat keys", [x.key], _size(r))
    value = r.tape.op("repeat values", [x.value], _size(r))
    return x._replace(key=key, value=value, kv_heads=r.model.heads)


def _fused(r: Recorder, x: Heads) -> int:
    """FlashAttention-2 or the memory-efficient kernel: keeps q, k, v, output and log-sum-exp (fp32, b × heads × s)."""
    shape, size = r.shape, _size(r)
    statistics = 4 * shape.batch * r.model.heads * shape.seq
    extra = statistics
    if x.mask == "bool":
        extra += shape.batch * shape.seq * shape.seq * shape.low  # convert_boolean_attn_mask, in every call
    flash = shape.low == 2 and not x.mask
    workspace = statistics + (2 * size if shape.low == 2 else 0)  # dq accumulates in fp32
    if flash and x.kv_heads != r.model.heads:
        workspace += 2 * size  # dk and dv of every head, summed over groups afterwards (mha_bwd)
    inputs = [x.query, x.key, x.value]
    out = r.tape.op("attention kernel", inputs, size, saves=inputs, extra=extra, backward_workspace=workspace)
    r.tape.save_output(out)
    if x.head_major and flash:
        return r.tape.op("attention output copy", [out], size)
    return out


def _plain(r: Recorder, x: Heads) -> int:
    """torch's ``_scaled_dot_product_attention_math``: everything in fp32 and at all heads; the weights are kept."""
    full = 2 * _size(r) if r.shape.low == 2 else _size(r)
    scores = 4 * _scores(r)
    op = r.tape.op
    query = op("attention query fp32", [x.query], full)
    key = op("attention keys fp32", [x.key], full)
    value = op("attention values fp32", [x.value], full)
    raw = op("attention scores", [query, key], scores, saves=[query, key])
    raw = op("attention mask", [raw], scores, passes=True)
    weights = r.tape.save_output(op("attention softmax", [raw], scores, backward_workspace=scores))
    out = op("attention product", [weights, value], full, saves=[weights, value])
    return op("attention output copy", [out], _size(r))


def _eager(r: Recorder, x: Heads) -> int:
    """``eager_attention_forward``: scores, scale, mask, softmax, downcast, dropout, product."""
    shape, size, elements = r.shape, _size(r), _scores(r)
    scores = elements * shape.low
    op, save_output = r.tape.op, r.tape.save_output
    query = op("attention query copy", [x.query], size)
    key = op("attention keys copy", [x.key], size)
    raw = op("attention scores", [query, key], scores, saves=[query, key])
    raw = op("attention scale", [raw], scores)
    if r.model.attention_softcap:
        raw = save_output(op("attention softcap", [raw], scores))
        raw = op("attention softcap scale", [raw], scores)
    masked = raw = op("attention mask", [raw], scores, passes=True)
    if x.adds_in_fp32 and shape.low == 2:
        raw = op("attention scores fp32", [raw], 2 * scores)
        raw = op("attention alibi", [raw], 2 * scores, passes=True)
        raw = op("attention scale", [raw], 2 * scores, reads=[raw])
        raw = op("attention mask", [raw], 2 * scores, passes=True)
        raw = op("attention softmax input", [raw], scores)
        weights = save_output(op("attention softmax", [raw], scores, backward_workspace=scores))
    elif x.softmax_fp32 and shape.low == 2:
        full = 4 * elements
        if not shape.half:
            raw = op("attention softmax input", [raw], full)
        weights = save_output(op("attention softmax", [raw], full, reads=[masked], backward_workspace=full))
        weights = op("attention softmax downcast", [weights], scores, reads=[masked])
    else:
        weights = save_output(op("attention softmax", [raw], scores, backward_workspace=scores))
    if x.dropout_module:
        r.visits.append(x.dropout_module)
    if r.model.attention_dropout and not x.never_drops:
        weights = op("attention dropout", [weights], scores, extra=elements)
    if x.returned:
        r.tape.give_back(weights)
    value = op("attention values copy", [x.value], size)
    out = op("attention product", [weights, value], size, saves=[weights, value])
    return op("attention output copy", [out], size)
