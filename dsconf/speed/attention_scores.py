"""Bytes and operations of attention where its scores go through memory."""

from __future__ import annotations

from typing import NamedTuple

from dsconf.model.attention import runs_eager, shares_one_head
from dsconf.model.spec import Model


class Scores(NamedTuple):
    """Bytes moved for each score in forward and in backward, the products' own included, operations of each, and the
    share of the products that runs in fp32."""

    forward: float
    backward: float
    forward_operations: int
    backward_operations: int
    in_fp32: float = 0.0


_LIKE_USUAL = {"fp32": (33, 36), "autocast": (29, 36)}
# Bytes in forward and backward by precision, fp16 as bf16: counted on transformers' and torch's own code, operation by
# operation (tests/speed/test_counted_scores.py).
_BYTES: dict[str, dict[str, tuple[float, float]]] = {
    "usual": {"bf16": (32.5, 36), **_LIKE_USUAL},
    "low": {"bf16": (16.5, 18), **_LIKE_USUAL},
    "wide": {"bf16": (36.5, 38), **_LIKE_USUAL},
    "capped": {"bf16": (44.5, 50), "fp32": (57, 64), "autocast": (41, 50)},
    "bloom": {"bf16": (28.5, 32), "fp32": (25, 28), "autocast": (25, 32)},
    "alibi": {"bf16": (46, 34), "fp32": (44, 36), "autocast": (52, 40)},
    "formula": {"bf16": (45, 28), "fp32": (40, 28), "autocast": (45, 28)},
}
_OPERATIONS = {
    "usual": (7, 8),
    "low": (5, 6),
    "wide": (8, 8),
    "capped": (10, 11),
    "bloom": (6, 7),
    "alibi": (10, 9),
    "formula": (12, 8),
}
_OWN = {"gpt2": "low", "falcon": "low", "bloom": "bloom", "gptj": "wide", "gpt_neo": "wide"}


def kind_of(model: Model, attention: str, precision: str) -> str | None:
    """Say how ``model`` computes scores, or None where a fused kernel keeps them to itself.

    ``usual``: product, scale, mask, fp32 softmax between two casts, product (``eager_attention_forward``). ``low``:
    GPT-2 and Falcon, whose softmax stays in the scores' type. ``wide``: GPT-J and GPT-Neo, in fp32 up to the softmax.
    ``capped``: Gemma 2, which divides by its cap, takes tanh and multiplies. ``bloom``: product and ALiBi in one
    ``baddbmm``. ``alibi``: Falcon with ALiBi, which sums in fp32. ``formula``: torch's
    ``_scaled_dot_product_attention_math``, all in fp32, with a look for rows without any key.
    """
    if runs_eager(model.family, attention):
        if model.alibi and model.family == "falcon":
            return "alibi"
        return "capped" if model.attention_softcap else _OWN.get(model.family, "usual")
    grouped_fp32 = precision == "fp32" and model.kv_heads != model.heads and model.family != "falcon"
    return "formula" if attention == "sdpa" and (shares_one_head(model) or grouped_fp32) else None


def scores_of(model: Model, attention: str, precision: str) -> Scores | None:
    """Return what attention of the kind that ``model`` runs moves and launches in ``precision`` (a
    ``Settings.precision``), or None where no score goes through memory."""
    kind = kind_of(model, attention, precision)
    if kind is None:
        return None
    forward, backward = _BYTES[kind]["bf16" if precision == "fp16" else precision]
    half = 0.5 if kind == "wide" and precision in ("bf16", "fp16") else 0.0
    in_fp32 = 1.0 if precision == "fp32" or kind == "formula" else half
    return Scores(forward, backward, *_OPERATIONS[kind], in_fp32)
