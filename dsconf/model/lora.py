"""LoRA adapters on every linear layer of the decoder, as PEFT registers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsconf.errors import InputError
from dsconf.model.spec import Model, Param, Parameters

TARGETS = frozenset({"linear", "conv1d"})
"""PEFT's ``target_modules="all-linear"``: torch's Linear and GPT-2's Conv1D, but not the output projection
(``peft/tuners/tuners_utils.py:_maybe_include_all_linear_layers``, PEFT 0.21)."""
FUSED_TARGETS = frozenset({"router", "experts"})
FUSED_FAMILIES = frozenset({"mixtral", "qwen3_moe"})
"""Families whose routers and experts, Linear layers up to transformers 4, PEFT still counts as linear
(``peft/utils/transformers_weight_conversion.py:_convert_peft_config_moe``, PEFT 0.21); not Qwen2-MoE."""
GATE_UP_RANKS = 2
"""Gate and up projection of an expert are one tensor, whose adapter has the rank of both together."""


def with_lora(model: Model, rank: int) -> Model:
    """Freeze ``model`` and add adapters of ``rank`` on all linear layers.

    Each target's tensors become ``base_layer.*``, followed by ``lora_A`` (rank × in) and ``lora_B`` (out × rank),
    the order in which PEFT registers them. Experts in one tensor share one adapter, whose rank is ``rank`` times their
    number.

    Raises:
        InputError: a rank that is not a positive whole number, or more than the hidden size; a model that has adapters
            already.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0:
        raise InputError(f"--lora-rank {rank} is not a positive whole number")
    if rank > model.hidden:
        raise InputError(
            f"--lora-rank {rank} is more than {model.hidden}, the hidden size of {model.name}: such adapters are "
            "larger than the weights they adapt; usual ranks are 8 to 256"
        )
    if model.lora_rank:
        raise InputError(f"{model.name}: has LoRA adapters of rank {model.lora_rank} already")
    targets = TARGETS | FUSED_TARGETS if model.family in FUSED_FAMILIES else TARGETS
    before, layer, layers, after = model.parameters
    adapted = Parameters(
        tuple(_adapted(before, rank, targets)),
        tuple(_adapted(layer, rank, targets)),
        layers,
        tuple(_adapted(after, rank, targets)),
    )
    return replace(model, parameters=adapted, lora_rank=rank)


def _adapted(parameters: tuple[Param, ...], rank: int, targets: frozenset[str]) -> Iterator[Param]:
    """Yield all parameters, frozen, each module's adapters after its last tensor."""
    for i, param in enumerate(parameters):
        if param.kind not in targets:
            yield param._replace(trainable=False)
            continue
        module, _, leaf = param.name.rpartition(".")
        wrapped = "base_layer.base_layer" if param.kind == "experts" else "base_layer"
        yield param._replace(name=f"{module}.{wrapped}.{leaf}", trainable=False)
        following = parameters[i + 1].name if i + 1 < len(parameters) else ""
        if following.rpartition(".")[0] == module:
            continue
        if param.kind == "experts":
            yield from _experts_adapters(module, parameters[i - 1], param, rank)
        else:
            weight = param if leaf == "weight" else parameters[i - 1]
            outputs, inputs = weight.shape[::-1] if weight.kind == "conv1d" else weight.shape
            yield from _adapter(module, inputs, outputs, rank)


def _experts_adapters(module: str, gate_up: Param, down: Param, rank: int) -> Iterator[Param]:
    """Yield the adapters of two nested wrappers, gate and up inside; every expert has ``rank`` rows of its own."""
    experts, fused, hidden = gate_up.shape
    yield from _adapter(f"{module}.base_layer", hidden, fused, GATE_UP_RANKS * rank * experts)
    yield from _adapter(module, down.shape[2], hidden, rank * experts)


def _adapter(module: str, inputs: int, outputs: int, rank: int) -> Iterator[Param]:
    yield Param(f"{module}.lora_A.default.weight", (rank, inputs), kind="lora")
    yield Param(f"{module}.lora_B.default.weight", (outputs, rank), kind="lora")
