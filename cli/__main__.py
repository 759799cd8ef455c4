"""`saferestore`, and `python -m saferestore.cli`: a Ctrl-C while the program itself is loaded is two lines, too."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

EARLY = "error: interrupted - nothing was done yet\nhint: run the same command again\n"


def interrupt(*_: object) -> NoReturn:
    """End the process at once: there is nothing to put in order."""
    os.write(2, EARLY.encode())
    os._exit(130)


def main() -> NoReturn:
    """Load the program and run the command line of this process."""
    signal.signal(signal.SIGINT, interrupt)
    from .app import app

    app()


if __name__ == "__main__":
    main()
