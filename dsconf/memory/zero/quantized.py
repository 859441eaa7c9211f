"""Frozen weights that bitsandbytes stores in 8 or 4 bits (``--quantize``, QLoRA).

transformers replaces the decoder's linear layers; embeddings, norms, the output projection and experts held in one
tensor keep their type (transformers/integrations/bitsandbytes.py:189, quantizers/base.py:get_keys_to_not_convert).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.zero.subgroups import all_params
from dsconf.model.spec import Model, Param

_WEIGHT_BYTES = {"4bit": 0.5, "8bit": 1.0}
_BLOCK, _NESTED_BLOCK = 64, 256
"""Weights of 4 bits that share a maximum, and maxima that share one themselves: QLoRA's ``bnb_4bit_use_double_quant``
(bitsandbytes/functional.py: quantize_4bit). Without it each maximum is in fp32, 0.05 bytes a weight more."""
_KINDS = frozenset({"linear", "conv1d"})


class Frozen(NamedTuple):
    """Bytes of a model's frozen parameters, before any sharding."""

    weights: int
    """What stage 3 shards: the stored weights and the frozen tensors that keep their type."""
    constants: int = 0
    """What every rank keeps whole: the scales, which are no parameters."""
    largest: int = 0
    """The largest weight in the training type: it is on the GPU while it is quantized."""


@lru_cache(maxsize=256)
def frozen(model: Model, quantize: str | None, width: int) -> Frozen:
    """Bytes of ``model``'s frozen parameters, those of 8 or 4 bits as ``quantize`` (None: none) stores them.

    ``width`` is the bytes of an element in the training type.
    """
    held = [param for param in all_params(model) if not param.trainable]
    stored = [param for param in held if quantize and param.kind in _KINDS and len(param.shape) == 2]
    kept = width * (sum(param.numel for param in held) - sum(param.numel for param in stored))
    each = _WEIGHT_BYTES.get(quantize or "", 0.0)
    return Frozen(
        kept + sum(int(each * param.numel) for param in stored),
        sum(_constants(param, quantize) for param in stored),
        width * max((param.numel for param in stored), default=0),
    )


def _constants(param: Param, quantize: str | None) -> int:
    """A maximum for each block of 4-bit weights; one for each row of an 8-bit matrix (bitsandbytes: Int8Params.SCB)."""
    if quantize == "4bit":
        blocks = -(-param.numel // _BLOCK)
        return blocks + 4 * -(-blocks // _NESTED_BLOCK)
    return 4 * (param.shape[1] if param.kind == "conv1d" else param.shape[0])
