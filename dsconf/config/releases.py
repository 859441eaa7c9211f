"""Which releases of DeepSpeed are known, the schema of each, since when a key exists or no longer does, and what to do
instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.config.names import RELEASES
from dsconf.errors import InputError
from dsconf.resources import text

if TYPE_CHECKING:
    from dsconf.config.finding import Path

NEWEST = RELEASES[-1]
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
"""What to do instead of keys that DeepSpeed no longer has, by dotted path (DeepSpeed 0.19.8 runtime/config.py:80-141).
Their schemas say when each went; no known release reads eigenvalue and quantize_training any more."""


def _patch(release: str) -> int:
    return int(release.rpartition(".")[2])


def _minor(release: str) -> str:
    return release.rpartition(".")[0]


@cache
def known_release(version: str) -> str:
    """Return the release whose schema stands for ``version``: itself, or the nearest patch, or a minor's newest.

    Raises:
        InputError: no release of that minor has a schema, or ``version`` is none.
    """
    match = re.fullmatch(
        r"v?([0-9]+\.[0-9]+)(?:\.([0-9]+))?(?:\.?(?:dev|post|rc|a|b)[0-9]+)?(?:\+.*)?", version.strip(), re.ASCII
    )
    patches = [release for release in RELEASES if match and _minor(release) == match[1]]
    if match is None or not patches or len(version) > 40:
        minors = ", ".join(dict.fromkeys(_minor(release) for release in RELEASES))
        raise InputError(
            f"DeepSpeed {version[:40]!r} is not known; use one of {minors}, or a patch of one, such as {NEWEST}"
        )
    wanted = int(match[2][:9]) if match[2] else _patch(patches[-1])
    return min(patches, key=lambda release: (abs(_patch(release) - wanted), -_patch(release)))


@cache
def load_schema(version: str = NEWEST) -> dict[str, Any]:
    """Load the schema of ``version``, such as ``0.16`` or ``0.19.8``, as shipped.

    Raises:
        InputError: an unknown version.
    """
    schema: dict[str, Any] = json.loads(text("schemas", f"ds_config-{known_release(version)}.schema.json"))
    return schema


def follow(part: Mapping[str, Any], version: str = NEWEST) -> Mapping[str, Any]:
    """Replace the reference into $defs that ``part`` holds by what it names."""
    name = part.get("$ref", "").rpartition("/")[2]
    return {**load_schema(version)["$defs"][name], **part} if name else part


def property_at(path: Path, version: str = NEWEST) -> Mapping[str, Any] | None:
    """Return the schema of the key at ``path``, or None where the schema has none."""
    part: Mapping[str, Any] = load_schema(version)
    for key in path:
        if key not in part.get("properties", {}):
            return None
        part = follow(part["properties"][key], version)
    return part


def _properties(part: Mapping[str, Any], version: str, path: Path = ()) -> Iterator[Path]:
    for key, inner in part.get("properties", {}).items():
        yield (*path, key)
        yield from _properties(follow(inner, version), version, (*path, key))


@cache
def known_places(version: str = NEWEST) -> dict[str, list[Path]]:
    """Return every key of the schema with the blocks it stands in."""
    places: dict[str, list[Path]] = {}
    for path in _properties(load_schema(version), version):
        places.setdefault(str(path[-1]), []).append(path[:-1])
    return places


class History(NamedTuple):
    """Why a release does not know a key that others know; one of the two is None."""

    removed: str | None = None
    """The first known release without it, after one that has it."""
    came: str | None = None
    """The first known release that has it."""


def history(path: Path, version: str) -> History | None:
    """Say when the key at ``path`` went or came, seen from ``version``, or return None where no release knows it."""
    release = known_release(version)
    here = RELEASES.index(release)
    having = [index for index, other in enumerate(RELEASES) if property_at(path, other) is not None]
    before, after = [index for index in having if index < here], [index for index in having if index > here]
    if here in having or not having:
        return None
    if before:
        return History(removed=RELEASES[before[-1] + 1])
    first = RELEASES[after[0]]
    return History(came=first if _minor(first) == _minor(RELEASES[after[0] - 1]) else _minor(first))


def _optimizers(release: str) -> list[str]:
    kind = property_at(("optimizer", "type"), release)
    return list(kind["examples"]) if kind else []


@cache
def optimizers(version: str = NEWEST) -> tuple[str, ...]:
    """List the optimizers that ``version`` brings along, in lower case."""
    return tuple(_optimizers(known_release(version)))


@cache
def removed_optimizers(version: str = NEWEST) -> dict[str, str]:
    """Return the optimizers, in lower case, that an earlier known release brings and ``version`` does not, each with
    the first known release without it."""
    here = known_release(version)
    removed: dict[str, str] = {}
    for earlier, later in pairwise(RELEASES[: RELEASES.index(here) + 1]):
        removed |= {name: later for name in _optimizers(earlier) if name not in _optimizers(later)}
    return {name: removed[name] for name in sorted(removed) if name not in _optimizers(here)}
