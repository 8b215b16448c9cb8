"""Train a diffusion model: uv run train.py [CONFIG] [--option value ...]; see --help."""

import contextlib
import os
import signal
import sys
import time


def leave(number: int, frame: object) -> None:
    """Ends the process: nothing has begun, so nothing is to be saved."""
    del frame
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, f"train.py: stopped by {name} before it began; run the same command again\n".encode())
    os._exit(75)


if __name__ == "__main__":
    began = time.time()  # of the run's account of its wall time, where the system does not know better
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    from jaxdiff.commands import main
    from jaxdiff.training.clock import process_start

    raise SystemExit(main(["train", *sys.argv[1:]], began=process_start(began)))
