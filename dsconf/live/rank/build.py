"""Builds the Hugging Face model with random weights, ready for ``deepspeed.initialize``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, NamedTuple

import torch

from dsconf.live.processes.order import Order
from dsconf.live.rank import quantized

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


class FactoryError(Exception):
    """The person's own model cannot be made; the text says why."""


class Built(NamedTuple):
    """A model ready to be wrapped, and what it is trained on."""

    model: Any
    batch: dict[str, Any] | None
    """The inputs that a model of the person's own brings; None: random tokens below ``vocab``."""
    vocab: int


def build(order: Order) -> Built:
    """The model of ``order`` in training mode, on the device under zero.Init and in host memory otherwise.

    Without zero.Init it is made on the device, since random numbers for billions of weights take minutes on a
    CPU, and then moved out, so that DeepSpeed finds it where a loaded checkpoint would be. A model of the person's
    own may bring the batch it is trained on; None: random tokens.
    """
    # What this imports must not be imported under zero.Init, which patches the modules it meets.
    make = factory(order.module) if order.module else _maker(order)
    with _context(order):
        model, batch = make()
    if order.workload.zero_init and not order.module:
        _initialize_shards(model)
    elif not order.workload.zero_init and order.backend != "ddp" and not order.workload.quantize:
        model = model.to("cpu")
    if order.module:
        model.train()
        return Built(model, _moved(batch, order), int(getattr(getattr(model, "config", None), "vocab_size", 0)))
    if order.lora_rank:
        model = _with_adapters(model, order)
    if order.workload.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": order.workload.reentrant})
    model.train()
    return Built(model, None, int(order.hf_config["vocab_size"]))


def _context(order: Order) -> AbstractContextManager[Any]:
    if order.workload.quantize:
        return nullcontext()
    if not order.workload.zero_init:
        return torch.device(order.device)
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.Init(config_dict_or_path=order.ds_config)
    return context


Made = tuple[Any, dict[str, Any] | None]


def factory(name: str) -> Callable[[], Made]:
    """What makes the module of ``package.file:function``, and the keyword arguments of its forward or None.

    Raises:
        FactoryError: there is no such file or function; the maker raises it where the function returns something else.
    """
    try:
        found = function_of(name)
    except (ImportError, AttributeError) as error:
        raise FactoryError(f"--module {name}: {error}") from error
    return lambda: _checked(name, found())


def function_of(name: str) -> Callable[..., Any]:
    """What ``package.file:function`` names, looked for from the current folder first."""
    file, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    found: Callable[..., Any] = getattr(import_module(file), function)
    return found


def _checked(name: str, made: Any) -> Made:
    module, batch = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module) or not (batch is None or isinstance(batch, dict)):
        raise FactoryError(f"--module {name}: it must return a torch.nn.Module, or that and a dict of its inputs")
    if batch is None and getattr(getattr(module, "config", None), "vocab_size", None) is None:
        raise FactoryError(f"--module {name}: the module has no config.vocab_size; return it with a dict of its inputs")
    return module, batch


def _moved(batch: dict[str, Any] | None, order: Order) -> dict[str, Any] | None:
    """The tensors of ``batch`` on the device, floats in the type that is trained in."""
    if batch is None:
        return None
    dtype = DTYPES[order.workload.load_dtype or "fp32"]
    return {
        name: value.to(order.device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in batch.items()
    }


def _maker(order: Order) -> Callable[[], Made]:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {key: value for key, value in order.hf_config.items() if key not in NOT_A_SHAPE}
    config = AutoConfig.for_model(**shape, pad_token_id=None)
    config.use_cache = False
    dtype = "dtype" if hasattr(config, "dtype") else "torch_dtype"  # its name before transformers 4.56
    setattr(config, dtype, DTYPES[order.workload.load_dtype or "fp32"])
    words = {
        dtype: DTYPES[order.workload.load_dtype or "fp32"],
        "attn_implementation": ATTENTION[order.workload.attention],
    }

    def model() -> Any:
        return AutoModelForCausalLM.from_config(config, **words)

    if not order.workload.quantize:
        return lambda: (model(), None)
    try:
        quantized.library()
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"--quantize needs {error.name}: pip install {error.name}") from None
    return lambda: (quantized.make(order, DTYPES[order.workload.load_dtype or "fp32"], WEIGHT_DEVIATION, model), None)


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
    if order.workload.checkpointing and order.workload.reentrant:
        model.enable_input_require_grads()
    adapters = LoraConfig(r=order.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    # Adapters of the weights' type, to which DeepSpeed casts them anyway except under zero.Init.
    return get_peft_model(model, adapters, autocast_adapter_dtype=False)
