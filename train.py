"""Train a diffusion model: uv run train.py [CONFIG] [--option value ...]; see --help."""

import time

if __name__ == "__main__":
    began = time.time()  # before the imports, which the run's account of its wall time includes
    from jaxdiff.cli import train_main

    raise SystemExit(train_main(began=began))
