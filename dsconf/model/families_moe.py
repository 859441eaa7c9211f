"""Mixtures of experts: what their layers register, in the order of transformers 5.17, whose experts are fused."""

from __future__ import annotations

from dsconf.model.blocks import assemble, attention, experts, gated_mlp, linear, llama_parameters, router
from dsconf.model.families_llama import head_norms, qwen_window, two_norms
from dsconf.model.hf_config import HfConfig, read_dims
from dsconf.model.spec import Model


def _chosen(c: HfConfig, count: int) -> int:
    """Read how many experts a token passes through."""
    chosen = c.count("num_experts_per_tok")
    if chosen > count:
        raise c.error(f"num_experts_per_tok {chosen} is more than the {count} experts there are")
    return chosen


def _require_sparse_everywhere(c: HfConfig) -> None:
    """Raise InputError for a config in which some layers have no experts: layers must be alike."""
    if c.get("mlp_only_layers") or c.count("decoder_sparse_step") != 1:
        raise c.error(
            "layers with experts alternate with layers without (mlp_only_layers, decoder_sparse_step); "
            "dsconf reads models whose layers are all alike; --params SIZE gives an estimate"
        )


def mixtral(c: HfConfig) -> Model:
    """Read Mixtral."""
    d = read_dims(c, c.count("intermediate_size"), grouped=True, own_head_dim=True, divides=False)
    count = c.count("num_local_experts")
    return assemble(
        c,
        d,
        llama_parameters(d, attention(d) + router(d, count) + experts(d, count) + two_norms(d)),
        activation=c.text("hidden_act"),
        attention_dropout=c.probability("attention_dropout"),
        sliding_window=c.optional_count("sliding_window") or 0,
        experts=count,
        experts_per_token=_chosen(c, count),
    )


def qwen3_moe(c: HfConfig) -> Model:
    """Read Qwen3's mixtures of experts."""
    _require_sparse_everywhere(c)
    d = read_dims(c, c.count("moe_intermediate_size"), grouped=True, own_head_dim=True, divides=False)
    count, bias = c.count("num_experts"), c.flag("attention_bias")
    layer = (
        *attention(d, bias, bias, head_norms(d)),
        *experts(d, count),
        *router(d, count),
        *two_norms(d),
    )
    return assemble(
        c,
        d,
        llama_parameters(d, layer),
        activation=c.text("hidden_act"),
        attention_dropout=c.probability("attention_dropout"),
        sliding_window=qwen_window(c),
        experts=count,
        experts_per_token=_chosen(c, count),
    )


def qwen2_moe(c: HfConfig) -> Model:
    """Read Qwen1.5-MoE and Qwen2's mixture: a shared, gated network beside the experts."""
    _require_sparse_everywhere(c)
    d = read_dims(c, c.count("moe_intermediate_size"), grouped=True, own_head_dim=True, divides=False)
    count, shared = c.count("num_experts"), c.count("shared_expert_intermediate_size")
    layer = (
        *attention(d, bias=c.flag("qkv_bias")),
        *router(d, count),
        *experts(d, count),
        *gated_mlp(d, name="mlp.shared_expert", width=shared),
        *linear("mlp.shared_expert_gate", d.hidden, 1),
        *two_norms(d),
    )
    return assemble(
        c,
        d,
        llama_parameters(d, layer),
        activation=c.text("hidden_act"),
        attention_dropout=c.probability("attention_dropout"),
        sliding_window=qwen_window(c),
        experts=count,
        experts_per_token=_chosen(c, count),
        shared_mlp=shared,
    )
