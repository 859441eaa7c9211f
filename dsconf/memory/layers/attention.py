"""Scaled dot-product attention, as the kernel torch picks on CUDA runs it.

S is b × heads × s² elements of scores. Which kernel runs follows torch's own order (aten/src/ATen/native/transformers/
cuda/sdp_utils.cpp): FlashAttention-2 for 16 bit without a mask, the memory-efficient kernel with a mask or in fp32, and
the plain formula in fp32 where keys and values are shared by several heads and no kernel takes that.
"""

from __future__ import annotations

from dsconf.memory.layers.recorder import Heads, LayerRecorder
from dsconf.memory.layers.ulysses import shared_attention
from dsconf.model.attention import runs_eager


def attend(r: LayerRecorder, x: Heads) -> int:
    """Output of the attention, tokens × (heads × head_dim), ready for the output projection."""
    return _attend(r, x) if r.shape.ranks == 1 else shared_attention(r, x, _attend)


def _attend(r: LayerRecorder, x: Heads) -> int:
    grouped = x.kv_heads != r.model.heads
    size = _size(r)
    some = size * x.kv_heads // r.model.heads
    query, key = r.cast(x.query, "attention query", size), r.cast(x.key, "attention keys", some)
    x = x._replace(query=query, key=key, value=r.cast(x.value, "attention values", some))
    return r.low(_attention(r, x, grouped))


def _attention(r: LayerRecorder, x: Heads, grouped: bool) -> int:
    if runs_eager(r.model.family, r.shape.attention):
        return _eager(r, x)
    if grouped and not x.repeats:
        return _plain(r, x)
    if grouped and x.mask:
        return _fused(r, _repeated(r, x))
    if grouped and r.shape.low == 4:
        return _plain(r, x)
    return _fused(r, x)


def attend_in_fp32(r: LayerRecorder, x: Heads) -> int:
    """Record GPT-J's and GPT-Neo's own attention, which SDPA does not replace: scores and softmax in fp32, from fp32
    copies.

    transformers: GPTJAttention._attn, GPTNeoSelfAttention._attn.
    """
    if r.shape.attention == "flash":
        return _fused(r, x)
    op, size, elements = r.tape.op, _size(r), _scores(r)
    full, scores = 4 * size // r.shape.low, 4 * elements
    query, key = x.query, x.key
    if r.shape.low == 2:
        query, key = op("attention query fp32", [query], full), op("attention keys fp32", [key], full)
    first = scores
    if r.shape.autocast:  # which takes the product, its inputs and its scale back to 16 bit
        query, key = op("attention query cast", [query], size), op("attention keys cast", [key], size)
        full, first = size, elements * r.shape.low
    if r.shape.batch > 1:
        query, key = op("attention query copy", [query], full), op("attention keys copy", [key], full)
    raw = op("attention scores", [query, key], first, saves=[query, key])
    raw = op("attention scale" if r.model.family == "gptj" else "attention window", [raw], first)
    raw = op("attention mask", [raw], scores, in_place_grad=True)
    weights = r.tape.save_output(op("attention softmax", [raw], scores, backward_workspace=scores))
    if r.shape.low == 2:
        weights = op("attention softmax downcast", [weights], 2 * elements)
    r.visits.append("attn.attn_dropout" if r.model.family == "gptj" else "attn.attention.attn_dropout")
    if r.model.attention_dropout:
        weights = op("attention dropout", [weights], elements * r.shape.low, extra=elements)
    value = _by_head(r, x.value, "values")
    out = op("attention product", [weights, value], size, saves=[weights, value])
    return op("attention output copy", [out], size)


def _size(r: LayerRecorder) -> int:
    return r.shape.tokens * r.model.heads * r.model.head_dim * r.shape.low


def _scores(r: LayerRecorder) -> int:
    return r.shape.batch * r.model.heads * r.shape.seq * r.shape.seq * r.shape.ranks


def _by_head(r: LayerRecorder, x: int, name: str) -> int:
    """Lay out each head's rows for a batched product: a copy, unless there is one sequence, whose heads are views."""
    return x if r.shape.batch == 1 else r.tape.op(f"attention {name} copy", [x], _size(r))


def _at_all_heads(r: LayerRecorder, x: Heads, tensor: int, name: str) -> int:
    """Return keys or values of every head: repeated; or the one there is expanded, which for one sequence is a view."""
    if x.kv_heads == r.model.heads:
        return _by_head(r, tensor, name)
    if x.repeats and x.kv_heads > 1:
        return r.tape.op(f"repeat {name}", [tensor], _size(r))
    return _of_every_head(r, tensor, name, _size(r))


def _repeated(r: LayerRecorder, x: Heads) -> Heads:
    if x.kv_heads == 1:  # one head for all is expanded, which is a view
        key, value = r.tape.part("all keys", x.key, _size(r)), r.tape.part("all values", x.value, _size(r))
    else:
        key, value = r.tape.op("repeat keys", [x.key], _size(r)), r.tape.op("repeat values", [x.value], _size(r))
    return x._replace(key=key, value=value, kv_heads=r.model.heads)


def _fused(r: LayerRecorder, x: Heads) -> int:
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
    workspace += x.backward_copies
    inputs = [x.query, x.key, x.value]
    if x.mask == "float" and shape.autocast:
        inputs.append(r.tape.op("attention mask cast", [], 2 * _scores(r)))  # each layer has a copy of its own
    out = r.tape.op("attention kernel", inputs, size, saves=inputs, extra=extra, backward_workspace=workspace)
    r.tape.save_output(out)
    if x.head_major and flash:
        return r.tape.op("attention output copy", [out], size)
    return out


def _plain(r: LayerRecorder, x: Heads) -> int:
    """Record torch's ``_scaled_dot_product_attention_math``: everything in fp32 and at all heads; the weights are
    kept."""
    shape, op = r.shape, r.tape.op
    full = 2 * _size(r) if shape.low == 2 else _size(r)
    scores = 4 * _scores(r)
    query = op("attention query fp32", [x.query], full)
    some = full if x.repeats else full * x.kv_heads // r.model.heads
    key, value = op("attention keys fp32", [x.key], some), op("attention values fp32", [x.value], some)
    key = key if x.repeats else _of_every_head(r, key, "keys", full)
    raw = op("attention scores", [query, key], scores, saves=[query, key])
    raw = op("attention mask", [raw], scores, in_place_grad=True)
    weights = r.tape.save_output(op("attention softmax", [raw], scores, backward_workspace=scores))
    value = value if x.repeats else _of_every_head(r, value, "values", full)
    out = op("attention product", [weights, value], full, saves=[weights, value])
    return op("attention output copy", [out], _size(r))


def _of_every_head(r: LayerRecorder, one: int, name: str, size: int) -> int:
    """Return one head's keys or values expanded to all: a view for one sequence, else a copy for the batched
    product."""
    if r.shape.batch > 1:
        return r.tape.op(f"{name} of every head", [one], size)
    return r.tape.part(f"{name} of every head", one, size)


def _eager(r: LayerRecorder, x: Heads) -> int:
    """Record ``eager_attention_forward``: scores, scale, mask, softmax, downcast, dropout, product."""
    shape, size, elements = r.shape, _size(r), _scores(r)
    scores = elements * shape.low
    op, save_output = r.tape.op, r.tape.save_output
    query = x.query if x.head_major else _by_head(r, x.query, "query")
    key = x.key if x.head_major and x.kv_heads == r.model.heads else _at_all_heads(r, x, x.key, "keys")
    raw = op("attention scores", [query, key], scores, saves=[query, key])
    variables = [x.query, x.key, x.value]
    if x.adds_in_fp32:
        weights, more = _softmax_of_fp32_sum(r, raw)
        variables += more
    else:
        raw = op("attention scale", [raw], scores)
        if r.model.attention_softcap:
            raw = save_output(op("attention softcap", [raw], scores))
            raw = op("attention softcap scale", [raw], scores)
        upcasts = shape.low == 2 and (x.softmax_fp32 or shape.autocast)
        weights = _softmax(r, op("attention mask", [raw], scores, in_place_grad=True), upcasts)
    if x.dropout_module:
        r.visits.append(x.dropout_module)
    if r.model.attention_dropout and not x.never_drops:
        weights = op("attention dropout", [weights], scores, extra=elements)
    if x.returned:
        r.tape.also_return(weights)
    value = _at_all_heads(r, x, x.value, "values")
    out = op("attention product", [weights, value], size, saves=[weights, value])
    return op("attention output copy", [out], size, reads=variables)


def _softmax(r: LayerRecorder, masked: int, upcasts: bool) -> int:
    """Softmax of the masked scores, which a variable refers to meanwhile; in fp32 with ``upcasts``."""
    op, elements = r.tape.op, _scores(r)
    scores = elements * r.shape.low
    if not upcasts:
        return r.tape.save_output(op("attention softmax", [masked], scores, backward_workspace=scores))
    full = 4 * elements
    raw = masked if r.shape.half else op("attention softmax input", [masked], full)
    weights = op("attention softmax", [raw], full, reads=[masked], backward_workspace=full)
    r.tape.save_output(weights)
    return op("attention softmax downcast", [weights], scores, reads=[masked])


def _softmax_of_fp32_sum(r: LayerRecorder, raw: int) -> tuple[int, list[int]]:
    """Record Falcon's softmax with ALiBi, in the activations' type, and what variables refer to until attention is
    over."""
    op, elements = r.tape.op, _scores(r)
    scores = elements * r.shape.low
    cast = raw if r.shape.low == 4 else op("attention scores fp32", [raw], 4 * elements)
    biased = op("attention alibi", [cast], 4 * elements, in_place_grad=True)
    logits = r.tape.part("attention scale", biased, 4 * elements)  # in place
    masked = op("attention mask", [logits], 4 * elements, in_place_grad=True)
    given = masked if r.shape.low == 4 else op("attention softmax input", [masked], scores, reads=[masked])
    weights = op("attention softmax", [given], scores, reads=[masked], backward_workspace=scores)
    return r.tape.save_output(weights), [raw, cast, logits]
