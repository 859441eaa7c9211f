"""LoRA adapters on every linear layer of the decoder, as PEFT registers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsconf.errors import InputError
from dsconf.model.spec import Model, Param, Parameters

TARGETS = ("linear", "conv1d")
"""PEFT's ``target_modules="all-linear"``: torch's Linear and GPT-2's Conv1D, but not the output projection
(``peft/tuners/tuners_utils.py:_maybe_include_all_linear_layers``, PEFT 0.21). Fused experts and routers are bare
tensors, so they get none."""


def with_lora(model: Model, rank: int) -> Model:
    """``model`` frozen, with adapters of ``rank`` on all linear layers.

    Each target's tensors become ``base_layer.*``, followed by ``lora_A`` (rank × in) and ``lora_B`` (out × rank),
    the order in which PEFT registers them.

    Raises:
        InputError: a rank that is not a positive whole number, or a model that has adapters already.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0:
        raise InputError(f"--lora-rank {rank} is not a positive whole number")
    if model.lora_rank:
        raise InputError(f"{model.name}: has LoRA adapters of rank {model.lora_rank} already")
    before, layer, layers, after = model.parameters
    adapted = Parameters(
        tuple(_adapted(before, rank)), tuple(_adapted(layer, rank)), layers, tuple(_adapted(after, rank))
    )
    return replace(model, parameters=adapted, lora_rank=rank)


def _adapted(parameters: tuple[Param, ...], rank: int) -> Iterator[Param]:
    for i, param in enumerate(parameters):
        if param.kind not in TARGETS:
            yield param._replace(trainable=False)
            continue
        module, _, leaf = param.name.rpartition(".")
        yield param._replace(name=f"{module}.base_layer.{leaf}", trainable=False)
        following = parameters[i + 1].name if i + 1 < len(parameters) else ""
        if following.rpartition(".")[0] != module:
            weight = param if leaf == "weight" else parameters[i - 1]
            yield from _adapter(module, weight, rank)


def _adapter(module: str, weight: Param, rank: int) -> Iterator[Param]:
    outputs, inputs = weight.shape if weight.kind == "linear" else weight.shape[::-1]
    yield Param(f"{module}.lora_A.default.weight", (rank, inputs), kind="lora")
    yield Param(f"{module}.lora_B.default.weight", (outputs, rank), kind="lora")
