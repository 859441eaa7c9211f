"""What a person fixes before a search."""

from __future__ import annotations

from typing import NamedTuple, cast

from dsconf.errors import one_of
from dsconf.model.spec import Model, sequence_length
from dsconf.request import ConfigWords, GlobalBatchWords, RunWords
from dsconf.workload import require_adapters

OFFLOADS = {
    "none": (("none", "none"),),
    "optimizer": (("cpu", "none"),),
    "optimizer+param": (("cpu", "cpu"),),
    "nvme": (("nvme", "none"), ("nvme", "nvme")),
}
"""What ``--offload`` says → the pairs of optimizer device and parameter device that a search tries."""
OPTIMIZERS = ("adamw", "adam", "adagrad", "lamb", "lion", "muon", "sgd")
"""What the templates can write."""
CPU_OPTIMIZERS = ("adam", "adamw", "lion")
"""Optimizers that DeepSpeed runs on the host (engine.py:2342-2346 refuses the others under offload)."""


class Constraints(NamedTuple):
    """What the person fixed; None leaves it to the search. Batch sizes are in sequences."""

    seq_len: int = 2048
    global_batch: int | None = None
    micro_batch: int | None = None
    accumulation: int | None = None
    precision: str | None = None
    optimizer: str = "adamw"
    stage: int | None = None
    offload: str | None = None
    checkpointing: bool | None = None
    attention: str = "sdpa"
    quantize: str | None = None
    low_states: bool | None = None
    """bf16 master weights and optimizer states; None: only where nothing else fits."""
    sequence_parallel: int | None = None
    """Ranks that share a sequence (Ulysses); None: up to a node for long sequences."""
    loss_shards: int | None = None
    """As ``Workload`` has it; None: tiled where it helps."""
    load_dtype: str | None = None
    zero_init: bool | None = None
    allocator: str = "expandable"


class SearchWords(ConfigWords, GlobalBatchWords, RunWords, total=False):
    """The words that every search takes."""


def read_constraints(word: SearchWords, model: Model) -> Constraints:
    """Return what ``word``, which has been read, fixes of the training of ``model``.

    Raises:
        InputError: a sequence longer than the model has positions for, quantized weights without adapters.
    """
    require_adapters(word["quantize"], word["lora_rank"])
    return Constraints(
        seq_len=sequence_length(word["seq_len"], model),
        global_batch=word["global_batch_size"],
        micro_batch=word["micro_batch_size"],
        accumulation=word["gradient_accumulation_steps"],
        precision=word["precision"],
        optimizer=one_of("--optimizer", word["optimizer"] or "adamw", OPTIMIZERS),
        offload=word["offload"],
        checkpointing=word["activation_checkpointing"],
        attention=word["attention"],
        quantize=word["quantize"],
        sequence_parallel=word["sequence_parallel"],
        loss_shards=cast("int | None", word["tiled_loss"]),
        load_dtype=word["load_dtype"],
        zero_init=word["zero_init"],
        allocator=word["allocator"] or "expandable",
    )
