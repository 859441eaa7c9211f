"""Checks ds_config files: DeepSpeed's schema, and the rules that a schema cannot say."""

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
"""Of one file; one with more is something else, and nobody reads them."""
_READERS = {"hf": "HF Trainer", "accelerate": "Accelerate"}


class Asked(NamedTuple):
    """What to check a config for: who loads it (None: told by the config), on how many GPUs, in which release."""

    target: str | None = None
    gpus: int | None = None
    version: str = DEEPSPEED_VERSION
    resume_gpus: int | None = None
    """World size that wrote the checkpoint to go on from."""
    model_params: int | None = None
    """Parameters of the model, in elements."""
    rules: tuple[Rule, ...] = ()
    """Further rules, such as whether the job fits."""


def config_problems(config: Mapping[str, Any], target: str, asked: Asked) -> list[Problem]:
    """What is wrong with ``config`` itself, one problem for each path."""
    from dsconf.config.releases import known_release
    from dsconf.config.rules import RULES
    from dsconf.config.rules.case import Case
    from dsconf.config.schema import schema_problems

    release = known_release(asked.version)
    case = Case(config, target, asked.gpus, asked.model_params, asked.resume_gpus, release, asked.version)
    found = schema_problems(config, release)
    return _one_for_each_path(
        [*found, *(problem for rule in (*RULES, *asked.rules) for problem in islice(rule(case), MAX_FINDINGS))]
    )


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
    reader = _READERS.get(loaded.target)
    severity = "error" if reader else "note"
    says = f"{reader} cannot read it" if reader else "DeepSpeed reads it, HF Trainer and Accelerate do not"
    yield Finding("DS004", severity, "", f"not strict JSON ({reason}): {says}", *loaded.not_json[1:])


def _report_of(name: str, loaded: Loaded, asked: Asked) -> FileReport:
    """The findings of a file that could be read, in the order they stand in it."""
    problems = config_problems(loaded.config, loaded.target, asked)
    found = [*_not_json(loaded), *islice(_placed(loaded, problems), MAX_FINDINGS)]
    findings = sorted(found, key=lambda f: (f.line or 0, f.column or 0, f.path, f.code))
    return FileReport(
        name, all(f.severity != "error" for f in findings), tuple(findings), loaded.target, text=loaded.text
    )


def unreadable(name: str, error: LoadError, target: str | None) -> FileReport:
    """The report of a file that nobody can read."""
    finding = Finding(error.code, "error", "", error.problem, error.line, error.column)
    return FileReport(name, False, (finding,), target or "deepspeed", readable=False)


def check_text(name: str, text: str, asked: Asked) -> FileReport:
    """The report of ``text``; ``name`` is what it is called."""
    try:
        loaded = parse(name, text, asked.target)
    except LoadError as error:
        return unreadable(name, error, asked.target)
    return _report_of(name, loaded, asked)


def _check(source: Source, asked: Asked) -> FileReport:
    if isinstance(source, Mapping):
        return _report_of("<config>", _of_mapping(source, asked.target), asked)
    try:
        return check_text(name_of(source), read_text(source), asked)
    except LoadError as error:
        return unreadable(name_of(source), error, asked.target)


def _of_mapping(config: Mapping[str, Any], target: str | None) -> Loaded:
    from dsconf.config.rules.auto import autos

    return Loaded(dict(config), "", target or ("hf" if any(autos(config)) else "deepspeed"))


def check_asked(asked: Asked) -> Asked:
    """``asked``, if it can be answered.

    Raises:
        InputError: an unknown target or release, or a number of GPUs below 1.
    """
    if asked.version != DEEPSPEED_VERSION:
        from dsconf.config.releases import known_release

        known_release(asked.version)
    if asked.target is not None and asked.target not in TARGETS:
        near = nearest(asked.target, TARGETS)
        raise InputError(f"unknown target {asked.target!r}; use one of {', '.join(TARGETS)}{near}")
    for word, gpus in (("gpus", asked.gpus), ("resume_gpus", asked.resume_gpus)):
        if gpus is not None and gpus < 1:
            raise InputError(f"{word}: {gpus} is not a positive number")
    return asked


def listed(files: Source | Sequence[Source]) -> Sequence[Source]:
    """``files`` as a sequence.

    Raises:
        InputError: standard input, which can be read once, stands in it twice.
    """
    sources = [files] if isinstance(files, (str, FilePath, Mapping)) else files
    if sum(not isinstance(source, Mapping) and str(source) == "-" for source in sources) > 1:
        raise InputError("-: standard input can be read once; name it once")
    return sources


def validate(
    files: Source | Sequence[Source], gpus: int | None = None, target: str | None = None, asked: Asked | None = None
) -> Report:
    """Checks one file or several: paths, ``-`` for standard input, or mappings.

    ``gpus`` is the world size for the batch-size rule. ``target`` is who loads the files (``deepspeed``, ``hf``,
    ``accelerate``); by default ``hf`` for a file that holds "auto" and ``deepspeed`` for the others. ``asked`` says
    all that and more in their place. A file that cannot be read is a finding, not an exception.

    Raises:
        InputError: an unknown target, or a number of GPUs below 1.
    """
    asked = check_asked(asked or Asked(target, gpus))
    return Report(tuple(_check(source, asked) for source in listed(files)))
