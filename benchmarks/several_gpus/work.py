"""Runs one unit after the other, rehearsals side by side, and writes down the result of each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple

from benchmarks.several_gpus import collectives, store
from benchmarks.several_gpus.cases import Case, error_of, measure, rehearsal, request_of
from benchmarks.several_gpus.machine import Row, in_a_row
from benchmarks.several_gpus.store import Records
from dsconf.errors import DsconfError
from dsconf.live.bench import bench
from dsconf.live.plan import CPU_RANKS
from dsconf.live.processes.crew import StopSignals
from dsconf.live.processes.launcher import Runner, SubprocessRunner
from dsconf.live.run import no_progress

BENCH_MODEL = "Qwen/Qwen2.5-0.5B"
BENCH_STEPS = 10
USUAL_SECONDS = {"collectives": 45.0, "case": 30.0, "bench": 30.0, "rehearsal": 30.0}
"""What a unit is thought to take until one of its kind has run; then as much as the last one."""
Progress = Callable[[str], None]


class Plan(NamedTuple):
    """What is to be measured, and how many seconds that may take."""

    cases: list[Case]
    """All, those among them that have more ranks than there are GPUs."""
    world_sizes: list[int]
    """Numbers of ranks that can be real here."""
    strategies: tuple[str, ...]
    only: list[str]
    steps: int
    largest: int
    timeout: float
    seconds: float
    launcher: str

    def wanted(self, unit: str) -> bool:
        """Say whether ``--only`` lets ``unit`` through."""
        return any(fnmatch(unit, pattern.strip()) for pattern in self.only)

    def possible(self) -> list[Case]:
        """List the cases whose ranks can all be real here."""
        return [case for case in self.cases if case.world_size in self.world_sizes]

    def units(self) -> list[str]:
        """List the names of all units that are wanted."""
        names = [f"collectives-w{ranks}" for ranks in self.world_sizes]
        names += [case.name for case in self.possible()]
        names += [f"bench-w{ranks}-{name}" for ranks in self.world_sizes[-1:] for name in self.strategies]
        names += [rehearsal(case.name, rank) for case in self.possible() for rank in range(case.world_size)]
        return [name for name in names if self.wanted(name)]


class Unit(NamedTuple):
    """One thing to run; ``run`` is given seconds, somebody to tell and a runner, and returns the rows."""

    name: str
    kind: str
    file: str
    run: Callable[[float, Progress, Runner], list[Row]]


class Session:
    """One call of the command on one machine."""

    def __init__(self, plan: Plan, machine: Row, records: Records) -> None:
        self.plan, self.records = plan, records
        self.gpus = len(machine["gpus"])
        self.cores: int = machine["cpu_cores"]
        self.about_machine = in_a_row(machine)
        self.until = time.monotonic() + plan.seconds
        self.last = dict(USUAL_SECONDS)
        self.left: list[str] = []

    def work(self) -> list[str]:
        """Run what is not in the records yet, and return the units that there was no time for.

        Raises:
            KeyboardInterrupt, SystemExit: a signal asked to stop; what has ended by then is in the records.
        """
        for unit in self._new(self._alone()):
            self._attempt(unit, SubprocessRunner())
        # Last, since one GPU is enough for them: a smaller machine can do what is left.
        self._side_by_side(list(self._new(self._rehearsals())))
        return self.left

    def _new(self, units: Iterable[Unit]) -> Iterator[Unit]:
        done = self.records.done()
        return (unit for unit in units if unit.name not in done and self.plan.wanted(unit.name))

    def _alone(self) -> Iterator[Unit]:
        """Yield what needs the machine for itself."""
        plan = self.plan
        for ranks in plan.world_sizes:
            run = partial(self._collectives, ranks)
            yield Unit(f"collectives-w{ranks}", "collectives", store.COLLECTIVES, run)
        for case in plan.possible():
            yield Unit(case.name, "case", store.CASES, partial(self._case, case, None, self.about_machine))
        for name in plan.strategies:
            for ranks in plan.world_sizes[-1:]:
                yield Unit(f"bench-w{ranks}-{name}", "bench", store.BENCH, partial(self._strategy, name, ranks))

    def _rehearsals(self) -> Iterator[Unit]:
        """Yield every rank of the cases that ran with real ranks, on the machine that they ran on."""
        ran = [row for row in self.records.rows(store.CASES) if "error" not in row and not row["rehearsed"]]
        real = {row["case"]: row for row in ran}
        for case in self.plan.cases:
            if case.name in real:
                row = real[case.name]
                machine = {name: row[name] for name in self.about_machine if name in row}
                for rank in range(row["world_size"]):
                    run = partial(self._case, case, rank, machine)
                    yield Unit(rehearsal(case.name, rank), "rehearsal", store.CASES, run)

    def _collectives(self, ranks: int, limit: float, tell: Progress, runner: Runner) -> list[Row]:
        largest, launcher = self.plan.largest, self.plan.launcher
        return collectives.measure(ranks, largest, self.about_machine, limit, tell, runner, launcher)

    def _case(
        self, case: Case, rank: int | None, machine: Row, limit: float, tell: Progress, runner: Runner
    ) -> list[Row]:
        launcher = self.plan.launcher if rank is None else "direct"
        return measure(
            case, request_of(case, self.plan.steps, not self.gpus, launcher, rank), machine, limit, tell, runner
        )

    def _strategy(self, name: str, ranks: int, limit: float, tell: Progress, runner: Runner) -> list[Row]:
        unit = f"bench-w{ranks}-{name}"
        result = bench(
            model=BENCH_MODEL,
            gpus=ranks,
            strategies=name,
            micro_batch_size=2,
            steps=BENCH_STEPS,
            launcher=self.plan.launcher,
            timeout=limit,
            progress=tell,
        )
        strategy = result.rows[0]
        about: Row = {"unit": unit, "name": unit, **self.about_machine}
        if strategy.failure is not None:
            return [{**about, **error_of(strategy.failure)}]
        about |= {"device": result.device, "model": BENCH_MODEL, "scaled_down": list(result.scaled_down)}
        about |= {"global_batch": result.global_batch, "seq_len": result.seq_len, "steps": result.steps}
        return [{**about, **{key: value for key, value in strategy._asdict().items() if key != "failure"}}]

    def _side_by_side(self, units: list[Unit]) -> None:
        """Run one rehearsal on each GPU, with the share of the cores that a rank among that many, or of two, has."""
        waiting: SimpleQueue[Unit] = SimpleQueue()
        for unit in units:
            waiting.put(unit)
        at_once = max(1, min(self.gpus, len(units)))
        share = {"OMP_NUM_THREADS": str(max(1, self.cores // max(at_once, CPU_RANKS)))}
        with StopSignals() as signals, ThreadPoolExecutor(at_once) as pool:

            def keep_busy(gpu: int) -> None:
                variables = share | ({"CUDA_VISIBLE_DEVICES": _visible(gpu)} if self.gpus else {})
                while signals.received is None:
                    try:
                        unit = waiting.get_nowait()
                    except Empty:
                        return
                    self._attempt(unit, SubprocessRunner(variables, signals))

            ended = [pool.submit(keep_busy, gpu) for gpu in range(at_once)]
        signals.end_as_asked()
        for one in ended:
            one.result()

    def _attempt(self, unit: Unit, runner: Runner) -> None:
        """Run ``unit`` and record it, failed or not, unless there is no time for it."""
        left = self.until - time.monotonic()
        if left < min(self.last[unit.kind], self.plan.timeout):
            self.left.append(unit.name)
            return
        start = time.monotonic()
        try:
            rows = unit.run(min(left, self.plan.timeout), no_progress, runner)
        except DsconfError as error:
            rows = [_failed(unit, str(error))]
        except Exception as error:  # unattended: whatever is wrong with one must not end the others
            rows = [_failed(unit, f"{type(error).__name__}: {error}")]
        took = time.monotonic() - start
        if left < self.plan.timeout and rows[0].get("kind") == "timeout":
            self.left.append(unit.name)
            return
        self.last[unit.kind] = took
        self.records.add(unit.file, rows)
        print(f"{unit.name}: {rows[0].get('error', 'measured')} ({took:.0f} s)", file=sys.stderr, flush=True)


def _visible(gpu: int) -> str:
    """Name the ``gpu``-th of the GPUs that this process may use."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[gpu] if gpu < len(named) else str(gpu)


def _failed(unit: Unit, message: str) -> Row:
    return {"unit": unit.name, "name": unit.name, "error": message, "kind": "exception"}
