"""The training processes: starts them, asks after them, and makes sure that none is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from dsconf.live.processes import locks
from dsconf.live.processes.journal import FIRST, JournalReader, log_path, rank_name
from dsconf.live.processes.order import Order
from dsconf.live.processes.session import kill_session

GRACE_SECONDS = 3.0
LOG_LINES = 30


class Member:
    """A training process as its parent sees it."""

    def __init__(self, folder: Path, name: str, process: subprocess.Popen[bytes] | None) -> None:
        self.process = process
        """None for a rank that a launcher started."""
        self.events: list[dict[str, Any]] = []
        self._reader = JournalReader(folder, name)
        self._log = log_path(folder, name)

    def new_events(self) -> list[dict[str, Any]]:
        """What it reported since the last call."""
        fresh = self._reader.new_events()
        self.events += fresh
        return fresh

    def ended_at(self) -> float:
        """When, in seconds since the epoch; infinity where nobody wrote it down."""
        return next((event["time"] for event in self.events if event["event"] == "ended"), float("inf"))

    def exit_code(self) -> int | None:
        """None while it runs, its exit code, or minus the signal that ended it."""
        said = next((int(event["code"]) for event in self.events if event["event"] == "ended"), None)
        if said is not None or self.process is None:
            return said
        return _exit_code(self.process)  # where its keeper, too, was killed

    def sessions(self) -> set[int]:
        """The session it leads; none where it has not said so yet."""
        if self.process is not None:
            return {self.process.pid} if self.process.returncode is None else set()
        ended = any(event["event"] == "ended" for event in self.events)  # its number may be another's by now
        return set() if ended else {event["session"] for event in self.events if event["event"] == "started"}

    def log_tail(self) -> list[str]:
        """The last lines it printed."""
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return text.splitlines()[-LOG_LINES:]


class Crew:
    """The processes of one run. Each rank has a session of its own, so that its compilers end with it.

    Standard input of them all, and of whatever they start, is one end of a socket. Its other end tells them that we
    live, and tells us when the last of them has ended, whoever started it.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        """``variables`` are set for all of them, beside those of ``environment``."""
        self.folder, self.variables = folder, dict(variables or {})
        self.ranks: list[Member] = []
        self.launcher: Member | None = None
        """The first process, once it has become the launcher of the ranks."""
        self._lifeline, self._theirs = socket.socketpair()

    @property
    def events(self) -> list[list[dict[str, Any]]]:
        """Everything that each rank reported so far."""
        return [member.events for member in self.ranks]

    def start_first(self) -> None:
        """Start the process that looks at the machine and waits for the order."""
        self.ranks = [self._started(FIRST, [FIRST], {})]

    def start_others(self, order: Order) -> None:
        """Start the ranks that ``order`` has beside the first process, or follow those that a launcher starts."""
        if order.launcher == "direct":
            for rank in range(1, order.processes):
                self.ranks.append(self._started(rank_name(rank), [], {"LOCAL_RANK": str(rank)}))
            return
        self.launcher = self.ranks[0]
        self.ranks = [Member(self.folder, rank_name(rank), None) for rank in range(order.processes)]

    def _started(self, name: str, words: list[str], variables: dict[str, str]) -> Member:
        with log_path(self.folder, name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dsconf.live.rank.worker", str(self.folder), *words],
                stdin=self._theirs.fileno(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self.folder) | self.variables | variables,
                start_new_session=True,
            )
        return Member(self.folder, name, process)

    def new_events(self) -> list[tuple[int, dict[str, Any]]]:
        """What the ranks reported since the last call, as (rank, event)."""
        if self.launcher is not None:
            self.launcher.new_events()
        return [(rank, event) for rank, member in enumerate(self.ranks) for event in member.new_events()]

    def ended(self) -> list[tuple[int, int]]:
        """The ranks that ended, the earliest first, and the exit code of each, or minus the signal that ended it."""
        order = sorted(range(len(self.ranks)), key=lambda rank: self.ranks[rank].ended_at())
        return [(rank, code) for rank in order if (code := self.ranks[rank].exit_code()) is not None]

    def log_tail(self, rank: int) -> list[str]:
        """The last lines that ``rank`` printed, else those of its launcher."""
        return self.ranks[rank].log_tail() or (self.launcher.log_tail() if self.launcher else [])

    def end(self) -> None:
        """End every process and all it started; clear the build locks they held."""
        self.new_events()  # the keepers delete the journals
        members = [*filter(None, [self.launcher]), *self.ranks]
        if self.launcher is not None:  # first, so that it neither starts a rank nor waits for one
            self._kill(self.launcher)
        self._theirs.close()
        with suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_WR)  # each keeper ends its own, also those we do not know of yet
        self._lifeline.settimeout(GRACE_SECONDS)
        with suppress(OSError):
            self._lifeline.recv(1)  # until no process holds the other end
        self._lifeline.close()
        for member in members:
            self._kill(member)

    @staticmethod
    def _kill(member: Member) -> None:
        for session in member.sessions():
            kill_session(session)
        locks.clear(member.events)
        if member.process is not None:
            member.process.wait()


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Leaves the process unreaped where the system can, so that its group's number cannot become another's."""
    if not hasattr(os, "waitid"):
        return process.poll()
    status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def environment(folder: Path) -> dict[str, str]:
    """The variables of a training process: ours, with dsconf importable, the tools beside Python on the path.

    Whatever torch leaves in the temporary directory goes with ``folder``.
    """
    variables = dict(os.environ)
    root = Path(__file__).resolve().parents[3]
    if root.name not in ("site-packages", "dist-packages"):
        paths = [str(root), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    tools = str(Path(sys.executable).parent)
    variables["PATH"] = os.pathsep.join([variables.get("PATH", os.defpath), tools])
    variables["PYTORCH_CUDA_ALLOC_CONF"] = allocator_setting()
    variables.update(DSCONF_CHECK=str(folder), TMPDIR=str(folder), PYTHONSAFEPATH="1", HF_HUB_OFFLINE="1")
    return variables


def allocator_variables(allocator: str | None) -> dict[str, str]:
    """Return the variables that give the training processes the allocator asked for; None: that of the environment."""
    setting = allocator_setting()
    if allocator is None:
        return {}
    if allocator_of(setting) != allocator:
        setting = f"expandable_segments:{allocator == 'expandable'}"
    return {"PYTORCH_CUDA_ALLOC_CONF": setting}


def allocator_of(setting: str) -> str:
    """Return which allocator a ``PYTORCH_CUDA_ALLOC_CONF`` asks for: ``expandable`` or ``default``."""
    return "expandable" if "expandable_segments:True" in setting else "default"


def allocator_setting() -> str:
    """torch's allocator setting for the training processes: the person's own, else what the launch lines set."""
    given = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    return given or "expandable_segments:True"


class StopSignals:
    """While entered, Ctrl-C, SIGTERM and SIGHUP are noted instead of interrupting whatever is being done."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: whoever runs it decides
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def end_as_asked(self) -> None:
        """Do at last what the signal asked for.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: with 128 + the signal's number after any other.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)
