"""Checks ds_config files: DeepSpeed's schema, and the rules that a schema cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from dsconf.config.finding import FileReport, Finding, Path, Problem, Report, dotted
from dsconf.config.load import DuplicateKeyError, Loaded, LoadError, read
from dsconf.config.names import TARGETS
from dsconf.config.positions import Place, positions
from dsconf.errors import InputError, nearest

Source = str | FilePath | Mapping[str, Any]


def _problems(loaded: Loaded, target: str, gpus: int | None) -> Iterator[Problem]:
    """All problems, the more basic ones first."""
    from dsconf.config.rules import RULES
    from dsconf.config.rules.case import Case
    from dsconf.config.schema import schema_problems

    if loaded.not_json is not None:
        severity = "note" if target == "deepspeed" else "error"
        message = f"not strict JSON ({loaded.not_json}): DeepSpeed reads it, HF Trainer and Accelerate do not"
        yield Problem("DS004", severity, (), message)
    yield from schema_problems(loaded.config)
    for rule in RULES:
        yield from rule(Case(loaded.config, target, gpus))


def _one_for_each_path(problems: Iterator[Problem]) -> list[Problem]:
    """At each path the most severe problem, the first of several: what comes after it has the same cause."""
    ranks = ("error", "warning", "note")
    found: dict[Path, Problem] = {}
    for problem in problems:
        key = problem.path or ("", problem.code)
        if key not in found or ranks.index(problem.severity) < ranks.index(found[key].severity):
            found[key] = problem
    return list(found.values())


def _placed(problem: Problem, places: Mapping[Path, Place]) -> Finding:
    """``problem`` at its key, or at the nearest block around it that stands in the text."""
    path = problem.path
    while path and path not in places:
        path = path[:-1]
    line, column = places.get(path, (None, None))
    return Finding(
        problem.code, problem.severity, dotted(problem.path), problem.message, line, column, problem.suggestion
    )


def _unreadable(name: str, error: LoadError, target: str) -> FileReport:
    twice = isinstance(error, DuplicateKeyError)
    code = "DS003" if twice else "DS002" if error.line else "DS001"
    finding = Finding(code, "error", "", error.problem, error.line, error.column)
    return FileReport(name, False, (finding,), target, readable=twice)


def _check(source: Source, gpus: int | None, target: str | None) -> FileReport:
    from dsconf.config.rules.auto import autos

    name = "<config>" if isinstance(source, Mapping) else "<stdin>" if str(source) == "-" else str(source)
    try:
        loaded = Loaded(dict(source), "") if isinstance(source, Mapping) else read(source)
    except LoadError as error:
        return _unreadable(name, error, target or "deepspeed")
    target = target or ("hf" if any(autos(loaded.config)) else "deepspeed")
    places = positions(loaded.text) if loaded.text and loaded.not_json is None else {}
    problems = _one_for_each_path(_problems(loaded, target, gpus))
    found = [_placed(problem, places) for problem in problems]
    findings = sorted(found, key=lambda f: (f.line or 0, f.column or 0, f.path, f.code))
    return FileReport(name, all(f.severity != "error" for f in findings), tuple(findings), target)


def validate(files: Source | Sequence[Source], gpus: int | None = None, target: str | None = None) -> Report:
    """Checks one file or several: paths, ``-`` for standard input, or mappings.

    ``gpus`` is the world size for the batch-size rule. ``target`` is who loads the files (``deepspeed``, ``hf``,
    ``accelerate``); by default ``hf`` for a file that holds "auto" and ``deepspeed`` for the others. A file that
    cannot be read is a finding, not an exception.

    Raises:
        InputError: an unknown target, or a number of GPUs below 1.
    """
    if target is not None and target not in TARGETS:
        raise InputError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}{nearest(target, TARGETS)}")
    if gpus is not None and gpus < 1:
        raise InputError(f"gpus: {gpus} is not a positive number")
    sources = [files] if isinstance(files, (str, FilePath, Mapping)) else files
    return Report(tuple(_check(source, gpus, target) for source in sources))
