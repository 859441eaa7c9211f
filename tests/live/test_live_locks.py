"""Build locks: taken under the name of their owner, cleared for nobody else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dsconf.live.processes import locks
from dsconf.live.processes.journal import Journal
from dsconf.live.rank import guard


def event(lock: Path, own: Path) -> dict[str, str]:
    return {"event": "lock", "path": str(lock), "own": str(own)}


def test_a_held_lock_is_cleared_and_one_of_another_process_stays(tmp_path: Path) -> None:
    lock, mine, other = tmp_path / "lock", tmp_path / "lock.1", tmp_path / "lock.2"
    other.touch()
    os.link(other, lock)
    mine.touch()  # killed before it could take the lock
    locks.clear([event(lock, mine), {"event": "done"}])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "lock.2"]
    locks.clear([event(lock, mine)])  # given back long ago
    assert lock.exists()
    locks.clear([event(lock, other)])
    assert list(tmp_path.iterdir()) == []


def test_torch_takes_waits_for_and_gives_back_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpp_extension = pytest.importorskip("torch.utils.cpp_extension")
    monkeypatch.setattr(cpp_extension, "FileBaton", None)  # put back at the end
    folder = tmp_path / "run"
    folder.mkdir()
    guard.watch_build_locks(Journal(folder, "rank0"))
    lock = tmp_path / "lock"
    first, second = cpp_extension.FileBaton(str(lock)), cpp_extension.FileBaton(str(lock))
    assert first.try_acquire()
    assert not second.try_acquire()
    [own] = tmp_path.glob("lock.*")
    assert own.samefile(lock)
    first.release()
    second.wait()
    assert second.try_acquire()
    second.release()
    assert list(tmp_path.iterdir()) == [folder]
    events = [json.loads(line)["event"] for line in (folder / "rank0.jsonl").read_text().splitlines()]
    assert events == ["lock", "lock", "waiting", "waited", "lock"]
