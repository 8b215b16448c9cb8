"""How good a run's samples are: `python -m jaxdiff.evaluate WORKDIR [--metrics fid,kid] [--steps 5,10,20,50]`.

    python -m jaxdiff.evaluate runs/fashion_mnist --data-path FOLDER --sampler ddim,dpmpp_2m --steps 5,10,20,50
    python -m jaxdiff.evaluate runs/cats --features pt_inception-2015-12-05-6726825d.pth
    python -m jaxdiff.evaluate runs/digits --metrics bpd --bits-num 200

Draws --num samples for every sampler and number of steps, and measures them against the training images; the test
images, measured alike, are the floor. WORKDIR/evaluation gets scores.json, table.md and fid.png after every cell:
start the same command again to go on where it stopped. Other numbers of images, references or weights stay in
scores.json and out of the table. Several processes are started as those of sample.py.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxdiff import places
from jaxdiff.cli import exit_code, use_compilation_cache
from jaxdiff.errors import UserError
from jaxdiff.evaluation.scores import LIKELIHOODS, METRICS
from jaxdiff.evaluation_job import Evaluation
from jaxdiff.training import processes


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are one line, not the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what there is")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates; returns the exit code: 0 done, 1 no checkpoint can be read, 2 wrong input, 76 a process was lost."""
    parser = _Parser(
        prog="python -m jaxdiff.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=places.place, help="the run")
    known = ", ".join([*METRICS, *LIKELIHOODS])
    parser.add_argument("--metrics", default="fid,kid", help=f"of {known}; default fid,kid")
    parser.add_argument("--sampler", help="methods, by commas; default the run's own")
    parser.add_argument("--steps", help="numbers of steps, by commas; default the run's own")
    parser.add_argument("--num", type=int, default=10_000, help="samples a cell; default 10000")
    parser.add_argument("--bits-num", type=int, help="test images for bpd and bpd_flow; default 1000, or all if fewer")
    parser.add_argument("--guidance", type=float, help="classifier-free scale; default the run's own")
    parser.add_argument("--eta", type=float, help="randomness of a method that has it")
    parser.add_argument("--seed", type=int, default=0, help="sample i depends on the seed and i alone")
    parser.add_argument("--batch-size", type=int, default=250, help="samples at a time")
    parser.add_argument("--data-path", help="where the data lies; default as the run was trained")
    parser.add_argument("--data-name", help="another data set than the run's, as data.name has it")
    parser.add_argument("--test-path", help="test images in another place; a folder of images has none of its own")
    parser.add_argument("--features", help="FILE of weights of FID's Inception or of a classifier, or MODULE:FUNCTION")
    for name, kind in (("coordinator", str), ("num-processes", int), ("process-id", int)):
        parser.add_argument(f"--{name}", type=kind, help="of several processes where JAX does not detect them")

    def evaluate() -> tuple[int, str]:
        arguments = parser.parse_args(argv)
        place = processes.Place(*(vars(arguments).pop(name) for name in ("coordinator", "num_processes", "process_id")))
        use_compilation_cache()
        return processes.run(place, "evaluate", lambda: (0, Evaluation(arguments).run()))

    return exit_code("evaluate", evaluate)


if __name__ == "__main__":
    sys.exit(main())
