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
from dsconf.speed.attention_scores import Scores, scores_of
from dsconf.speed.cpu_overhead import launches, modules
from dsconf.speed.elementwise import Traffic, add, ends_traffic, layer_traffic, loss_traffic

DEQUANTIZE_BYTES = {"4bit": 2.5, "8bit": 3.0}
"""Bytes moved an element when a stored weight becomes a 16-bit one: read 0.5 or 1, write 2."""

AUTOCAST_WIDTH = 1.3
"""Bytes under torch.autocast, whose residuals and norms are in fp32, against 16 bits: counted 1.30 and 1.33 in forward
and backward of a llama layer, 1.17 of a GPT-2 layer (tests/speed/test_counted_traffic.py)."""


class Projection(NamedTuple):
    """A weight matrix that tokens are multiplied by; for experts, ``copies`` equal ones, each seeing ``share`` of the
    tokens."""

    inner: int
    columns: int
    trainable: bool
    frozen_numel: int
    copies: int = 1
    share: float = 1.0

    @property
    def aligned(self) -> bool:
        """Say whether all rows begin on 16 bytes in 16-bit precision."""
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
        """Return the seconds of all kernels."""
        return self.matmul + self.attention + self.elementwise + self.loss

    def times(self, count: float) -> Pass:
        """Return this pass ``count`` times."""
        matmul, attention, elementwise, loss, launch = self
        return Pass(count * matmul, count * attention, count * elementwise, count * loss, count * launch)


NOTHING = Pass()


class Products(NamedTuple):
    """Seconds of ``copies`` equal projections as straight lines of the rows that each sees (``share`` of the tokens).

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
        """Return the seconds of forward, and of the gradients of the input and of a trained weight."""
        copies, share, forward, inputs, weight, ramp, per_row, fixed = self
        rows = tokens * share
        moved = per_row * rows + fixed
        backward = max(inputs * rows, moved)
        if weight:
            backward += max(weight * (rows + ramp), moved)
        return copies * max(forward * rows, moved), copies * backward


class KernelChoice(NamedTuple):
    """Which kernels run a layer."""

    precision: str
    """A ``Settings.precision``."""
    attention: str
    """A ``Workload.attention``."""
    quantize: str | None = None
    """A ``Workload.quantize``."""
    written_by: str = "eager"
    """Who wrote the kernels beside products and attention (``elementwise.KERNELS``)."""
    masked: float = 0.0
    """Share of the layers whose attention kernel is handed a mask."""


class Block(NamedTuple):
    """A decoder layer, or what comes before and after all layers, on one card.

    Each pair is (forward, backward).
    """

    products: tuple[Products, ...]
    attention: tuple[tuple[float, float], tuple[float, float]]
    """Factor and ramp: a sequence of length s takes factor · s · (s + ramp) seconds."""
    elementwise: tuple[float, float]
    """Seconds a token."""
    fixed: tuple[float, float]
    """Seconds that do not depend on the number of tokens."""
    loss: tuple[float, float]
    """Seconds a token."""
    launch: tuple[float, float]
    """Seconds the CPU needs to launch the kernels."""
    hooks: float = 0.0
    """Seconds of the hooks that non-re-entrant checkpointing runs, once for each tensor that forward saves."""

    def passes(self, sequences: float, seq_len: float) -> tuple[Pass, Pass]:
        """Return forward and backward of ``sequences`` of ``seq_len`` tokens."""
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
    """List every weight matrix of one decoder layer, and every stack of experts' matrices."""
    weights = (p for p in model.parameters.layer if len(p.shape) >= 2 and p.kind not in ("norm", "embedding"))
    return tuple(_projection(p, model) for p in weights)


@lru_cache(maxsize=256)
def head(model: Model) -> Projection:
    """Return the output projection: hidden (or the embedding's width) to vocabulary."""
    weights = (p for p in model.parameters.after if p.kind == "head" and len(p.shape) == 2)
    tied = model.parameters.before[0] if model.parameters.before else Param("", (model.vocab, model.hidden))
    param = next(weights, tied)
    inner = model.embedding_dim or model.hidden
    return Projection(inner, model.vocab, param.trainable, 0)


def _products(gpu: Gpu, precision: str, weights: tuple[Projection, ...]) -> tuple[Products, ...]:
    """Return the seconds of ``weights``, equal ones (query and output, gate and up) together."""
    counts: dict[Projection, int] = {}
    for p in weights:
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
    """Return the bytes of an activation relative to the 16 bits that the traffic was counted for."""
    return {"fp32": 2.0, "autocast": AUTOCAST_WIDTH}.get(precision, 1.0)


def _cast(precision: str, weights: tuple[Projection, ...]) -> tuple[float, float]:
    """Count the bytes of torch.autocast's 16-bit copies of fp32 weights in forward, and of fp32 copies of their
    gradients."""
    if precision != "autocast":
        return 0.0, 0.0
    sizes = [(p.copies * p.inner * p.columns, p.trainable) for p in weights]
    return 6.0 * sum(size for size, _ in sizes), 6.0 * sum(size for size, trainable in sizes if trainable)


def _fraction(written_by: str) -> float:
    return rates.TRAFFIC_FRACTION if written_by == "eager" else rates.FUSED_TRAFFIC_FRACTION


def _attention(
    model: Model, gpu: Gpu, choice: KernelChoice, scores: Scores | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return factor and ramp (see ``Block.attention``) of forward and of backward.

    Every kernel's seconds are a quadratic of the length, so asking it at one length is enough. Where ``choice.masked``
    of the layers have a kernel with a mask, the sum of the two quadratics is a quadratic again.
    """
    unit = kernels.AttentionShape(sequences=1, seq_len=1, heads=model.heads, head_dim=model.head_dim)
    if scores is not None:
        forward, backward = kernels.eager_attention(gpu, choice.precision, unit, scores)
        return (forward, 0.0), (backward, 0.0)
    lines = []
    for direction in (0, 1):
        factor = ramped = 0.0
        for kernel, share in ((choice.attention, 1 - choice.masked), ("masked", choice.masked)):
            ramp = kernels.attention_ramps(kernel)[direction]
            quadratic = kernels.attention(gpu, choice.precision, unit, kernel)[direction] / (1 + ramp)
            factor, ramped = factor + share * quadratic, ramped + share * quadratic * ramp
        lines.append((factor, ramped / factor))
    return lines[0], lines[1]


def layer_block(model: Model, gpu: Gpu, choice: KernelChoice) -> Block:
    """Return one decoder layer, the average of all where some are masked."""
    precision, weights = choice.precision, projections(model)
    traffic = layer_traffic(model, choice.written_by)
    token = kernels.traffic_seconds(gpu, _width(precision), _fraction(choice.written_by))
    stored = DEQUANTIZE_BYTES[choice.quantize] * sum(p.frozen_numel for p in weights) if choice.quantize else 0.0
    cast = _cast(precision, weights)
    compiled = choice.written_by == "compiled"
    saved = 0 if compiled else traffic.forward_operations + len(weights) + 1
    scores = scores_of(model, choice.attention, precision)
    if scores is not None:
        traffic = add(traffic, Traffic(0, 0, scores.forward_operations - 1, scores.backward_operations - 2))
    return Block(
        products=_products(gpu, precision, weights),
        attention=_attention(model, gpu, choice, scores),
        elementwise=(token * traffic.forward, token * traffic.backward),
        fixed=(kernels.traffic_seconds(gpu, stored + cast[0]), kernels.traffic_seconds(gpu, stored + cast[1])),
        loss=(0.0, 0.0),
        launch=launches(traffic, len(weights) + 1, modules(model.parameters.layer), precision, compiled),
        hooks=saved * rates.SAVED_SECONDS,
    )


def ends_block(model: Model, gpu: Gpu, precision: str, written_by: str = "eager") -> Block:
    """Return embedding, final norm, output projection and loss.

    The embedding's gradient is a dense tensor: zeroed (2 bytes an element) and, where the output projection is tied,
    added to that of the output projection (6 bytes).
    """
    ends, loss = ends_traffic(model, written_by), loss_traffic(model, precision, written_by)
    embedding = (8 if model.tied else 2) * model.vocab * (model.embedding_dim or model.hidden)
    wide, cast = 1.0 if precision in ("bf16", "fp16") else 2.0, _cast(precision, (head(model),))
    token = kernels.traffic_seconds(gpu, _width(precision), _fraction(written_by))
    logit = kernels.traffic_seconds(gpu, 1.0, _fraction(written_by))
    outside = (*model.parameters.before, *model.parameters.after)
    gradient = wide * embedding * head(model).trainable
    return Block(
        products=_products(gpu, precision, (head(model),)),
        attention=((0.0, 0.0), (0.0, 0.0)),
        elementwise=(token * ends.forward, token * ends.backward),
        fixed=(kernels.traffic_seconds(gpu, cast[0]), kernels.traffic_seconds(gpu, gradient + cast[1])),
        loss=(logit * loss.forward, logit * loss.backward),
        launch=launches(add(ends, loss), 1, modules(outside), precision, written_by == "compiled"),
    )


@lru_cache(maxsize=1024)
def _blocks(model: Model, gpu: Gpu, choice: KernelChoice) -> tuple[Block, Block]:
    """Return the layer and the ends, in one look-up: hashing the card twice would take longer than the rest."""
    return layer_block(model, gpu, choice), ends_block(model, gpu, choice.precision, choice.written_by)


class MicroBatch(NamedTuple):
    """The passes of one micro-batch in the order in which they run, all layers together."""

    layers: Pass
    """Forward of the layers."""
    head: Pass
    """Forward of final norm, output projection and loss. The embedding is counted here, too."""
    head_backward: Pass
    """Backward of the same."""
    backward: Pass
    """Backward of the layers, without what checkpointing computes again."""
    recompute: Pass
    """What checkpointing computes again, and its hooks in backward."""


def micro_batch(job: Job, written_by: str = "eager") -> MicroBatch:
    """Compute the passes of one micro-batch; checkpointing runs every layer's forward again.

    Ranks that share a sequence each have a share of its tokens, and attend over all tokens with a share of the heads: a
    share of everything.
    """
    model, work, gpu = job.model, job.workload, job.cluster.gpu
    sequences = (job.settings.micro_batch or work.micro_batch) / job.settings.sequence_parallel
    masked = masked_share(model, work.attention, work.seq_len)
    choice = KernelChoice(job.settings.precision, work.attention, work.quantize, written_by, masked)
    layer, ends = _blocks(model, gpu, choice)
    forward, backward = layer.passes(sequences, work.seq_len)
    head, head_backward = ends.passes(sequences, work.seq_len)
    layers, recompute = forward.times(model.layers), NOTHING
    if work.checkpointing:
        hooks = 0.0 if work.reentrant else model.layers * layer.hooks
        recompute = layers._replace(launch=layers.launch + 2 * hooks)
        layers = layers._replace(launch=layers.launch + hooks)
    return MicroBatch(layers, head, head_backward, backward.times(model.layers), recompute)
