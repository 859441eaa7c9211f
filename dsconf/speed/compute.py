"""Seconds of the forward and backward passes of one micro-batch on one GPU, kernel by kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.cluster.spec import Gpu
from dsconf.job import Job
from dsconf.model.spec import Model, Param
from dsconf.speed import kernels, rates
from dsconf.speed.elementwise import Cost, add, ends_cost, layer_cost, loss_cost

DEQUANTIZE_BYTES = {"4bit": 2.5, "8bit": 3.0}
"""Bytes moved an element when a stored weight becomes a 16-bit one: read 0.5 or 1, write 2."""


class Projection(NamedTuple):
    """A weight that tokens are multiplied by; of experts, ``copies`` alike, each seeing ``share`` of the tokens."""

    inner: int
    columns: int
    trainable: bool
    frozen_numel: int
    copies: int = 1
    share: float = 1.0

    @property
    def aligned(self) -> bool:
        """Whether all rows begin on 16 bytes in 16-bit precision."""
        return not (self.inner % 8 or self.columns % 8)


class Pass(NamedTuple):
    """Seconds of GPU kernels by kind, and seconds the CPU needs to launch them."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    loss: float = 0.0
    launch: float = 0.0

    @property
    def gpu(self) -> float:
        """Seconds of all kernels."""
        return self.matmul + self.attention + self.elementwise + self.loss

    def times(self, count: float) -> Pass:
        """This pass ``count`` times."""
        return Pass(*(value * count for value in self))


def total(*passes: Pass) -> Pass:
    """The sum of ``passes``."""
    return Pass(*map(sum, zip(*passes, strict=True)))


def _projection(param: Param, model: Model) -> Projection:
    inner, columns = param.shape[-2:] if param.kind == "conv1d" else param.shape[:-3:-1]
    frozen = 0 if param.trainable else param.numel
    if len(param.shape) == 2:
        return Projection(inner, columns, param.trainable, frozen)
    experts = param.shape[0]
    share = model.experts_per_token / experts if model.experts else 1.0
    return Projection(inner, columns, param.trainable, frozen, experts, share)


@lru_cache(maxsize=256)
def projections(model: Model) -> tuple[Projection, ...]:
    """Of one decoder layer: every weight matrix, and every stack of experts' matrices."""
    weights = (p for p in model.parameters.layer if len(p.shape) >= 2 and p.kind not in ("norm", "embedding"))
    return tuple(_projection(p, model) for p in weights)


@lru_cache(maxsize=256)
def head(model: Model) -> Projection:
    """The output projection: hidden (or the embedding's width) to vocabulary."""
    weights = (p for p in model.parameters.after if p.kind == "head" and len(p.shape) == 2)
    tied = model.parameters.before[0] if model.parameters.before else Param("", (model.vocab, model.hidden))
    param = next(weights, tied)
    inner = model.embedding_dim or model.hidden
    return Projection(inner, model.vocab, param.trainable, 0)


def _products(gpu: Gpu, precision: str, tokens: int, p: Projection) -> tuple[float, float]:
    """Seconds of one projection, forward and backward: gradients of the input, and of a trained weight."""
    rows = tokens * p.share
    forward = kernels.matmul(gpu, precision, rows, p.inner, p.columns, p.aligned)
    backward = kernels.matmul(gpu, precision, rows, p.columns, p.inner, p.aligned)
    if p.trainable:
        backward += kernels.matmul(gpu, precision, p.columns, rows, p.inner, p.aligned)
    return p.copies * forward, p.copies * backward


def _launches(cost: Cost, products: int) -> tuple[float, float]:
    forward = (cost.forward_operations + products) * rates.OPERATION_SECONDS
    return forward, (cost.backward_operations + 2 * products) * rates.BACKWARD_OPERATION_SECONDS


def _width(precision: str) -> float:
    """Bytes of an activation against the 16 bits that the traffic was counted for."""
    return 2.0 if precision == "fp32" else 1.0


def writes_scores(model: Model, attention: str) -> bool:
    """Whether attention scores go through memory: eager attention, ALiBi's bias, a soft-cap inside the softmax."""
    return attention == "eager" or model.alibi or bool(model.attention_softcap)


@lru_cache(maxsize=4096)
def layer_passes(
    model: Model, gpu: Gpu, precision: str, sequences: int, seq_len: int, attention: str, quantize: str | None
) -> tuple[Pass, Pass]:
    """One decoder layer, forward and backward, for ``sequences`` of ``seq_len`` tokens."""
    tokens = sequences * seq_len
    products = [_products(gpu, precision, tokens, p) for p in projections(model)]
    kernel = kernels.eager_attention if writes_scores(model, attention) else kernels.attention
    attend = kernel(gpu, precision, sequences, seq_len, model.heads, model.head_dim)
    cost = layer_cost(model)
    stored = DEQUANTIZE_BYTES[quantize] * sum(p.frozen_numel for p in projections(model)) if quantize else 0.0
    moved = [_width(precision) * tokens * per_token + stored for per_token in (cost.forward, cost.backward)]
    launch = _launches(cost, len(products) + 1)
    forward, backward = (
        Pass(sum(p[i] for p in products), attend[i], kernels.traffic(gpu, moved[i]), 0.0, launch[i]) for i in (0, 1)
    )
    return forward, backward


@lru_cache(maxsize=4096)
def ends_passes(model: Model, gpu: Gpu, precision: str, sequences: int, seq_len: int) -> tuple[Pass, Pass]:
    """Embedding, final norm, output projection and loss, forward and backward.

    The embedding's gradient is a dense tensor: zeroed (2 bytes), and where the output projection is tied added to
    that one's (6).
    """
    tokens = sequences * seq_len
    products = _products(gpu, precision, tokens, head(model))
    ends, loss = ends_cost(model), loss_cost(model, precision)
    embedding = (8 if model.tied else 2) * model.vocab * (model.embedding_dim or model.hidden)
    width = _width(precision)
    launch = _launches(add(ends, loss), 1)
    moved = width * tokens * ends.forward, width * (tokens * ends.backward + embedding * head(model).trainable)
    logits = tokens * loss.forward, tokens * loss.backward
    forward, backward = (
        Pass(products[i], 0.0, kernels.traffic(gpu, moved[i]), kernels.traffic(gpu, logits[i]), launch[i])
        for i in (0, 1)
    )
    return forward, backward


def micro_batch(job: Job) -> tuple[Pass, Pass, Pass]:
    """Forward, backward and recomputation of one micro-batch; checkpointing runs every layer's forward again."""
    model, work = job.model, job.workload
    sequences = job.settings.micro_batch or work.micro_batch
    precision = job.settings.precision
    forward, backward = layer_passes(
        model, job.cluster.gpu, precision, sequences, work.seq_len, work.attention, work.quantize
    )
    first, last = ends_passes(model, job.cluster.gpu, precision, sequences, work.seq_len)
    again = forward.times(model.layers if work.checkpointing else 0)
    return total(forward.times(model.layers), first), total(backward.times(model.layers), last), again
