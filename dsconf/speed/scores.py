"""What attention costs where its scores go through memory."""

from __future__ import annotations

from typing import NamedTuple

from dsconf.model.attention import runs_eager, shares_one_head
from dsconf.model.spec import Model


class Scores(NamedTuple):
    """Bytes moved for each score in forward and in backward, the products' own included; operations of each; and what
    part of the products runs in fp32."""

    forward: float
    backward: float
    forward_operations: int
    backward_operations: int
    in_fp32: float = 0.0


# Counted on transformers' and torch's own code, operation by operation (tests/speed/test_counted_scores.py).
USUAL = Scores(32.5, 36, 7, 8)
"""``eager_attention_forward``: product, scale, mask, fp32 softmax between two casts, product."""
LOW = Scores(16.5, 18, 5, 6)
"""GPT-2 and Falcon, whose softmax stays in the type of the scores."""
CAPPED = Scores(44.5, 50, 10, 11)
"""Gemma 2: divided by the cap, tanh, multiplied by it."""
BLOOM = Scores(28.5, 32, 6, 7)
"""Product and ALiBi in one ``baddbmm``."""
ALIBI = Scores(46, 34, 10, 9)
"""Falcon with ALiBi: sums in fp32."""
PLAIN_FP32 = Scores(36.5, 38, 8, 8, in_fp32=0.5)
"""GPT-J and GPT-Neo: queries, keys, scores and softmax in fp32, the second product in 16 bits."""
FORMULA = Scores(45, 28, 12, 8, in_fp32=1.0)
"""torch's ``_scaled_dot_product_attention_math``: all in fp32, and a look for rows without any key (14 bytes)."""

_OWN = {"gpt2": LOW, "falcon": LOW, "bloom": BLOOM, "gptj": PLAIN_FP32, "gpt_neo": PLAIN_FP32}


def scores_of(model: Model, attention: str, precision: str) -> Scores | None:
    """How ``model`` computes scores, or None where a fused kernel keeps them to itself."""
    if runs_eager(model.family, attention):
        if model.alibi and model.family == "falcon":
            return ALIBI
        return CAPPED if model.attention_softcap else _OWN.get(model.family, USUAL)
    grouped_fp32 = precision == "fp32" and model.kv_heads != model.heads
    return FORMULA if attention == "sdpa" and (shares_one_head(model) or grouped_fp32) else None
