"""The training processes: starts them, asks after them, and makes sure that none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from dsconf.live.journal import JournalReader, log_path
from dsconf.live.session import kill_session, members

GRACE_SECONDS = 3.0
LOG_LINES = 30


class Crew:
    """The processes of one run, each in a session of its own, so that its compilers end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[list[dict[str, Any]]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[JournalReader] = []

    def start(self, ranks: range) -> None:
        """Start one process for each of ``ranks``. Its standard input is the line that tells it we live."""
        for rank in ranks:
            with log_path(self.folder, rank).open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "dsconf.live.worker", str(self.folder), str(rank)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment(self.folder),
                    start_new_session=True,
                )
            self._processes.append(process)
            self._readers.append(JournalReader(self.folder, rank))
            self.events.append([])

    def new_events(self) -> list[tuple[int, dict[str, Any]]]:
        """What the processes reported since the last call, as (rank, event)."""
        fresh = [(rank, event) for rank, reader in enumerate(self._readers) for event in reader.new_events()]
        for rank, event in fresh:
            self.events[rank].append(event)
        return fresh

    def exit_codes(self) -> list[int | None]:
        """For each rank None while it runs, its exit code, or minus the signal that ended it."""
        return [_exit_code(process) for process in self._processes]

    def log_tail(self, rank: int) -> list[str]:
        """The last lines ``rank`` printed."""
        text = log_path(self.folder, rank).read_text(encoding="utf-8", errors="replace")
        return text.splitlines()[-LOG_LINES:]

    def end(self) -> None:
        """End every process and all it started; clear the build locks they held."""
        for process in self._processes:
            with suppress(ProcessLookupError, PermissionError):  # gone; macOS says the latter of a zombie's group
                os.killpg(process.pid, signal.SIGTERM)
        limit = time.monotonic() + GRACE_SECONDS
        while any(members(process.pid) for process in self._processes) and time.monotonic() < limit:
            time.sleep(0.01)
        for process in self._processes:
            kill_session(process.pid)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._clear_locks()

    def _clear_locks(self) -> None:
        self.new_events()
        for events in self.events:
            held: set[str] = set()
            for event in events:
                if event["event"] == "lock":
                    held.add(event["path"])
                elif event["event"] == "unlock":
                    held.discard(event["path"])
            for path in held:
                Path(path).unlink(missing_ok=True)


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
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        paths = [str(root), *filter(None, [variables.get("PYTHONPATH")])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    tools = str(Path(sys.executable).parent)
    variables["PATH"] = os.pathsep.join([variables.get("PATH", os.defpath), tools])
    variables["PYTORCH_CUDA_ALLOC_CONF"] = allocator_setting()
    variables.update(DSCONF_CHECK=str(folder), TMPDIR=str(folder), PYTHONSAFEPATH="1", HF_HUB_OFFLINE="1")
    return variables


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
