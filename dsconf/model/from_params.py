"""Chooses the shape of a llama-like model from its size alone.

Sizes are grouped in rungs, each 10**(1/40) (5.9 %) above the last. A rung has one depth, interpolated over published
dense models (linearly in the logarithm of the size; beyond the last by the last slope), and one hidden size: the one
whose feed-forward width comes nearest to 3.5 times it (Llama 3's ratio). The feed-forward width then takes up what is
left, so that every total of a rung lies within it and totals never fall as the size asked for grows.

Heads hold 64 elements below a hidden size of 3072 and 128 from there on; there are 8 key/value heads from a hidden size
of 1024 on (4 where the heads cannot be divided by 8), and as many as heads below. The vocabulary is Llama 2's 32000
below 1B and Llama 3's 128256 from there on, tied below 4B as in Llama 3.2.
"""

from __future__ import annotations

from math import ceil, floor, inf, log, log10
from typing import Any, NamedTuple

from dsconf.errors import InputError
from dsconf.model.spec import Model
from dsconf.units import format_count

SMALLEST, LARGEST = 10**7, 2 * 10**12
RUNGS_PER_DECADE = 40
MLP_RATIO = 3.5
"""28672 / 8192 of Llama 3.1 70B and 14336 / 4096 of Llama 3.1 8B."""
TIED_BELOW = 4 * 10**9
LARGE_VOCAB_FROM = 10**9
SMALL_VOCAB, LARGE_VOCAB = 32000, 128256
TOLERANCE = 0.01
"""Largest distance of a total from the size asked for, as a part of that size."""

DEPTHS = (
    (14_067_712, 6),  # https://huggingface.co/EleutherAI/pythia-14m
    (70_426_624, 6),  # https://huggingface.co/EleutherAI/pythia-70m
    (494_032_768, 24),  # https://huggingface.co/Qwen/Qwen2.5-0.5B
    (3_212_749_824, 28),  # https://huggingface.co/meta-llama/Llama-3.2-3B
    (8_030_261_248, 32),  # https://huggingface.co/meta-llama/Llama-3.1-8B
    (14_770_033_664, 48),  # https://huggingface.co/Qwen/Qwen2.5-14B
    (32_763_876_352, 64),  # https://huggingface.co/Qwen/Qwen2.5-32B
    (70_553_706_496, 80),  # https://huggingface.co/meta-llama/Llama-3.1-70B
    (405_853_388_800, 126),  # https://huggingface.co/meta-llama/Llama-3.1-405B
)
"""(parameters, layers) of published dense decoders."""


class _Body(NamedTuple):
    """A shape without its feed-forward width."""

    hidden: int
    layers: int
    vocab: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return 64 if self.hidden < 3072 else 128

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim

    @property
    def kv_heads(self) -> int:
        if self.hidden < 1024:
            return self.heads
        return 8 if self.heads % 8 == 0 else 4

    @property
    def fixed(self) -> int:
        """Return the parameters outside the feed-forward networks: embeddings, attention, norms."""
        attention = 2 * self.hidden * (self.hidden + self.kv_heads * self.head_dim)
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        return embeddings + self.layers * (attention + 2 * self.hidden) + self.hidden

    @property
    def per_width(self) -> int:
        """Return the parameters that one more element of feed-forward width adds."""
        return 3 * self.hidden * self.layers

    def width(self, total: float) -> float:
        """Return the feed-forward width that would give ``total`` parameters."""
        return (total - self.fixed) / self.per_width


def depth(total: float) -> int:
    """Return the layers of a model of ``total`` parameters: the nearest even number interpolated over
    :data:`DEPTHS`."""
    above = next((i for i, (size, _) in enumerate(DEPTHS) if size >= total), len(DEPTHS) - 1)
    (small, few), (large, many) = DEPTHS[max(above - 1, 0)], DEPTHS[max(above, 1)]
    layers = few + (many - few) * log(total / small) / log(large / small)
    return max(2, 2 * round(layers / 2))


def rung(total: int) -> tuple[int, int]:
    """Return the first size of the rung that ``total`` is in, and the first of the next."""
    step = floor(RUNGS_PER_DECADE * log10(total / SMALLEST))
    while _edge(step) > total:
        step -= 1
    while _edge(step + 1) <= total:
        step += 1
    return _edge(step), _edge(step + 1)


def _edge(step: int) -> int:
    return round(SMALLEST * 10 ** (step / RUNGS_PER_DECADE))


def _hidden_step(hidden: float) -> int:
    """Return the step between hidden sizes, chosen so that 8 or 4 key/value heads divide the heads."""
    if hidden < 1024:
        return 64
    return 256 if hidden < 3072 else (512 if hidden < 5120 else 1024)


def _hidden_candidates(layers: int, vocab: int, tied: bool, total: float) -> list[int]:
    """Return two hidden sizes, one on each side of the one at which the feed-forward ratio would be exactly right."""
    # A layer has about (2 + 3 × ratio) h² parameters and the embeddings vocab × h: the positive root of the sum.
    a, b = layers * (2.25 + 3 * MLP_RATIO), vocab * (1 if tied else 2)
    hidden = ((b * b + 4 * a * total) ** 0.5 - b) / (2 * a)
    step = _hidden_step(hidden)
    below = max(64, int(hidden) // step * step)
    return [below, below + _hidden_step(below)]


def _body(low: int, high: int) -> _Body:
    """Choose the shape shared by all sizes of the rung from ``low`` to ``high``."""
    middle = (low * high) ** 0.5
    tied = low < TIED_BELOW
    vocab = SMALL_VOCAB if low < LARGE_VOCAB_FROM else LARGE_VOCAB

    def off(body: _Body) -> float:
        width = body.width(middle)
        return abs(log(width / body.hidden / MLP_RATIO)) if width > 0 else inf

    layers = depth(middle)
    bodies = [_Body(h, layers, vocab, tied) for h in _hidden_candidates(layers, vocab, tied, middle)]
    return min(bodies, key=off)


def _mlp(body: _Body, total: int, low: int, high: int) -> int:
    """Choose the feed-forward width whose total is nearest to ``total`` and inside the rung.

    A multiple of 256, or of the largest smaller power of two whose step is within the tolerance.
    """
    multiple = 256
    while multiple > 1 and multiple * body.per_width > TOLERANCE * low:
        multiple //= 2
    first = ceil(body.width(low) / multiple)
    last = ceil(body.width(high) / multiple) - 1
    return multiple * min(max(round(body.width(total) / multiple), first), last)


def shape_of_size(total: int) -> dict[str, Any]:
    """Return the Llama config of about ``total`` parameters, within 1 %; asking for more never gives fewer.

    Raises:
        InputError: below 10M or above 2T, where no published dense model says what is realistic.
    """
    if not SMALLEST <= total <= LARGEST:
        raise InputError(
            f"--params {format_count(total)}: shapes are known from 10M to 2T parameters; "
            "give --model config.json for others"
        )
    low, high = rung(total)
    body = _body(low, high)
    return {
        "model_type": "llama",
        "hidden_size": body.hidden,
        "intermediate_size": _mlp(body, total, low, high),
        "num_hidden_layers": body.layers,
        "num_attention_heads": body.heads,
        "num_key_value_heads": body.kv_heads,
        "head_dim": body.head_dim,
        "vocab_size": body.vocab,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": body.tied,
    }


def shape_sentence(model: Model) -> str:
    """Say in one line which shape was chosen for a size, and by what rule."""
    return (
        f"{model.name}: llama-like, {model.layers} layers of hidden size {model.hidden}, {model.heads} heads "
        f"({model.kv_heads} key/value) of {model.head_dim}, feed-forward {model.mlp}, vocabulary {model.vocab} "
        f"({'tied' if model.tied else 'not tied'}): {format_count(model.num_params)} parameters. "
        "Depth and width interpolated over published dense models (Pythia, Qwen2.5, Llama 3)."
    )
