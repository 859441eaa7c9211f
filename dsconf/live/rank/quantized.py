"""A Hugging Face model with random weights, its frozen linear layers stored as bitsandbytes stores them.

Layer by layer, so that the whole model is never there in 16 bit: a model is quantized precisely because it has no room.
The settings are those of a QLoRA script: NF4 with quantized statistics, or LLM.int8 with its threshold of 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsconf.live.processes.order import Order

THRESHOLD = 6.0
"""``llm_int8_threshold`` of transformers' BitsAndBytesConfig."""


def library() -> Any:
    """bitsandbytes and accelerate's way of making a model without its weights.

    Raises:
        ModuleNotFoundError: one of them is not installed; its ``name`` says which.
    """
    import bitsandbytes
    from accelerate import init_empty_weights

    return bitsandbytes, init_empty_weights


def make(order: Order, dtype: torch.dtype, deviation: float, empty: Callable[[], Any]) -> Any:
    """The model that ``empty`` makes, on the order's device, all but its output layer quantized as transformers does.

    ``deviation`` is that of the random weights; whatever has one dimension stays as a layer norm begins.
    """
    bitsandbytes, init_empty_weights = library()
    with init_empty_weights(include_buffers=False):
        model = empty()
    kept = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if layer is not kept and type(layer).__name__ in ("Linear", "Conv1D"):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _layer(bitsandbytes, layer, order, dtype, deviation))
    _fill(model, order.device, dtype, deviation)
    setattr(model, f"is_loaded_in_{order.workload.quantize}", True)  # what peft looks at
    return model.to(order.device)


def _layer(library: Any, layer: Any, order: Order, dtype: torch.dtype, deviation: float) -> Any:
    """The quantized stand-in for ``layer``, with random weights. GPT-2's Conv1D holds its weight transposed."""
    shape = tuple(layer.weight.shape)
    outputs, inputs = shape if isinstance(layer, torch.nn.Linear) else shape[::-1]
    words: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    weight = torch.empty(outputs, inputs, dtype=dtype, device=order.device).normal_(0.0, deviation)
    if order.workload.quantize == "8bit":
        made = library.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=THRESHOLD, **words)
        made.weight = library.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(order.device)
        return made
    # Stage 3 shards what is stored and gathers floats alone (huggingface.co/docs/peft: quantization with DeepSpeed).
    storage = dtype if order.ds_config.get("zero_optimization", {}).get("stage") == 3 else torch.uint8
    kind = {"compress_statistics": True, "quant_type": "nf4", "quant_storage": storage}
    made = library.nn.Linear4bit(inputs, outputs, compute_dtype=dtype, **kind, **words)
    made.weight = library.nn.Params4bit(weight, requires_grad=False, module=made, **kind).to(order.device)
    return made


def _fill(model: Any, device: str, dtype: torch.dtype, deviation: float) -> None:
    """Give every parameter that has no storage yet one, the same to those that are tied."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if id(parameter) not in made:
                value = torch.empty(parameter.shape, dtype=dtype, device=device)
                value = value.normal_(0.0, deviation) if value.dim() > 1 else value.fill_(float(name == "weight"))
                made[id(parameter)] = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
            setattr(module, name, made[id(parameter)])
