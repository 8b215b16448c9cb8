"""Draw samples from a run: uv run sample.py WORKDIR [--option value ...]; see --help."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in one line, too
    from jaxdiff.commands import main

    raise SystemExit(main(["sample", *sys.argv[1:]]))
