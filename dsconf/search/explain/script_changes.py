"""What a config cannot turn on: the training script has to, or the loader that the config is for does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsconf.units import format_bytes

if TYPE_CHECKING:
    from dsconf.search.candidates import Candidate

DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}
IMPORTED_BEFORE = "Import torch._dynamo before: transformers' models import it, which fails under zero.Init."
ULYSSES = "deepspeed.runtime.sequence_parallel.ulysses_sp"


def in_the_script(winner: Candidate, target: str, whole: Candidate | None = None) -> Iterator[str]:
    """A sentence for each thing that the script for ``target`` must do for ``winner`` to be what was predicted.

    ``whole`` is the same without ``deepspeed.zero.Init``, at stage 3.
    """
    yield from _adapters(winner)
    yield from _checkpointing(winner, target)
    if whole is not None:
        yield _shards(whole, target)
    yield from _sequences(winner, target)
    if winner.workload.loss_shards is not None:
        yield (
            "The loss is made shard by shard: the training script must replace the model's loss by "
            f"TiledFusedLogitsLoss ({ULYSSES})."
        )


def _adapters(winner: Candidate) -> Iterator[str]:
    rank, quantize = winner.job.model.lora_rank, winner.workload.quantize
    if not rank:
        return
    kind = f"QLoRA, {quantize}" if quantize else "LoRA"
    loaded = ""
    if quantize:
        dtype = DTYPES.get(winner.settings.precision, "torch.float32")
        words = (
            f', bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype={dtype}, '
            f"bnb_4bit_quant_storage={dtype}"
            if quantize == "4bit"
            else ""
        )
        loaded = f"load the model with dtype={dtype} and BitsAndBytesConfig(load_in_{quantize}=True{words}) and "
    yield (
        f"{kind} of rank {rank}: the training script must {loaded}wrap it with peft's "
        f'LoraConfig(r={rank}, target_modules="all-linear").'
    )


def _checkpointing(winner: Candidate, target: str) -> Iterator[str]:
    if not winner.workload.checkpointing:
        return
    if target == "hf":
        yield "Activation checkpointing is turned on by --gradient_checkpointing, which the written arguments have."
    else:
        yield (
            "Turn activation checkpointing on in the training script (model.gradient_checkpointing_enable()): "
            "Hugging Face models do not read the config's activation_checkpointing block."
        )


def _shards(whole: Candidate, target: str) -> str:
    how = {
        "deepspeed": "Build the model under deepspeed.zero.Init",
        "hf": "Make the TrainingArguments before the model, so that from_pretrained builds it in shards (zero.Init)",
        "accelerate": "Make the Accelerator before the model, so that from_pretrained builds it in shards (zero.Init)",
    }[target]
    start = format_bytes(whole.estimate.init_peak_bytes)
    does = ", which does not fit" if whole.fits == "no" else ""
    said = f"{how}: otherwise each GPU holds all of it while it starts, {start}{does}."
    return f"{said} {IMPORTED_BEFORE}" if target == "deepspeed" else said


def _sequences(winner: Candidate, target: str) -> Iterator[str]:
    degree = winner.settings.sequence_parallel
    if degree == 1:
        return
    if target == "deepspeed":
        yield (
            f"{degree} ranks share each sequence: the training script must call "
            f"UlyssesSPAttentionHF.register_with_transformers(…, sequence_parallel_size={degree}) before the model is "
            f"made and read its batches through UlyssesSPDataLoaderAdapter ({ULYSSES})."
        )
    else:
        yield (
            f"{degree} ranks share each sequence: Accelerate sets that up from "
            f"{'accelerate.yaml' if target == 'accelerate' else 'the PARALLELISM_CONFIG variables of the launch file'}."
        )
