"""What DeepSpeed would run: attention kernels, ranks that share sequences (Ulysses), a loss in shards.

Line references are to runtime/sequence_parallel/ulysses_sp.py of DeepSpeed 0.19.8; the families were tried with
transformers 5.17.
"""

from __future__ import annotations

from dsconf.config.settings import Settings
from dsconf.errors import InputError
from dsconf.job import Job
from dsconf.model.attention import refuse_flash
from dsconf.model.spec import Model

WITHOUT_KV_HEADS = ("bloom", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt")
"""Families whose config has no ``num_key_value_heads``, which ``register_with_transformers`` reads (503)."""
HEAD_DIM_NEEDED = ("mixtral",)
"""Families whose config has a ``head_dim`` that is None unless it is given, which is then taken (497-502)."""


def accepted(job: Job) -> Job:
    """Return ``job``, if DeepSpeed would run it.

    Raises:
        InputError: why not, in one line.
    """
    model, settings, workload = job.model, job.settings, job.workload
    ranks = settings.sequence_parallel
    problem = sharing_problem(model, job.cluster.world_size, workload.seq_len, ranks, workload.attention)
    if problem is not None:
        raise InputError(f"--sequence-parallel: {problem}")
    refuse_flash(model, workload.attention, settings.precision, job.cluster.gpu.has_bf16)
    problem = None if workload.loss_shards is None else tiled_loss_problem(model, settings)
    if problem is not None:
        raise InputError(f"--tiled-loss: {problem}")
    return job


def sharing_problem(model: Model, world_size: int, seq_len: int, ranks: int, attention: str) -> str | None:
    """Say why ``ranks`` of ``world_size`` cannot share sequences of ``seq_len`` tokens, in one line, or None."""
    if ranks == 1:
        return None
    if world_size % ranks:
        return f"{ranks} does not divide the {world_size} GPUs"
    if seq_len % ranks:
        return (
            f"{ranks} ranks cannot share {seq_len} tokens evenly; use a sequence length that is a multiple of {ranks}"
        )
    if attention == "eager":
        return (
            "DeepSpeed refuses eager attention, which needs a mask of the whole sequence; use --attention sdpa or flash"
        )
    return _model_problem(model, ranks)


def _model_problem(model: Model, ranks: int) -> str | None:
    if model.family == "module":
        return "a live module is traced as it is; name the model with --model or --params instead"
    if model.family in WITHOUT_KV_HEADS:
        return f"DeepSpeed reads num_key_value_heads from the model's config, which {model.family}'s does not define"
    if model.family in HEAD_DIM_NEEDED and not model.hf_config.get("head_dim"):
        return f"DeepSpeed takes head_dim from the model's config, where {model.family} has none; set it there"
    if model.heads % ranks:
        return f"{model.heads} attention heads cannot be divided by {ranks}"
    if model.kv_heads % ranks and ranks % model.kv_heads:
        return f"{model.kv_heads} key-value heads can neither be divided by {ranks} nor repeated to {ranks}"
    return None


def tiled_loss_problem(model: Model, settings: Settings) -> str | None:
    """Say why ``TiledFusedLogitsLoss`` does not work with ``model`` under ``settings``, in one line, or None.

    A tied embedding's gradient comes twice: from the loss within forward, and from backward. Where buckets are reduced
    as gradients come, stages 1 and 2 stop at the second (stage_1_and_2.py:1436). Stage 3 stops where both are in one
    bucket (stage3.py:1662) and otherwise puts the second in the place of the first (stage3.py:2023).
    """
    if model.family == "module":
        return "a live module is traced with the loss it has; name the model with --model or --params instead"
    embedding = next(iter(model.parameters.before), None)
    if not model.tied or embedding is None or not embedding.trainable:
        return None
    if settings.stage == 3:
        return (
            "at stage 3 a tied embedding loses its gradient from the loss, or DeepSpeed stops; untie it or use stage 1"
        )
    if settings.stage == 2 or (settings.stage == 1 and settings.overlap_comm):
        return (
            "DeepSpeed stops where a tied embedding's gradient comes twice; untie it, or use stage 1, no overlap_comm"
        )
    return None
