"""Records what the commands answer to thousands of fixed questions, and says what has changed since.

    python -m benchmarks.answers record FOLDER              5000 estimates, 500 recommendations, 1000 validations
    python -m benchmarks.answers compare FOLDER             asks the recorded questions again; 1 if anything differs
    python -m benchmarks.answers compare OLD NEW            two records
    python -m benchmarks.answers compare FOLDER --part 0.1 --numbers-only

The answers to 500 recommendations are followed by some of ``stages`` and of several numbers of GPUs, and a tenth of the
questions is asked for a table and for each of its terms as well.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter

from benchmarks.answers.ask import ask_all
from benchmarks.answers.compare import Found, Groups, compare, report
from benchmarks.answers.estimates import estimates
from benchmarks.answers.question import Answer, Question
from benchmarks.answers.searches import recommendations
from benchmarks.answers.store import KINDS, path_of, rows, writing
from benchmarks.answers.validations import validations

_COMMANDS = ("recommend", "estimate", "stages", "validate", "check", "bench")
_HELP = tuple(Question((*command, "--help"), {}) for command in ((), *((name,) for name in _COMMANDS)))
_HELP += (
    Question((), {}),
    Question(("estimat",), {}),
    Question(("nosuch", "--gpus", "8"), {}),
    Question(("--nosuch",), {}),
)
_EVERY = 500
"""Answers between two lines on stderr."""


def _record(args: argparse.Namespace) -> int:
    made: dict[str, Iterable[Question]] = {
        "help": _HELP,
        "estimates": estimates(args.estimates, args.seed),
        "recommendations": recommendations(args.recommendations, args.seed),
        "validations": validations(args.validations, args.seed),
    }
    _say_which()
    for kind in KINDS:
        start, count, let_through = perf_counter(), 0, 0
        codes: dict[int, int] = {}
        with writing(args.folder, kind) as write:
            for question, answer in ask_all(made[kind], args.processes):
                write(question, answer)
                count, let_through = count + 1, let_through + (answer.exception is not None)
                codes[answer.exit_code] = codes.get(answer.exit_code, 0) + 1
                _tell(kind, count, start)
        by_code = ", ".join(f"{codes[code]} with exit code {code}" for code in sorted(codes))
        crashed = f", {let_through} of them crashed" if let_through else ""
        print(f"{kind}: {count} answers in {perf_counter() - start:.0f} s: {by_code}{crashed}", flush=True)
    return 0


def _compare(args: argparse.Namespace) -> int:
    if args.other is None:
        _say_which()
    total = Found(0, 0, {})
    for kind in KINDS:
        if not path_of(args.folder, kind).is_file():
            raise SystemExit(f"{path_of(args.folder, kind)} is not there")
        start = perf_counter()
        recorded = _part(rows(args.folder, kind), args.part)
        pairs = (
            _asked_again(kind, recorded, args.processes) if args.other is None else _both(args.other, kind, recorded)
        )
        found = compare(pairs, args.numbers_only)
        print(f"{kind}: {found.equal} of {found.answers} equal, {perf_counter() - start:.0f} s", flush=True)
        total = Found(total.answers + found.answers, total.equal + found.equal, total.groups | _of_kind(kind, found))
    print("\n".join(report(total, args.show)))
    return int(total.equal != total.answers)


def _of_kind(kind: str, found: Found) -> Groups:
    """The groups of ``found``, those of help apart from those of answers."""
    if kind != "help":
        return found.groups
    return {
        (f"help {command}".strip(), place, nature): cases for (command, place, nature), cases in found.groups.items()
    }


def _part(recorded: Iterable[tuple[Question, Answer]], share: float) -> Iterator[tuple[Question, Answer]]:
    """``share`` of what was recorded, always the same."""
    chance = random.Random("part")
    return (row for row in recorded if chance.random() < share)


def _asked_again(
    kind: str, recorded: Iterable[tuple[Question, Answer]], processes: int
) -> Iterator[tuple[Question, Answer, Answer]]:
    kept = list(recorded)
    start = perf_counter()
    again = ask_all((question for question, _ in kept), processes)
    for count, ((question, old), (_, new)) in enumerate(zip(kept, again, strict=True), 1):
        _tell(kind, count, start)
        yield question, old, new


def _both(
    other: Path, kind: str, recorded: Iterable[tuple[Question, Answer]]
) -> Iterator[tuple[Question, Answer, Answer]]:
    """The answers of both records to the questions of the first."""
    answers = {repr(question): answer for question, answer in rows(other, kind)}
    missing = Answer(-1, "", "", {}, "was not asked")
    return ((question, old, answers.get(repr(question), missing)) for question, old in recorded)


def _say_which() -> None:
    """The code that answers may be another than that of this file."""
    print(f"asking {Path(sys.modules['dsconf'].__file__ or '').parent}", flush=True)


def _tell(kind: str, count: int, start: float) -> None:
    if count % _EVERY == 0:
        print(f"{kind}: {count} answers, {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the command line; 1 if answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="record|compare")
    record = commands.add_parser("record", help="ask everything and write the answers into FOLDER")
    record.add_argument("folder", type=Path)
    record.add_argument("--estimates", type=int, default=5000)
    record.add_argument("--recommendations", type=int, default=500)
    record.add_argument("--validations", type=int, default=1000)
    record.add_argument("--seed", type=int, default=1, help="which questions (default 1)")
    record.set_defaults(run=_record)
    again = commands.add_parser(
        "compare", help="ask FOLDER's questions again, or compare it with OTHER; 1 if they differ"
    )
    again.add_argument("folder", type=Path)
    again.add_argument("other", type=Path, nargs="?")
    again.add_argument("--numbers-only", action="store_true", help="numbers, words, keys and exit codes, but no texts")
    again.add_argument("--part", type=float, default=1.0, help="share of the questions (default all)")
    again.add_argument("--show", type=int, default=3, help="cases shown of each kind of difference (default 3)")
    again.set_defaults(run=_compare)
    for command in (record, again):
        command.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
