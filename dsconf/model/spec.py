"""What is trained: the shape of a decoder-only transformer, its parameters in registration order, and how long its
sequences may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

from dsconf.errors import InputError

USUAL_SEQ_LEN = 2048
"""Tokens of a sequence where nobody says how many."""
POSITION_TABLES = ("gptj",)
"""Families that rotate by a table with one row for each position and fail beyond it (GPT-J's
``create_sinusoidal_positions``); the others compute what they rotate by."""


class Param(NamedTuple):
    """One parameter tensor as ``named_parameters()`` of the Hugging Face module yields it."""

    name: str
    shape: tuple[int, ...]
    trainable: bool = True
    kind: str = "other"
    """Module that owns it: ``linear`` (weight out × in), ``conv1d`` (GPT-2's, weight in × out), ``head`` (the
    output projection), ``embedding``, ``norm``, ``experts`` (all of a layer in one tensor), ``router``, ``lora``.
    """

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)


class Parameters(NamedTuple):
    """All parameters of a model in registration order: ``before``, then ``layers`` times ``layer``, then ``after``.

    ZeRO flattens and slices parameters in this order, so which tensors a rank owns follows from it.
    A tied ``lm_head`` is not listed: it is the embedding. Names in ``layer`` are relative to the layer.
    """

    before: tuple[Param, ...]
    layer: tuple[Param, ...]
    layers: int
    after: tuple[Param, ...]

    def total(self) -> int:
        """Count the elements of all parameters."""
        return sum(p.numel for p in (*self.before, *self.after)) + self.layers * sum(p.numel for p in self.layer)

    def trainable(self) -> int:
        """Count the elements of the parameters that get a gradient."""
        ends = sum(p.numel for p in (*self.before, *self.after) if p.trainable)
        return ends + self.layers * sum(p.numel for p in self.layer if p.trainable)


@dataclass(frozen=True, eq=False)
class Model:
    """A decoder-only transformer. Two models are the same only when they are one object.

    Lengths are in elements. ``mlp`` is the width of one feed-forward network (of one expert where there are
    experts). Dropout figures are probabilities; 0 means the operation is absent from the graph.
    """

    name: str
    """What the person called it: ``meta-llama/Llama-3.1-8B``, ``70B``, a path."""
    family: str
    """Hugging Face ``model_type``: decides the layer's operations."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    positions: int
    """Longest sequence the model was made for (``max_position_embeddings``)."""
    tied: bool
    """Whether the output projection is the embedding matrix."""
    parameters: Parameters
    activation: str = "silu"
    """Hugging Face name of the feed-forward activation: ``silu``, ``gelu_new``, ``gelu``, ``relu`` …"""
    rotary_dim: int = 0
    """Rotated elements of each head; 0 without rotary embedding."""
    embedding_dim: int = 0
    """Width of the token embedding where it differs from ``hidden`` (OPT's ``word_embed_proj_dim``), else 0."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same input (GPT-NeoX, Falcon, Phi)."""
    alibi: bool = False
    pre_norm: bool = True
    """False where the norm follows the block (OPT-350m); OLMo 2's norms follow from its family."""
    embedding_dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    sliding_window: int = 0
    experts: int = 0
    experts_per_token: int = 0
    lora_rank: int = 0
    hf_config: Mapping[str, Any] = field(default_factory=dict)
    """The Hugging Face config.json this shape was read from, or stands for: what a live run builds."""

    shared_mlp: int = 0
    """Width of the feed-forward network every token passes beside its experts (Qwen2-MoE), else 0."""

    @cached_property
    def num_params(self) -> int:
        """Return the elements of all parameters, frozen ones included."""
        return self.parameters.total()


def most_positions(model: Model) -> int | None:
    """Return the tokens beyond which the model's own code fails, or None where it has no limit.

    Positions that were learned, and a table of them, end; rotary embedding that is computed, and ALiBi, do not.
    """
    computed = model.rotary_dim and model.family not in POSITION_TABLES
    return None if computed or model.alibi else model.positions


def sequence_length(seq_len: int | None, model: Model) -> int:
    """Return ``seq_len``; where it is None, ``USUAL_SEQ_LEN`` tokens or as many as the model has positions for.

    Raises:
        InputError: more than the model has positions for.
    """
    limit = most_positions(model)
    if seq_len is None:
        return USUAL_SEQ_LEN if limit is None else min(USUAL_SEQ_LEN, limit)
    if limit is not None and seq_len > limit:
        raise InputError(f"--seq-len {seq_len}: {model.name} has {limit} positions; use at most that")
    return seq_len
