"""Prints a validation report as SARIF 2.1.0, which code hosts and editors read.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from dsconf.config.finding import FileReport, Finding, Report
from dsconf.config.positions import Lines
from dsconf.config.repair.fix import replacement
from dsconf.report.rules import RulePage, rule_page

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(report: Report, version: str) -> dict[str, Any]:
    """Return one run with a rule for each code found and a result for each finding; ``version`` is dsconf's."""
    codes = sorted({finding.code for file in report.files for finding in file.findings})
    driver = {"name": "dsconf", "version": version, "rules": [_rule(rule_page(code)) for code in codes]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": report.readable}],
        "artifacts": [{"location": {"uri": _uri(file.file)}} for file in report.files],
        "results": [
            _result(file, number, finding, codes.index(finding.code))
            for number, file in enumerate(report.files)
            for finding in file.findings
        ],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(page: RulePage) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": page.code, "shortDescription": {"text": page.title}}
    return {**rule, "help": {"text": page.text, "markdown": page.text}} if page.text else rule


def _uri(name: str) -> str:
    """Return a file's name as a URI: relative to where the command ran unless it is absolute."""
    path = Path(name)
    return path.as_uri() if path.is_absolute() else quote(os.fsencode(PurePath(name).as_posix()))


def _result(file: FileReport, number: int, finding: Finding, rule: int) -> dict[str, Any]:
    advice = f"; {finding.suggestion}" if finding.suggestion else ""
    artifact = {"uri": _uri(file.file), "index": number}
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": artifact}}
    if finding.line:
        ends = {"endColumn": finding.end_column} if finding.end_column else {}
        region = {"startLine": finding.line, "startColumn": finding.column, **ends}
        place["physicalLocation"]["region"] = region
    if finding.path:
        place["logicalLocations"] = [{"fullyQualifiedName": finding.path, "kind": "member"}]
    subject = f"{finding.path}: " if finding.path else ""
    result = {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": f"{subject}{finding.message}{advice}"},
        "locations": [place],
    }
    fixes = _fixes(file, finding)
    return {**result, "fixes": fixes} if fixes else result


def _fixes(file: FileReport, finding: Finding) -> list[dict[str, Any]]:
    change = replacement(file.text, finding.fix) if finding.fix and file.text else None
    if change is None:
        return []
    lines = Lines(file.text)
    (line, column), (end_line, end_column) = lines.place(change.start), lines.place(change.end)
    region = {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}
    replaced = {"deletedRegion": region, "insertedContent": {"text": change.new}}
    artifact = {"artifactLocation": {"uri": _uri(file.file)}, "replacements": [replaced]}
    return [{"description": {"text": finding.suggestion or "repair it"}, "artifactChanges": [artifact]}]
