"""Runs the training processes and watches them. Imports neither torch nor deepspeed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from dsconf.live.processes.crew import Crew, StopSignals
from dsconf.live.processes.order import Order, Probe
from dsconf.units import format_bytes

POLL_SECONDS = 0.05
SETTLE_SECONDS = 0.5
"""How long a rank's failure waits for the rank that caused it to be seen dead."""
PHASES = {
    "import": "importing torch and deepspeed",
    "build": "building the model",
    "init": "initialising DeepSpeed (the first time it compiles kernels, which takes a minute or more)",
    "init ddp": "initialising torch's DistributedDataParallel",
    "load": "reading the checkpoint",
    "train": "training",
    "save": "writing a checkpoint",
    "task": "measuring",
}
UNANNOUNCED = ("plan", "launch")
"""Phases of the first process that the parent announces in its own words or not at all."""


class Failure(NamedTuple):
    """Why a run did not end well."""

    kind: str
    """``oom``, ``exception``, ``nan``, ``died``, ``timeout``, ``missing`` or ``invalid``."""
    message: str
    phase: str = "start"
    rank: int | None = None
    asked_bytes: int | None = None
    log: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What the processes reported: events of each rank, and the failure if there was one."""

    events: list[list[dict[str, Any]]]
    failure: Failure | None
    seconds: float
    phase_seconds: Mapping[str, float] = {}
    """Where the time of rank 0 went, phase by phase; ``launch`` is all before that rank began, ``end`` all after it."""


class Runner(Protocol):
    """Something that carries out an order: real processes, or a stand-in for tests."""

    def run(self, decide: Callable[[Probe], Order], progress: Callable[[str], None], timeout: float) -> Outcome:
        """Probe the machine, ask ``decide`` what to run there, and run it within ``timeout`` seconds."""


class SubprocessRunner:
    """Launches real training processes on this machine.

    The first process probes the devices with the torch that will train, then waits for the order and becomes
    rank 0; guessing from device files would be wrong in containers and with a CPU-only torch, and a separate
    probing process would pay for importing torch twice.
    """

    def __init__(self, variables: Mapping[str, str] | None = None, signals: StopSignals | None = None) -> None:
        """Set ``variables`` for the training processes. ``signals`` belong to a caller who has entered them and does
        what they ask for, because a thread cannot note a signal itself."""
        self.variables, self.signals = dict(variables or {}), signals

    def run(self, decide: Callable[[Probe], Order], progress: Callable[[str], None], timeout: float) -> Outcome:
        """Do what ``Runner`` says.

        Raises:
            KeyboardInterrupt, SystemExit: a signal asked to stop; nothing is left running or on disk.
        """
        noted = StopSignals() if self.signals is None else nullcontext(self.signals)
        with noted as signals, TemporaryDirectory(prefix="dsconf-check-") as folder:
            crew = Crew(Path(folder), self.variables)
            try:
                outcome = _RunWatcher(crew, decide, progress, timeout, signals).until_the_end()
            finally:
                crew.end()
        signals.end_as_asked()
        return outcome


class _RunWatcher:
    """Follows one run, from the first process to the last event."""

    def __init__(
        self,
        crew: Crew,
        decide: Callable[[Probe], Order],
        progress: Callable[[str], None],
        timeout: float,
        signals: StopSignals,
    ) -> None:
        self.crew, self.decide, self.progress, self.signals = crew, decide, progress, signals
        self.timeout = timeout
        self.started = time.monotonic()
        self.phase = "start"
        self.backend = ""
        self.waiting_for: str | None = None
        self.expected: int | None = None

    def until_the_end(self) -> Outcome:
        began = time.time()
        self.crew.start_first()
        failure = None
        while self.signals.received is None and failure is None and not self._all_done():
            time.sleep(POLL_SECONDS)
            failure = self._look()
        spent = phase_seconds(began, self.crew.events[0], time.time())
        return Outcome(self.crew.events, failure, self._elapsed(), spent)

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _all_done(self) -> bool:
        done = sum(any(event["event"] == "done" for event in events) for events in self.crew.events)
        return self.expected is not None and done == self.expected

    def _look(self) -> Failure | None:
        """Take in what is new and return the failure that ends the run, if there is one."""
        ended = self.crew.ended()  # before the events, so that an ended rank's last words are in
        launcher_code = self.crew.launcher.exit_code() if self.crew.launcher else None
        for rank, event in self.crew.new_events():
            self._take(rank, event)
        failure = self._first_failure(ended)
        if failure is None and launcher_code is not None and not self._all_done():
            failure = self._launcher_ended(launcher_code)
        if failure is None and self._elapsed() > self.timeout:
            return self._out_of_time()
        return failure

    def _take(self, rank: int, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "probe":
            self._give_order(Probe(**{key: event[key] for key in Probe._fields}))
        elif kind == "phase" and rank == 0:
            self.phase = event["phase"]
            if self.phase not in UNANNOUNCED:
                self.progress(PHASES.get(f"{self.phase} {self.backend}", PHASES.get(self.phase, self.phase)))
        elif kind == "iteration" and rank == 0:
            self.progress(_iteration_line(event))
        elif kind in ("waiting", "waited"):
            self.waiting_for = event["path"] if kind == "waiting" else None

    def _give_order(self, probe: Probe) -> None:
        order = self.decide(probe)
        self.expected, self.backend = order.processes, order.backend
        if order.launcher != "direct":
            self.progress(f"starting {order.processes} rank{'s' * (order.processes > 1)} with {order.launcher}")
        order.write(self.crew.folder)
        self.crew.start_others(order)

    def _first_failure(self, ended: list[tuple[int, int]]) -> Failure | None:
        """Return the failure of a rank that was killed, since it explains the complaints of the others, or else the
        earliest complaint."""
        complaints = [
            (event["time"], rank, event)
            for rank, events in enumerate(self.crew.events)
            for event in events
            if event["event"] == "failure"
        ]
        if complaints and len(ended) < len(self.crew.ranks):
            time.sleep(SETTLE_SECONDS)
            self.crew.new_events()
            ended = self.crew.ended()
            self.crew.new_events()
        for rank, code in ended:
            if not self._has_last_words(rank):
                return self._died(rank, code)
        if not complaints:
            return None
        _, rank, event = min(complaints, key=lambda complaint: complaint[0])
        fields = {key: event[key] for key in ("kind", "message", "phase", "asked_bytes") if key in event}
        return Failure(**fields, rank=rank, log=tuple(self.crew.log_tail(rank)))

    def _has_last_words(self, rank: int) -> bool:
        return any(event["event"] in ("done", "failure") for event in self.crew.events[rank])

    def _died(self, rank: int, code: int) -> Failure:
        why = "; the host probably ran out of memory" if code == -signal.SIGKILL else ""
        log = tuple(self.crew.log_tail(rank))
        return Failure("died", f"rank {rank} ended {_how(code)} in {self.phase}{why}", self.phase, rank, None, log)

    def _launcher_ended(self, code: int) -> Failure:
        """Report the launcher's own complaint, or that somebody ended it; a rank's failure that ends it is reported
        before."""
        assert self.crew.launcher is not None
        log = tuple(self.crew.launcher.log_tail())
        for event in self.crew.launcher.events:
            if event["event"] == "failure":
                return Failure("exception", event["message"], event["phase"], None, None, log)
        return Failure("died", f"the launcher ended {_how(code)} in {self.phase}", self.phase, None, None, log)

    def _out_of_time(self) -> Failure:
        message = f"stopped after the time limit of {self.timeout:g} s in {self.phase}"
        if self.waiting_for:
            message += f", waiting for the build lock {self.waiting_for} (delete it if nothing is being built)"
        return Failure("timeout", message, self.phase, None, None, tuple(self.crew.log_tail(0)))


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def phase_seconds(began: float, events: list[dict[str, Any]], now: float) -> dict[str, float]:
    """Return the seconds of each phase in the ``events`` of one rank, from ``began`` to ``now`` without a gap."""
    marks = [(event["phase"], event["time"]) for event in events if event["event"] == "phase"]
    marks += [("end", event["time"]) for event in events if event["event"] == "done"]
    spent: dict[str, float] = {}
    for (name, start), (_, end) in pairwise([("launch", began), *marks, ("", now)]):
        spent[name] = spent.get(name, 0.0) + max(0.0, end - start)
    return {name: round(seconds, 3) for name, seconds in spent.items()}


def _iteration_line(event: dict[str, Any]) -> str:
    peak = max(event[f"{phase}_bytes"] for phase in ("forward", "backward", "step"))
    skipped = ", optimizer step skipped (fp16 overflow)" if event["skipped"] else ""
    return (
        f"iteration {event['iteration'] + 1}: loss {event['loss']:.3f}, peak {format_bytes(peak)}, "
        f"{event['step_seconds']:.3g} s{skipped}"
    )
