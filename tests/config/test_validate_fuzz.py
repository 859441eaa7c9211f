"""Whatever a file holds: no traceback, no hang, bounded memory. benchmarks/fuzz_validate.py runs 100 000 texts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from time import perf_counter
from types import ModuleType

import pytest

from dsconf.config.load import MAX_BYTES
from dsconf.config.validate import MAX_FINDINGS, Asked, check_text, validate

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    """The benchmark, which is not installed with the package."""
    spec = importlib.util.spec_from_file_location("fuzz_validate", REPO / "benchmarks" / "fuzz_validate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_some_texts(fuzzer: ModuleType) -> None:
    outcome = fuzzer.fuzz(600, seed=20)
    assert sum(outcome.verdicts.values()) == 600
    assert set(outcome.verdicts) == {"unreadable", "invalid", "valid", "repaired"}
    assert outcome.grown_bytes < 200 * 2**20


def test_the_same_seed_is_the_same_texts(fuzzer: ModuleType) -> None:
    assert list(fuzzer.texts(20, 3)) == list(fuzzer.texts(20, 3)) != list(fuzzer.texts(20, 4))


def _full(text: str) -> str:
    """``text`` as often as one file may hold it, as members of an object."""
    count = MAX_BYTES // (len(text) + 12)
    return "{" + ",".join(text.replace("N", str(number)) for number in range(count)) + "}"


LARGE = {
    "unknown keys": _full('"keyN": 1'),
    "unknown blocks": _full('"zero_N": {"stage": 1}'),
    "one key": _full('"stage": 1'),
    "autos": _full('"lrN": "auto"'),
    "without quotes": _full("keyN: yes\n").replace(",", ""),
    "one list": '{"train_batch_size": [' + "[],".rjust(3) * (MAX_BYTES // 4) + "1]}",
    "one string": json.dumps({"_comment": "x" * (MAX_BYTES - 40)}),
    "commas": "{" + "," * (MAX_BYTES - 2),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_files_are_over_soon(name: str) -> None:
    start = perf_counter()
    report = check_text("f", LARGE[name], Asked(gpus=8))
    assert perf_counter() - start < 20
    assert 0 < len(report.findings) <= MAX_FINDINGS + 1
    assert all(finding.line for finding in report.findings)


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 50 * 2**20])
def test_a_larger_file_is_refused_unread(tmp_path: Path, size: int) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(size)
    start = perf_counter()
    (report,) = validate(tmp_path / "huge.json").files
    assert perf_counter() - start < 2
    (finding,) = report.findings
    assert (finding.code, finding.line, finding.column) == ("DS001", 1, 1)
    assert "larger than 256 KiB" in finding.message
