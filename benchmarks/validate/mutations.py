"""Breaks good configs in every way and compares what ``validate`` says with what DeepSpeed itself makes of each.

    python -m benchmarks.validate.mutations                         3000 mutants
    python -m benchmarks.validate.mutations --count 20000 --seed 7 --list

DeepSpeed's own reading is the judge: hjson, then ``DeepSpeedConfig`` on the CPU in a world of one, then the optimizer's
and the scheduler's constructors. What it refuses has to be an error here, and so has a key that it never looks up; a
config that was changed in ways that mean nothing has to stay free of errors. Where DeepSpeed's parser takes a value and
``validate`` does not, that is listed apart: the engine, or nobody, reads the value.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from dsconf.config.finding import dotted
from dsconf.config.releases import follow, load_schema, property_at
from dsconf.config.validate import ValidationOptions, check_text

ROOT = Path(__file__).resolve().parents[2]
BASES: tuple[dict[str, Any], ...] = (
    {"train_batch_size": 8, "gradient_clipping": 1.0},
    {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": True,
            "reduce_bucket_size": 5e8,
            "contiguous_gradients": True,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 100, "total_num_steps": 1000}},
        "steps_per_print": 100,
    },
    {
        "train_micro_batch_size_per_gpu": 1,
        "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 12, "hysteresis": 2},
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "offload_param": {"device": "nvme", "nvme_path": "/local", "buffer_count": 5},
            "stage3_max_live_parameters": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "optimizer": {"type": "Adam", "params": {"lr": 0.001, "torch_adam": False}},
        "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False},
    },
    {
        "train_batch_size": 32,
        "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "tensorboard": {"enabled": True, "output_path": "logs", "job_name": "run"},
        "flops_profiler": {"enabled": True, "profile_step": 5, "module_depth": -1},
        "comms_logger": {"enabled": True, "verbose": False},
        "checkpoint": {"tag_validation": "Warn", "load_universal": False},
        "wall_clock_breakdown": True,
    },
    {
        "train_batch_size": 4,
        "zero_optimization": {"stage": 1, "round_robin_gradients": True},
        "bf16": {"enabled": True, "check_grad_overflow": True},
        "pipeline": {"activation_checkpoint_interval": 1},
        "activation_checkpointing": {"partition_activations": True, "number_checkpoints": 4},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 1e-3}},
        "optimizer": {"type": "Lion", "params": {"lr": 1e-4, "weight_decay": 0.01}},
    },
)
VALUES: tuple[Any, ...] = (None, True, False, -1, 0, 1, 3, 0.5, -0.5, 10**12, 1e300, "", "word", "5", "1e9", "true")
VALUES += (
    [],
    {},
    [1],
    ["a"],
    {"enabled": True},
    "auto",
    "none",
    "cpu",
    "fp16",
    "-1",
    " 7 ",
    "0x10",
    "1_000",
    "9" * 400,
)
FREE = ("_comment", "_note", "__")


class Mutant(NamedTuple):
    """A spoilt file, in what way, and the key that was changed or put in, if it was one."""

    kind: str
    data: bytes
    path: tuple[str, ...] = ()


OF_THIS_MACHINE = "only supported for CUDA accelerator"
"""What DeepSpeed says of ``aio.use_gds`` on the CPU alone (runtime/swap_tensor/aio_config.py:39)."""


class Verdict(NamedTuple):
    """What DeepSpeed did with a file: the error it raised, or the path of a key that it never looked up."""

    error: str | None = None
    dropped: str | None = None


def places(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every object in ``config``, its own first."""
    if isinstance(config, dict):
        yield path
        for key, inner in config.items():
            yield from places(inner, (*path, key))


def schema_keys(part: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every key that the newest schema knows, with what it says about it."""
    for key, inner in (part or load_schema()).get("properties", {}).items():
        full = dict(follow(inner))
        yield (*path, key), full
        yield from schema_keys(full, (*path, key))


KEYS = [(path, part) for path, part in schema_keys() if path[-1] != "$schema"]


def at(config: Any, path: tuple[str, ...]) -> Any:
    """Return the value at ``path``; raise KeyError or TypeError where there is none."""
    for key in path:
        config = config[key]
    return config


def put(config: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    """Set the value at ``path``, making blocks; return False where something else stands in the way."""
    for key in path[:-1]:
        config = config.setdefault(key, {})
        if not isinstance(config, dict):
            return False
    config[path[-1]] = value
    return True


def misspelt(chance: random.Random, word: str) -> str:
    """Return ``word`` with one slip of the fingers."""
    spot = chance.randrange(len(word))
    slips = (
        word[:spot] + word[spot + 1 :],
        word[:spot] + word[spot] + word[spot:],
        word[:spot] + chance.choice("aeioustr_") + word[spot + 1 :],
        word[:spot] + word[spot + 1 : spot + 2] + word[spot] + word[spot + 2 :],
        word.upper(),
        word + " ",
        word.replace("_", "-"),
    )
    return chance.choice(slips)


def members(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """List the path of every key."""
    return [(*place, key) for place in places(config) for key in at(config, place)]


def typo(chance: random.Random, config: dict[str, Any]) -> Mutant:
    path = chance.choice(members(config))
    holder, wrong = at(config, path[:-1]), misspelt(chance, path[-1])
    changed = {wrong if key == path[-1] else key: value for key, value in holder.items()}
    holder.clear()
    holder.update(changed)
    return Mutant("typo", dumped(config), (*path[:-1], wrong))


def misplaced(chance: random.Random, config: dict[str, Any]) -> Mutant:
    path, to = chance.choice(members(config)), chance.choice(list(places(config)))
    if to[: len(path)] == path:
        to = ()
    value = at(config, path[:-1]).pop(path[-1])
    at(config, to)[path[-1]] = value
    return Mutant("misplaced", dumped(config), (*to, path[-1]))


def wrong_value(chance: random.Random, config: dict[str, Any]) -> Mutant:
    known = chance.random() < 0.6
    path = chance.choice(KEYS)[0] if known else chance.choice(members(config))
    put(config, path, chance.choice(VALUES))
    return Mutant("wrong value", dumped(config), path)


def out_of_range(chance: random.Random, config: dict[str, Any]) -> Mutant:
    limits = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    path, part = chance.choice([pair for pair in KEYS if any(word in pair[1] for word in limits)])
    word = chance.choice([word for word in limits if word in part])
    step = 0 if word.startswith("exclusive") else chance.choice((1, 0.5, 1000))
    value = part[word] - step if "inimum" in word else part[word] + step
    put(config, path, value)
    return Mutant("out of range", dumped(config), path)


def unknown_name(chance: random.Random, config: dict[str, Any]) -> Mutant:
    named = [path for path in members(config) if isinstance(at(config, path), str) and at(config, path)]
    if not named:
        config["optimizer"], named = {"type": "AdamW", "params": {}}, [("optimizer", "type")]
    path = chance.choice(named)
    put(config, path, misspelt(chance, at(config, path)))
    return Mutant("unknown name", dumped(config), path)


def left_out(chance: random.Random, config: dict[str, Any]) -> Mutant:
    path = chance.choice(members(config))
    del at(config, path[:-1])[path[-1]]
    return Mutant("left out", dumped(config))


def duplicate(chance: random.Random, config: dict[str, Any]) -> Mutant:
    path = chance.choice(members(config))
    name, mark = json.dumps(path[-1]), json.dumps("\0again")
    holder = at(config, path[:-1])
    holder["\0again"] = chance.choice((holder[path[-1]], 1, None))
    return Mutant("duplicate", json.dumps(config).replace(mark, name).encode())


def truncated(chance: random.Random, config: dict[str, Any]) -> Mutant:
    data = json.dumps(config, indent=2).encode()
    return Mutant("truncated", data[: chance.randrange(len(data))])


def not_utf8(chance: random.Random, config: dict[str, Any]) -> Mutant:
    data = json.dumps(config).encode()
    spot = chance.randrange(1, len(data))
    return Mutant("not UTF-8", data[:spot] + chance.choice((b"\xff", b"\xc3\x28", b"\x80")) + data[spot:])


def not_finite(chance: random.Random, config: dict[str, Any]) -> Mutant:
    path = chance.choice(members(config))
    put(config, path, chance.choice((float("nan"), float("inf"), float("-inf"))))
    return Mutant("not finite", dumped(config), path)


def deep(chance: random.Random, config: dict[str, Any]) -> Mutant:
    path, mark = chance.choice(members(config)), json.dumps("\0deep")
    put(config, path, "\0deep")
    start, end = chance.choice((("[", "]"), ('{"a":', "}")))
    return Mutant("1000 deep", json.dumps(config).replace(mark, start * 1000 + "1" + end * 1000).encode(), path)


def harmless(chance: random.Random, config: dict[str, Any]) -> Mutant:
    """Say the same in another way, or what DeepSpeed would do anyway."""
    way = chance.randrange(4)
    if way == 0:
        shuffled = list(config.items())
        chance.shuffle(shuffled)
        config = dict(shuffled)
    elif way == 1:
        config[chance.choice(FREE)] = chance.choice(VALUES)
    elif way == 2:
        path, part = chance.choice(KEYS)
        with contextlib.suppress(KeyError, TypeError):
            old = part.get("default") is None or part.get("deprecated")
            if not old and path[-1] not in at(config, path[:-1]):
                put(config, path, part["default"])
    return Mutant("harmless", json.dumps(config, indent=chance.choice((None, 2, "\t"))).encode())


def untouched(chance: random.Random, config: dict[str, Any]) -> Mutant:
    return Mutant("untouched", dumped(config))


WAYS = (typo, typo, misplaced, misplaced, wrong_value, wrong_value, wrong_value, out_of_range, unknown_name, left_out)
WAYS += (duplicate, truncated, not_utf8, not_finite, deep, harmless, harmless, untouched)


def dumped(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2).encode()


def mutant(chance: random.Random) -> Mutant:
    """Spoil a good config in one way."""
    return chance.choice(WAYS)(chance, json.loads(json.dumps(chance.choice(BASES))))


class Judge:
    """DeepSpeed's own reading of a file, in this process, on the CPU."""

    def __init__(self) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        logging.disable(logging.CRITICAL)
        import hjson
        from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys

        from tools.schema.reads import Watched

        self._hjson, self._pairs, self._watched = hjson, dict_raise_error_on_duplicate_keys, Watched

    def __call__(self, mutant: Mutant) -> Verdict:
        """Return what becomes of the file."""
        from deepspeed.runtime.config import DeepSpeedConfig

        reads: dict[tuple[str, ...], dict[str, Any]] = {}
        try:
            config = self._hjson.load(io.StringIO(mutant.data.decode("utf-8")), object_pairs_hook=self._pairs)
            plain = json.loads(json.dumps(config))
            DeepSpeedConfig(self._watched(config, reads) if isinstance(config, dict) else config)
            _construct(plain)
        except Exception as error:
            if OF_THIS_MACHINE in str(error):
                return Verdict()
            return Verdict(f"{type(error).__name__}: {str(error)[:120]}")
        for name in ("optimizer", "scheduler"):
            if "params" in (config.get(name) or {}) and "params" not in reads.get((name,), {}):
                return Verdict(dropped=name)
        path = mutant.path
        read = not path or path[-1] in reads.get(path[:-1], {}) or _by_constructor(path)
        if read or property_at(path) is not None or path[-1].startswith("_"):
            return Verdict()
        return Verdict(dropped=dotted(path))


def _by_constructor(path: tuple[str, ...]) -> bool:
    return path[:2] in (("optimizer", "params"), ("scheduler", "params"))


def _construct(config: dict[str, Any]) -> None:
    """Build what DeepSpeed builds from the optimizer and scheduler blocks (runtime/engine.py:1900-2060, 2377-2550)."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lion import FusedLion
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    optimizer, scheduler = config.get("optimizer") or {}, config.get("scheduler") or {}
    name = optimizer.get("type")
    if name is not None:
        params = dict(optimizer.get("params") or {})
        if "max_grad_norm" in params:
            raise ValueError("max_grad_norm")
        torch_adam = False
        if name.lower() in ("adam", "adamw"):
            torch_adam = params.pop("torch_adam", False)
            for key in ("adam_w_mode", "fp32_optimizer_states"):
                params.pop(key, None)
        zero = config.get("zero_optimization")
        offload = (zero.get("offload_optimizer") if isinstance(zero, dict) else None) or {}
        adam = torch.optim.AdamW if torch_adam else DeepSpeedCPUAdam if offload.get("device") == "cpu" else FusedAdam
        known = {"adam": adam, "adamw": adam, "lion": FusedLion}
        if name.lower() in known:
            inspect.signature(known[name.lower()]).bind([], **params)
        elif name.lower() not in DEEPSPEED_OPTIMIZERS:
            getattr(torch.optim, name)
    if scheduler.get("type") is not None:
        owner = lr_schedules if hasattr(lr_schedules, scheduler["type"]) else torch.optim.lr_scheduler
        kind = getattr(owner, scheduler["type"])
        inspect.signature(kind).bind(None, **(scheduler.get("params") or {}))


def ours(mutant: Mutant) -> bool:
    """Say whether ``validate`` finds an error."""
    asked = ValidationOptions("deepspeed", gpus=1)
    try:
        text = mutant.data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return not check_text("f", text, asked).valid


class Score(NamedTuple):
    """Mutants of each kind by what became of them, and the ones to look at."""

    counts: Counter[tuple[str, str]]
    worth_a_look: list[tuple[str, Mutant, Verdict]]


def outcome(mutant: Mutant, judge: Judge) -> tuple[str, Verdict]:
    """Return ``found``, ``missed``, ``false alarm``, ``clean``, or ``stricter`` where DeepSpeed's parser takes the
    value."""
    verdict, error = judge(mutant), ours(mutant)
    if verdict.error or verdict.dropped:
        return ("found" if error else "missed"), verdict
    if not error:
        return "clean", verdict
    return ("false alarm" if mutant.kind in ("untouched", "harmless") else "stricter"), verdict


def score(count: int, seed: int) -> Score:
    """Judge ``count`` mutants, always the same for a ``seed``."""
    chance, judge = random.Random(seed), Judge()
    counts: Counter[tuple[str, str]] = Counter()
    look: list[tuple[str, Mutant, Verdict]] = []
    for _ in range(count):
        made = mutant(chance)
        what, verdict = outcome(made, judge)
        counts[made.kind, what] += 1
        if what not in ("found", "clean"):
            look.append((what, made, verdict))
    return Score(counts, look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="mutants (default 3000)")
    parser.add_argument("--seed", type=int, default=1, help="which mutants (default 1)")
    parser.add_argument("--list", action="store_true", help="name each value that only validate refuses, too")
    args = parser.parse_args()
    start = perf_counter()
    result = score(args.count, args.seed)
    words = ("found", "missed", "false alarm", "stricter", "clean")
    print(
        f"{args.count} mutants in {perf_counter() - start:.0f} s\n\n{'':14}" + "".join(f"{word:>13}" for word in words)
    )
    for kind in (*dict.fromkeys(kind for kind, _ in result.counts),):
        print(f"{kind:14}" + "".join(f"{result.counts[kind, word]:13}" for word in words))
    total = {word: sum(number for (_, what), number in result.counts.items() if what == word) for word in words}
    print(f"{'all':14}" + "".join(f"{total[word]:13}" for word in words))
    bad = total["found"] + total["missed"]
    print(f"\nfound {total['found'] / max(bad, 1):.2%} of {bad} that DeepSpeed refuses or drops")
    for what, made, verdict in result.worth_a_look:
        if what != "stricter" or args.list:
            value = _value(made)
            print(
                f"{what}: {made.kind} {dotted(made.path)} = {value}: {verdict.error or verdict.dropped or 'accepted'}"
            )


def _value(made: Mutant) -> str:
    try:
        return json.dumps(at(json.loads(made.data), made.path))[:100] if made.path else made.data.decode()[-100:]
    except (ValueError, KeyError, TypeError, RecursionError):
        return repr(made.data[-100:])


if __name__ == "__main__":
    main()
