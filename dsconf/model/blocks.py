"""The modules that a decoder is made of, as the parameters they register, and the Model made from them."""

from __future__ import annotations

from typing import Any

from dsconf.model.hf_config import Dims, HfConfig
from dsconf.model.spec import Model, Param, Parameters

Block = tuple[Param, ...]


def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Block:
    """Return torch's ``Linear``: weight of outputs × inputs, then the bias."""
    weight = Param(f"{name}.weight", (outputs, inputs), kind="linear")
    return (weight, Param(f"{name}.bias", (outputs,), kind="linear")) if bias else (weight,)


def conv1d(name: str, inputs: int, outputs: int) -> Block:
    """Return transformers' ``Conv1D`` of GPT-2: a linear layer whose weight is inputs × outputs, always with a bias."""
    return (
        Param(f"{name}.weight", (inputs, outputs), kind="conv1d"),
        Param(f"{name}.bias", (outputs,), kind="conv1d"),
    )


def norm(name: str, *shape: int, bias: bool = False) -> Block:
    """Return a norm with a weight of ``shape``, and a bias where it is a LayerNorm that has one."""
    weight = Param(f"{name}.weight", shape, kind="norm")
    return (weight, Param(f"{name}.bias", shape, kind="norm")) if bias else (weight,)


def embedding(name: str, rows: int, width: int) -> Block:
    """Return torch's ``Embedding``: rows × width."""
    return (Param(f"{name}.weight", (rows, width), kind="embedding"),)


def experts(d: Dims, count: int) -> Block:
    """Return all experts of a layer, each ``mlp`` wide: gate and up in one tensor, down in another."""
    return (
        Param("mlp.experts.gate_up_proj", (count, 2 * d.mlp, d.hidden), kind="experts"),
        Param("mlp.experts.down_proj", (count, d.hidden, d.mlp), kind="experts"),
    )


def router(d: Dims, count: int) -> Block:
    """Return the weight that scores ``count`` experts for each token."""
    return (Param("mlp.gate.weight", (count, d.hidden), kind="router"),)


def head(d: Dims, width: int = 0, bias: bool = False) -> Block:
    """Return ``lm_head``: vocab × ``width`` (hidden by default); a tied weight is the embedding and not listed
    again."""
    weight = () if d.tied else (Param("lm_head.weight", (d.vocab, width or d.hidden), kind="head"),)
    return (*weight, Param("lm_head.bias", (d.vocab,), kind="head")) if bias else weight


def attention(d: Dims, bias: bool = False, out_bias: bool = False, middle: Block = ()) -> Block:
    """Return separate query, key, value and output projections under ``self_attn``, then ``middle``."""
    queries, keys = d.heads * d.head_dim, d.kv_heads * d.head_dim
    return (
        *linear("self_attn.q_proj", d.hidden, queries, bias),
        *linear("self_attn.k_proj", d.hidden, keys, bias),
        *linear("self_attn.v_proj", d.hidden, keys, bias),
        *linear("self_attn.o_proj", queries, d.hidden, out_bias),
        *middle,
    )


def gated_mlp(d: Dims, bias: bool = False, name: str = "mlp", width: int = 0) -> Block:
    """Return gate, up and down projections of a gated feed-forward network of ``width`` (``mlp`` by default)."""
    width = width or d.mlp
    return (
        *linear(f"{name}.gate_proj", d.hidden, width, bias),
        *linear(f"{name}.up_proj", d.hidden, width, bias),
        *linear(f"{name}.down_proj", width, d.hidden, bias),
    )


def llama_parameters(d: Dims, layer: Block, final_norm: Block | None = None, head_bias: bool = False) -> Parameters:
    """Put ``layer`` between the token embedding and final norm + head, under the names of Llama and its relatives."""
    return Parameters(
        before=embedding("model.embed_tokens", d.vocab, d.hidden),
        layer=layer,
        layers=d.layers,
        after=(*(norm("model.norm", d.hidden) if final_norm is None else final_norm), *head(d, bias=head_bias)),
    )


def assemble(config: HfConfig, d: Dims, parameters: Parameters, rotary: int | None = None, **traits: Any) -> Model:
    """Make the Model of ``config`` with the sizes ``d``.

    Args:
        config: where it was read from.
        d: the sizes.
        parameters: all of them, in registration order.
        rotary: rotated elements of each head; None: all, 0: no rotary embedding.
        traits: further fields of :class:`Model`.

    Raises:
        InputError: the rotated part of a head is odd, so it cannot be split in halves.
    """
    rotary_dim = d.head_dim if rotary is None else rotary
    if rotary_dim % 2:
        raise config.error(
            f"{rotary_dim} elements of each head (of {d.head_dim}) would be rotated, which needs an even number"
        )
    return Model(
        name=config.name,
        family=config.values["model_type"],
        parameters=parameters,
        rotary_dim=rotary_dim,
        hf_config=dict(config.values),
        **d._asdict(),
        **traits,
    )
