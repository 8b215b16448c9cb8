"""`jaxdiff evaluate WORKDIR [--metrics fid,kid] [--steps 5,10,20,50]`: how good a run's samples are.

    jaxdiff evaluate runs/fashion_mnist --data-path FOLDER --sampler ddim,dpmpp_2m --steps 5,10,20,50
    jaxdiff evaluate runs/cats --features pt_inception-2015-12-05-6726825d.pth
    jaxdiff evaluate runs/digits --metrics bpd --bits-num 200
    jaxdiff evaluate runs/digits_0 runs/digits_1 runs/digits_2          several seeds: one table more, of all

Draws --num samples for every sampler and number of steps, and measures them against the training images; the test
images, measured alike, are the floor. WORKDIR/evaluation gets scores.json, table.md and fid.png after every cell:
start the same command again to go on where it stopped. Other numbers of images, references or weights stay in
scores.json and out of the table. Several processes are started as those of sample.
"""

import dataclasses
from types import SimpleNamespace
from typing import Annotated, Any

import tyro

from jaxdiff.commands import use_compilation_cache
from jaxdiff.commands.parser import FileName, Processes, parse
from jaxdiff.config.files import load_plugins
from jaxdiff.errors import UserError, program
from jaxdiff.evaluation.measure import METRICS
from jaxdiff.evaluation.prompts import PROMPTED
from jaxdiff.evaluation.scores import LIKELIHOODS, runs_table
from jaxdiff.parallel import processes
from jaxdiff.storage import place


@dataclasses.dataclass(frozen=True)
class EvaluateArguments(Processes):
    """What to measure, and against what."""

    workdir: tyro.conf.Positional[tuple[FileName, ...]]
    """The run; of several, also one table of all, with mean and spread."""
    metrics: Annotated[str, tyro.conf.arg(help=f"Of {', '.join([*METRICS.members, *LIKELIHOODS, *PROMPTED])}.")] = (
        "fid,kid"
    )
    sampler: str | None = None
    """Methods, by commas; default the run's own."""
    steps: str | None = None
    """Numbers of steps, by commas; default the run's own."""
    num: int = 10_000
    """Samples a cell."""
    bits_num: int | None = None
    """Test images for bpd and bpd_flow; default 1000, or all if fewer."""
    step: int | None = None
    """The checkpoint, of those kept; default the newest."""
    guidance: float | None = None
    """Classifier-free scale; default the run's own."""
    eta: float | None = None
    """Randomness of a method that has it."""
    seed: int = 0
    """Sample i depends on the seed and i alone."""
    batch_size: int = 250
    """Samples at a time."""
    data_path: FileName = ""
    """Where the data lies; default as the run was trained."""
    data_name: str | None = None
    """Another data set than the run's, as data.name has it."""
    test_path: FileName = ""
    """Test images in another place; a folder of images has none of its own."""
    judge: FileName = ""
    """Of prompt and style: a run of the objective contrastive."""
    splits: str | None = None
    """Of prompt, style, colour and nearest: splits of the data, by commas; default the run's own."""
    repeats: int = 1
    """Of these: how many seeds, from --seed on."""
    features: FileName = ""
    """FILE of weights of FID's Inception or of a classifier, RUN of a judge, or MODULE:FUNCTION."""


def run(argv: list[str]) -> tuple[int, str]:
    """Evaluates; the exit code and the table."""
    arguments = parse(EvaluateArguments, load_plugins(argv)[1], program("evaluate"), __doc__)
    values = {name: value for name, value in vars(arguments).items() if name not in vars(Processes())}
    values |= {name: values[name] or None for name in ("data_path", "test_path", "features", "judge")}
    if not arguments.workdir:
        raise UserError("WORKDIR is missing: the folder of a run, or of several; see --help")
    use_compilation_cache()

    def evaluate() -> tuple[int, str]:
        from jaxdiff.job.evaluation import Evaluation
        from jaxdiff.job.prompts import PromptEvaluation
        from jaxdiff.job.score_file import ScoreFile

        names = arguments.metrics.split(",")
        prompted, rest = [name for name in names if name in PROMPTED], [name for name in names if name not in PROMPTED]
        made: list[Any] = []
        for workdir in map(place, arguments.workdir):
            own = {**values, "workdir": workdir, "metrics": ",".join(rest)}
            made += [PromptEvaluation(SimpleNamespace(**own), prompted)] if prompted else []
            made += [Evaluation(SimpleNamespace(**own))] if rest else []
        texts = [each.run() for each in made]
        if len(arguments.workdir) > 1:
            files = {name: ScoreFile(place(name) / "evaluation" / "scores.json") for name in arguments.workdir}
            texts.append(
                runs_table({name: file.samples(arguments.num, arguments.step) for name, file in files.items()})
            )
        return 0, "\n".join(texts)

    return processes.run(arguments.place(), program("evaluate"), evaluate)
