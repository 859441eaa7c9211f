"""``python -m dsconf``."""

from dsconf.cli import main

main()
