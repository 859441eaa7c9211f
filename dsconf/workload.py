"""How it is trained, as far as the ds_config does not say."""

from __future__ import annotations

from dataclasses import dataclass

from dsconf.errors import InputError

ATTENTION_KERNELS = ("sdpa", "eager", "flash")
ALLOCATORS = ("expandable", "default")
LOAD_DTYPES = ("bf16", "fp16", "fp32")
QUANTIZED = ("4bit", "8bit")


def require_adapters(quantize: str | None, lora_rank: int | None) -> None:
    """Refuse quantized weights without adapters to train beside them.

    Raises:
        InputError: they are frozen, so nothing would be trained.
    """
    if quantize is not None and lora_rank is None:
        raise InputError(f"--quantize {quantize}: quantized weights are frozen; say --lora-rank")


@dataclass(frozen=True)
class Workload:
    """One training step of one rank. Sequence length is in tokens, micro-batch in sequences."""

    seq_len: int = 2048
    micro_batch: int = 1
    accumulation: int = 1
    """Micro-batches of one optimizer step (gradient accumulation)."""
    checkpointing: bool = False
    """Activation checkpointing of every decoder layer (Hugging Face's ``gradient_checkpointing``)."""
    reentrant: bool = False
    """Which of torch's two checkpoint implementations; Hugging Face's default is the non-re-entrant one."""
    attention: str = "sdpa"
    load_dtype: str | None = None
    """Type the weights are loaded in; None: the type they are trained in."""
    zero_init: bool | None = None
    """Built under ``deepspeed.zero.Init``; None: yes at stage 3."""
    allocator: str = "expandable"
    """torch's CUDA allocator: with ``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True``, or its default."""
    quantize: str | None = None
    """``4bit`` or ``8bit`` storage of the frozen weights (QLoRA)."""
    loss_shards: int | None = None
    """Shards in which DeepSpeed's ``TiledFusedLogitsLoss`` makes logits and loss; 0: as many as leave each at most
    1 GiB of fp32 logits; None: all tokens at once."""
