"""Which attention a model runs on CUDA: what transformers has for its family, and what torch's SDPA takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsconf.model.spec import Model

EAGER_ALONE = ("bloom", "gptj", "gpt_neo")
"""Families whose code in transformers has no SDPA: asked for it, they refuse; left alone, they compute scores."""


def runs_eager(family: str, attention: str) -> bool:
    """Whether scores are made one by one: asked for, or the family's only way beside FlashAttention's package."""
    return attention == "eager" or (attention == "sdpa" and family in EAGER_ALONE)


def flash_problem(family: str, precision: str, has_bf16: bool) -> str | None:
    """Why FlashAttention's package cannot run, or None; ``has_bf16`` is of the card.

    It takes 16 bit alone and cards from Ampere on, which are those with bf16 (github.com/Dao-AILab/flash-attention,
    README), and transformers has no way to it for Bloom.
    """
    if precision == "fp32":
        return "FlashAttention computes in 16 bit; use --attention sdpa"
    if not has_bf16:
        return "FlashAttention needs an Ampere card or a later one; use --attention sdpa"
    if family == "bloom":
        return "Bloom has no FlashAttention in transformers; leave --attention out"
    return None


def shares_one_head(model: Model) -> bool:
    """Whether all heads share keys and values that nobody repeats for them (Falcon-7B), which no fused kernel takes."""
    repeats = model.family != "falcon" or bool(model.hf_config.get("new_decoder_architecture"))
    return not repeats and model.kv_heads != model.heads


def always_masked(model: Model) -> bool:
    """Whether the kernel is handed a mask in place of the causal flag whatever the sequence length (Falcon)."""
    return model.family == "falcon"
