"""Draw samples from a run: uv run sample.py WORKDIR [--option value ...]; see --help."""

import sys

if __name__ == "__main__":
    from jaxdiff.commands import main

    raise SystemExit(main(["sample", *sys.argv[1:]]))
