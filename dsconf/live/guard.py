"""A training process never outlives its parent, and never leaves a build lock behind.

The parent holds the other end of standard input. However the parent ends, SIGKILL included, the kernel closes
it; the end of file is the signal. PR_SET_PDEATHSIG would end this process alone and at once: the compilers it
started would run on, and torch's lock of a half-built kernel would block every later run on the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

from dsconf.live.journal import Journal
from dsconf.live.session import kill_session


def watch_parent(journal: Journal) -> set[str]:
    """End this session when the parent is gone; returns the set of build locks to clear on the way out."""
    locks: set[str] = set()
    threading.Thread(target=_wait_for_end, args=(journal.folder, locks), daemon=True).start()
    return locks


def _wait_for_end(folder: Path, locks: set[str]) -> None:
    while os.read(0, 4096):
        pass
    kill_session(os.getsid(0), spare=os.getpid())
    for lock in list(locks):
        Path(lock).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


def watch_build_locks(journal: Journal, locks: set[str]) -> None:
    """Journal every build lock that torch's extension builder takes, waits for and gives back.

    The parent clears the locks of a process it ends; a lock that somebody else left behind is named while waiting.
    """
    from torch.utils.file_baton import FileBaton

    class WatchedBaton(FileBaton):
        def try_acquire(self) -> Any:
            taken = super().try_acquire()
            if taken:
                locks.add(self.lock_file_path)
                journal.write("lock", path=self.lock_file_path)
            return taken

        def wait(self) -> None:
            journal.write("waiting", path=self.lock_file_path)
            super().wait()
            journal.write("waited", path=self.lock_file_path)

        def release(self) -> None:
            super().release()
            locks.discard(self.lock_file_path)
            journal.write("unlock", path=self.lock_file_path)

    from torch.utils import cpp_extension

    vars(cpp_extension)["FileBaton"] = WatchedBaton
