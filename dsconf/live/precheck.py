"""Validates a config before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.live.prepare import BATCH_KEYS
from dsconf.live.processes.launcher import Failure

if TYPE_CHECKING:
    from dsconf.config.finding import Finding

BATCH_CODES = "DS2"
"""Findings about batch sizes begin with it."""


class Precheck(NamedTuple):
    """Why the config cannot be launched (None: it can), all errors found, and what could not be looked at."""

    failure: Failure | None = None
    findings: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def precheck(
    source: str | Path | Mapping[str, Any], config: Mapping[str, Any], gpus: int, batch_given: bool
) -> Precheck:
    """Return what ``dsconf validate`` says of ``source``, read as ``config``, on ``gpus`` GPUs.

    With ``batch_given`` options replace the batch sizes, so the config's own are not judged. A warning does not
    keep a config from being launched.
    """
    from dsconf.config.finding import finding_json
    from dsconf.config.validate import validate

    standard_input = str(source) == "-"
    try:
        report = validate(config if standard_input else source, None if batch_given else gpus).files[0]
    except ModuleNotFoundError as error:
        if (error.name or "dsconf").startswith("dsconf"):
            raise
        return Precheck(notes=(f"not validated: {error.name} is not installed",))
    errors = [f for f in report.findings if f.severity == "error" and not (batch_given and _about_batch(f))]
    if not errors:
        return Precheck()
    name = "<stdin>" if standard_input else report.file
    more = f" (and {len(errors) - 1} more: dsconf validate)" if len(errors) > 1 else ""
    failure = Failure("invalid", f"{_line(name, errors[0])}{more}", "validate")
    return Precheck(failure, tuple(finding_json(finding) for finding in errors))


def _about_batch(finding: Finding) -> bool:
    return finding.code.startswith(BATCH_CODES) or finding.path in BATCH_KEYS


def _line(name: str, finding: Finding) -> str:
    place = f"{name}:{finding.line}:{finding.column}" if finding.line else name
    subject = f"{finding.path}: " if finding.path else ""
    advice = f"; {finding.suggestion}" if finding.suggestion else ""
    return f"{place}: {finding.code} {subject}{finding.message}{advice}"
