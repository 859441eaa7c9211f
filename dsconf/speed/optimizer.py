"""Seconds of what happens to gradients on the GPU after autograd made them, and of the optimizer step there."""

from __future__ import annotations

from functools import lru_cache

from dsconf.config.settings import Settings
from dsconf.job import Job
from dsconf.model.spec import Model
from dsconf.speed import kernels

ADAM_BYTES = 28
"""Read fp32 parameter, gradient and two moments (16), write parameter and moments (12): one fused kernel."""
UNFUSED_ADAM_BYTES = 76
"""torch's foreach AdamW makes a pass for each of decay, both moments, root, bias correction, division, update."""
SGD_BYTES, MOMENTUM_BYTES = 12, 20
LION_BYTES = 20


def element_bytes(settings: Settings) -> int:
    """Return the bytes of a parameter or gradient as autograd has them: 2 in 16-bit training, else 4."""
    return 2 if settings.precision in ("bf16", "fp16") else 4


@lru_cache(maxsize=256)
def trained(model: Model) -> tuple[int, int]:
    """Count the elements and the tensors that get a gradient."""
    before, layer, layers, after = model.parameters
    tensors = sum(p.trainable for p in (*before, *after)) + layers * sum(p.trainable for p in layer)
    return model.parameters.trainable(), tensors


def shard(job: Job) -> float:
    """Return the elements whose optimizer state one rank holds: all at stage 0, else a share."""
    elements = trained(job.model)[0]
    return elements / job.cluster.world_size if job.settings.stage else elements


def update_bytes(settings: Settings) -> int:
    """Return the bytes that the optimizer itself moves for each element, in fp32."""
    name = settings.optimizer
    if name == "none":
        return 0
    if name == "sgd":
        return MOMENTUM_BYTES if settings.momentum else SGD_BYTES
    if "lion" in name or "adagrad" in name:
        return LION_BYTES
    return ADAM_BYTES if settings.optimizer_fused else UNFUSED_ADAM_BYTES


def step_bytes(settings: Settings) -> int:
    """Return the bytes moved for each element of a rank's share in ``optimizer.step()``, without offload.

    Stages 1 to 3 (``stage_1_and_2.py``, ``stage3.py``): norm through a copy in fp64 (w + 8 + 8), flatten (2w), cast
    to fp32 (w + 4; none in fp32), unscale and clip in place (8), update, back to the model's type (4 + w).
    Stage 0 in 16 bits (``fused_optimizer.py``): fp32 copies (6), flatten (8), norm (4), clip (8), update, back (6).
    Stage 0 in fp32: norm (4), clip (8), update.
    """
    width, update = element_bytes(settings), update_bytes(settings)
    if settings.stage == 0:
        return (26 if width == 2 else 12) + update + (6 if width == 2 else 0)
    return (width + 16) + 2 * width + (width + 4 if width == 2 else 0) + 8 + update + (4 + width)


def share_on_cpu(settings: Settings) -> float:
    """Return the share of the optimizer that is offloaded: ``ratio`` at stage 3, all at 1 and 2, nothing at 0."""
    if settings.offload_optimizer == "none" or settings.stage == 0:
        return 0.0
    return settings.offload_optimizer_ratio if settings.stage == 3 else 1.0


def step_seconds(job: Job) -> float:
    """Compute the seconds of the optimizer step on the GPU, for what is not offloaded."""
    elements = (1 - share_on_cpu(job.settings)) * shard(job)
    return kernels.traffic_seconds(job.cluster.gpu, step_bytes(job.settings) * elements)


def norm_bytes(settings: Settings) -> int:
    """Return the part of ``step_bytes`` moved before the CPU waits for the gradients' norm; plain torch waits for
    nothing (``torch.nn.utils.clip_grad_norm_``)."""
    width = element_bytes(settings)
    if settings.engine != "deepspeed":
        return step_bytes(settings)
    if settings.stage == 0:
        return 18 if width == 2 else 4
    return width + 16


def norm_seconds(job: Job) -> float:
    """Compute the part of ``step_seconds`` before the CPU waits for the norm."""
    elements = (1 - share_on_cpu(job.settings)) * shard(job)
    return kernels.traffic_seconds(job.cluster.gpu, norm_bytes(job.settings) * elements)


def gradient_bytes(settings: Settings, world_size: int) -> float:
    """Return the bytes moved for each gradient element of a micro-batch between autograd and the collective.

    Stage 0: the all-reduce's flat copy and back, and the division (6w). Stages 1 and 2: into the bucket (2w), division
    (2w), copy of a bucket of several owners (2w), out into the rank's own partition (2w / N). Stage 3: into the bucket
    (2w), the reduce-scatter's copy (2w), division (2w), sum into the partition (3w / N).
    """
    width = element_bytes(settings)
    if settings.engine != "deepspeed":
        return 2 * width
    if settings.stage == 0:
        return 6 * width
    return width * (6 + (3 if settings.stage == 3 else 2) / world_size)


def gather_bytes(settings: Settings) -> float:
    """Return the bytes moved for each parameter element when stage 3 copies a gathered bucket apart (read and
    write)."""
    return 2 * element_bytes(settings) if settings.stage == 3 else 0
