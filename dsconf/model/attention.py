"""Which attention a model runs on CUDA: what transformers has for its family, and what torch's SDPA takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dsconf.errors import InputError

if TYPE_CHECKING:
    from dsconf.model.spec import Model

EAGER_ALONE = ("bloom", "gptj", "gpt_neo")
"""Families whose code in transformers has no SDPA: asked for it, they refuse; left alone, they compute scores."""

SDPA_UNTIL = {"gemma2": (5, 20)}
"""Families that had SDPA, and the last release of transformers in which they do: from 5.21 on modeling_gemma2.py says
``_supports_sdpa = False``, since SDPA has no softcap of the scores."""


def runs_eager(family: str, attention: str) -> bool:
    """Say whether scores are made one by one: because that was asked for, or because the family has no other way beside
    FlashAttention's package."""
    return attention == "eager" or (attention == "sdpa" and family in EAGER_ALONE)


def sdpa_is_gone(family: str, release: str) -> bool:
    """Say whether ``release`` of transformers, such as 5.24.0, refuses SDPA for a ``family`` that had it before."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    return family in SDPA_UNTIL and numbers > SDPA_UNTIL[family]


def flash_problem(model: Model, precision: str, has_bf16: bool) -> str | None:
    """Say why FlashAttention's package cannot run, or return None; ``has_bf16`` is about the card.

    The package takes only 16-bit types and cards from Ampere on, which are those with bf16
    (github.com/Dao-AILab/flash-attention, README), and transformers does not offer it for Bloom and for Falcon with
    ALiBi (modeling_falcon.py: FalconFlashAttention2.forward).
    """
    if precision == "fp32":
        return "FlashAttention only computes in 16 bits; use --attention sdpa"
    if not has_bf16:
        return "FlashAttention needs an Ampere card or a newer one; use --attention sdpa"
    if model.alibi:
        return f"transformers has no FlashAttention for {model.family} with ALiBi; leave --attention out"
    return None


def refuse_flash(model: Model, attention: str, precision: str, has_bf16: bool) -> None:
    """Raise where the kernel asked for cannot run, else do nothing.

    Raises:
        InputError: FlashAttention in fp32, on a card before Ampere, or of a family without it.
    """
    problem = flash_problem(model, precision, has_bf16) if attention == "flash" else None
    if problem is not None:
        raise InputError(f"--attention flash: {problem}")


def shares_one_head(model: Model) -> bool:
    """Say whether all heads share one head of keys and values that the model does not repeat for them (Falcon-7B); no
    fused kernel takes that."""
    repeats = model.family != "falcon" or bool(model.hf_config.get("new_decoder_architecture"))
    return not repeats and model.kv_heads != model.heads


def windowed_layers(model: Model) -> tuple[bool, ...]:
    """Say of each layer whether its attention sees a sliding window (``layer_types`` of configuration_<family>.py)."""
    config, layers = model.hf_config, range(model.layers)
    if not model.sliding_window:
        return (False,) * model.layers
    if config.get("layer_types"):
        return tuple(kind == "sliding_attention" for kind in config["layer_types"])
    first = _given(config, "max_window_layers", 28)
    if model.family == "gemma2":
        return tuple(i % 2 == 0 for i in layers)
    if model.family == "gemma3_text":
        return tuple((i + 1) % _given(config, "sliding_window_pattern", 6) > 0 for i in layers)
    if model.family in ("qwen2", "qwen3"):
        return tuple(i >= first for i in layers)
    if model.family == "qwen2_moe":
        return tuple(i % 2 == 0 and i < first for i in layers)
    return (True,) * model.layers


def _given(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return default if value is None else int(value)


@lru_cache(maxsize=256)
def _windowed_share(model: Model) -> float:
    return sum(windowed_layers(model)) / model.layers


def masked_share(model: Model, attention: str, seq_len: int) -> float:
    """Return the share of the layers whose fused kernel is handed a mask in place of the causal flag: all of Falcon's,
    and those with a sliding window that the sequence fills (transformers/masking_utils.py:
    _ignore_causal_mask_sdpa)."""
    if attention != "sdpa":
        return 0.0
    if model.family == "falcon":
        return 1.0
    return _windowed_share(model) if seq_len >= model.sliding_window > 0 else 0.0
