"""Evaluation while training: metrics and validation loss, their curves, the best checkpoint, early stopping."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import pictures
from jaxdiff.assembly.assemble import Assembly
from jaxdiff.errors import UserError
from jaxdiff.evaluation.chart import chart
from jaxdiff.evaluation.features import choose
from jaxdiff.evaluation.measure import METRICS, MORE_IS_BETTER, measure
from jaxdiff.job.comparison import Comparison, check_num
from jaxdiff.job.validation import Validation
from jaxdiff.job.weak_model import weak_params
from jaxdiff.parallel import processes
from jaxdiff.storage import Place
from jaxdiff.training.checkpoints import Checkpoints, report
from jaxdiff.training.hooks import make_cadence
from jaxdiff.training.logs import Log
from jaxdiff.training.state import TrainState

BEST = "best"
"""The folder of a workdir that the best checkpoint lies in."""
_BATCH = 250


class Evaluations:
    """What is measured of a run now and then, with keys of its own: training goes on as without it.

    Everything is checked when it is made, before anything is written; `begin` says where the run got to.

    Args:
      run: what is measured.

    Raises:
      UserError: there is nothing to compare with, or no held-out images.
    """

    def __init__(self, run: Assembly):
        self._run, train = run, run.train
        self._metrics = [name for name in train.evaluate_metrics if name in METRICS.members]
        self.every, self.history = make_cadence(train.evaluate_every), []
        self._comparison = self._validation = None

        if self._metrics:
            source = run.reopen()  # its own: what it finds corrupt is none of the training's
            check_num(train.evaluate_num, source, self._metrics, "train.evaluate_num")
            extractor = choose(train.evaluate_features or None, source.shape)
            size = min(_BATCH, train.evaluate_num)
            how = extractor, train.evaluate_num, size, run.program.mesh
            self._comparison = Comparison(run.recipe, source, *how)
            self._sampled = self._comparison.sampled(run.sampling)
        if "validation_loss" in train.evaluate_metrics:
            path, folder = train.evaluate_path, run.data.name == "folder"
            if folder and not path:
                raise UserError("a folder has no test split; name one of held-out images by train.evaluate_path")
            held_out = run.reopen(split="train" if folder else "test", path=path or run.data.path)
            if (held_out.shape, held_out.num_classes) != (run.source.shape, run.source.num_classes):
                raise UserError(
                    f"held-out images are {held_out.shape} of {held_out.num_classes} classes; those of training are "
                    f"{run.source.shape} of {run.source.num_classes}"
                )
            self._validation = Validation(run, held_out, train.evaluate_num)

    def begin(
        self,
        workdir: Place,
        history: list[Any],
        log: Log | None,
        about: Callable[[dict[str, Any]], dict[str, Any]],
        stack: contextlib.ExitStack,
    ) -> None:
        """Goes on from a start of the run.

        Args:
          workdir: of the run.
          history: (step, values) of all evaluations before its checkpoint.
          log: of process 0.
          about: metrics of a step -> what is saved beside a checkpoint.
          stack: closes what is opened.
        """
        self.history[:] = [(step, values) for step, values in history]
        self._workdir, self._log, self._about = workdir, log, about
        self._best = stack.enter_context(Checkpoints(workdir, 1, folder=BEST)) if self._run.train.best else None
        copies = NamedSharding(self._run.program.mesh, PartitionSpec())
        self._weak = weak_params(self._run.sampling, workdir, None, copies) if self._metrics else None

    def __call__(self, step: int, metrics: dict[str, Any], state: TrainState) -> None:
        """A hook's call: measures the average, writes, and keeps the checkpoint if it is the best so far."""
        values: dict[str, float] = {}
        if self._comparison:
            samples, _ = self._sampled(state.ema_params, self._run.seed, self._weak)
            values |= measure(self._comparison.real, samples, self._metrics)
        if self._validation:
            values |= self._validation(state.ema_params)
        values = processes.from_first(values)
        self.history.append((step, values))
        is_best = self._best is not None and self._best_step() == step
        if is_best:
            assert self._best is not None
            self._best.save(state, self._about(metrics))
        if self._log:
            self._log.write(step, values)
            self._draw_curves()
            shown = ", ".join(f"{name} {values[name]:.5g}" for name in self._run.train.evaluate_metrics)
            report(f"step {step}: {shown}{' (the best so far)' if is_best else ''}")

    def owed(self, step: int) -> bool:
        """Whether the step that a start begins with was to be measured, and the start before stopped at it."""
        due = isinstance(self.every, int) and step > 0 and step % self.every == 0
        return due and not self.finished and all(done != step for done, _ in self.history)

    @property
    def finished(self) -> bool:
        """Whether the best metric has not improved for so many evaluations that the run ends early."""
        train = self._run.train
        later = [step for step, _ in self.history if step > self._best_step()]
        return bool(train.patience) and len(later) >= train.patience

    def closing(self, done: int, workdir: Place) -> str:
        """The line of a run that ended early."""
        train, step = self._run.train, self._best_step()
        value = dict(self.history)[step][train.best]
        return (
            f"done: stopped early after step {done} of {train.steps}: {train.best} has not improved for "
            f"{train.patience} evaluations; the best, {value:.5g} at step {step}, is in {workdir / BEST}"
        )

    def _best_step(self) -> int:
        """The first step with the best value; 0 where there is none."""
        name = self._run.train.best
        sign = -1 if name in MORE_IS_BETTER else 1
        known = [(sign * values.get(name, math.nan), step) for step, values in self.history]
        return min((one for one in known if math.isfinite(one[0])), default=(0, 0))[1]

    def _draw_curves(self) -> None:
        """evaluation/curves/METRIC.png, a line each, or one a noise level; what is not positive is left out."""
        for metric in self._run.train.evaluate_metrics:
            names = [name for name in self.history[-1][1] if name in (metric, f"{metric}_{name.rpartition('_')[2]}")]
            points = {name: [(step, values.get(name, 0)) for step, values in self.history] for name in names}
            lines = {name: [point for point in line if point[1] > 0] for name, line in points.items()}
            if lines := {name: line for name, line in lines.items() if line}:
                image = chart(lines, None, metric, "step")
                pictures.write_png(self._workdir / "evaluation" / "curves" / f"{metric}.png", image)
