"""Builds the Hugging Face model with random weights, ready for ``deepspeed.initialize``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch

from dsconf.live.processes.order import Order
from dsconf.live.rank import quantized
from dsconf.live.rank.sequences import tile_loss

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
    attention: str = ""
    """The kernel that a model of transformers computes its attention with; empty for a person's own module."""


def build(order: Order) -> Built:
    """Build the model of ``order`` in training mode, on the device under zero.Init and in host memory otherwise.

    Without zero.Init it is made on the device, since random numbers for billions of weights take minutes on a
    CPU, and then moved out, so that DeepSpeed finds it where a loaded checkpoint would be. A model of the person's
    own may bring the batch it is trained on; None: random tokens.
    """
    make, attention = (factory(order.module), "") if order.module else _maker(order)
    if order.module and order.workload.zero_init:
        _on_meta(make)
    with _context(order):
        model, batch = make()
    if order.workload.zero_init and not order.module:
        _initialize_shards(model)
    elif not order.workload.zero_init and order.backend != "ddp" and not order.workload.quantize:
        model = model.to("cpu")
    if order.module:
        model.train()
        return Built(model, _moved(batch, order), int(getattr(getattr(model, "config", None), "vocab_size", 0)))
    tile_loss(model, order)
    if order.lora_rank:
        model = _with_adapters(model, order)
    if order.workload.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": order.workload.reentrant})
    model.train()
    return Built(model, None, int(order.hf_config["vocab_size"]), attention)


def _on_meta(make: Callable[[], Any]) -> None:
    """Make a model where it takes no memory, so that all that making it imports is there before zero.Init is entered.

    There torch.Tensor.__new__, torch.empty and the like are DeepSpeed's own (runtime/zero/partition_parameters.py:
    _add_tensor_creation_wrappers), and a module that is imported meanwhile takes them for torch's. torch._dynamo
    compares the signature of torch.Tensor.__new__ with its stand-in's and refuses to load (torch/_dynamo/polyfills/
    tensor.py). The classes of transformers bring it along, through generation.utils; from release 5.21 on they are not
    loaded with AutoModelForCausalLM but when it is called, and a person's own factory may import as late.
    """
    with torch.device("meta"):
        make()


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
    """Return what makes the module of ``package.file:function``, and the keyword arguments of its forward or None.

    Raises:
        FactoryError: there is no such file or function; the maker raises it where the function returns something else.
    """
    try:
        make = function_of(name)
    except (ImportError, AttributeError) as error:
        raise FactoryError(f"--module {name}: {error}") from error
    return lambda: _checked(name, make())


def function_of(name: str) -> Callable[..., Any]:
    """Import what ``package.file:function`` names, looking in the current folder first."""
    file, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    imported: Callable[..., Any] = getattr(import_module(file), function)
    return imported


def _checked(name: str, made: Any) -> Made:
    module, batch = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module) or not (batch is None or isinstance(batch, dict)):
        raise FactoryError(f"--module {name}: it must return a torch.nn.Module, or that and a dict of its inputs")
    if batch is None and getattr(getattr(module, "config", None), "vocab_size", None) is None:
        raise FactoryError(f"--module {name}: the module has no config.vocab_size; return it with a dict of its inputs")
    return module, batch


def _moved(batch: dict[str, Any] | None, order: Order) -> dict[str, Any] | None:
    """Move the tensors of ``batch`` to the device, floats in the type that is trained in."""
    if batch is None:
        return None
    dtype = DTYPES[order.workload.load_dtype or "fp32"]
    return {
        name: value.to(order.device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in batch.items()
    }


def _maker(order: Order) -> tuple[Callable[[], Made], str]:
    """Return what makes the model of ``order.hf_config``, and its attention kernel."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {key: value for key, value in order.hf_config.items() if key not in NOT_A_SHAPE}
    config = AutoConfig.for_model(**shape, pad_token_id=None)
    config.use_cache = False
    dtype = "dtype" if hasattr(config, "dtype") else "torch_dtype"  # its name before transformers 4.56
    setattr(config, dtype, DTYPES[order.workload.load_dtype or "fp32"])

    def model(attention: str) -> Any:
        words = {dtype: DTYPES[order.workload.load_dtype or "fp32"], "attn_implementation": ATTENTION[attention]}
        return AutoModelForCausalLM.from_config(config, **words)

    attention = _kernel(order.workload.attention, model)
    if not order.workload.quantize:
        return lambda: (model(attention), None), attention
    try:
        quantized.library()
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"--quantize needs {error.name}: pip install {error.name}") from None
    empty = partial(model, attention)
    return lambda: (
        quantized.make(order, DTYPES[order.workload.load_dtype or "fp32"], WEIGHT_DEVIATION, empty),
        None,
    ), attention


def _kernel(wanted: str, model: Callable[[str], Any]) -> str:
    """Return ``wanted``, or ``eager`` where the installed transformers makes the ``model`` of a family with that alone.

    Left to itself it would choose the same (modeling_utils.py: get_correct_attn_implementation); asked for SDPA, which
    a release may take from a family, it raises ValueError.
    """
    try:
        _on_meta(partial(model, wanted))
    except ValueError:
        if wanted != "sdpa":
            raise
        _on_meta(partial(model, "eager"))
        return "eager"
    return wanted


def _initialize_shards(model: Any) -> None:
    """Put small random weights in every shard: the family's own initialiser saw only empty tensors.

    What the layers' constructors put there makes the loss hundreds of times too large, and fp16 overflow.
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
