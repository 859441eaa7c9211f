"""Questions to ``dsconf validate``."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.answers import configs
from benchmarks.answers.broken import broken
from benchmarks.answers.estimates import spoilt, workload
from benchmarks.answers.models import gpu, model
from benchmarks.answers.question import Question, Words, chance_of, flat, maybe, pick

WRONG = 0.04
FITS = 0.3
"""Share that names a model and GPUs, so that the answer says whether the job fits."""
_FORMATS = {"json": 80, "text": 12, "sarif": 8}
_GPUS = {1: 3, 2: 3, 4: 3, 8: 10, 16: 4, 64: 2, 6: 1}


def validations(count: int, seed: int) -> Iterator[Question]:
    """``count`` questions, always the same for a ``seed``."""
    for number in range(count):
        yield _question(chance_of(seed, "validate", number))


def _question(chance: random.Random) -> Question:
    gpus = pick(chance, _GPUS)
    files = {"ds_config.json": _text(chance, gpus)}
    named = ["ds_config.json"]
    if chance.random() < 0.06:
        files |= {"configs/zero.json": _text(chance, gpus), "configs/other.hjson": _text(chance, gpus)}
        named = chance.choice(
            (["ds_config.json", "configs/zero.json"], ["configs"], ["configs/zero.json", "missing.json"])
        )
    stdin = files.pop("ds_config.json") if len(files) == 1 and chance.random() < 0.05 else None
    if stdin is not None:
        named = ["-"]
    words, more = _words(chance, gpus)
    if chance.random() < WRONG:
        words = spoilt(chance, words or [("--gpus", str(gpus))], _MISTAKES)
    shown: Words = [("--format", pick(chance, _FORMATS))] if chance.random() < 0.95 else []
    return Question(("validate", *named, *flat(words + shown)), files | more, stdin)


def _text(chance: random.Random, gpus: int) -> str:
    made = configs.config(chance, gpus)
    return configs.text(chance, made) if chance.random() < 0.5 else broken(chance, made)


def _words(chance: random.Random, gpus: int) -> tuple[Words, dict[str, str]]:
    """The options, and the files that they need."""
    files: dict[str, str] = {}
    words: Words = []
    if chance.random() < FITS:
        words, files = model(chance)
        words = [*words, ("--gpus", str(gpus)), *gpu(chance, named=0.8), *workload(chance, 0.4)]
        words = [(name, value) for name, value in words if name != "--nvme"]
    else:
        words += maybe(chance, 0.5, "--gpus", [gpus])
    words += maybe(chance, 0.3, "--for", ("deepspeed", "hf", "accelerate"))
    words += maybe(chance, 0.2, "--deepspeed-version", ("0.16", "0.17", "0.18", "0.19", "0.19.6", "0.18.9", "0.16.9"))
    words += maybe(chance, 0.1, "--resume-gpus", (1, 2, 8, 16))
    return words + [(name, None) for name in pick(chance, {(): 75, ("--fix",): 14, ("--diff",): 10})], files


_MISTAKES: tuple[tuple[str, str | None], ...] = (
    ("--gpus", "0"),
    ("--for", "lightning"),
    ("--deepspeed-version", "0.5"),
    ("--deepspeed-version", "latest"),
    ("--resume-gpus", "-1"),
    ("--gpu", "h100"),
    ("--gpu", "h10000"),
    ("--lora-rank", "8"),
    ("--params", "7B"),
    ("--params", "x"),
    ("--format", "yaml"),
    ("--nosuch", None),
    ("", "missing.json"),
    ("", "-"),
)
