"""A number and everything it depends on; what does not compare is refused."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from jaxdiff.errors import UserError
from jaxdiff.evaluation.measure import METRICS

DEFINITIONS = 2
"""Of metrics, samples' classes and random keys: one more with every change after which a number is another one."""

LIKELIHOODS = {  # of images under the model, not of samples
    "bpd": "at most, by the variational bound: {evaluations} network evaluations an image",
    "bpd_flow": "by the probability-flow ODE: uniform dequantisation, Hutchinson's estimate, tolerance 1e-4",
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What sets of images are measured against, and with which features."""

    data: str
    """Name of the data set."""
    split: str
    """Its part."""
    n: int
    """Images of it, all of them in the moments of FID."""
    resize: str
    """How the data was brought to the model's size, and images to the extractor's."""
    extractor: str
    """Name and digest of the weights."""
    digest: str
    """SHA-256, 16 digits, of the images' fingerprint, the extractor's weights and all the above."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Metrics of n images against a reference."""

    what: str
    """The run's weights: their digest; or the split that stands in their place (the floor)."""
    step: int
    """Training step of the weights."""
    ema: float
    """Decay of the average that was sampled from."""
    sampler: str
    """Method, with eta and variance where they matter."""
    steps: int
    """Sampling steps."""
    nfe: int
    """Network evaluations an image."""
    guidance: float
    """Classifier-free scale."""
    grid: str
    """Spacing of the steps, and the threshold."""
    seed: int
    """Of the samples."""
    n: int
    """Images measured."""
    reference: Reference
    """What they were measured against."""
    images_per_s: float
    """On the machine it was measured on."""
    values: dict[str, float]
    """By metric; kid_error is the standard error of kid."""
    definitions: int = 1
    """The DEFINITIONS it was measured by; files from before they were numbered have none."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """Bits per dimension of n images under the run's weights, conditional on their classes if it has classes."""

    what: str
    """The run's weights: their digest."""
    step: int
    """Training step of the weights."""
    ema: float
    """Decay of the average."""
    kind: str
    """One of LIKELIHOODS."""
    evaluations: int
    """Network evaluations an image, 0 where the solver decides."""
    data: str
    """Name of the data set."""
    split: str
    """Its part."""
    resize: str
    """How the data was brought to the model's size."""
    digest: str
    """SHA-256, 16 digits, of the images' fingerprint and all the above."""
    seed: int
    """Of noise and dequantisation."""
    n: int
    """Images measured."""
    value: float = 0.0
    """The mean over images."""
    error: float = 0.0
    """Its standard error."""
    definitions: int = 1
    """As of Score."""


def bits_line(bits: Bits) -> str:
    """What a reader must know of the number.

    >>> bits_line(Bits("w", 500, 0.99, "bpd", 1000, "digits", "test", "data none", "d", 0, 64, 3.5, 0.25))[:58]
    '3.5 ± 0.25 bits per dimension at most, by the variational '
    """
    how = LIKELIHOODS[bits.kind].format(evaluations=bits.evaluations)
    return (
        f"{bits.value:.4g} ± {bits.error:.2g} bits per dimension {how}; {bits.n} images of {bits.data}, split "
        f"{bits.split} ({bits.digest}, {bits.resize}), seed {bits.seed}; weights {bits.what} of step {bits.step}, "
        f"EMA {bits.ema}."
    )


def identity(score: Score | Bits) -> tuple[object, ...]:
    """All that decides the numbers: two scores with the same identity are the same measurement."""
    skip = ("images_per_s", "values", "value", "error")
    return tuple(value for name, value in vars(score).items() if name not in skip)


def check_comparable(scores: Sequence[Score]) -> None:
    """Refuses to put numbers beside each other that differ by how they were measured.

    FID and the neighbour metrics are biased by an amount that depends on n; all depend on the reference.

    Raises:
      UserError: what differs.
    """
    for score in scores[1:]:
        first = scores[0]
        if score.n != first.n:
            raise UserError(f"scores of {first.n} and of {score.n} images do not compare; measure one n")
        if score.reference != first.reference:
            a, b = dataclasses.asdict(first.reference), dataclasses.asdict(score.reference)
            names = [name for name in a if a[name] != b[name]]
            changes = ", ".join(f"{name} {a[name]!r} and {b[name]!r}" for name in names)
            raise UserError(f"scores against different references do not compare: {changes}")


def table(scores: Sequence[Score], floor: Score | None) -> str:
    """A Markdown table, the floor first, and under it what all rows have in common.

    Raises:
      UserError: the rows do not compare; see `check_comparable`.
    """
    rows = [*([floor] if floor else []), *scores]
    check_comparable(rows)
    names = [name for name in METRICS.members if any(name in score.values for score in rows)]
    lines = ["| sampler | steps | NFE | " + " | ".join(names) + " | images/s |", "|---" * (4 + len(names)) + "|"]
    for score in rows:
        is_floor = score is floor
        head = f"| {score.what} (floor) | | |" if is_floor else f"| {score.sampler} | {score.steps} | {score.nfe} |"
        cells = " | ".join(_cell(score, name) for name in names)
        lines.append(f"{head} {cells} | {'' if is_floor else f'{score.images_per_s:.3g}'} |")
    common = rows[-1]
    reference = common.reference
    lines += [
        "",
        f"n = {common.n}; reference: {reference.n} images of {reference.data}, split {reference.split}, "
        f"digest {reference.digest}; features: {reference.extractor}; resize: {reference.resize}.",
    ]
    if scores:
        lines.append(
            f"Weights {common.what} of step {common.step}, EMA {common.ema}; guidance {common.guidance:g}, "
            f"{common.grid}, seed {common.seed}."
        )
    return "\n".join(lines) + "\n"


def runs_table(runs: Mapping[str, Sequence[Score]]) -> str:
    """A Markdown table over several runs: a row a way to sample and metric, with the mean and spread over the runs.

    Args:
      runs: by name, the scores of each that are to be compared.

    Raises:
      UserError: the scores do not compare; see `check_comparable`.
    """
    check_comparable([score for scores in runs.values() for score in scores])
    found: dict[tuple[object, ...], dict[str, float]] = {}
    for run, scores in runs.items():
        for score in scores:
            for name in (name for name in METRICS.members if name in score.values):
                way = score.sampler, score.steps, f"{score.guidance:g}", score.grid, score.seed, name
                found.setdefault(way, {})[run] = score.values[name]
    names = "sampler", "steps", "guidance", "grid", "seed", "metric", *runs, "mean ± standard deviation"
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for way, values in found.items():
        each, known = [f"{values[run]:.4g}" if run in values else "" for run in runs], list(values.values())
        spread = f"{statistics.mean(known):.4g} ± {statistics.stdev(known):.2g}" if len(known) > 1 else ""
        lines.append(f"| {' | '.join([*map(str, way), *each, spread])} |")
    return "\n".join(lines) + "\n"


def _cell(score: Score, name: str) -> str:
    if name not in score.values:
        return ""
    value, error = f"{score.values[name]:.4g}", score.values.get(f"{name}_error")
    return value if error is None else f"{value} ± {error:.1g}"
