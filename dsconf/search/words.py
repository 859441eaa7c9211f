"""Reads the words of ``recommend`` that say how to train; model and cluster have readers of their own."""

from __future__ import annotations

from dsconf.errors import InputError, one_of
from dsconf.model.spec import Model, sequence_length
from dsconf.search.wish import OFFLOADS, OPTIMIZERS, Wish
from dsconf.workload import ATTENTION_KERNELS

PRECISIONS = ("bf16", "fp16", "fp32")
OPTIMIZER_STATES = ("fp32", "bf16")
TARGETS = ("deepspeed", "hf", "accelerate")


def read_wish(
    seq_len: int,
    global_batch: int | str | None,
    micro_batch: int | str | None,
    precision: str | None,
    optimizer: str,
    stage: int | str | None,
    offload: str | None,
    checkpointing: bool | None,
    attention: str,
    quantize: str | None,
    optimizer_states: str | None = None,
    sequence_parallel: int | str | None = None,
) -> Wish:
    """The checked words, as the search takes them; sequence length and ``quantize`` have been read with the model.

    Raises:
        InputError: not a positive whole number, or not one of the known words.
    """
    return Wish(
        seq_len=seq_len,
        global_batch=None if global_batch is None else whole("--global-batch-size", global_batch),
        micro_batch=None if micro_batch is None else whole("--micro-batch-size", micro_batch),
        precision=precision and one_of("--precision", precision, PRECISIONS),
        optimizer=one_of("--optimizer", optimizer.lower(), OPTIMIZERS),
        stage=None if stage is None else int(one_of("--stage", str(stage), ("0", "1", "2", "3"))),
        offload=offload and one_of("--offload", offload, tuple(OFFLOADS)),
        checkpointing=checkpointing,
        attention=one_of("--attention", attention, ATTENTION_KERNELS),
        quantize=quantize,
        low_states=None
        if optimizer_states is None
        else one_of("--optimizer-states", optimizer_states, OPTIMIZER_STATES) == "bf16",
        sequence_parallel=None if sequence_parallel is None else whole("--sequence-parallel", sequence_parallel),
    )


def read_seq_len(seq_len: int | str | None, model: Model) -> int:
    """Tokens of a sample: as many as asked for, or what is usual for ``model``.

    Raises:
        InputError: not a positive whole number, or more than the model has positions for.
    """
    return sequence_length(None if seq_len is None else whole("--seq-len", seq_len), model)


def read_target(target: str) -> str:
    """Who will load the config.

    Raises:
        InputError: not one of ``TARGETS``.
    """
    return one_of("--for", target, TARGETS)


def whole(option: str, value: int | str) -> int:
    """The positive whole number that ``option`` was given.

    Raises:
        InputError: it is none.
    """
    try:
        number = int(value)
        exact = number == float(value)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or number <= 0:
        raise InputError(f"{option}: {value!r} is not a positive whole number")
    return number
