"""Short ways to write a config and what the rules find in it."""

from __future__ import annotations

from typing import Any

from dsconf.config.validate import ValidationOptions, validate

BF16 = {"bf16": {"enabled": True}}
CPU = {"device": "cpu"}
Found = list[tuple[str, str]]


def zero(stage: Any, **keys: Any) -> dict[str, Any]:
    """A config with a ZeRO block."""
    return {"train_batch_size": 8, "zero_optimization": {"stage": stage, **keys}}


def optimizer(kind: str, stage: int = 0, **params: Any) -> dict[str, Any]:
    """A config with an optimizer of the arguments ``params``."""
    return zero(stage) | {"optimizer": {"type": kind, "params": params}}


def scheduler(kind: str, **params: Any) -> dict[str, Any]:
    """A config in fp32 without ZeRO, with a scheduler of the arguments ``params``."""
    return {"train_batch_size": 8, "scheduler": {"type": kind, "params": params}}


def findings(config: dict[str, Any], severity: tuple[str, ...], **words: Any) -> Found:
    """The codes and paths of the findings of one of those severities."""
    found = validate(config, options=ValidationOptions(**words)).files[0].findings
    return sorted((finding.code, finding.path) for finding in found if finding.severity in severity)


def faults(config: dict[str, Any], **words: Any) -> Found:
    """Errors and warnings."""
    return findings(config, ("error", "warning"), **words)


def notes(config: dict[str, Any], **words: Any) -> Found:
    """Notes."""
    return findings(config, ("note",), **words)
