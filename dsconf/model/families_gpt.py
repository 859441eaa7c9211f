"""GPT-2 and the families of its generation: what their layers register, in transformers' order.

Taken from the modelling code of transformers 5.17 (``models/<family>/modeling_<family>.py``); the tests compare them
with it, parameter by parameter.
"""

from __future__ import annotations

from dsconf.model.blocks import Block, assemble, conv1d, embedding, head, linear, norm
from dsconf.model.hf_config import Dims, HfConfig, read_dims
from dsconf.model.spec import Model, Parameters

OPT_POSITION_OFFSET = 2
"""OPT's position table has two rows more than positions (``OPTLearnedPositionalEmbedding.offset``)."""


def _inner(c: HfConfig, key: str) -> int:
    """Read the width of the feed-forward network: ``key``, or four times the hidden size where it is null."""
    c.require("hidden_size")
    return c.optional_count(key) or 4 * c.count("hidden_size")


def _final(d: Dims, name: str, head_bias: bool = False) -> Block:
    return (*norm(name, d.hidden, bias=True), *head(d, bias=head_bias))


def gpt2(c: HfConfig) -> Model:
    """Read GPT-2."""
    if c.flag("add_cross_attention"):
        raise c.error("add_cross_attention makes an encoder-decoder of it; dsconf reads decoder-only models")
    d = read_dims(c, _inner(c, "n_inner"))
    layer = (
        *norm("ln_1", d.hidden, bias=True),
        *conv1d("attn.c_attn", d.hidden, 3 * d.hidden),
        *conv1d("attn.c_proj", d.hidden, d.hidden),
        *norm("ln_2", d.hidden, bias=True),
        *conv1d("mlp.c_fc", d.hidden, d.mlp),
        *conv1d("mlp.c_proj", d.mlp, d.hidden),
    )
    before = embedding("transformer.wte", d.vocab, d.hidden) + embedding("transformer.wpe", d.positions, d.hidden)
    return assemble(
        c,
        d,
        Parameters(before, layer, d.layers, _final(d, "transformer.ln_f")),
        rotary=0,
        activation=c.text("activation_function"),
        embedding_dropout=c.probability("embd_pdrop"),
        hidden_dropout=c.probability("resid_pdrop"),
        attention_dropout=c.probability("attn_pdrop"),
    )


def gpt_neo(c: HfConfig) -> Model:
    """Read GPT-Neo: every other layer attends within ``window_size``; only the output projection has a bias."""
    d = read_dims(c, _inner(c, "intermediate_size"))
    try:
        kinds = [kind for pattern, times in c.get("attention_types") or [] for kind in pattern * times]
    except (TypeError, ValueError):
        raise c.error("attention_types is not a list of [kinds, times] pairs") from None
    if kinds and len(kinds) != d.layers:
        raise c.error(f"attention_types describes {len(kinds)} layers, {c.spelled('num_hidden_layers')} {d.layers}")
    layer = (
        *norm("ln_1", d.hidden, bias=True),
        *linear("attn.attention.k_proj", d.hidden, d.hidden),
        *linear("attn.attention.v_proj", d.hidden, d.hidden),
        *linear("attn.attention.q_proj", d.hidden, d.hidden),
        *linear("attn.attention.out_proj", d.hidden, d.hidden, bias=True),
        *norm("ln_2", d.hidden, bias=True),
        *linear("mlp.c_fc", d.hidden, d.mlp, bias=True),
        *linear("mlp.c_proj", d.mlp, d.hidden, bias=True),
    )
    before = embedding("transformer.wte", d.vocab, d.hidden) + embedding("transformer.wpe", d.positions, d.hidden)
    return assemble(
        c,
        d,
        Parameters(before, layer, d.layers, _final(d, "transformer.ln_f")),
        rotary=0,
        activation=c.text("activation_function"),
        embedding_dropout=c.probability("embed_dropout"),
        hidden_dropout=c.probability("resid_dropout"),
        attention_dropout=c.probability("attention_dropout"),
        sliding_window=c.count("window_size") if "local" in kinds or not kinds else 0,
    )


def gptj(c: HfConfig) -> Model:
    """Read GPT-J: one norm, attention beside feed-forward, an output projection with a bias."""
    d = read_dims(c, _inner(c, "n_inner"))
    rotary_dim = c.count("rotary_dim")
    if rotary_dim > d.head_dim:
        raise c.error(f"rotary_dim {rotary_dim} is larger than a head of {d.head_dim}")
    layer = (
        *norm("ln_1", d.hidden, bias=True),
        *linear("attn.k_proj", d.hidden, d.hidden),
        *linear("attn.v_proj", d.hidden, d.hidden),
        *linear("attn.q_proj", d.hidden, d.hidden),
        *linear("attn.out_proj", d.hidden, d.hidden),
        *linear("mlp.fc_in", d.hidden, d.mlp, bias=True),
        *linear("mlp.fc_out", d.mlp, d.hidden, bias=True),
    )
    before = embedding("transformer.wte", d.vocab, d.hidden)
    return assemble(
        c,
        d,
        Parameters(before, layer, d.layers, _final(d, "transformer.ln_f", head_bias=True)),
        rotary=rotary_dim,
        activation=c.text("activation_function"),
        embedding_dropout=c.probability("embd_pdrop"),
        hidden_dropout=c.probability("resid_pdrop"),
        attention_dropout=c.probability("attn_pdrop"),
        parallel_residual=True,
    )


def _opt_layer(d: Dims, bias: bool, affine: bool) -> Block:
    projections = (p for name in "kvq" for p in linear(f"self_attn.{name}_proj", d.hidden, d.hidden, bias))
    return (
        *projections,
        *linear("self_attn.out_proj", d.hidden, d.hidden, bias),
        *(norm("self_attn_layer_norm", d.hidden, bias=True) if affine else ()),
        *linear("fc1", d.hidden, d.mlp, bias),
        *linear("fc2", d.mlp, d.hidden, bias),
        *(norm("final_layer_norm", d.hidden, bias=True) if affine else ()),
    )


def opt(c: HfConfig) -> Model:
    """Read OPT; its final norm and projections are registered before the layers. No dropout on the embedding."""
    d = read_dims(c, c.count("ffn_dim"))
    width = c.optional_count("word_embed_proj_dim") or d.hidden
    pre_norm, affine = c.flag("do_layer_norm_before"), c.flag("layer_norm_elementwise_affine")
    narrow = linear("model.decoder.project_out", d.hidden, width) + linear("model.decoder.project_in", width, d.hidden)
    last = pre_norm and affine and not c.flag("_remove_final_layer_norm")
    before = (
        *embedding("model.decoder.embed_tokens", d.vocab, width),
        *embedding("model.decoder.embed_positions", d.positions + OPT_POSITION_OFFSET, d.hidden),
        *(narrow if width != d.hidden else ()),
        *(norm("model.decoder.final_layer_norm", d.hidden, bias=True) if last else ()),
    )
    return assemble(
        c,
        d,
        Parameters(before, _opt_layer(d, c.flag("enable_bias"), affine), d.layers, head(d, width)),
        rotary=0,
        activation=c.text("activation_function"),
        embedding_dim=width if width != d.hidden else 0,
        pre_norm=pre_norm,
        hidden_dropout=c.probability("dropout"),
        attention_dropout=c.probability("attention_dropout"),
    )


def gpt_neox(c: HfConfig) -> Model:
    """Read GPT-NeoX and Pythia."""
    d = read_dims(c, c.count("intermediate_size"))
    bias = c.flag("attention_bias")
    layer = (
        *norm("input_layernorm", d.hidden, bias=True),
        *norm("post_attention_layernorm", d.hidden, bias=True),
        *linear("attention.query_key_value", d.hidden, 3 * d.hidden, bias),
        *linear("attention.dense", d.hidden, d.hidden, bias),
        *linear("mlp.dense_h_to_4h", d.hidden, d.mlp, bias=True),
        *linear("mlp.dense_4h_to_h", d.mlp, d.hidden, bias=True),
    )
    before = embedding("gpt_neox.embed_in", d.vocab, d.hidden)
    return assemble(
        c,
        d,
        Parameters(before, layer, d.layers, _final(d, "gpt_neox.final_layer_norm")),
        rotary=int(d.head_dim * c.rotary_factor("rotary_pct")),
        activation=c.text("hidden_act"),
        parallel_residual=c.flag("use_parallel_residual"),
        embedding_dropout=c.probability("hidden_dropout"),
        hidden_dropout=c.probability("hidden_dropout"),
        attention_dropout=c.probability("attention_dropout"),
    )


def _falcon_norms(c: HfConfig, d: Dims, new: bool) -> Block:
    """Return Falcon's norms: two before sequential blocks, one or two before parallel ones."""
    if not c.flag("parallel_attn"):
        names: tuple[str, ...] = ("post_attention_layernorm", "input_layernorm")
    elif (c.optional_count("num_ln_in_parallel_attn") or (2 if new else 1)) == 2:
        names = ("ln_attn", "ln_mlp")
    else:
        names = ("input_layernorm",)
    return tuple(p for name in names for p in norm(name, d.hidden, bias=True))


def _falcon_kv_heads(c: HfConfig, d: Dims, new: bool) -> int:
    """Read the key/value heads: as given in the 40B architecture, one in the 7B (multi-query), else as many as
    heads."""
    if not new:
        return 1 if c.flag("multi_query") else d.heads
    kv_heads = c.optional_count("num_kv_heads") or d.heads
    if d.heads % kv_heads:
        raise c.error(f"num_attention_heads {d.heads} is not a multiple of num_kv_heads {kv_heads}")
    return kv_heads


def falcon(c: HfConfig) -> Model:
    """Read Falcon: 7B (multi-query, parallel), 40B and 180B (new_decoder_architecture), RW-1B (ALiBi, sequential)."""
    d = read_dims(c, _inner(c, "ffn_hidden_size"))
    new, bias, alibi = c.flag("new_decoder_architecture"), c.flag("bias"), c.flag("alibi")
    d = d._replace(kv_heads=_falcon_kv_heads(c, d, new))
    fused = (d.heads + 2 * d.kv_heads) * d.head_dim
    layer = (
        *linear("self_attention.query_key_value", d.hidden, fused, bias),
        *linear("self_attention.dense", d.hidden, d.hidden, bias),
        *linear("mlp.dense_h_to_4h", d.hidden, d.mlp, bias),
        *linear("mlp.dense_4h_to_h", d.mlp, d.hidden, bias),
        *_falcon_norms(c, d, new),
    )
    before = embedding("transformer.word_embeddings", d.vocab, d.hidden)
    return assemble(
        c,
        d,
        Parameters(before, layer, d.layers, _final(d, "transformer.ln_f")),
        rotary=0 if alibi else None,
        alibi=alibi,
        activation=c.text("activation"),
        parallel_residual=new or c.flag("parallel_attn"),
        hidden_dropout=c.probability("hidden_dropout"),
        attention_dropout=c.probability("attention_dropout"),
    )


def bloom(c: HfConfig) -> Model:
    """Read BLOOM: ALiBi, a norm after the embedding, biases everywhere. Its config does not say how long a sequence may
    be."""
    d = read_dims(c, _inner(c, ""))
    layer = (
        *norm("input_layernorm", d.hidden, bias=True),
        *linear("self_attention.query_key_value", d.hidden, 3 * d.hidden, bias=True),
        *linear("self_attention.dense", d.hidden, d.hidden, bias=True),
        *norm("post_attention_layernorm", d.hidden, bias=True),
        *linear("mlp.dense_h_to_4h", d.hidden, d.mlp, bias=True),
        *linear("mlp.dense_4h_to_h", d.mlp, d.hidden, bias=True),
    )
    before = (
        *embedding("transformer.word_embeddings", d.vocab, d.hidden),
        *norm("transformer.word_embeddings_layernorm", d.hidden, bias=True),
    )
    return assemble(
        c,
        d,
        Parameters(before, layer, d.layers, _final(d, "transformer.ln_f")),
        rotary=0,
        alibi=True,
        activation="gelu_bloom",
        hidden_dropout=c.probability("hidden_dropout"),
        attention_dropout=c.probability("attention_dropout"),
    )
