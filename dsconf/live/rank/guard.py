"""A training process never outlives its parent, and never leaves a build lock behind.

Each training process has a keeper: the process that was started imports nothing heavy, forks the one that trains and
waits for its end. Whoever started it, a launcher or the parent itself, it does three things: it writes down how the
training process ended, ends the compilers left behind, and ends everything when the parent is gone. The parent holds
the other end of standard input; however the parent ends, even by SIGKILL, the kernel closes that end. A thread of the
training process could not do this while a kernel hangs without releasing Python's lock, and PR_SET_PDEATHSIG would end
one process only: its compilers would run on, and torch's lock of a half-built kernel would block every later run on the
machine.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dsconf.live.processes import locks
from dsconf.live.processes.journal import Journal, journal_path, log_path, parsed, whole_lines
from dsconf.live.processes.session import kill_session

STDIN = 0
LINGER_SECONDS = 2.0
"""How long a keeper outlives its rank, in case the parent was killed with it. A living parent ends it sooner."""


def keep(folder: Path, name: str) -> Journal:
    """Return in a child, with its journal; the caller stays behind as that child's keeper and ends with it.

    Both lead a session of their own, and print to a log of their own.
    """
    if os.getsid(0) != os.getpid():  # DeepSpeed's launcher leaves its processes in its own session
        os.setsid()
    _print_to(log_path(folder, name))
    journal = Journal(folder, name)
    written = journal_path(folder, name).open("rb")  # now, since another rank's keeper may delete the folder
    keeper, child = os.getpid(), os.fork()
    if child:
        _wait_for(child, journal, written)
    journal.write("started", pid=os.getpid(), session=os.getsid(0))
    threading.Thread(target=_stand_in, args=(keeper, folder, written), daemon=True).start()
    return journal


def _print_to(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _wait_for(child: int, journal: Journal, written: BinaryIO) -> None:
    """End as ``child`` ended, and with the parent at the latest; never return."""
    parent_gone = threading.Event()
    threading.Thread(target=_end_with_parent, args=(child, parent_gone), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        journal.write("ended", code=code)
    kill_session(os.getsid(0), spare=os.getpid())
    if parent_gone.is_set() or _at_end(STDIN, LINGER_SECONDS):
        _clear(journal.folder, written)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # that of SIGKILL is what it is
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


def _end_with_parent(child: int, parent_gone: threading.Event) -> None:
    _wait_for_the_end_of_the_parent()
    parent_gone.set()
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _stand_in(keeper: int, folder: Path, written: BinaryIO) -> None:
    """Do what the keeper does when the parent is gone, in case somebody has killed the keeper too."""
    _wait_for_the_end_of_the_parent()
    while os.getppid() == keeper:
        time.sleep(0.1)
    kill_session(os.getsid(0), spare=os.getpid())
    _clear(folder, written)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_the_end_of_the_parent() -> None:
    while os.read(STDIN, 4096):
        pass


def _clear(folder: Path, written: BinaryIO) -> None:
    """Delete the build locks that are held, and the folder of the run."""
    locks.clear(parsed(whole_lines(written.read())))
    shutil.rmtree(folder, ignore_errors=True)


def _at_end(descriptor: int, seconds: float) -> bool:
    """Say whether ``descriptor`` ends within ``seconds``."""
    return bool(select.select([descriptor], [], [], seconds)[0]) and not os.read(descriptor, 1)


def watch_build_locks(journal: Journal) -> None:
    """Take torch's build locks so that ``locks.clear`` knows them, and journal what is waited for.

    torch makes an empty file, and whoever finds it waits until it is gone. Here that file is a second name of one whose
    own name holds the number of this process, so a lock never exists without its owner's name. A lock that somebody
    else left behind is named while waiting.
    """
    from torch.utils.file_baton import FileBaton

    class WatchedBaton(FileBaton):
        def try_acquire(self) -> bool:
            self.own = Path(f"{self.lock_file_path}.{os.getpid()}-{id(self)}")
            journal.write("lock", path=str(self.lock_file_path), own=str(self.own))
            self.own.touch()
            try:
                os.link(self.own, self.lock_file_path)
            except FileExistsError:
                self.own.unlink()
                return False
            except OSError:  # a file system without second names
                self.own.unlink()
                return bool(super().try_acquire())
            return True

        def wait(self) -> None:
            journal.write("waiting", path=str(self.lock_file_path))
            super().wait()
            journal.write("waited", path=str(self.lock_file_path))

        def release(self) -> None:
            super().release()
            self.own.unlink(missing_ok=True)

    from torch.utils import cpp_extension

    vars(cpp_extension)["FileBaton"] = WatchedBaton
