"""Feeds random bytes to ``validate`` and ``--fix``: no traceback, no hang, no growth of memory.

    python -m benchmarks.validate.fuzz                 100 000 texts
    python -m benchmarks.validate.fuzz --count 2000 --seed 7

Half of the texts are bytes at random, the others are configs that were cut, spliced and sprinkled with what JSON and
HJSON are made of, and a few are long. The same seed makes the same texts.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

from dsconf.config.load import LoadError, read_text
from dsconf.config.repair.fix import repair
from dsconf.config.validate import ValidationOptions, check_text, validate
from dsconf.report.findings import findings_json, findings_text
from dsconf.report.sarif import sarif

SEEDS = (
    {"train_batch_size": 8, "zero_optimization": {"stage": 2}},
    {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimisation": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "overlap_comm": True,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95]}},
    },
)
TEXTS = (*(json.dumps(seed, indent=2) for seed in SEEDS), "train_batch_size: 8\nbf16: {enabled: true} # why\n")
PIECES = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "'",
    "'''",
    "\\",
    "\\u12",
    "\n",
    "\r",
    "#",
    "//",
    "/*",
    "*/",
    "\0",
    "\ufeff",
)
PIECES += ("NaN", "-Infinity", "1e999", "-", "0x10", "9" * 5000, "true", "null", '"auto"', '"amp": {},', "[" * 300)
PIECES += ('{"a":' * 500, "_c: 1\n", "é", "\u2028", "\ud800", '"stage": 1,')
MAX_SECONDS = 2.0


class Outcome(NamedTuple):
    """What a run of the fuzzer saw."""

    verdicts: Counter[str]
    slowest_seconds: float
    slowest: bytes
    grown_bytes: int
    """By how much the process's largest resident set grew."""


def texts(count: int, seed: int) -> Iterator[bytes]:
    """Yield ``count`` files' contents, always the same for a ``seed``."""
    chance = random.Random(seed)
    for number in range(count):
        if number % 2:
            yield chance.randbytes(chance.choice((0, 1, 3, 20, 200)))
        else:
            yield _spoilt(chance).encode("utf-8", chance.choice(("surrogatepass", "replace", "replace")))


def _spoilt(chance: random.Random) -> str:
    text = chance.choice(TEXTS)
    for _ in range(chance.randrange(6)):
        at, other = chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)
        what = chance.randrange(4)
        if what < 2:
            text = text[:at] + chance.choice(PIECES) + text[at:]
        elif what == 2:
            text = text[: min(at, other)] + text[max(at, other) :]
        else:
            text = text[:at] + text[other:]
    return text * 400 if chance.random() < 0.002 else text


def look_at(path: Path, data: bytes) -> str:
    """Do everything with ``data`` that validate can do, and return the verdict; raise what dsconf raises."""
    path.write_bytes(data)
    report = validate(path, gpus=4)
    json.dumps(findings_json(report))
    json.dumps(sarif(report, "0"))
    findings_text(report)
    if not report.readable:
        return "unreadable"
    try:
        made = repair("f", read_text(path), ValidationOptions(gpus=4))
    except LoadError:
        return "unreadable"
    again = check_text("f", made.after, ValidationOptions(report.files[0].target, 4))
    if not again.readable:
        raise AssertionError("what was repaired cannot be read")
    return "repaired" if made.repaired else "valid" if report.valid else "invalid"


def fuzz(count: int, seed: int) -> Outcome:
    """Look at ``count`` texts.

    Raises:
        AssertionError: one of them stopped dsconf, or took longer than MAX_SECONDS; the text is in the message.
    """
    verdicts: Counter[str] = Counter()
    slowest, slowest_text = 0.0, b""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as folder:
        for data in texts(count, seed):
            start = perf_counter()
            try:
                verdicts[look_at(Path(folder) / "f.json", data)] += 1
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error} on {data!r}") from error
            seconds = perf_counter() - start
            if seconds > slowest:
                slowest, slowest_text = seconds, data
            if seconds > MAX_SECONDS:
                raise AssertionError(f"{seconds:.1f} s on {data[:2000]!r}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Outcome(verdicts, slowest, slowest_text, grown * (1 if sys.platform == "darwin" else 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="texts (default 100000)")
    parser.add_argument("--seed", type=int, default=1, help="which texts (default 1)")
    args = parser.parse_args()
    start = perf_counter()
    outcome = fuzz(args.count, args.seed)
    counts = ", ".join(f"{number} {verdict}" for verdict, number in outcome.verdicts.most_common())
    print(f"{args.count} texts in {perf_counter() - start:.0f} s: {counts}")
    print(f"slowest {outcome.slowest_seconds * 1e3:.0f} ms: {outcome.slowest[:60]!r}")
    print(f"memory grew by {outcome.grown_bytes / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
