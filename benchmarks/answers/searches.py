"""Questions to ``dsconf recommend`` and ``dsconf stages``."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.answers.estimates import spoilt
from benchmarks.answers.models import gpu, model
from benchmarks.answers.question import Question, Words, chance_of, flat, maybe, pick, switch

STAGES, SWEEPS = 0.12, 0.06
"""Questions to ``stages``, and about several numbers of GPUs, for each about one number."""
WRONG = 0.06
ASKS_MORE = 0.1
_GPUS = {1: 6, 2: 5, 3: 1, 4: 8, 8: 30, 12: 1, 16: 10, 24: 1, 32: 6, 64: 5, 128: 2, 256: 1, 512: 1}
_SWEEPS = ("8,16", "8,16,32", "1,2,4,8", "2,4", "16,64", "4,8,12", "8,8", "16,8", "8,x", "8,", "0,8")
_LARGEST = 26


def recommendations(count: int, seed: int) -> Iterator[Question]:
    """``count`` questions to ``recommend``, then some to ``stages`` and sweeps; always the same for a ``seed``."""
    for number in range(count):
        yield _recommend(chance_of(seed, "recommend", number), sweep=False)
    for number in range(round(count * STAGES)):
        yield _stages(chance_of(seed, "stages", number))
    for number in range(round(count * SWEEPS)):
        yield _recommend(chance_of(seed, "sweep", number), sweep=True)


def _recommend(chance: random.Random, sweep: bool) -> Question:
    words, files = model(chance, _LARGEST)
    gpus = chance.choice(_SWEEPS) if sweep else str(pick(chance, _GPUS))
    several = 1 if sweep else int(gpus)
    words = [*words, ("--gpus", gpus), *gpu(chance), *_rates(chance), *_training(chance, several)]
    words += maybe(chance, 0.2, "--stage", ("0", "1", "2", "3", "3"))
    words += maybe(chance, 0.15, "--offload", ("none", "optimizer", "optimizer", "param", "nvme"))
    if ("--offload", "nvme") in words and chance.random() < 0.8:
        words.append(("--nvme", "nvme"))
    words += maybe(chance, 0.1, "--optimizer-states", ("fp32", "bf16"))
    words += maybe(chance, 0.07, "--sequence-parallel", (1, *(ranks for ranks in (2, 4, 8) if several % ranks == 0)))
    words += maybe(chance, 0.3, "--for", ("deepspeed", "hf", "accelerate"))
    tokens = maybe(chance, 0.25, "--tokens", ("1T", "15B", "1e9"))
    words += tokens + maybe(chance, 0.6 if tokens else 0.01, "--price", ("2.5", "0.9"))
    return _asked(chance, "recommend", words + _files(chance, words), files)


def _stages(chance: random.Random) -> Question:
    words, files = model(chance, _LARGEST)
    gpus = pick(chance, _GPUS)
    words = [*words, ("--gpus", str(gpus)), *gpu(chance), *_rates(chance), *_training(chance, gpus)]
    return _asked(chance, "stages", words, files)


def _asked(chance: random.Random, command: str, words: Words, files: dict[str, str]) -> Question:
    wrong = chance.random() < WRONG
    if wrong:
        words = spoilt(chance, words, _MISTAKES)
    more = chance.random() < ASKS_MORE
    return Question((command, *flat(words), "--format", "json"), files, asks_more=more and not wrong)


def _rates(chance: random.Random) -> Words:
    words = maybe(chance, 0.25, "--network", ("400Gbit/s", "100Gbps", "50GB/s", "25GiB/s", "3.2Tbit/s", "10Gbit/s"))
    words += maybe(chance, 0.15, "--cpu-cores", (8, 16, 96, 128))
    return words + maybe(chance, 0.12, "--host-bandwidth", ("100GB/s", "600GB/s"))


def _training(chance: random.Random, gpus: int) -> Words:
    words = maybe(chance, 0.4, "--seq-len", (512, 1024, 2048, 4096, 8192, 32768, 131072))
    batches = [gpus * each for each in (1, 2, 4, 8, 16, 16, 48, 64)] if chance.random() < 0.93 else [100, 7]
    words += maybe(chance, 0.35, "--global-batch-size", batches)
    words += maybe(chance, 0.12, "--micro-batch-size", (1, 1, 2, 4, 8, 16))
    words += maybe(chance, 0.3, "--precision", ("bf16", "fp16", "fp32"))
    words += maybe(chance, 0.4, "--optimizer", ("adamw", "adam", "adagrad", "lamb", "lion", "muon", "sgd"))
    words += switch(chance, 0.25, "--activation-checkpointing", "--no-activation-checkpointing")
    words += maybe(chance, 0.3, "--attention", ("sdpa", "eager", "eager", "flash"))
    if chance.random() < 0.15:
        words.append(("--lora-rank", chance.choice(("8", "16", "64"))))
        words += maybe(chance, 0.4, "--quantize", ("4bit", "8bit"))
    return words


def _files(chance: random.Random, others: Words) -> Words:
    hjson = not {("--for", "hf"), ("--for", "accelerate")} & set(others)
    words = maybe(chance, 0.25, "-o", ("run", "run", "runs/first", "."))
    words += switch(chance, 0.5 if words else 0.01, "--slurm")
    words += switch(chance, 0.2 if hjson else 0.02, "--comments")
    return words + switch(chance, 0.05, "--force")


_MISTAKES: tuple[tuple[str, str | None], ...] = (
    ("--gpus", "0"),
    ("--gpus", "8,16,x"),
    ("--gpus", "200000"),
    ("--params", "7B"),
    ("--params", "5000T"),
    ("--model", "missing.json"),
    ("--model", "gpt5"),
    ("--gpu", "h10"),
    ("--gpu-memory", "80"),
    ("--network", "400"),
    ("--network", "fast"),
    ("--cpu-cores", "0"),
    ("--host-bandwidth", "-1GB/s"),
    ("--stage", "5"),
    ("--offload", "cpu"),
    ("--optimizer", "adamv"),
    ("--optimizer-states", "fp8"),
    ("--precision", "int8"),
    ("--sequence-parallel", "3"),
    ("--for", "lightning"),
    ("--tokens", "-1"),
    ("--price", "free"),
    ("--price", "-2"),
    ("--quantize", "4bit"),
    ("--lora-rank", "1000000"),
    ("--seq-len", "0"),
    ("--global-batch-size", "x"),
    ("--slurm", None),
    ("-o", ""),
    ("--nosuch", None),
    ("", "extra"),
)
