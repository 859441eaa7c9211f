"""Scales a model down to what a CPU trains in seconds: same family, same layer, fewer and smaller of everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsconf.model.spec import Model
from dsconf.units import format_count

SMALL_ENOUGH = 20_000_000
"""Parameters that a CPU trains at well under a second a step; larger models are scaled down."""
MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM, MAX_VOCAB, MAX_EXPERTS = 4, 4, 32, 4096, 4
MAX_GROUP = 8
"""Query heads that share a key and value head."""
MAX_SEQ_LEN, MAX_MICRO_BATCH, MAX_ACCUMULATION = 256, 2, 4
WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "n_inner",
    "ffn_dim",
    "ffn_hidden_size",
    "word_embed_proj_dim",
)


def small_hf_config(model: Model) -> dict[str, Any]:
    """Return ``model.hf_config`` with layers, heads, widths, vocabulary and experts capped in proportion.

    Special tokens and per-dimension rope factors are dropped: they no longer fit the smaller sizes.
    """
    config = {key: value for key, value in model.hf_config.items() if not key.endswith("_token_id")}
    spelled = _spelling(config)
    for key, value in (_sizes(model) | _widths(model, config) | _experts(model, config)).items():
        config[spelled.get(key, key)] = value
    _shorten_lists(config, min(model.layers, MAX_LAYERS))
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), Mapping):
            config[key] = _plain_rope(config[key])
    return config


def _heads(model: Model) -> tuple[int, int, int]:
    """Query heads, key and value heads, and head dimension of the small model; groups of up to 8 heads are kept."""
    group = min(model.heads // model.kv_heads, MAX_GROUP)
    kv_heads = max(1, min(model.kv_heads, MAX_HEADS // group))
    return kv_heads * group, kv_heads, min(model.head_dim, MAX_HEAD_DIM)


def _shrunk_width(model: Model, width: int) -> int:
    """Return ``width`` in proportion to the heads, a multiple of 8."""
    heads, _, head_dim = _heads(model)
    small = width * heads * head_dim // (model.heads * model.head_dim)
    return max(8, small // 8 * 8)


def _sizes(model: Model) -> dict[str, int]:
    heads, kv_heads, head_dim = _heads(model)
    sizes = {
        "num_hidden_layers": min(model.layers, MAX_LAYERS),
        "hidden_size": _shrunk_width(model, model.hidden),
        "num_attention_heads": heads,
        "vocab_size": min(model.vocab, MAX_VOCAB),
    }
    if model.kv_heads != model.heads or "num_key_value_heads" in model.hf_config:
        sizes["num_key_value_heads"] = kv_heads
    if "num_kv_heads" in model.hf_config:
        sizes["num_kv_heads"] = kv_heads
    if model.hf_config.get("head_dim") or model.hidden != model.heads * model.head_dim:
        sizes["head_dim"] = head_dim
    if "rotary_dim" in model.hf_config:
        sizes["rotary_dim"] = max(2, model.rotary_dim * head_dim // model.head_dim // 2 * 2)
    return sizes


def _widths(model: Model, config: Mapping[str, Any]) -> dict[str, int]:
    given = {key: _shrunk_width(model, config[key]) for key in WIDTHS if config.get(key)}
    return given if given or not _has_own_width(model) else {"intermediate_size": _shrunk_width(model, model.mlp)}


def _has_own_width(model: Model) -> bool:
    """Tell whether the family has a fixed default width rather than four times the hidden size."""
    from dsconf.model.families import FAMILIES

    return "intermediate_size" in FAMILIES[model.family].defaults


def _experts(model: Model, config: Mapping[str, Any]) -> dict[str, int]:
    if not model.experts:
        return {}
    experts = min(model.experts, MAX_EXPERTS)
    names = [key for key in ("num_local_experts", "num_experts") if key in config] or ["num_local_experts"]
    return {names[0]: experts, "num_experts_per_tok": min(model.experts_per_token, experts)}


def _spelling(config: Mapping[str, Any]) -> dict[str, str]:
    """Return how this config spells the common names: ``n_embd`` for ``hidden_size``."""
    from dsconf.model.families import FAMILIES

    aliases = FAMILIES[config["model_type"]].aliases
    return {common: alias for alias, common in aliases.items() if alias in config}


def _shorten_lists(config: dict[str, Any], layers: int) -> None:
    """Keep the per-layer lists as long as there are layers."""
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:layers]
    if config.get("attention_types"):
        kinds = [kind for pattern, times in config["attention_types"] for kind in pattern * times]
        config["attention_types"] = [[kinds[:layers], 1]]
        config.pop("attention_layers", None)


def _plain_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, Mapping) for value in rope.values()):  # one block for each layer type
        return {key: _plain_rope(value) for key, value in rope.items()}
    kept = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    return {"rope_type": "default", **kept}


def scale_note(model: Model, small: Model) -> str:
    """Say what was made smaller, in one line."""
    changes = [
        f"{name} {getattr(model, field)} → {getattr(small, field)}"
        for name, field in (
            ("layers", "layers"),
            ("hidden size", "hidden"),
            ("heads", "heads"),
            ("vocabulary", "vocab"),
            ("experts", "experts"),
        )
        if getattr(model, field) != getattr(small, field)
    ]
    counts = f"{format_count(model.num_params)} → {format_count(small.num_params)} parameters"
    return f"model {counts} ({', '.join(changes)})"
