"""`python -m jaxdiff COMMAND ...`, and what the installed command `jaxdiff` calls."""

import signal
import sys
import time

from jaxdiff.commands import main
from jaxdiff.training.clock import process_start


def run() -> int:
    """The command line of this process; SIGTERM, too, ends in one line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main(began=process_start(time.time()))


if __name__ == "__main__":
    sys.exit(run())
