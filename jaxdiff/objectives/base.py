"""The contract of an objective: what a training step minimises, with a state and frozen networks of its own."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxdiff.augmentations import Augmentation
from jaxdiff.conditioning import Cond, hidden
from jaxdiff.diffusion import Recipe
from jaxdiff.family import Family
from jaxdiff.losses import LossAware, Stratified, TimeSampling, Weighting, stratified, uniform

Batch = dict[str, jax.Array]


class Objective(NamedTuple):
    """A loss and what it needs beside the network; pure functions of arrays.

    Attributes:
      loss: (params, frozen, batch, keys [batch]) -> [batch]. The batch holds `image`, `step`, `row`, what the
        conditioner embeds, and what `draw` added; example i uses keys[i] alone.
      init: params -> the objective's own state, any pytree; saved and resumed like the rest.
      draw: (state, step key, keys, batch) -> (keys, what is added to the batch), e.g. the times "t" [batch] and the
        "weight" [batch] of each loss in the mean.
      update: (state, batch, losses) -> state, with the drawn batch and the losses of the whole global batch.
      hold: (state, params, step) -> state, before the loss, which then has it as frozen["own"]: a teacher that the
        network becomes ("teacher", sharded as parameters are).
      params: () -> parameters of its own, trained and averaged with the network's as params["objective"]; None: none.
    """

    loss: Callable[[Any, Any, Batch, jax.Array], jax.Array]
    init: Callable[[Any], Any] = lambda params: ()
    draw: Callable[[Any, jax.Array, jax.Array, Batch], tuple[jax.Array, Batch]] | None = None
    update: Callable[[Any, Batch, jax.Array], Any] | None = None
    hold: Callable[[Any, Any, jax.Array], Any] | None = None
    params: Callable[[], Any] | None = None


class Setting(NamedTuple):
    """What every objective is made of.

    Attributes:
      recipe: the network and the process.
      weighting: of losses by noise level; None: 1.
      times: how times are drawn.
      hide: how often an example's condition is hidden.
      dropout: whether the network has dropout.
      batch_size: of the global batch.
      augmentation: of the images, None for none.
    """

    recipe: Recipe
    weighting: Weighting | None
    times: TimeSampling | LossAware | Stratified
    hide: float
    dropout: bool
    batch_size: int
    augmentation: Augmentation | None = None


@dataclasses.dataclass(frozen=True)
class ObjectiveOptions:
    """The options of an objective; a member of the family is a subclass."""

    family: ClassVar[Family]
    learned_variance: ClassVar[bool] = False
    """Whether the network puts out a variance beside the prediction."""
    draws: ClassVar[bool] = True
    """Whether what it trains draws samples."""
    extra_cond: ClassVar[tuple[str, ...]] = ()
    """What the network is told beside the conditioner's cond: "r", "guidance"; see jaxdiff.models.conditions."""

    def runs(self) -> dict[str, str]:
        """{name: workdir} of other runs whose averages it takes: training begins at "start", others are frozen."""
        return {}

    def make(self, setting: Setting) -> Objective:
        """The objective.

        Raises:
          ValueError: FIELD and why it cannot go with the setting.
        """
        raise NotImplementedError


AUGMENT = 3  # what an example's key is folded with; its split in three is what it was before


class Seen(NamedTuple):
    """What a loss is made of: the network under its dropout, x_0, its condition, and a key an example for the rest."""

    predict: Callable[..., Array]
    x_0: Array
    cond: Cond
    keys: Array


def seen(setting: Setting, params: Any, frozen: Any, batch: Batch, keys: Array) -> Seen:
    """One key an example, split in three: for dropout, for hiding its condition, and for its time and noise."""
    recipe = setting.recipe
    dropout_keys, hide_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    x_0, augment = recipe.encode(frozen, batch["image"]), {}
    if setting.augmentation is not None:
        augment_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, AUGMENT)
        x_0, done = jax.vmap(setting.augmentation.apply)(augment_keys, x_0)
        augment = {"augment": done} if setting.augmentation.size else {}
    cond = recipe.embed(frozen, batch)
    if cond:
        hide = jax.vmap(lambda key: jax.random.bernoulli(key, setting.hide))(hide_keys)
        cond = hidden(cond, recipe.null(frozen, len(hide)), hide) | augment

    def predict(x_t: Array, t: Array, cond: Cond) -> Any:
        keys = dropout_keys if setting.dropout else None
        return recipe.network.apply({"params": params}, x_t, t, cond, dropout_keys=keys)

    return Seen(predict, x_0, cond, noise_keys)


def timed(
    loss: Callable[[Any, Any, Batch, jax.Array], jax.Array],
    times: TimeSampling | LossAware | Stratified,
    schedule: Any = None,
    batch_size: int = 0,
) -> Objective:
    """The objective of a loss that takes its times from batch["t"] where they are there, and else draws its own.

    Args:
      loss: as `Objective.loss`.
      times: how they are drawn.
      schedule: for stratified times.
      batch_size: likewise, rows of the global batch.
    """
    if isinstance(times, LossAware):

        def aware(state: Any, step_key: Array, keys: Array, batch: Batch) -> tuple[Array, Batch]:
            del step_key, batch
            keys, time_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            t, weight = times.sample(state, time_keys)
            return keys, {"t": t, "weight": weight}

        return Objective(
            loss,
            lambda params: times.init(),
            aware,
            lambda state, batch, losses: times.update(state, batch["t"], losses),
        )
    if isinstance(times, Stratified):

        def spread(state: Any, step_key: Array, keys: Array, batch: Batch) -> tuple[Array, Batch]:
            del state
            # Rows are folded into the step's key, 0 to batch_size - 1: this number is none of theirs.
            offset_key = jax.random.fold_in(step_key, batch_size)
            return keys, {"t": times.base(stratified(offset_key, batch["row"], batch_size), schedule)}

        return Objective(loss, draw=spread)
    return Objective(loss)


def time_sampling(setting: Setting) -> TimeSampling:
    """What a loss draws its times with where batch["t"] is not there."""
    return setting.times if callable(setting.times) else uniform


def objective_of(setting: Setting, loss: Callable[[Any, Any, Batch, jax.Array], jax.Array]) -> Objective:
    """`timed` with what the setting says."""
    return timed(loss, setting.times, setting.recipe.schedule, setting.batch_size)


def straight(name: str, setting: Setting) -> None:
    """Refuses a process other than x_t = (1 - t) x_0 + t noise, or a network that does not put out its velocity.

    Raises:
      ValueError: what would be right.
    """
    with jax.ensure_compile_time_eval():
        alpha, sigma = setting.recipe.schedule(np.array([0.0, 0.25, 1.0], np.float32))
        fits = setting.recipe.schedule.num_steps is None and np.allclose([1 - alpha, sigma], [0.0, 0.25, 1.0])
    if not fits or setting.recipe.prediction != "flow":
        raise ValueError(f"objective {name} is of straight paths: it needs diffusion.schedule flow and prediction flow")
    if setting.weighting is not None:
        raise ValueError(f"objective {name} has its own weights; leave diffusion.weighting at simple")


def check_guidance(scale: float, setting: Setting) -> None:
    """Refuses a trained-in guidance without a condition that is hidden now and then.

    Raises:
      ValueError: what would be right.
    """
    if scale != 1 and not (setting.recipe.conditioner.spec and setting.hide):
        right = "set model.num_classes and diffusion.class_dropout, or it to 1"
        raise ValueError(f"objective.guidance={scale} needs a condition that is hidden now and then: {right}")


def variance_preserving(name: str, setting: Setting) -> None:
    """Refuses a process other than a continuous one with alpha^2 + sigma^2 = 1, or a network that does not put out v.

    Raises:
      ValueError: what would be right.
    """
    with jax.ensure_compile_time_eval():
        alpha, sigma = setting.recipe.schedule(np.array([0.0, 0.25, 0.7], np.float32))
        fits = setting.recipe.schedule.num_steps is None and np.allclose(alpha**2 + sigma**2, 1.0, atol=1e-5)
    if not fits or setting.recipe.prediction != "v":
        raise ValueError(f"objective {name} is of arcs: it needs diffusion.schedule shifted_cosine and prediction v")
    if setting.weighting is not None:
        raise ValueError(f"objective {name} has its own weights; leave diffusion.weighting at simple")
