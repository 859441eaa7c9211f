"""Llama and the families that share its module names: what their layers register, in transformers' order.

Taken from the modelling code of transformers 5.17 (``models/<family>/modeling_<family>.py``); the tests compare them
with it, parameter by parameter.
"""

from __future__ import annotations

from dsconf.model.blocks import Block, assemble, attention, gated_mlp, linear, llama_parameters, norm
from dsconf.model.hf_config import Dims, HfConfig, read_dims
from dsconf.model.spec import Model


def grouped_dims(c: HfConfig, divides: bool = False) -> Dims:
    """Read the sizes of a family with grouped-query attention, its own ``head_dim`` and ``intermediate_size``."""
    return read_dims(c, c.count("intermediate_size"), grouped=True, own_head_dim=True, divides=divides)


def two_norms(d: Dims) -> Block:
    """Return RMSNorms before attention and before the feed-forward network."""
    return (*norm("input_layernorm", d.hidden), *norm("post_attention_layernorm", d.hidden))


def head_norms(d: Dims) -> Block:
    """Return RMSNorms over each query and key head, shared by all heads (Qwen3, Gemma 3)."""
    return (*norm("self_attn.q_norm", d.head_dim), *norm("self_attn.k_norm", d.head_dim))


def _gated(c: HfConfig, d: Dims, layer: Block, window: int = 0) -> Model:
    """Make a model of gated feed-forward layers with full rotary embedding and an RMSNorm at the end."""
    return assemble(
        c,
        d,
        llama_parameters(d, layer),
        activation=c.text("hidden_act"),
        attention_dropout=c.probability("attention_dropout"),
        sliding_window=window,
    )


def llama(c: HfConfig) -> Model:
    """Read Llama 1 to 3."""
    d = grouped_dims(c, divides=True)
    bias = c.flag("attention_bias")
    return _gated(c, d, attention(d, bias, bias) + gated_mlp(d, c.flag("mlp_bias")) + two_norms(d))


def mistral(c: HfConfig) -> Model:
    """Read Mistral: Llama without biases, with a sliding window where ``sliding_window`` is not null."""
    d = grouped_dims(c)
    return _gated(c, d, attention(d) + gated_mlp(d) + two_norms(d), c.optional_count("sliding_window") or 0)


def qwen_window(c: HfConfig) -> int:
    """Read Qwen's sliding window, which counts only with ``use_sliding_window``."""
    return (c.optional_count("sliding_window") or 0) if c.flag("use_sliding_window") else 0


def qwen2(c: HfConfig) -> Model:
    """Read Qwen2 and 2.5: biases on query, key and value."""
    d = grouped_dims(c)
    return _gated(c, d, attention(d, bias=True) + gated_mlp(d) + two_norms(d), qwen_window(c))


def qwen3(c: HfConfig) -> Model:
    """Read Qwen3 (dense): norms over query and key heads."""
    d = grouped_dims(c)
    bias = c.flag("attention_bias")
    layer = attention(d, bias, bias, head_norms(d)) + gated_mlp(d) + two_norms(d)
    return _gated(c, d, layer, qwen_window(c))


def granite(c: HfConfig) -> Model:
    """Read Granite: Llama's parameters, with scaled residuals and logits."""
    d = grouped_dims(c)
    bias = c.flag("attention_bias")
    return _gated(c, d, attention(d, bias, bias) + gated_mlp(d, c.flag("mlp_bias")) + two_norms(d))


def gemma(c: HfConfig) -> Model:
    """Read Gemma 1."""
    d = grouped_dims(c)
    bias = c.flag("attention_bias")
    return _gated(c, d, attention(d, bias, bias) + gated_mlp(d) + two_norms(d))


def _sandwich(c: HfConfig, d: Dims, middle: Block) -> Model:
    """Read Gemma 2 and 3: a norm before and after both attention and the feed-forward network."""
    bias = c.flag("attention_bias")
    around = norm("pre_feedforward_layernorm", d.hidden) + norm("post_feedforward_layernorm", d.hidden)
    return assemble(
        c,
        d,
        llama_parameters(d, attention(d, bias, bias, middle) + gated_mlp(d) + two_norms(d) + around),
        activation=c.text("hidden_activation"),
        attention_dropout=c.probability("attention_dropout"),
        attention_softcap=c.number("attn_logit_softcapping"),
        logit_softcap=c.number("final_logit_softcapping"),
        sliding_window=c.optional_count("sliding_window") or 0,
    )


def gemma2(c: HfConfig) -> Model:
    """Read Gemma 2."""
    return _sandwich(c, grouped_dims(c, divides=True), ())


def gemma3_text(c: HfConfig) -> Model:
    """Read Gemma 3's language model."""
    d = grouped_dims(c, divides=True)
    return _sandwich(c, d, head_norms(d))


def olmo(c: HfConfig) -> Model:
    """Read OLMo 1: its LayerNorms have no parameters, neither in the layers nor at the end."""
    d = grouped_dims(c)
    bias = c.flag("attention_bias")
    return assemble(
        c,
        d,
        llama_parameters(d, attention(d, bias, bias) + gated_mlp(d), final_norm=()),
        activation=c.text("hidden_act"),
        attention_dropout=c.probability("attention_dropout"),
    )


def olmo2(c: HfConfig) -> Model:
    """Read OLMo 2: norms over whole queries and keys, and norms after attention and feed-forward only."""
    d = grouped_dims(c)
    bias = c.flag("attention_bias")
    whole = norm("self_attn.q_norm", d.heads * d.head_dim) + norm("self_attn.k_norm", d.kv_heads * d.head_dim)
    after = norm("post_attention_layernorm", d.hidden) + norm("post_feedforward_layernorm", d.hidden)
    return _gated(c, d, attention(d, bias, bias, whole) + gated_mlp(d) + after)


def phi3(c: HfConfig) -> Model:
    """Read Phi-3 and Phi-4: query, key and value in one projection, gate and up in another."""
    d = grouped_dims(c)
    fused = (d.heads + 2 * d.kv_heads) * d.head_dim
    layer = (
        *linear("self_attn.o_proj", d.heads * d.head_dim, d.hidden),
        *linear("self_attn.qkv_proj", d.hidden, fused),
        *linear("mlp.gate_up_proj", d.hidden, 2 * d.mlp),
        *linear("mlp.down_proj", d.mlp, d.hidden),
        *two_norms(d),
    )
    return assemble(
        c,
        d,
        llama_parameters(d, layer),
        rotary=int(d.head_dim * c.rotary_factor()),
        activation=c.text("hidden_act"),
        hidden_dropout=c.probability("resid_pdrop"),
        attention_dropout=c.probability("attention_dropout"),
        sliding_window=c.optional_count("sliding_window") or 0,
    )


def cohere(c: HfConfig) -> Model:
    """Read Command R: attention and feed-forward both read from one norm."""
    d = grouped_dims(c)
    bias = c.flag("attention_bias")
    norms = norm("self_attn.q_norm", d.heads, d.head_dim) + norm("self_attn.k_norm", d.kv_heads, d.head_dim)
    middle = norms if c.flag("use_qk_norm") else ()
    return assemble(
        c,
        d,
        llama_parameters(d, attention(d, bias, bias, middle) + gated_mlp(d) + norm("input_layernorm", d.hidden)),
        activation=c.text("hidden_act"),
        attention_dropout=c.probability("attention_dropout"),
        parallel_residual=True,
    )


def _per_head_norms(name: str, heads: int, head_dim: int) -> Block:
    return tuple(p for i in range(heads) for p in norm(f"{name}.norms.{i}", head_dim))


def stablelm(c: HfConfig) -> Model:
    """Read StableLM 2: LayerNorms with biases, optionally a norm for each head."""
    d = read_dims(c, c.count("intermediate_size"), grouped=True)
    parallel = c.flag("use_parallel_residual")
    per_head: Block = ()
    if c.flag("qk_layernorm"):
        per_head = _per_head_norms("self_attn.q_layernorm", d.heads, d.head_dim)
        per_head += _per_head_norms("self_attn.k_layernorm", d.kv_heads, d.head_dim)
    layer = (
        *attention(d, bias=c.flag("use_qkv_bias"), middle=per_head),
        *gated_mlp(d),
        *norm("input_layernorm", d.hidden, bias=True),
        *(() if parallel else norm("post_attention_layernorm", d.hidden, bias=True)),
    )
    return assemble(
        c,
        d,
        llama_parameters(d, layer, norm("model.norm", d.hidden, bias=True)),
        rotary=int(d.head_dim * c.rotary_factor()),
        activation=c.text("hidden_act"),
        hidden_dropout=c.probability("hidden_dropout"),
        attention_dropout=c.probability("attention_dropout"),
        parallel_residual=parallel,
    )


def starcoder2(c: HfConfig) -> Model:
    """Read StarCoder 2: an ungated feed-forward network, LayerNorms and biases."""
    d = grouped_dims(c)
    bias = c.flag("use_bias")
    layer = (
        *attention(d, bias, bias),
        *linear("mlp.c_fc", d.hidden, d.mlp, bias),
        *linear("mlp.c_proj", d.mlp, d.hidden, bias),
        *norm("input_layernorm", d.hidden, bias=True),
        *norm("post_attention_layernorm", d.hidden, bias=True),
    )
    return assemble(
        c,
        d,
        llama_parameters(d, layer, norm("model.norm", d.hidden, bias=True)),
        activation=c.text("hidden_act"),
        embedding_dropout=c.probability("embedding_dropout"),
        hidden_dropout=c.probability("residual_dropout"),
        attention_dropout=c.probability("attention_dropout"),
        sliding_window=c.optional_count("sliding_window") or 0,
    )


def phi(c: HfConfig) -> Model:
    """Read Phi-1, 1.5 and 2: biases everywhere, the output projection's included; attention beside feed-forward."""
    d = grouped_dims(c)
    queries, keys = d.heads * d.head_dim, d.kv_heads * d.head_dim
    normed = c.flag("qk_layernorm")
    layer = (
        *linear("self_attn.q_proj", d.hidden, queries, bias=True),
        *linear("self_attn.k_proj", d.hidden, keys, bias=True),
        *linear("self_attn.v_proj", d.hidden, keys, bias=True),
        *linear("self_attn.dense", queries, d.hidden, bias=True),
        *(norm("self_attn.q_layernorm", d.hidden // d.heads, bias=True) if normed else ()),
        *(norm("self_attn.k_layernorm", d.hidden // d.heads, bias=True) if normed else ()),
        *linear("mlp.fc1", d.hidden, d.mlp, bias=True),
        *linear("mlp.fc2", d.mlp, d.hidden, bias=True),
        *norm("input_layernorm", d.hidden, bias=True),
    )
    final_norm = norm("model.final_layernorm", d.hidden, bias=True)
    return assemble(
        c,
        d,
        llama_parameters(d, layer, final_norm, head_bias=True),
        rotary=int(d.head_dim * c.rotary_factor()),
        activation=c.text("hidden_act"),
        embedding_dropout=c.probability("embd_pdrop"),
        hidden_dropout=c.probability("resid_pdrop"),
        attention_dropout=c.probability("attention_dropout"),
        parallel_residual=True,
    )
