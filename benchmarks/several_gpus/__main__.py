"""Measures real ranks on this machine's GPUs, unattended, and says how far dsconf's predictions are off.

    python -m benchmarks.several_gpus --record FOLDER [--gpus 2,4,8] [--seconds LIMIT]

Collectives by size, training cases with every rank measured, the strategies of ``dsconf bench`` side by side, and each
rank of each case rehearsed on one GPU. What fails or hangs is recorded with its error and the rest goes on; started
again with the same folder it goes on where it stopped. Without a CUDA device tiny models train on two real ranks over
gloo. docs/several-gpus.md says what is written and how long it takes. The exit code is 0 where all ran and every
rehearsal was within 0.1 % of its real rank, 3 where the time limit left something, else 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.several_gpus import store
from benchmarks.several_gpus.cases import cases
from benchmarks.several_gpus.machine import QUIET, describe, same_kind
from benchmarks.several_gpus.store import Records
from benchmarks.several_gpus.summary import missed, summary
from benchmarks.several_gpus.work import Plan, Session
from dsconf.errors import DsconfError, InputError
from dsconf.live.bench import STRATEGIES
from dsconf.live.plan import CPU_RANKS
from dsconf.request import LAUNCHERS
from dsconf.units import parse_bytes

LARGEST = {"cuda": "1GiB", "cpu": "16MiB"}
STEPS = {"cuda": 8, "cpu": 3}


def arguments() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, metavar="FOLDER", help="made where there is none")
    parser.add_argument("--gpus", default="2,4,8", help="numbers of ranks (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="LIMIT", help="stop by then")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one run (default %(default)s)")
    parser.add_argument("--only", default="*", metavar="PATTERNS", help="units to run, such as 'collectives-*,*-z3-w8'")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--list", action="store_true", help="name the units, run none")
    parser.add_argument("--read", action="store_true", help="only the summary of the folder")
    parser.add_argument("--steps", type=int, help="optimizer steps of a case (default 8; on the CPU 3)")
    parser.add_argument("--largest", help="of the collectives (default 1GiB; on the CPU 16MiB)")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="torchrun")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """The numbers of ranks in ``text``, smallest first.

    Raises:
        InputError: something that is no number of ranks.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdigit() and int(word) > 1 for word in words):
        raise InputError(f"--gpus {text}: say numbers of ranks from 2 on, such as 2,4,8")
    return sorted({int(word) for word in words})


def run(words: argparse.Namespace) -> int:
    """Everything, and the exit code."""
    records = Records(words.record)
    if words.read:
        print("\n".join(summary(records)))
        return 1 if missed(records) else 0
    wanted = numbers(words.gpus)
    os.environ.update(QUIET)
    machine = describe()
    device = "cuda" if machine["gpus"] else "cpu"
    world_sizes = [CPU_RANKS] if device == "cpu" else [ranks for ranks in wanted if ranks <= len(machine["gpus"])]
    plan = Plan(
        cases(wanted if device == "cuda" else world_sizes),
        world_sizes,
        tuple(STRATEGIES),
        words.only.split(","),
        words.steps or STEPS[device],
        parse_bytes(words.largest or LARGEST[device]),
        words.timeout,
        words.seconds,
        words.launcher,
    )
    if words.list:
        print("\n".join(plan.units()))
        return 0
    known = records.rows(store.MACHINES)
    if any(not same_kind(machine, other) for other in known):
        raise InputError(f"--record {words.record}: measured with other cards or versions; name another folder")
    if machine not in known:
        records.add(store.MACHINES, [machine])
    if words.retry:
        records.forget_failures()
    left = Session(plan, machine, records).work()
    too_many = [ranks for ranks in wanted if ranks not in world_sizes]
    not_run = [f"{ranks} ranks: {len(machine['gpus'])} GPUs here" for ranks in too_many]
    lines = summary(records, not_run + [f"{unit}: no time left" for unit in left])
    (words.record / store.SUMMARY).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    failed = any("error" in row for name in (store.CASES, store.COLLECTIVES, store.BENCH) for row in records.rows(name))
    return 1 if failed or missed(records) else 3 if left else 0


def main() -> None:
    """See the module's docstring."""
    words = arguments()
    try:
        sys.exit(run(words))
    except DsconfError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped; started again with --record {words.record} it goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
