"""Prints a validation report as lines for people and as the JSON of the outside contract."""

from __future__ import annotations

from typing import Any

from dsconf.config.finding import FileReport, Finding, Report, finding_json


def _line(file: str, finding: Finding) -> str:
    place = f":{finding.line}:{finding.column}" if finding.line else ""
    path = f" {finding.path}" if finding.path else ""
    hint = f"; {finding.suggestion}" if finding.suggestion else ""
    return f"{file}{place}: {finding.severity} {finding.code}{path}: {finding.message}{hint}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _summary(report: Report) -> str:
    severities = [finding.severity for file in report.files for finding in file.findings]
    counts = [_count(severities.count(kind), kind) for kind in ("error", "warning", "note")]
    read_as = ", ".join(dict.fromkeys(file.target for file in report.files if file.readable))
    return f"{_count(len(report.files), 'file')}: {', '.join(counts)}{f' (read as {read_as})' if read_as else ''}"


def findings_text(report: Report) -> str:
    """Return one line a finding, ``file:line:column: severity code path: message; suggestion``, and a summary line."""
    lines = [_line(file.file, finding) for file in report.files for finding in file.findings]
    return "\n".join([*lines, _summary(report)])


def _file(file: FileReport) -> dict[str, Any]:
    return {"file": file.file, "valid": file.valid, "findings": [finding_json(finding) for finding in file.findings]}


def findings_json(report: Report) -> dict[str, Any]:
    """Return the JSON of schemas/validate.schema.json."""
    return {"files": [_file(file) for file in report.files]}
