"""Checks ds_config files against DeepSpeed's schema and against rules that a schema cannot express."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NamedTuple

from dsconf.config.finding import FileReport, Finding, Path, Problem, Report, dotted
from dsconf.config.load import Loaded, LoadError, name_of, parse, read_text
from dsconf.config.names import RELEASES, TARGETS
from dsconf.config.positions import Lines
from dsconf.errors import InputError, nearest

if TYPE_CHECKING:
    from dsconf.config.rules.case import Case

Source = str | FilePath | Mapping[str, Any]
Rule = Callable[["Case"], Iterator[Problem]]
DEEPSPEED_VERSION = RELEASES[-1]
"""The release whose ds_config is checked unless another is named."""
MAX_FINDINGS = 500
"""Most findings of one file; nobody reads more."""
_READERS = {"hf": "HF Trainer", "accelerate": "Accelerate"}


class ValidationOptions(NamedTuple):
    """What to check a config for: who loads it (None: the config says), on how many GPUs, in which release."""

    target: str | None = None
    gpus: int | None = None
    version: str = DEEPSPEED_VERSION
    resume_gpus: int | None = None
    """World size that wrote the checkpoint to go on from."""
    model_params: int | None = None
    """Parameters of the model, in elements."""
    rules: tuple[Rule, ...] = ()
    """Further rules, such as whether the job fits."""


def config_problems(config: Mapping[str, Any], target: str, options: ValidationOptions) -> list[Problem]:
    """List what is wrong with ``config`` itself, one problem for each path."""
    from dsconf.config.releases import known_release
    from dsconf.config.rules import RULES
    from dsconf.config.rules.case import Case
    from dsconf.config.schema import schema_problems

    release = known_release(options.version)
    case = Case(
        config,
        target,
        gpus=options.gpus,
        model_params=options.model_params,
        resume_gpus=options.resume_gpus,
        release=release,
        version=options.version,
    )
    problems = schema_problems(config, release)
    for rule in (*RULES, *options.rules):
        problems += islice(rule(case), MAX_FINDINGS)
    return _one_for_each_path(problems)


def _one_for_each_path(problems: Sequence[Problem]) -> list[Problem]:
    """Keep at each path the most severe problem, the first of several: those after it have the same cause."""
    ranks = ("error", "warning", "note")
    worst: dict[Path, Problem] = {}
    for problem in problems:
        key = problem.path or ("", problem.code)
        if key not in worst or ranks.index(problem.severity) < ranks.index(worst[key].severity):
            worst[key] = problem
    return list(worst.values())


def _placed(loaded: Loaded, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Yield ``problems`` at their keys, or at the nearest block around them that stands in the text."""
    if not loaded.text:
        twice = [_twice((loaded.repeated,), loaded.target)] if loaded.repeated is not None else []
        without_place = [*twice, *(_not_finite(path, loaded) for path in loaded.not_finite), *problems]
        yield from (_finding(problem, None) for problem in without_place)
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
    return Finding(
        code=problem.code,
        severity=problem.severity,
        path=dotted(problem.path),
        message=problem.message,
        line=line,
        column=column,
        suggestion=problem.suggestion,
        fix=problem.fix,
    )


def _twice(path: Path, target: str) -> Problem:
    reader = _READERS.get(target)
    then = f"{reader} keeps the last value and drops the others" if reader else "DeepSpeed refuses the file"
    return Problem("DS003", "error", path, f"the key appears twice in one object; {then}", "leave one of them")


def _not_finite(path: Path, loaded: Loaded) -> Problem:
    value: Any = loaded.config
    for key in path:
        value = value[key]
    message = f"{_READERS[loaded.target]} reads {value}, which no setting of DeepSpeed can be"
    return Problem("DS005", "error", path, message, "write a number")


def _not_json(loaded: Loaded) -> Iterator[Finding]:
    if loaded.not_json is None:
        return
    reason = loaded.not_json.problem
    reader = _READERS.get(loaded.target)
    severity = "error" if reader else "note"
    says = f"{reader} cannot read it" if reader else "DeepSpeed reads it, HF Trainer and Accelerate do not"
    yield Finding("DS004", severity, "", f"not strict JSON ({reason}): {says}", *loaded.not_json[1:])


def _report_of(name: str, loaded: Loaded, options: ValidationOptions) -> FileReport:
    """Report the findings of a file that could be read, in the order they stand in it."""
    problems = config_problems(loaded.config, loaded.target, options)
    findings = [*_not_json(loaded), *islice(_placed(loaded, problems), MAX_FINDINGS)]
    findings.sort(key=lambda finding: (finding.line or 0, finding.column or 0, finding.path, finding.code))
    valid = all(finding.severity != "error" for finding in findings)
    return FileReport(name, valid, tuple(findings), loaded.target, text=loaded.text)


def unreadable(name: str, error: LoadError, target: str | None) -> FileReport:
    """Report a file that nobody can read."""
    finding = Finding(error.code, "error", "", error.problem, error.line, error.column)
    return FileReport(name, False, (finding,), target or "deepspeed", readable=False)


def check_text(name: str, text: str, options: ValidationOptions) -> FileReport:
    """Check ``text``; ``name`` is what messages call it."""
    try:
        loaded = parse(name, text, options.target)
    except LoadError as error:
        return unreadable(name, error, options.target)
    return _report_of(name, loaded, options)


def _check(source: Source, options: ValidationOptions) -> FileReport:
    if isinstance(source, Mapping):
        return _report_of("<config>", _of_mapping(source, options.target), options)
    try:
        return check_text(name_of(source), read_text(source), options)
    except LoadError as error:
        return unreadable(name_of(source), error, options.target)


def _of_mapping(config: Mapping[str, Any], target: str | None) -> Loaded:
    from dsconf.config.rules.auto import autos

    return Loaded(dict(config), "", target or ("hf" if any(autos(config)) else "deepspeed"))


def checked_options(options: ValidationOptions) -> ValidationOptions:
    """Return ``options`` if a check can be made with them.

    Raises:
        InputError: an unknown target or release, or a number of GPUs below 1.
    """
    if options.version != DEEPSPEED_VERSION:
        from dsconf.config.releases import known_release

        known_release(options.version)
    if options.target is not None and options.target not in TARGETS:
        near = nearest(options.target, TARGETS)
        raise InputError(f"unknown target {options.target!r}; use one of {', '.join(TARGETS)}{near}")
    for word, gpus in (("gpus", options.gpus), ("resume_gpus", options.resume_gpus)):
        if gpus is not None and gpus < 1:
            raise InputError(f"{word}: {gpus} is not a positive number")
    return options


def listed(files: Source | Sequence[Source]) -> Sequence[Source]:
    """Return ``files`` as a sequence.

    Raises:
        InputError: standard input, which can be read once, stands in it twice.
    """
    sources = [files] if isinstance(files, (str, FilePath, Mapping)) else files
    if sum(not isinstance(source, Mapping) and str(source) == "-" for source in sources) > 1:
        raise InputError("-: standard input can only be read once; name it once")
    return sources


def validate(
    files: Source | Sequence[Source],
    gpus: int | None = None,
    target: str | None = None,
    options: ValidationOptions | None = None,
) -> Report:
    """Check one file or several: paths, ``-`` for standard input, or mappings.

    ``gpus`` is the world size for the batch-size rule. ``target`` is who loads the files (``deepspeed``, ``hf``,
    ``accelerate``); by default ``hf`` for a file that holds "auto" and ``deepspeed`` for the others. ``options``
    replaces both and says more. A file that cannot be read is a finding, not an exception.

    Raises:
        InputError: an unknown target, or a number of GPUs below 1.
    """
    options = checked_options(options or ValidationOptions(target, gpus))
    return Report(tuple(_check(source, options) for source in listed(files)))
