"""What ``recommend`` and ``stages`` ask about the training."""

from __future__ import annotations

import click

from dsconf.cli.options import WHOLE, combine, seq_len_option
from dsconf.search.wish import OPTIMIZERS
from dsconf.search.words import PRECISIONS
from dsconf.workload import ATTENTION_KERNELS, QUANTIZED

training_options = combine(
    seq_len_option,
    click.option("--global-batch-size", type=WHOLE, help="Sequences of one optimizer step over all GPUs."),
    click.option("--micro-batch-size", type=WHOLE, help="Sequences a GPU processes at a time."),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Type the model is trained in [default: bf16, fp16 where the GPU has no bf16].",
    ),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", show_default=True),
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
    click.option("--lora-rank", type=WHOLE, help="Train LoRA adapters of this rank on every linear layer."),
    click.option("--quantize", type=click.Choice(QUANTIZED), help="Store the frozen weights quantized (QLoRA)."),
)
