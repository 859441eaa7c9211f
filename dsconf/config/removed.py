"""What to do instead of keys that DeepSpeed no longer has; when each went is told by the schemas of the releases.

Source: DeepSpeed 0.19.8 runtime/config.py:80-141.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from dsconf.config.names import RELEASES
from dsconf.config.releases import NEWEST, known_release, property_at

INSTEAD = {
    "amp": "use fp16, bf16 or torch_autocast",
    "compression_training": "leave it out; compress the model before or after training",
    "curriculum_learning": "use data_efficiency.data_sampling.curriculum_learning",
    "eigenvalue": "leave it out",
    "elasticity": "set train_batch_size, train_micro_batch_size_per_gpu and gradient_accumulation_steps",
    "graph_harvesting": "leave it out",
    "nebula": "leave it out; checkpoints are saved with torch.save",
    "progressive_layer_drop": "leave it out",
    "quantize_training": "leave it out",
    "sparse_attention": "leave it out; choose the model's attention kernel instead",
    "sparse_gradients": "leave it out; torch.nn.Embedding(sparse=True) needs no flag",
    "zero_optimization.mics_shard_size": "use zero_hpz_partition_size",
    "zero_optimization.mics_hierarchical_params_gather": "leave it out",
    "zero_optimization.zeropp_loco_param": "leave it out; zero_quantized_gradients works without it",
}
"""Dotted path: what to do instead. Two of them, eigenvalue and quantize_training, no known release reads any more."""


def _optimizers(release: str) -> list[str]:
    kind = property_at(("optimizer", "type"), release)
    return list(kind["examples"]) if kind else []


@cache
def optimizers(version: str = NEWEST) -> tuple[str, ...]:
    """Lower-case names of the optimizers that ``version`` brings along."""
    return tuple(_optimizers(known_release(version)))


@cache
def removed_optimizers(version: str = NEWEST) -> dict[str, str]:
    """Lower-case names of optimizers that an earlier known release brings and ``version`` does not, and the first
    known release without each."""
    here = known_release(version)
    found: dict[str, str] = {}
    for earlier, later in pairwise(RELEASES[: RELEASES.index(here) + 1]):
        found |= {name: later for name in _optimizers(earlier) if name not in _optimizers(later)}
    return {name: found[name] for name in sorted(found) if name not in _optimizers(here)}
