"""A ds_config with comments that say why each value is what it is: HJSON, which DeepSpeed reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from dsconf.cluster.spec import Cluster
from dsconf.config.settings import Settings
from dsconf.model.spec import Model
from dsconf.units import format_bytes
from dsconf.workload import Workload

_WIDTH = 110
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def commented(
    config: Mapping[str, Any],
    settings: Settings,
    model: Model,
    cluster: Cluster,
    workload: Workload,
    reasons: Sequence[str] = (),
) -> str:
    """Write ``config`` as HJSON that reads as the same values, with ``reasons`` at its head and a comment above every
    key that has one.

    The HF Trainer and Accelerate take no comments (``json.load``): DeepSpeed alone reads this.
    """
    notes = comments(settings, model, cluster, workload)
    head = [line for reason in reasons for line in _comment(reason, "")]
    return "\n".join([*head, "{", *_members(config, "", notes, "  "), "}"]) + "\n"


def comments(settings: Settings, model: Model, cluster: Cluster, workload: Workload) -> dict[str, str]:
    """Return the reason for every dotted path that a config with ``settings`` may have. A block's comment covers its
    keys."""
    from dsconf.config.render import text_environment

    environment = text_environment()
    environment.filters |= {"size": format_bytes, "n": "{:,}".format}
    wide = _BYTES.get(settings.precision, 4)
    text = environment.get_template("comments.j2").render(
        s=settings, m=model, c=cluster, w=workload, wide=wide, sent=_sent(settings, wide)
    )
    pairs = (line.partition(": ") for line in text.splitlines() if line.strip())
    return {path: why for path, _, why in pairs}


def _sent(settings: Settings, wide: int) -> int:
    """Return the bytes of an element of a reduce bucket: at stage 3 those of the type that gradients are sent in, which
    sequence parallelism makes fp32 (runtime/engine.py:2173); below, those of the type they are computed in."""
    if settings.stage < 3:
        return wide
    if settings.sequence_parallel > 1:
        return 4
    return _BYTES.get(settings.communication_dtype or "", wide)


def _members(block: Mapping[str, Any], path: str, notes: Mapping[str, str], indent: str) -> Iterator[str]:
    for number, (key, value) in enumerate(block.items(), start=1):
        inner = f"{path}{key}"
        comma = "," if number < len(block) else ""
        yield from _comment(notes.get(inner, ""), indent)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{json.dumps(key)}: {{"
            yield from _members(value, f"{inner}.", notes, f"{indent}  ")
            yield f"{indent}}}{comma}"
        else:
            yield f"{indent}{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}{comma}"


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(text, _WIDTH - len(indent))]
