"""Bytes that a decoder layer moves outside its matrix products, and the operations it launches.

The figures are for 16 bits. Those of eager PyTorch were counted by having every operation of transformers' layers
report the sizes of its inputs and outputs (tests/speed/test_counted_traffic.py counts them again). A fused kernel reads
each input once and writes each output once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.model.spec import Model, Param


class Traffic(NamedTuple):
    """Bytes read and written, and operations launched, in forward and in backward."""

    forward: float = 0.0
    backward: float = 0.0
    forward_operations: float = 0
    backward_operations: float = 0

    def times(self, elements: float) -> Traffic:
        """Return the traffic of ``elements`` elements; the number of operations stays."""
        return self._replace(forward=self.forward * elements, backward=self.backward * elements)


def add(*parts: Traffic) -> Traffic:
    """Return the sum of ``parts``."""
    return Traffic(*map(sum, zip(*parts, strict=True)))


# Per element of the operation's output.
RMS_NORM = Traffic(36, 86, 8, 16)
"""Upcast to fp32, square, mean, scale, downcast, weight: transformers' RMSNorm, which is not fused."""
FP32_RMS_NORM = Traffic(40, 104, 9, 18)
"""The same where the weight is applied in fp32 (Gemma, OLMo 2)."""
LAYER_NORM = Traffic(4, 6, 1, 1)
"""torch's fused LayerNorm."""
ROTARY = Traffic(21.3, 33.3, 10, 17)
"""Rotation of queries and keys: product with cos, rotate_half, product with sin, sum."""
PARTIAL_ROTARY = Traffic(4, 15, 2, 6)
"""Cutting each head into a rotated and an unrotated part and joining them again."""
SIMPLE_ACTIVATION = Traffic(4, 6, 1, 1)
"""An activation that is one kernel: silu, relu, gelu."""
TANH_GELU = Traffic(36, 56, 8, 12)
"""``gelu_new``: seven products, powers and sums around a tanh (GPT-2, Phi, Bloom)."""
GATE = Traffic(6, 12, 1, 2)
"""Product of the activated gate with the up projection."""
RESIDUAL = Traffic(6, 6, 1, 1)
"""Sum of two tensors; in backward two gradients of the tensor that was used twice."""
DROPOUT = Traffic(5, 5, 1, 1)
"""torch's fused dropout with its mask of one byte."""
COPY = Traffic(4, 4, 1, 1)
"""A copy to another layout."""
ADAPTER_OUTPUT = Traffic(10, 4, 2, 1)
"""peft's LoRA, per element of the adapted layer's output: scaled (4) and added (6); in backward scaled."""
ADAPTER_INPUT = Traffic(0, 6, 0, 1)
"""The same, per element of its input: the gradients of layer and adapter summed."""

# The same where one kernel does it all (Liger, torch.compile).
FUSED_NORM = Traffic(4, 6, 1, 1)
FUSED_ROTARY = Traffic(4, 4, 1, 1)
FUSED_ACTIVATION = Traffic(4, 6, 1, 1)
FUSED_GATED_ACTIVATION = Traffic(6, 10, 1, 1)
"""Read gate and up (4), write (2); in backward read both and the gradient (6), write both (4)."""
FUSED_LOSS = Traffic(4, 4, 1, 1)
"""Per logit: read twice for maximum and sum (4); in backward read (2), write the gradient (2). No fp32 copy."""

KERNELS = ("eager", "fused", "compiled")
"""Who wrote the kernels beside products and attention: PyTorch and transformers as they are; Liger and the like, with
the rest as it is; torch.compile, which leaves Python and autograd with one launch for each kernel."""

_TANH_GELUS = ("gelu_new", "gelu_fast", "bloom_gelu")


def _norm_width(model: Model, param: Param) -> int:
    """Return the elements a token that the norm with weight ``param`` writes."""
    name = param.name.rpartition(".")[0]
    if name.endswith(("q_norm", "q_layernorm")):
        return model.heads * model.head_dim
    if name.endswith(("k_norm", "k_layernorm")):
        return model.kv_heads * model.head_dim
    return model.hidden


def _norms(model: Model, fused: bool) -> Traffic:
    weights = [p for p in model.parameters.layer if p.kind == "norm" and p.name.endswith("weight")]
    with_bias = any(p.kind == "norm" and p.name.endswith("bias") for p in model.parameters.layer)
    norm = _norm(model, with_bias, fused)
    return add(Traffic(), *(norm.times(_norm_width(model, p)) for p in weights))


def _norm(model: Model, with_bias: bool, fused: bool) -> Traffic:
    if with_bias:
        return LAYER_NORM
    if fused:
        return FUSED_NORM
    return FP32_RMS_NORM if model.family.startswith(("gemma", "olmo2")) else RMS_NORM


def _rotation(model: Model, fused: bool) -> Traffic:
    """Count rotary embedding. Where only a part of each head rotates, heads are cut and joined again (GPT-NeoX,
    Phi)."""
    if not model.rotary_dim:
        return Traffic()
    heads = model.heads + model.kv_heads
    if fused:
        return FUSED_ROTARY.times(heads * model.head_dim)
    whole = ROTARY.times(heads * model.rotary_dim)
    return whole if model.rotary_dim == model.head_dim else add(whole, PARTIAL_ROTARY.times(heads * model.head_dim))


def _feed_forward(model: Model, fused: bool) -> Traffic:
    """Count activation and gate of every expert that a token visits, and moving its rows there and back."""
    names = [p.name for p in model.parameters.layer]
    gated = any("gate_proj" in name or "gate_up_proj" in name for name in names)
    tanh = model.activation in _TANH_GELUS or model.family == "bloom"
    if fused:
        activation = FUSED_GATED_ACTIVATION if gated else FUSED_ACTIVATION
    else:
        activation = TANH_GELU if tanh else SIMPLE_ACTIVATION
        activation = add(activation, GATE) if gated else activation
    width = model.mlp * max(1, model.experts_per_token)
    routing = COPY.times(2 * model.hidden * model.experts_per_token) if model.experts else Traffic()
    return add(activation.times(width), routing)


def _joins(model: Model) -> Traffic:
    """Count the residual sums, and in backward the sums of the gradients that several projections give one input."""
    linears = [p for p in model.parameters.layer if p.kind == "linear" and len(p.shape) == 2 and not _adapter(p)]
    shared = sum(1 for p in linears if any(word in p.name for word in ("k_proj", "v_proj", "up_proj")))
    residuals = add(RESIDUAL, RESIDUAL).times(model.hidden)
    return residuals._replace(
        backward=residuals.backward + 6 * shared * model.hidden,
        backward_operations=residuals.backward_operations + shared,
    )


def _adapter(param: Param) -> bool:
    return "lora_" in param.name


def _biases(model: Model) -> Traffic:
    """Count the biases: part of the product in forward; in backward the output's gradient is summed over all tokens."""
    biases = [p for p in model.parameters.layer if p.kind in ("linear", "conv1d") and len(p.shape) == 1]
    return Traffic(0, 2 * sum(p.numel for p in biases), 0, len(biases))


def _adapters(model: Model) -> Traffic:
    outputs = sum(p.shape[0] for p in model.parameters.layer if "lora_B" in p.name)
    inputs = sum(p.shape[-1] for p in model.parameters.layer if "lora_A" in p.name)
    pairs = sum("lora_B" in p.name for p in model.parameters.layer)
    moved = add(ADAPTER_OUTPUT.times(outputs), ADAPTER_INPUT.times(inputs))
    return moved._replace(
        forward_operations=moved.forward_operations * pairs, backward_operations=moved.backward_operations * pairs
    )


def _dropouts(model: Model) -> Traffic:
    return add(DROPOUT, DROPOUT).times(model.hidden) if model.hidden_dropout else Traffic()


@lru_cache(maxsize=256)
def layer_traffic(model: Model, kernels: str = "eager") -> Traffic:
    """Count one decoder layer and one token, in 16 bits, without products and attention."""
    fused_kernels = kernels != "eager"
    queries = model.heads * model.head_dim
    fused = any(word in p.name for p in model.parameters.layer for word in ("qkv", "query_key_value", "c_attn"))
    split = COPY.times(queries + 2 * model.kv_heads * model.head_dim) if fused else Traffic()
    parts = (
        _norms(model, fused_kernels),
        _rotation(model, fused_kernels),
        _feed_forward(model, fused_kernels),
        _joins(model),
        _adapters(model),
        _biases(model),
        _dropouts(model),
        COPY.times(queries),
        split._replace(forward=0, forward_operations=0),
    )
    return add(*parts)


@lru_cache(maxsize=256)
def ends_traffic(model: Model, kernels: str = "eager") -> Traffic:
    """Count what one token passes before the first layer and after the last: embedding, final norm."""
    norms = [p for p in model.parameters.after if p.kind == "norm"]
    with_bias = any(p.name.endswith("bias") for p in norms)
    return add(
        _norm(model, with_bias, kernels != "eager").times(model.hidden),
        Traffic(4, 4, 1, 1).times(model.embedding_dim or model.hidden),
        DROPOUT.times(model.hidden) if model.embedding_dropout else Traffic(),
    )


def loss_traffic(model: Model, precision: str, kernels: str = "eager") -> Traffic:
    """Count one token's logits, through transformers' fp32 cross-entropy or a fused one.

    Forward: upcast 6 (none in fp32), log_softmax 12 (its input is read twice). Backward: zeros 4, log_softmax 12,
    downcast 6. A logit soft-cap adds three operations (Gemma 2).
    """
    if kernels != "eager":
        return FUSED_LOSS.times(model.vocab)
    cast = 0 if precision == "fp32" else 6
    cap = Traffic(12, 18, 3, 4) if model.logit_softcap else Traffic()
    return add(Traffic(cast + 12, 4 + 12 + cast, 4, 4), cap).times(model.vocab)
