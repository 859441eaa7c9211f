"""Seconds of the forward and backward passes of one micro-batch on one GPU, kernel by kernel.

What depends on the model and the card alone is worked out once (``Block``); a shape then costs a few multiplications,
because a search asks for thousands of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dsconf.cluster.spec import Gpu
from dsconf.job import Job
from dsconf.model.attention import masked_share
from dsconf.model.spec import Model, Param
from dsconf.speed import kernels, rates
from dsconf.speed.elementwise import Cost, add, ends_cost, layer_cost, loss_cost
from dsconf.speed.python_time import launches, modules
from dsconf.speed.scores import Scores, scores_of

DEQUANTIZE_BYTES = {"4bit": 2.5, "8bit": 3.0}
"""Bytes moved an element when a stored weight becomes a 16-bit one: read 0.5 or 1, write 2."""

AUTOCAST_WIDTH = 1.3
"""Bytes under torch.autocast, whose residuals and norms are in fp32, against 16 bits: counted 1.30 and 1.33 in forward
and backward of a llama layer, 1.17 of a GPT-2 layer (tests/speed/test_counted_traffic.py)."""


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
        matmul, attention, elementwise, loss, launch = self
        return Pass(count * matmul, count * attention, count * elementwise, count * loss, count * launch)


NOTHING = Pass()


class Products(NamedTuple):
    """Seconds of ``copies`` alike projections as straight lines of the rows that each sees (``share`` of the tokens).

    A product takes the larger of its arithmetic and of its three matrices' way through memory, ``per_row`` · rows +
    ``fixed``; the weight's gradient has the rows as inner dimension, so there the ramp adds to them.
    """

    copies: float
    share: float
    forward: float
    inputs: float
    weight: float
    ramp: float
    per_row: float
    fixed: float

    def seconds(self, tokens: float) -> tuple[float, float]:
        """Of forward, and of the gradients of the input and of a trained weight."""
        copies, share, forward, inputs, weight, ramp, per_row, fixed = self
        rows = tokens * share
        moved = per_row * rows + fixed
        backward = max(inputs * rows, moved)
        if weight:
            backward += max(weight * (rows + ramp), moved)
        return copies * max(forward * rows, moved), copies * backward


class Block(NamedTuple):
    """A decoder layer, or what comes before and after all layers, on one card.

    ``attention``: of forward and of backward, seconds a sequence at length s are factor · s · (s + ramp).
    ``elementwise`` and ``loss``: seconds a token; ``fixed`` those of what does not depend on the tokens.
    """

    products: tuple[Products, ...]
    attention: tuple[tuple[float, float], tuple[float, float]]
    elementwise: tuple[float, float]
    fixed: tuple[float, float]
    loss: tuple[float, float]
    launch: tuple[float, float]
    hooks: float = 0.0
    """Of the hooks that non-re-entrant checkpointing has on what forward saves, called once for each tensor."""

    def passes(self, sequences: float, seq_len: float) -> tuple[Pass, Pass]:
        """Forward and backward of ``sequences`` of ``seq_len`` tokens."""
        tokens = sequences * seq_len
        forward = backward = 0.0
        for product in self.products:
            seconds = product.seconds(tokens)
            forward += seconds[0]
            backward += seconds[1]
        (f, f_ramp), (b, b_ramp) = self.attention
        elementwise, fixed, loss, launch = self.elementwise, self.fixed, self.loss, self.launch
        return (
            Pass(
                forward,
                f * tokens * (seq_len + f_ramp),
                elementwise[0] * tokens + fixed[0],
                loss[0] * tokens,
                launch[0],
            ),
            Pass(
                backward,
                b * tokens * (seq_len + b_ramp),
                elementwise[1] * tokens + fixed[1],
                loss[1] * tokens,
                launch[1],
            ),
        )


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


def _products(gpu: Gpu, precision: str, found: tuple[Projection, ...]) -> tuple[Products, ...]:
    """Alike projections (query and output, gate and up) are counted together."""
    counts: dict[Projection, int] = {}
    for p in found:
        counts[p] = counts.get(p, 0) + 1
    return tuple(_lines(gpu, precision, p, count) for p, count in counts.items())


def _lines(gpu: Gpu, precision: str, p: Projection, count: int) -> Products:
    flops, ramp = kernels.matmul_rate(gpu, precision, p.aligned)
    byte = (4 if precision == "fp32" else 2) / gpu.memory_bandwidth
    return Products(
        copies=count * p.copies,
        share=p.share,
        forward=2 * p.columns * (p.inner + ramp) / flops,
        inputs=2 * p.inner * (p.columns + ramp) / flops,
        weight=2 * p.columns * p.inner / flops if p.trainable else 0.0,
        ramp=ramp,
        per_row=byte * (p.inner + p.columns),
        fixed=byte * p.inner * p.columns,
    )


def _width(precision: str) -> float:
    """Bytes of an activation against the 16 bits that the traffic was counted for."""
    return {"fp32": 2.0, "autocast": AUTOCAST_WIDTH}.get(precision, 1.0)


def _cast(precision: str, found: tuple[Projection, ...]) -> tuple[float, float]:
    """Bytes of torch.autocast's 16-bit copies of fp32 weights in forward, and of fp32 copies of their gradients."""
    if precision != "autocast":
        return 0.0, 0.0
    sizes = [(p.copies * p.inner * p.columns, p.trainable) for p in found]
    return 6.0 * sum(size for size, _ in sizes), 6.0 * sum(size for size, trainable in sizes if trainable)


def _fraction(written_by: str) -> float:
    return rates.TRAFFIC_FRACTION if written_by == "eager" else rates.FUSED_TRAFFIC_FRACTION


def _attention(
    model: Model, gpu: Gpu, precision: str, attention: str, scores: Scores | None, masked: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Factor and ramp of forward and of backward; the kernels are asked at one length, being quadratics.

    Of the layers ``masked`` have a kernel with a mask; the sum of two quadratics is one.
    """
    if scores is not None:
        both = kernels.eager_attention(gpu, precision, 1, 1, model.heads, model.head_dim, scores)
        return (both[0], 0.0), (both[1], 0.0)
    found = []
    for at in (0, 1):
        factor = ramped = 0.0
        for kernel, share in ((attention, 1 - masked), ("masked", masked)):
            ramp = kernels.attention_ramps(kernel)[at]
            one = kernels.attention(gpu, precision, 1, 1, model.heads, model.head_dim, kernel)[at] / (1 + ramp)
            factor, ramped = factor + share * one, ramped + share * one * ramp
        found.append((factor, ramped / factor))
    return found[0], found[1]


def layer_block(
    model: Model,
    gpu: Gpu,
    precision: str,
    attention: str,
    quantize: str | None,
    written_by: str = "eager",
    masked: float = 0.0,
) -> Block:
    """One decoder layer, the average of all where some are ``masked``."""
    found = projections(model)
    cost = layer_cost(model, written_by)
    token = kernels.traffic(gpu, _width(precision), _fraction(written_by))
    stored = DEQUANTIZE_BYTES[quantize] * sum(p.frozen_numel for p in found) if quantize else 0.0
    cast = _cast(precision, found)
    compiled = written_by == "compiled"
    saved = 0 if compiled else cost.forward_operations + len(found) + 1
    scores = scores_of(model, attention, precision)
    if scores is not None:
        cost = add(cost, Cost(0, 0, scores.forward_operations - 1, scores.backward_operations - 2))
    return Block(
        _products(gpu, precision, found),
        _attention(model, gpu, precision, attention, scores, masked),
        (token * cost.forward, token * cost.backward),
        (kernels.traffic(gpu, stored + cast[0]), kernels.traffic(gpu, stored + cast[1])),
        (0.0, 0.0),
        launches(cost, len(found) + 1, modules(model.parameters.layer), precision, compiled),
        saved * rates.SAVED_SECONDS,
    )


def ends_block(model: Model, gpu: Gpu, precision: str, written_by: str = "eager") -> Block:
    """Embedding, final norm, output projection and loss.

    The embedding's gradient is a dense tensor: zeroed (2 bytes), and where the output projection is tied added to
    that one's (6).
    """
    ends, loss = ends_cost(model, written_by), loss_cost(model, precision, written_by)
    embedding = (8 if model.tied else 2) * model.vocab * (model.embedding_dim or model.hidden)
    wide, cast = 1.0 if precision in ("bf16", "fp16") else 2.0, _cast(precision, (head(model),))
    token = kernels.traffic(gpu, _width(precision), _fraction(written_by))
    logit = kernels.traffic(gpu, 1.0, _fraction(written_by))
    outside = (*model.parameters.before, *model.parameters.after)
    return Block(
        _products(gpu, precision, (head(model),)),
        ((0.0, 0.0), (0.0, 0.0)),
        (token * ends.forward, token * ends.backward),
        (kernels.traffic(gpu, cast[0]), kernels.traffic(gpu, wide * embedding * head(model).trainable + cast[1])),
        (logit * loss.forward, logit * loss.backward),
        launches(add(ends, loss), 1, modules(outside), precision, written_by == "compiled"),
    )


@lru_cache(maxsize=1024)
def _blocks(
    model: Model, gpu: Gpu, precision: str, attention: str, quantize: str | None, written_by: str, masked: float
) -> tuple[Block, Block]:
    """Layer and ends; one look-up, because hashing a card is dear where a step costs microseconds."""
    layer = layer_block(model, gpu, precision, attention, quantize, written_by, masked)
    return layer, ends_block(model, gpu, precision, written_by)


class MicroBatch(NamedTuple):
    """The passes of one micro-batch in the order in which they run, all layers together."""

    layers: Pass
    """Forward of the layers."""
    head: Pass
    """Forward of what comes after them: final norm, output projection, loss. The embedding is counted here, too."""
    tail: Pass
    """Backward of the same."""
    backward: Pass
    """Of the layers, without what is computed again."""
    again: Pass
    """What checkpointing computes again, and its hooks in backward."""


def micro_batch(job: Job, written_by: str = "eager") -> MicroBatch:
    """The passes of one micro-batch; checkpointing runs every layer's forward again.

    Ranks that share a sequence have a share of its tokens, and of its heads over all of them: a share of everything.
    """
    model, work, gpu = job.model, job.workload, job.cluster.gpu
    sequences = (job.settings.micro_batch or work.micro_batch) / job.settings.sequence_parallel
    precision = job.settings.precision
    masked = masked_share(model, work.attention, work.seq_len)
    layer, ends = _blocks(model, gpu, precision, work.attention, work.quantize, written_by, masked)
    forward, backward = layer.passes(sequences, work.seq_len)
    head, tail = ends.passes(sequences, work.seq_len)
    layers, again = forward.times(model.layers), NOTHING
    if work.checkpointing:
        hooks = 0.0 if work.reentrant else model.layers * layer.hooks
        again = layers._replace(launch=layers.launch + 2 * hooks)
        layers = layers._replace(launch=layers.launch + hooks)
    return MicroBatch(layers, head, tail, backward.times(model.layers), again)
