"""Options that several commands share, so that all commands spell and check them alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dsconf.errors import InputError
from dsconf.units import parse_bytes, parse_count
from dsconf.workload import ATTENTION_KERNELS, LOAD_DTYPES

F = TypeVar("F", bound=Callable[..., Any])


class _Parsed(click.ParamType[Any]):
    """Turns text into a value with a function that raises InputError; the message names the option."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InputError as error:
            option = param.opts[-1] if param is not None else self.name
            raise InputError(f"{option}: {error}") from None


def _whole(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        raise InputError(f"{value!r} is not a whole number") from None
    if number <= 0:
        raise InputError(f"{value} is not a positive number")
    return number


def _real(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"{value!r} is not a number") from None
    if not 0 < number < float("inf"):
        raise InputError(f"{value} is not a positive number")
    return number


def _size(value: str) -> str:
    parse_bytes(value)
    return value


COUNT = _Parsed("count", parse_count)
BYTES = _Parsed("bytes", _size)
"""The text of a size, for whoever knows what it is the size of to refuse one without a unit."""
WHOLE = _Parsed("integer", _whole)
WHOLES = _Parsed("integers", lambda value: value if "," in value else _whole(value))
"""One whole number, or the text of several, for whoever reads it to split."""
REAL = _Parsed("number", _real)


def combine(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that applies ``decorators`` so that --help lists them in the order given."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


model_options = combine(
    click.option("--params", type=COUNT, help="Size of the model, e.g. 70B; a realistic shape is chosen and shown."),
    click.option(
        "--model", metavar="PATH_OR_NAME", help="A Hugging Face config.json (or its folder), or a known name."
    ),
)
gpu_options = combine(
    click.option("--gpu", metavar="NAME", help="Kind of GPU, e.g. h100-80gb."),
    click.option("--gpu-memory", type=BYTES, metavar="SIZE", help="Memory of one GPU, e.g. 80GiB, instead of --gpu."),
    click.option("--gpus-per-node", type=WHOLE, default=8, show_default=True, help="GPUs in one node."),
    click.option("--host-memory", type=BYTES, metavar="SIZE", help="Memory of one node, e.g. 1TiB."),
)
rate_options = combine(
    click.option(
        "--network",
        metavar="RATE",
        help="What one GPU sends to other nodes, one direction [default: 400Gbit/s, or 50GB/s].",
    ),
    click.option(
        "--cpu-cores",
        type=WHOLE,
        help="CPU cores that the job has in one node [default: 64, of a part of its GPUs their share].",
    ),
    click.option(
        "--host-bandwidth",
        metavar="RATE",
        help="What the cores of one node read and write of its memory [default: 300GB/s].",
    ),
)
seq_len_option = click.option(
    "--seq-len",
    type=WHOLE,
    help="Tokens of one sequence [default: 2048, fewer where the model has no position for them].",
)
nvme_option = click.option("--nvme", metavar="PATH", help="Path on a fast local disk, for NVMe offload.")
cluster_options = combine(
    click.option("--gpus", type=WHOLE, required=True, help="Total number of GPUs: the world size."),
    gpu_options,
    nvme_option,
)
workload_options = combine(
    seq_len_option,
    click.option("--micro-batch-size", type=WHOLE, help="Sequences a GPU processes at a time."),
    click.option("--gradient-accumulation-steps", type=WHOLE, help="Micro-batches of one optimizer step."),
    click.option(
        "--activation-checkpointing/--no-activation-checkpointing",
        default=None,
        help="Recompute each layer in backward.",
    ),
    click.option(
        "--attention",
        type=click.Choice(ATTENTION_KERNELS),
        default="sdpa",
        show_default=True,
        help="Attention kernel.",
    ),
    click.option("--load-dtype", type=click.Choice(LOAD_DTYPES), help="Type the weights are loaded in."),
    click.option(
        "--zero-init/--no-zero-init",
        default=None,
        help="Model built under deepspeed.zero.Init [default: at stage 3].",
    ),
    click.option("--lora-rank", type=WHOLE, help="Train LoRA adapters of this rank on every linear layer."),
    click.option("--quantize", type=click.Choice(["4bit", "8bit"]), help="Store the frozen weights quantized (QLoRA)."),
)


def format_option(*choices: str) -> Callable[[F], F]:
    """``--format``; the first choice is the default."""
    return click.option("--format", "output_format", type=click.Choice(choices), default=choices[0], show_default=True)


def finite(value: Any) -> Any:
    """``value`` with NaN and infinities as null, which JSON has no words for."""
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
