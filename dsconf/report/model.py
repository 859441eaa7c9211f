"""The model a command works on, in one line."""

from __future__ import annotations

from dsconf.model.from_params import shape_sentence
from dsconf.model.spec import Model
from dsconf.units import format_count


def model_sentence(model: Model, *, sized: bool = False) -> str:
    """Say the shape of a model that was named or read from a file; ``sized``: one that was chosen for a size."""
    if sized:
        return shape_sentence(model)
    experts = f", {model.experts} experts ({model.experts_per_token} a token)" if model.experts else ""
    adapters = f", {format_count(model.parameters.trainable())} of them trained" if model.lora_rank else ""
    return (
        f"{model.name}: {model.family}, {model.layers} layers of hidden size {model.hidden}, {model.heads} heads"
        f"{experts}, vocabulary {model.vocab}: {format_count(model.num_params)} parameters{adapters}."
    )
