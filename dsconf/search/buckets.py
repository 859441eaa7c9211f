"""Bucket and group sizes, in elements: large enough for full bandwidth, never larger than the model."""

from __future__ import annotations

from typing import Any

from dsconf.model.spec import Model

REDUCE = 200_000_000
"""Stages 1 and 2: the figure of Hugging Face's ZeRO-2 example (https://huggingface.co/docs/transformers/deepspeed).
DeepSpeed's default of 5e8 costs 1 GB a buffer, and two of them with overlap_comm, for no bandwidth gained."""
SATURATING = 50_000_000
"""100 MB of bf16: DeepSpeed's own default prefetch bucket (runtime/zero/config.py, ``prefetch_bucket_size``)."""
LIVE = 1_000_000_000
"""DeepSpeed's default of ``max_live_parameters`` and ``max_reuse_distance``."""
SUB_GROUP = 100_000_000
"""Elements stepped at a time at stage 3. The step holds 6 bytes of each of them as a copy (stage3.py:2683-2699):
0.6 GB here, 6 GB at DeepSpeed's default of 1e9; a kernel over 1e8 elements is still bound by bandwidth alone."""


LEAN = 12_500_000
"""25 MB of bf16, the bucket that torch's DistributedDataParallel sends at a time (``bucket_cap_mb``)."""
LEAN_LIVE = 100_000_000
LEAN_SUB_GROUP = 25_000_000


def buckets(model: Model, stage: int, *, lean: bool = False) -> dict[str, Any]:
    """The sizes that ``stage`` reads, by the name of their field in ``Settings``; the others keep their default.

    Stage 3 follows Hugging Face's "auto" rule (hidden² for the reduce bucket, 0.9 × hidden² for the prefetch,
    10 × hidden for the persistence threshold; transformers/integrations/deepspeed.py), with ``SATURATING`` as a
    floor so that narrow models do not send small messages. What lies between two uses of a parameter, forward
    and backward, is at most twice the model. Stages 1 and 2 gather what the optimizer changed, and assert that the
    bucket for it is even (stage_1_and_2.py:389). ``lean`` sizes hold the least memory that keeps messages worth
    sending: a small card has a use for the gigabytes that the others take.
    """
    total = max(2, model.num_params)
    trainable = max(2, model.parameters.trainable())
    if stage == 0:
        return {}
    if stage < 3:
        size = LEAN if lean else REDUCE
        return {"reduce_bucket_size": min(trainable, size), "allgather_bucket_size": min(trainable, size) // 2 * 2}
    square = model.hidden**2
    if lean:
        return {
            "reduce_bucket_size": min(trainable, LEAN),
            "prefetch_bucket_size": min(total, LEAN),
            "param_persistence_threshold": 10 * model.hidden,
            "max_live_parameters": min(total, LEAN_LIVE),
            "max_reuse_distance": min(2 * total, LEAN_LIVE),
            "sub_group_size": min(total, LEAN_SUB_GROUP),
        }
    return {
        "reduce_bucket_size": min(trainable, max(square, SATURATING)),
        "prefetch_bucket_size": min(total, max(square * 9 // 10, SATURATING)),
        "param_persistence_threshold": 10 * model.hidden,
        "max_live_parameters": min(total, LIVE),
        "max_reuse_distance": min(2 * total, LIVE),
        "sub_group_size": min(total, SUB_GROUP),
    }
