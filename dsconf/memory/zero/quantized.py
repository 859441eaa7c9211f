"""Frozen weights, and how bitsandbytes stores them in 8 or 4 bits (``--quantize``, QLoRA).

transformers replaces the decoder's linear layers; embeddings, norms, the output projection and experts held in one
tensor keep their type (transformers/integrations/bitsandbytes.py:189, quantizers/base.py:get_keys_to_not_convert).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.memory.zero.subgroups import all_params
from dsconf.model.spec import Model, Param

_WEIGHTS_PER_BYTE = {"4bit": 2, "8bit": 1}
_BLOCK, _NESTED_BLOCK = 64, 256
"""Weights of 4 bits that share a maximum, and maxima that share one themselves: QLoRA's ``bnb_4bit_use_double_quant``
(bitsandbytes/functional.py: quantize_4bit). Without it each maximum is in fp32, 0.05 bytes a weight more."""
_KINDS = frozenset({"linear", "conv1d"})


class Frozen(NamedTuple):
    """A model's frozen parameters, before any sharding."""

    width: int
    """Bytes of an element of those that keep their type."""
    kept: int
    """Elements of those."""
    packed: int
    """Bytes of the weights that are stored in 4 or 8 bits."""
    scales: int
    """Bytes that every rank keeps whole: they are no parameters."""
    largest: int
    """Bytes of the largest weight in the training type: it is on the GPU while it is quantized."""

    @property
    def weights(self) -> int:
        """Bytes that stage 3 shards."""
        return self.width * self.kept + self.packed


@lru_cache(maxsize=256)
def frozen(model: Model, quantize: str | None, width: int) -> Frozen:
    """Return ``model``'s frozen parameters, those of 8 or 4 bits as ``quantize`` (None: none) stores them.

    ``width`` is the bytes of an element in the training type.
    """
    params = [param for param in all_params(model) if not param.trainable]
    stored = [param for param in params if quantize and param.kind in _KINDS and len(param.shape) == 2]
    each = _WEIGHTS_PER_BYTE.get(quantize or "", 1)
    return Frozen(
        width=width,
        kept=sum([param.numel for param in params]) - sum([param.numel for param in stored]),
        packed=sum([param.numel // each for param in stored]),
        scales=sum([_scales(param, quantize) for param in stored]),
        largest=width * max([param.numel for param in stored], default=0),
    )


def _scales(param: Param, quantize: str | None) -> int:
    """Count the scales: a maximum for each block of 4-bit weights; one for each row of an 8-bit matrix (bitsandbytes:
    Int8Params.SCB)."""
    if quantize == "4bit":
        blocks = -(-param.numel // _BLOCK)
        return blocks + 4 * -(-blocks // _NESTED_BLOCK)
    return 4 * (param.shape[1] if param.kind == "conv1d" else param.shape[0])
