"""Checks ds_config files: DeepSpeed's schema, and the rules that a schema cannot say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.config.finding import FileReport, Finding, Path, Problem, Report, dotted
from dsconf.config.load import Loaded, LoadError, parse, read_text
from dsconf.config.names import TARGETS
from dsconf.config.positions import Lines
from dsconf.errors import InputError, nearest

if TYPE_CHECKING:
    from dsconf.config.rules.case import Case

Source = str | FilePath | Mapping[str, Any]
Rule = Callable[["Case"], Iterator[Problem]]
DEEPSPEED_VERSION = "0.19.8"
"""The release whose ds_config is checked unless another is named."""
MAX_FINDINGS = 500
"""Of one file; one with more is something else, and nobody reads them."""
_READERS = {"hf": "HF Trainer", "accelerate": "Accelerate"}


class Asked(NamedTuple):
    """What to check a config for: who loads it (None: told by the config), on how many GPUs, in which release."""

    target: str | None = None
    gpus: int | None = None
    version: str = DEEPSPEED_VERSION
    rules: tuple[Rule, ...] = ()
    """Further rules, such as whether the job fits, looked at when no other finds an error."""


def config_problems(config: Mapping[str, Any], target: str, asked: Asked) -> list[Problem]:
    """What is wrong with ``config`` itself, one problem for each path."""
    from dsconf.config.rules import RULES
    from dsconf.config.rules.case import Case
    from dsconf.config.schema import schema_problems

    case = Case(config, target, asked.gpus)
    found = _one_for_each_path([*schema_problems(config), *(problem for rule in RULES for problem in rule(case))])
    if asked.rules and all(problem.severity != "error" for problem in found):
        found += [problem for rule in asked.rules for problem in rule(case)]
    return found


def _one_for_each_path(problems: Sequence[Problem]) -> list[Problem]:
    """At each path the most severe problem, the first of several: what comes after it has the same cause."""
    ranks = ("error", "warning", "note")
    found: dict[Path, Problem] = {}
    for problem in problems:
        key = problem.path or ("", problem.code)
        if key not in found or ranks.index(problem.severity) < ranks.index(found[key].severity):
            found[key] = problem
    return list(found.values())


def _placed(loaded: Loaded, problems: Sequence[Problem]) -> Iterator[Finding]:
    """``problems`` at their keys, or at the nearest block around them that stands in the text."""
    if not loaded.text:
        yield from (_finding(problem, None) for problem in problems)
        return
    if not problems and not loaded.twice and not loaded.not_finite:
        return
    places, lines = loaded.places(), Lines(loaded.text)
    for path, offset in places.twice:
        yield _finding(_twice(path, loaded.target), lines.place(offset))
    for problem in [*(_not_finite(path, loaded) for path in loaded.not_finite), *problems]:
        path = problem.path
        while path and path not in places.spans:
            path = path[:-1]
        span = places.spans.get(path)
        finding = _finding(problem, lines.place(span.key) if span else (1, 1))
        whole_key = path == problem.path and span is not None and "\n" not in loaded.text[span.key : span.key_end]
        if span and whole_key and span.key_end > span.key and finding.column:
            finding = finding._replace(end_column=finding.column + span.key_end - span.key)
        yield finding


def _finding(problem: Problem, place: tuple[int, int] | None) -> Finding:
    line, column = place or (None, None)
    path, advice = dotted(problem.path), problem.suggestion
    return Finding(problem.code, problem.severity, path, problem.message, line, column, advice, None, problem.fix)


def _twice(path: Path, target: str) -> Problem:
    reader = _READERS.get(target)
    then = f"{reader} keeps the last value and drops the others" if reader else "DeepSpeed refuses the file"
    return Problem("DS003", "error", path, f"the key stands twice in one object; {then}", "leave one of them")


def _not_finite(path: Path, loaded: Loaded) -> Problem:
    value: Any = loaded.config
    for key in path:
        value = value[key]
    message = f"{_READERS[loaded.target]} reads {value}, which no setting of DeepSpeed can mean"
    return Problem("DS005", "error", path, message, "write a number")


def _not_json(loaded: Loaded) -> Iterator[Finding]:
    if loaded.not_json is None:
        return
    reason = loaded.not_json.problem
    reason = reason[:1].lower() + reason[1:]
    reader = _READERS.get(loaded.target)
    severity = "error" if reader else "note"
    says = f"{reader} cannot read it" if reader else "DeepSpeed reads it, HF Trainer and Accelerate do not"
    yield Finding("DS004", severity, "", f"not strict JSON ({reason}): {says}", *loaded.not_json[1:])


def report_of(name: str, loaded: Loaded, problems: Sequence[Problem]) -> FileReport:
    """The findings of a file that could be read, in the order they stand in it."""
    found = [*_not_json(loaded), *islice(_placed(loaded, problems), MAX_FINDINGS)]
    findings = sorted(found, key=lambda f: (f.line or 0, f.column or 0, f.path, f.code))
    return FileReport(
        name, all(f.severity != "error" for f in findings), tuple(findings), loaded.target, text=loaded.text
    )


def unreadable(name: str, error: LoadError, target: str | None) -> FileReport:
    """The report of a file that nobody can read."""
    finding = Finding(error.code, "error", "", error.problem, error.line, error.column)
    return FileReport(name, False, (finding,), target or "deepspeed", readable=False)


def _check(source: Source, asked: Asked) -> FileReport:
    if isinstance(source, Mapping):
        loaded, name = of_mapping(source, asked.target), "<config>"
    else:
        name = "<stdin>" if str(source) == "-" else str(source)
        try:
            loaded = parse(name, read_text(source), asked.target)
        except LoadError as error:
            return unreadable(name, error, asked.target)
    return report_of(name, loaded, config_problems(loaded.config, loaded.target, asked))


def of_mapping(config: Mapping[str, Any], target: str | None) -> Loaded:
    """``config`` as if it had been read, by ``target`` or by whom its "auto" values tell."""
    from dsconf.config.rules.auto import autos

    return Loaded(dict(config), "", target or ("hf" if any(autos(config)) else "deepspeed"))


def checked(gpus: int | None, target: str | None, version: str, rules: tuple[Rule, ...] = ()) -> Asked:
    """The words of a caller as one value.

    Raises:
        InputError: an unknown target, or a number of GPUs below 1.
    """
    if target is not None and target not in TARGETS:
        raise InputError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}{nearest(target, TARGETS)}")
    if gpus is not None and gpus < 1:
        raise InputError(f"gpus: {gpus} is not a positive number")
    return Asked(target, gpus, version, rules)


def listed(files: Source | Sequence[Source]) -> Sequence[Source]:
    """``files`` as a sequence, in which standard input, which can be read once, stands once."""
    sources = [files] if isinstance(files, (str, FilePath, Mapping)) else files
    if sum(not isinstance(source, Mapping) and str(source) == "-" for source in sources) > 1:
        raise InputError("-: standard input can be read once; name it once")
    return sources


def validate(
    files: Source | Sequence[Source],
    gpus: int | None = None,
    target: str | None = None,
    deepspeed_version: str = DEEPSPEED_VERSION,
    rules: tuple[Rule, ...] = (),
) -> Report:
    """Checks one file or several: paths, ``-`` for standard input, or mappings.

    ``gpus`` is the world size for the batch-size rule. ``target`` is who loads the files (``deepspeed``, ``hf``,
    ``accelerate``); by default ``hf`` for a file that holds "auto" and ``deepspeed`` for the others. A file that
    cannot be read is a finding, not an exception.

    Raises:
        InputError: an unknown target or release, or a number of GPUs below 1.
    """
    asked = checked(gpus, target, deepspeed_version, rules)
    return Report(tuple(_check(source, asked) for source in listed(files)))
