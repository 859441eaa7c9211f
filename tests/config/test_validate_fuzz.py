"""Whatever a file holds: no traceback, no hang, bounded memory. benchmarks/validate/fuzz.py runs 100 000 texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from types import ModuleType

import pytest

from dsconf.config.finding import Report
from dsconf.config.load import MAX_BYTES, MAX_PLACED
from dsconf.config.repair.fix import repair
from dsconf.config.validate import MAX_FINDINGS, ValidationOptions, check_text, validate
from dsconf.report.sarif import sarif

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    """The benchmark, which is not installed with the package."""
    from benchmarks.validate import fuzz

    return fuzz


def test_some_texts(fuzzer: ModuleType) -> None:
    outcome = fuzzer.fuzz(600, seed=20)
    assert sum(outcome.verdicts.values()) == 600
    assert set(outcome.verdicts) == {"unreadable", "invalid", "valid", "repaired"}
    assert outcome.grown_bytes < 200 * 2**20


def test_the_same_seed_is_the_same_texts(fuzzer: ModuleType) -> None:
    assert list(fuzzer.texts(20, 3)) == list(fuzzer.texts(20, 3)) != list(fuzzer.texts(20, 4))


def _full(text: str) -> str:
    """``text`` as often as one file may hold it, as members of an object."""
    count = MAX_PLACED // (len(text) + 12)
    return "{" + ",".join(text.replace("N", str(number)) for number in range(count)) + "}"


LARGE = {
    "unknown keys": _full('"keyN": 1'),
    "unknown blocks": _full('"zero_N": {"stage": 1}'),
    "one key": _full('"stage": 1'),
    "autos": _full('"lrN": "auto"'),
    "without quotes": _full("keyN: yes\n").replace(",", ""),
    "one list": '{"train_batch_size": [' + "[],".rjust(3) * (MAX_PLACED // 4) + "1]}",
    "one string": json.dumps({"_comment": "x" * (MAX_PLACED - 40)}),
    "commas": "{" + "," * (MAX_PLACED - 2),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_files_are_over_soon(name: str) -> None:
    start = perf_counter()
    report = check_text("f", LARGE[name], ValidationOptions(gpus=8))
    assert perf_counter() - start < 20
    assert 0 < len(report.findings) <= MAX_FINDINGS + 1
    assert all(finding.line for finding in report.findings)


def _heavy(count: int) -> Iterator[tuple[str, str]]:
    """Texts of ``count`` values that are more than a report can say, and one of one long comment."""
    numbers = range(count)
    yield "unknown keys", json.dumps({f"key{number}": 1 for number in numbers})
    yield (
        "arguments",
        json.dumps({"optimizer": {"type": "AdamW", "params": {f"lr{number}": "x" for number in numbers}}}),
    )
    yield "autos", json.dumps({"zero_optimization": {f"stage{number}": "auto" for number in numbers}})
    yield "blocks", json.dumps({f"zero_{number}": {} for number in range(count // 3)})
    yield "numbers", json.dumps({"train_batch_size": 8, "optimizer": {"params": {"betas": [2.5] * count}}})
    yield "comment", json.dumps({"_comment": "x" * 20 * count, "train_batch_size": "no"})


def test_large_files_take_seconds(tmp_path: Path) -> None:
    for name, text in _heavy(100_000):
        start = perf_counter()
        report = check_text("f", text, ValidationOptions(gpus=8))
        assert perf_counter() - start < 10, name
        assert 0 < len(report.findings) <= MAX_FINDINGS + 1, name
        assert len(text) > MAX_PLACED, name
        json.dumps(sarif(Report((report,)), "0"))


GOOD = '{"train_batch_size": 8, "zero_optimization": {"stage": 2}'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (GOOD + " " * 50 * 2**20 + "}", []),
        (GOOD + ', "_comment": "' + "x" * 2**20 + '"}', []),
        (GOOD + ', "overlap_comm": true' + " " * 2**20 + "}", [("DS106", "overlap_comm")]),
        (GOOD + ', "train_batch_size": 8' + " " * 2**20 + "}", [("DS003", "train_batch_size")]),
        (GOOD + " " * 2**20, [("DS002", "")]),
    ],
)
def test_a_padded_config_gets_the_verdict_of_the_short_one(text: str, wanted: list[tuple[str, str]]) -> None:
    start = perf_counter()
    report = check_text("f", text, ValidationOptions(gpus=8))
    assert perf_counter() - start < 5
    assert [(found.code, found.path) for found in report.findings if found.severity == "error"] == wanted
    short = check_text("f", re.sub(" {9,}", "", text), ValidationOptions(gpus=8))
    assert short.valid == report.valid
    if report.readable:
        assert repair("f", text, ValidationOptions(gpus=8)).after == text


def test_a_file_beyond_the_bound_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    start = perf_counter()
    (report,) = validate(tmp_path / "huge.json").files
    assert perf_counter() - start < 2
    (finding,) = report.findings
    assert (finding.code, finding.line, finding.column) == ("DS001", 1, 1)
    assert "larger than 64 MiB" in finding.message
