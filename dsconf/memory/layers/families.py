"""The operations of one decoder layer of each family (transformers 5.17: ``models/<family>/modeling_<family>.py``)."""

from __future__ import annotations

from dsconf.memory.layers.attention import attend, attend_in_fp32
from dsconf.memory.layers.experts import experts
from dsconf.memory.layers.recorder import JOINS_ROTATED, Heads, LayerRecorder


def record_layer(r: LayerRecorder, x: int) -> int:
    """Record one decoder layer on ``x`` (tokens × hidden); return its output."""
    return _LAYERS.get(r.model.family, _llama)(r, x)


def _mask(r: LayerRecorder) -> str:
    """Mask that reaches the kernel: none while the causal flag says it all (masking_utils._ignore_causal_mask_sdpa)."""
    if r.model.alibi:
        return "float"
    if r.model.family == "falcon":
        return "bool"
    return "bool" if r.shape.windowed and r.shape.seq >= r.model.sliding_window > 0 else ""


def _separate(r: LayerRecorder, x: int, output: str = "self_attn.o_proj") -> int:
    """Separate projections, optional norms over heads, rotary embedding, attention, output projection."""
    model = r.model
    at_once = model.family in ("olmo2", "qwen3", "qwen3_moe")  # each projection is followed by its norm
    q = r.linear(x, "self_attn.q_proj")
    q = _normed(r, q, "q", model.heads) if at_once else q
    k = r.linear(x, "self_attn.k_proj")
    k = _normed(r, k, "k", model.kv_heads) if at_once else k
    v = r.linear(x, "self_attn.v_proj")
    if not at_once:
        q, k = _normed(r, q, "q", model.heads), _normed(r, k, "k", model.kv_heads)
    if model.rotary_dim:
        q, k = r.rotary(q, "q", model.heads), r.rotary(k, "k", model.kv_heads)
    partial = bool(model.rotary_dim) and (model.rotary_dim != model.head_dim or model.family in JOINS_ROTATED)
    out = attend(r, Heads(q, k, v, model.kv_heads, head_major=partial, mask=_mask(r)))
    return r.linear(out, output)


def _normed(r: LayerRecorder, x: int, name: str, heads: int) -> int:
    """Return queries or keys after the norm they have: over all heads at once, or over each."""
    model = r.model
    if model.family == "olmo2":
        return r.norm(x, f"self_attn.{name}_norm", heads * model.head_dim)
    if r.has(f"self_attn.{name}_layernorm.norms.0.weight"):
        return r.norm_of_each_head(x, f"self_attn.{name}_layernorm", heads)
    end = next((end for end in ("norm", "layernorm") if r.has(f"self_attn.{name}_{end}.weight")), "")
    return r.norm(x, f"self_attn.{name}_{end}", model.head_dim, r.shape.tokens * heads) if end else x


def _llama(r: LayerRecorder, x: int) -> int:
    """Norm, attention, residual, norm, gated feed-forward network (or experts), residual."""
    h = r.model.hidden
    x = r.add(x, _separate(r, r.norm(x, "input_layernorm", h)))
    y = r.norm(x, "post_attention_layernorm", h)
    y = experts(r, y) if r.model.experts else r.gated_mlp(y, "mlp")
    return r.add(x, y)


def _gemma2(r: LayerRecorder, x: int) -> int:
    """Record a layer with a norm before and after attention and feed-forward network."""
    h = r.model.hidden
    y = r.norm(_separate(r, r.norm(x, "input_layernorm", h)), "post_attention_layernorm", h)
    x = r.add(x, y)
    y = r.gated_mlp(r.norm(x, "pre_feedforward_layernorm", h), "mlp")
    return r.add(x, r.norm(y, "post_feedforward_layernorm", h))


def _olmo2(r: LayerRecorder, x: int) -> int:
    """Record a layer with norms after attention and feed-forward network only."""
    h = r.model.hidden
    x = r.add(x, r.norm(_separate(r, x), "post_attention_layernorm", h))
    return r.add(x, r.norm(r.gated_mlp(x, "mlp"), "post_feedforward_layernorm", h))


def _phi3(r: LayerRecorder, x: int) -> int:
    """Query, key and value in one projection, gate and up in another: views keep the whole."""
    model, h = r.model, r.model.hidden
    fused = r.linear(r.norm(x, "input_layernorm", h), "self_attn.qkv_proj")
    q, k, v = _split(r, fused, model.heads, model.kv_heads)
    q, k = r.rotary(q, "q", model.heads), r.rotary(k, "k", model.kv_heads)
    # What torch.cat makes lies head by head.
    out = attend(r, Heads(q, k, v, model.kv_heads, head_major=True, mask=_mask(r)))
    x = r.add(x, r.dropout(r.linear(out, "self_attn.o_proj"), model.hidden_dropout, h, "resid_attn_dropout"))
    fused = r.linear(r.norm(x, "post_attention_layernorm", h), "mlp.gate_up_proj")
    size = r.size(fused, model.mlp)
    gate, up = r.tape.split("gate, up", fused, (size, size))
    active = r.tape.op("silu", [gate], size, saves=[gate])
    product = r.low(r.tape.op("gate product", [r.low(active), up], size, saves=[active, up]))
    return r.add(x, r.dropout(r.linear(product, "mlp.down_proj"), model.hidden_dropout, h, "resid_mlp_dropout"))


def _split(r: LayerRecorder, fused: int, heads: int, kv_heads: int) -> tuple[int, int, int]:
    """Query, key and value as views of one projection's output."""
    dim = r.model.head_dim
    sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
    parts = (r.tape.part(name, fused, r.size(fused, size)) for name, size in zip("qkv", sizes, strict=True))
    q, k, v = (r.like(fused, part) for part in parts)
    return q, k, v


def _split_at_once(r: LayerRecorder, fused: int) -> list[int]:
    """Query, key and value of all heads by ``torch.split`` or ``chunk``."""
    size = r.size(fused, r.model.heads * r.model.head_dim)
    return [r.low(piece) for piece in r.tape.split("q, k, v", fused, (size, size, size))]


def _gpt2(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    q, k, v = _split_at_once(r, r.linear(r.norm(x, "ln_1", h), "attn.c_attn"))
    out = attend(r, Heads(q, k, v, model.heads, softmax_fp32=False))
    x = r.add(x, r.dropout(r.linear(out, "attn.c_proj"), model.hidden_dropout, h, "attn.resid_dropout"))
    y = r.plain_mlp(r.norm(x, "ln_2", h), "mlp.c_fc", "mlp.c_proj")
    return r.add(x, r.dropout(y, model.hidden_dropout, h, "mlp.dropout"))


def _opt(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    y = r.norm(x, "self_attn_layer_norm", h) if model.pre_norm else x
    q = r.linear(y, "self_attn.q_proj")
    q = r.low(r.tape.op("query scaling", [q], r.size(q, h)))
    k, v = r.linear(y, "self_attn.k_proj"), r.linear(y, "self_attn.v_proj")
    out = r.linear(attend(r, Heads(q, k, v, model.heads)), "self_attn.out_proj")
    x = r.add(x, r.dropout(out, model.hidden_dropout, h))
    if not model.pre_norm:
        x = r.norm(x, "self_attn_layer_norm", h)
    y = r.norm(x, "final_layer_norm", h) if model.pre_norm else x
    y = r.plain_mlp(y, "fc1", "fc2", flat=True)
    x = r.add(x, r.dropout(y, model.hidden_dropout, h))
    return x if model.pre_norm else r.norm(x, "final_layer_norm", h)


def _gpt_neox(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    q, k, v = _split_at_once(r, r.linear(r.norm(x, "input_layernorm", h), "attention.query_key_value"))
    q, k = r.rotary(q, "q", model.heads), r.rotary(k, "k", model.heads)
    out = attend(r, Heads(q, k, v, model.heads, head_major=True))
    out = r.dropout(r.linear(out, "attention.dense"), model.hidden_dropout, h, "post_attention_dropout")
    if not model.parallel_residual:
        x = r.add(x, out)
    y = r.norm(x, "post_attention_layernorm", h)
    y = r.plain_mlp(y, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    y = r.dropout(y, model.hidden_dropout, h, "post_mlp_dropout")
    return r.add(x, r.add(y, out) if model.parallel_residual else y)


def _phi(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    y = r.norm(x, "input_layernorm", h)
    out = r.dropout(_separate(r, y, "self_attn.dense"), model.hidden_dropout, h, "resid_dropout")
    y = r.dropout(r.plain_mlp(y, "mlp.fc1", "mlp.fc2"), model.hidden_dropout, h, "resid_dropout")
    return r.add(r.add(out, y), x)


def _falcon(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    two = r.has("ln_attn.weight")
    first = r.norm(x, "ln_attn" if two else "input_layernorm", h)
    second = r.norm(x, "ln_mlp", h) if two else first
    out = r.linear(_falcon_attention(r, first), "self_attention.dense")
    if not model.parallel_residual:
        x = r.add(x, r.dropout(out, model.attention_dropout, h))
        second = r.norm(x, "post_attention_layernorm", h)
    y = r.plain_mlp(second, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    y = r.add(y, out) if model.parallel_residual else y
    return r.add(x, r.dropout(y, model.hidden_dropout, h))


def _falcon_attention(r: LayerRecorder, x: int) -> int:
    """Falcon-40B repeats grouped keys and values itself; Falcon-7B hands one head to a kernel that cannot take it."""
    model = r.model
    fused = r.linear(x, "self_attention.query_key_value")
    new = bool(model.hf_config.get("new_decoder_architecture"))
    heads, kv_heads = model.heads, model.heads if new else model.kv_heads
    if model.kv_heads == heads and not new:
        q, k, v = _split(r, fused, heads, heads)
    else:
        size, some = r.size(fused, heads * model.head_dim), r.size(fused, model.kv_heads * model.head_dim)
        q = r.tape.part("q", fused, size)
        k, v = r.tape.op("keys", [fused], some), r.tape.op("values", [fused], some)
        if new and 1 < model.kv_heads < heads:
            q = r.tape.op("queries of a group", [q], size)
        if new and model.kv_heads < heads:
            k, v = r.tape.op("repeat keys", [k], size), r.tape.op("repeat values", [v], size)
        q, k, v = (r.like(fused, part) for part in (q, k, v))
    if model.rotary_dim:
        q, k = r.rotary(q, "q", heads), r.rotary(k, "k", kv_heads)
    kind = Heads(q, k, v, kv_heads, mask=_mask(r), repeats=False, softmax_fp32=False, returned=True)
    if model.alibi:
        kind = kind._replace(adds_in_fp32=True, dropout_module="self_attention.attention_dropout")
    return attend(r, kind._replace(never_drops=not model.alibi))


def _bloom(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    y = r.norm(x, "input_layernorm", h)
    q, k, v = _split(r, r.linear(y, "self_attention.query_key_value"), model.heads, model.heads)
    kind = Heads(q, k, v, model.heads, mask="float", dropout_module="self_attention.attention_dropout", returned=True)
    out = r.linear(attend(r, kind), "self_attention.dense")
    x = r.add(x, r.dropout(out, model.hidden_dropout, h))
    y = r.plain_mlp(r.norm(x, "post_attention_layernorm", h), "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    return r.add(x, r.dropout(y, model.hidden_dropout, h))


def _cohere(r: LayerRecorder, x: int) -> int:
    """Record a layer with one norm, from which attention and feed-forward network both read."""
    y = r.norm(x, "input_layernorm", r.model.hidden)
    return r.add(r.add(x, _separate(r, y)), r.gated_mlp(y, "mlp"))


def _stablelm(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    y = r.norm(x, "input_layernorm", h)
    x = r.add(x, _separate(r, y))
    if not model.parallel_residual:
        y = r.norm(x, "post_attention_layernorm", h)
    return r.add(x, r.dropout(r.gated_mlp(y, "mlp"), model.hidden_dropout, h, "dropout"))


def _starcoder2(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    out = r.dropout(_separate(r, r.norm(x, "input_layernorm", h)), model.hidden_dropout, h)
    x = r.add(x, out)
    y = r.plain_mlp(r.norm(x, "post_attention_layernorm", h), "mlp.c_fc", "mlp.c_proj")
    return r.add(x, r.dropout(y, model.hidden_dropout, h))


def _gpt_neo(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    y = r.norm(x, "ln_1", h)
    q, k, v = (r.linear(y, f"attn.attention.{name}_proj") for name in "qkv")
    out = r.linear(attend_in_fp32(r, Heads(q, k, v, model.heads)), "attn.attention.out_proj")
    x = r.add(x, r.dropout(out, model.hidden_dropout, h, "attn.attention.resid_dropout"))
    y = r.plain_mlp(r.norm(x, "ln_2", h), "mlp.c_fc", "mlp.c_proj")
    return r.add(x, r.dropout(y, model.hidden_dropout, h, "mlp.dropout"))


def _gptj(r: LayerRecorder, x: int) -> int:
    model, h = r.model, r.model.hidden
    y = r.norm(x, "ln_1", h)
    q, k, v = (r.linear(y, f"attn.{name}_proj") for name in "qkv")
    if model.rotary_dim:
        # Every layer makes cos and sin of the sequence anew, for keys and for queries, and keeps them.
        own = 2 * r.shape.seq * model.rotary_dim * r.shape.width
        k, q = r.rotary(k, "k", model.heads, keeps=own), r.rotary(q, "q", model.heads, keeps=own)
    out = r.linear(attend_in_fp32(r, Heads(q, k, v, model.heads)), "attn.out_proj")
    out = r.dropout(out, model.hidden_dropout, h, "attn.resid_dropout")
    y = r.dropout(r.plain_mlp(y, "mlp.fc_in", "mlp.fc_out"), model.hidden_dropout, h, "mlp.dropout")
    return r.add(r.add(out, y), x)


_LAYERS = {
    "cohere": _cohere,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
    "bloom": _bloom,
    "falcon": _falcon,
    "gemma2": _gemma2,
    "gemma3_text": _gemma2,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "olmo2": _olmo2,
    "opt": _opt,
    "phi": _phi,
    "phi3": _phi3,
}
