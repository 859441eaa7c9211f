"""The ``dsconf`` script, also as ``python -m dsconf``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from dsconf.cli import main


def script() -> None:
    """Run the command line and leave at once: freeing every object takes a tenth of a short command's time."""
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


if __name__ == "__main__":
    script()
