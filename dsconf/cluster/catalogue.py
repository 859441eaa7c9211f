"""The GPUs that dsconf knows by name, read from ``gpus.json``, where every figure names its source."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from dsconf.cluster.spec import Gpu
from dsconf.errors import InputError, nearest
from dsconf.units import MIB

_TERA, _GIGA = 10**12, 10**9
_MAKERS = ("nvidia", "geforce", "tesla", "quadro", "amd", "instinct")


def _plain(name: str) -> str:
    """Return ``name`` without case, separators and maker: ``NVIDIA A100-SXM4-80GB`` is ``a100sxm480gb``."""
    word = "".join(letter for letter in name.lower() if letter.isalnum())
    for maker in _MAKERS:
        word = word.removeprefix(maker)
    return word


def _gpu(row: dict[str, Any], sources: dict[str, dict[str, str | None]]) -> Gpu:
    figures = {key: value for key, value in row.items() if isinstance(value, list) and key != "aliases"}
    keys = dict.fromkeys(source for _, source in figures.values())
    return Gpu(
        name=row["name"],
        memory_bytes=figures["memory_mib"][0] * MIB,
        bf16_flops=figures["bf16_tflops"][0] * _TERA,
        fp32_flops=figures["fp32_tflops"][0] * _TERA,
        memory_bandwidth=figures["memory_gb_per_s"][0] * _GIGA,
        link_bandwidth=figures["link_gb_per_s"][0] * _GIGA,
        host_bandwidth=figures["host_gb_per_s"][0] * _GIGA,
        has_bf16=row["has_bf16"],
        source="; ".join(_cited(sources[key]) for key in keys),
    )


def _cited(source: dict[str, str | None]) -> str:
    """Return title and address; a figure found by a text search has no address."""
    return f"{source['title']} ({source['url']})" if source["url"] else f"{source['title']}"


def _beside(name: str) -> bytes:
    """Read the file ``name`` of this package, from a folder or a zip.

    As ``pkgutil.get_data`` does; importing that or ``importlib.resources`` would take longer than all the rest.
    """
    loader: Any = __spec__.loader if __spec__ else None
    data: bytes = loader.get_data(os.path.join(os.path.dirname(__file__), name))
    return data


@lru_cache(maxsize=1)
def _read() -> tuple[tuple[Gpu, ...], dict[str, Gpu]]:
    """Read all GPUs, and which one each plain name and alias stands for."""
    import json

    document = json.loads(_beside("gpus.json"))
    gpus = tuple(_gpu(row, document["sources"]) for row in document["gpus"])
    by_word = {
        _plain(word): gpu
        for row, gpu in zip(document["gpus"], gpus, strict=True)
        for word in (row["name"], *row["aliases"])
    }
    return gpus, by_word


def all_gpus() -> tuple[Gpu, ...]:
    """List every GPU of the catalogue, newest data-centre cards first."""
    return _read()[0]


def find_gpu(name: str) -> Gpu:
    """Find the GPU called ``name``; case, spaces, dashes, underscores and the maker's name do not matter.

    Raises:
        InputError: no card has this name, or several do (``a100`` comes with 40 and 80 GB).
    """
    if not isinstance(name, str):
        raise InputError(f"--gpu: {name!r} is not the name of a card, such as 'h100-80gb'")
    gpus, by_word = _read()
    word = _plain(name)
    if word in by_word:
        return by_word[word]
    several = [gpu.name for gpu in gpus if word and _plain(gpu.name).startswith(word)]
    if len(several) > 1:
        raise InputError(f"--gpu: {name!r} is more than one card; choose from {', '.join(several)}")
    hint = f"; did you mean {several[0]!r}?" if several else nearest(word, tuple(by_word))
    raise InputError(f"--gpu: {name!r} is not in the catalogue{hint or '; give --gpu-memory instead'}")


def nearest_in_memory(memory_bytes: int) -> Gpu:
    """Return the GPU whose memory is closest to ``memory_bytes``; of cards whose memories differ by at most 2 %, the
    first listed."""
    gpus = all_gpus()
    best = min(gpus, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes)).memory_bytes
    return next(gpu for gpu in gpus if abs(gpu.memory_bytes - best) <= best // 50)
