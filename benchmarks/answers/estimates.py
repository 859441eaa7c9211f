"""Questions to ``dsconf estimate``."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.answers import configs
from benchmarks.answers.models import gpu, model
from benchmarks.answers.question import Question, Words, chance_of, flat, maybe, misspelt, pick, switch

RANKS = 0.06
"""Share of the questions that ask every rank of a small world."""
WRONG = 0.06
ASKS_MORE = 0.1
_GPUS = {
    1: 8,
    2: 6,
    3: 1,
    4: 8,
    6: 1,
    8: 30,
    12: 1,
    16: 12,
    24: 2,
    32: 6,
    64: 5,
    100: 1,
    128: 3,
    256: 2,
    512: 2,
    1024: 1,
}
_SMALL = {2: 4, 3: 2, 4: 5, 5: 1, 6: 1, 8: 3}
_OPTIMIZERS = ("adamw", "AdamW", "adam", "adagrad", "lamb", "lion", "muon", "sgd", "adadelta", "adafactor", "adamax")
_OPTIMIZERS += ("asgd", "nadam", "radam", "rmsprop", "rprop", "muadam", "muadamw", "musgd", "none", "sophia")
_LENGTHS = (128, 512, 512, 1024, 1024, 1024, 2048, 2048, 2048, 4096, 8192, 16384, 32768, 131072, 1000, 777)
_ZERO = {0: 1, 1: 2, 2: 3, 3: 5}


def estimates(count: int, seed: int) -> Iterator[Question]:
    """``count`` questions, always the same for a ``seed``; the last of them about each rank of small worlds."""
    of_ranks = round(count * RANKS)
    for number in range(count - of_ranks):
        chance = chance_of(seed, "estimate", number)
        yield _question(chance, _job(chance, pick(chance, _GPUS)))
    asked = number = 0
    while asked < of_ranks:
        chance = chance_of(seed, "rank", number)
        gpus = pick(chance, _SMALL)
        words, files = _job(chance, gpus)
        for rank in range(min(gpus, of_ranks - asked)):
            yield Question(("estimate", *flat(words), "--rank", str(rank), "--format", "json"), files)
        asked, number = asked + gpus, number + 1


def _question(chance: random.Random, job: tuple[Words, dict[str, str]]) -> Question:
    words, files = job
    if chance.random() < WRONG:
        words = spoilt(chance, words, _MISTAKES)
        return Question(("estimate", *flat(words), "--format", chance.choice(("json", "table"))), files)
    return Question(("estimate", *flat(words), "--format", "json"), files, asks_more=chance.random() < ASKS_MORE)


def _job(chance: random.Random, gpus: int) -> tuple[Words, dict[str, str]]:
    words, files = model(chance)
    words = [*words, ("--gpus", str(gpus)), *gpu(chance)]
    if chance.random() < 0.5:
        made = configs.config(chance, gpus)
        if chance.random() < 0.1:
            words.append(("--tiled-loss", chance.choice((None, "4", "auto"))))
        if "sequence_parallel_size" not in made:
            words += _sharing(chance, gpus, 0.08)
        files = files | {"ds_config.json": configs.text(chance, made)}
        words.append(("--config", "ds_config.json"))
        given = 0.3
    else:
        words += _plan(chance, gpus)
        given = 0.6
    return words + workload(chance, given) + _rare(chance), files


def _plan(chance: random.Random, gpus: int) -> Words:
    """What a config would say."""
    stage = pick(chance, _ZERO)
    words: Words = [("--stage", str(stage))] if chance.random() < 0.88 else []
    words += maybe(chance, 0.5, "--precision", ("bf16", "fp16", "fp32"))
    words += maybe(chance, 0.45, "--optimizer", _OPTIMIZERS)
    can = {"none": 1, "optimizer": 3 if stage else 0.2, "optimizer+param": 3 if stage == 3 else 0.1}
    words += maybe(chance, 0.3, "--offload", [pick(chance, can)])
    words += _sharing(chance, gpus, 0.12)
    if chance.random() < 0.12:
        words.append(("--tiled-loss", chance.choice((None, None, "auto", "1", "4", "16"))))
    return words


def _sharing(chance: random.Random, gpus: int, share: float) -> Words:
    able = [ranks for ranks in (1, 2, 4, 8) if gpus % ranks == 0] if chance.random() < 0.95 else [3, 16]
    return maybe(chance, share, "--sequence-parallel", able)


def workload(chance: random.Random, given: float) -> Words:
    """The words that ``estimate`` and ``validate`` share, sizes in ``given`` of all cases."""
    words = maybe(chance, given, "--seq-len", _LENGTHS)
    words += maybe(chance, given, "--micro-batch-size", (1, 1, 2, 4, 8, 16, 3, 64))
    words += maybe(chance, given / 2, "--gradient-accumulation-steps", (1, 2, 4, 8, 5, 64))
    words += switch(
        chance, 0.5, "--activation-checkpointing", "--activation-checkpointing", "--no-activation-checkpointing"
    )
    words += maybe(chance, 0.3, "--attention", ("sdpa", "eager", "eager", "flash"))
    words += maybe(chance, 0.12, "--load-dtype", ("bf16", "fp16", "fp32"))
    words += switch(chance, 0.12, "--zero-init", "--no-zero-init")
    if chance.random() < 0.2:
        words.append(("--lora-rank", chance.choice(("1", "8", "16", "16", "32", "64", "64", "256", "4096"))))
        words += maybe(chance, 0.4, "--quantize", ("4bit", "8bit"))
    return words


def _rare(chance: random.Random) -> Words:
    words = maybe(chance, 0.25, "--allocator", ("expandable", "default"))
    return words + maybe(chance, 0.06, "--rank", ("0", "0", "fullest", "1", "-1", "7"))


def spoilt(chance: random.Random, words: Words, mistakes: tuple[tuple[str, str | None], ...]) -> Words:
    """``words`` with one or two mistakes: a misspelt option or value, an impossible number, or one of ``mistakes``."""
    words = list(words)
    for _ in range(chance.choice((1, 1, 1, 2))):
        way = chance.randrange(5)
        spot = chance.randrange(len(words))
        name, value = words[spot]
        if way == 0 and name:
            words[spot] = (misspelt(chance, name), value)
        elif way == 1 and value:
            words[spot] = (name, misspelt(chance, value))
        elif way == 2:
            numbers = [i for i, (_, text) in enumerate(words) if text and text.isdigit()]
            if numbers:
                spot = chance.choice(numbers)
                words[spot] = (words[spot][0], chance.choice(("0", "-1", "-8", "1.5", "x", "", "1e3", "9" * 30)))
        elif way == 3:
            del words[spot]
            words = words or [chance.choice(mistakes)]
        else:
            words.append(chance.choice(mistakes))
    return words


def terms_to_explain(question: Question, terms: list[str]) -> list[str]:
    """Every term that the answer named, one that only a host may have, and a misspelt one."""
    chance = random.Random(" ".join(question.args))
    host = ("process", "swap buffers", "parameter bounce buffer", "16-bit gradients", "gradient staging buffer")
    return [*terms, chance.choice(host), misspelt(chance, chance.choice(terms or ["gradients"]))]


def as_table(question: Question) -> Question:
    """The same question, answered as a table."""
    kept = [part for part in question.args if part not in ("--format", "json")]
    return Question(tuple(kept), question.files, question.stdin)


def explained(question: Question, term: str) -> Question:
    """The same question about one term."""
    plain = as_table(question)
    return Question((*plain.args, "--explain", term), plain.files, plain.stdin)


_MISTAKES: tuple[tuple[str, str | None], ...] = (
    ("--gpus", "0"),
    ("--gpus", "1000000"),
    ("--params", "-7B"),
    ("--params", "7X"),
    ("--params", "7B"),
    ("--model", "llama-3.1-9b"),
    ("--model", "missing/config.json"),
    ("--config", "missing.json"),
    ("--config", "shape"),
    ("--gpu", "h1000"),
    ("--gpu-memory", "80"),
    ("--gpu-memory", "-80GiB"),
    ("--host-memory", "lots"),
    ("--stage", "4"),
    ("--stage", "3"),
    ("--precision", "bf32"),
    ("--optimizer", "adamv"),
    ("--offload", "cpu"),
    ("--offload", "optimizer+param"),
    ("--attention", "flash3"),
    ("--load-dtype", "int8"),
    ("--quantize", "4bit"),
    ("--quantize", "3bit"),
    ("--lora-rank", "0"),
    ("--allocator", "fast"),
    ("--sequence-parallel", "7"),
    ("--tiled-loss", "0"),
    ("--tiled-loss", "many"),
    ("--rank", "99999"),
    ("--rank", "first"),
    ("--explain", "gradiants"),
    ("--seq-len", "100000000"),
    ("--micro-batch-size", "-1"),
    ("--format", "xml"),
    ("--nosuch", None),
    ("", "extra"),
)
