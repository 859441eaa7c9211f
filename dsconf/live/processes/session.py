"""Ends a whole session of processes.

Signalling the process group is not enough: ninja gives each compiler a group of its own, so a compiler would outlive
a killed build. It stays in the session, though.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path


def members(session: int) -> list[int]:
    """List the living processes of ``session``; where there is no /proc, its leader if that lives."""
    if not Path("/proc/self/stat").exists():
        return [session] if _alive(session) else []
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _belongs(stat, session)]


def kill_session(session: int, spare: int | None = None) -> None:
    """Send SIGKILL to every process of ``session`` and of the group of that number, until none but ``spare`` is
    left."""
    while others := [pid for pid in members(session) if pid != spare]:
        for pid in others:
            _send(os.kill, pid)
    if spare is None:
        _send(os.killpg, session)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _belongs(stat: Path, session: int) -> bool:
    try:
        state, _, _, its_session, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it ended while we looked
        return False
    return int(its_session) == session and state not in "ZX"


def _send(kill: Callable[[int, int], None], number: int) -> None:
    try:
        kill(number, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # gone already; macOS says the latter of a zombie's group
        return
