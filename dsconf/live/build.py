"""Builds the Hugging Face model with random weights, ready for ``deepspeed.initialize``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from dsconf.live.order import Order

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}
WEIGHT_DEVIATION = 0.02
"""``initializer_range`` of nearly every Hugging Face config."""
# What describes a checkpoint rather than a shape. A padding token makes the initialiser index one row of the
# embedding, which is an empty shard under zero.Init; it has no part in memory.
NOT_A_SHAPE = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "quantization_config",
    "pad_token_id",
)


class MissingPackageError(Exception):
    """A package that only this run needs is not installed; the text is what to do about it."""


def build(order: Order) -> Any:
    """The model of ``order`` in training mode, on the device under zero.Init and in host memory otherwise.

    Without zero.Init it is made on the device, since random numbers for billions of weights take minutes on a
    CPU, and then moved out, so that DeepSpeed finds it where a loaded checkpoint would be.
    """
    import deepspeed

    if order.zero_init:
        model = _from_config(order, deepspeed.zero.Init(config_dict_or_path=order.ds_config))
        _initialize_shards(model)
    else:
        model = _from_config(order, torch.device(order.device)).to("cpu")
    if order.lora_rank:
        model = _with_adapters(model, order)
    if order.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": order.reentrant})
    model.train()
    return model


def _from_config(order: Order, context: AbstractContextManager[Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {key: value for key, value in order.hf_config.items() if key not in NOT_A_SHAPE}
    config = AutoConfig.for_model(**shape, pad_token_id=None)
    config.use_cache = False
    dtype = DTYPES[order.load_dtype]
    config.dtype = dtype
    with context:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION[order.attention])


def _initialize_shards(model: Any) -> None:
    """Small random weights in every shard: the family's own initialiser saw only empty tensors.

    What the layers' constructors put there makes the loss hundreds of times too large and fp16 overflow.
    """
    for parameter in model.parameters():
        if len(parameter.ds_shape) > 1:
            parameter.ds_tensor.data.normal_(0.0, WEIGHT_DEVIATION)


def _with_adapters(model: Any, order: Order) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingPackageError("--lora-rank needs peft: pip install peft") from None
    if order.checkpointing and order.reentrant:
        model.enable_input_require_grads()
    adapters = LoraConfig(r=order.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    # Adapters of the weights' type, to which DeepSpeed casts them anyway except under zero.Init.
    return get_peft_model(model, adapters, autocast_adapter_dtype=False)
