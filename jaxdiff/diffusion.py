"""Recipe, denoiser, draw: what a run gives, and a Stable Diffusion folder gives alike, and samples of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxdiff import parallel
from jaxdiff.codecs import Codec
from jaxdiff.conditioning import Cond, Conditioner
from jaxdiff.denoisers import Denoiser, Span, as_denoiser
from jaxdiff.guidance import RULES
from jaxdiff.models.winograd import prepared
from jaxdiff.parallel import processes
from jaxdiff.process import add_noise
from jaxdiff.samplers import Sampler, Trajectory, inpaint, sample, sample_keys
from jaxdiff.samplers.base import normal_like
from jaxdiff.schedules import Schedule


class Recipe(NamedTuple):
    """A trained, or to be trained, model: everything that samples, losses and likelihoods are made of.

    Attributes:
      schedule: the noise schedule.
      prediction: what the network puts out, see `jaxdiff.process`.
      network: a module; `network.apply(variables, x_t, t, cond, dropout_keys=None)`, cond a dict.
      conditioner: of its cond.
      codec: of its x.
      shape: of one x.
      learned_variance: whether the output has a variance beside the prediction.
      frozen: parameters of the codec and of the conditioner, by these names; arguments of every program.
      extra_cond: what of cond the sampling says, and not the conditioner: "r" (a network of two times), "guidance".
      draws: whether the network predicts, and samples can be drawn with it.
    """

    schedule: Schedule
    prediction: str
    network: Any
    conditioner: Conditioner
    codec: Codec
    shape: tuple[int, int, int]
    learned_variance: bool = False
    frozen: Mapping[str, Any] = {}
    extra_cond: tuple[str, ...] = ()
    draws: bool = True

    def embed(self, frozen: Mapping[str, Any], batch: dict[str, jax.Array]) -> Cond:
        """The cond of a batch of the data."""
        return self.conditioner.embed(frozen.get("conditioner"), batch)

    def null(self, frozen: Mapping[str, Any], num: int) -> Cond:
        """The cond of `num` examples of which nothing is said."""
        return self.conditioner.null(frozen.get("conditioner"), num)

    def encode(self, frozen: Mapping[str, Any], image: jax.Array) -> jax.Array:
        """Images uint8 [batch, h, w, c] -> x."""
        return self.codec.encode(frozen.get("codec"), image)

    def decode(self, frozen: Mapping[str, Any], x: jax.Array) -> jax.Array:
        """x -> images, about [-1, 1]."""
        return self.codec.decode(frozen.get("codec"), x)


class Guidance(NamedTuple):
    """How a condition is exaggerated.

    Attributes:
      scale: 1 is plain conditional sampling; it may be traced.
      rule: a name in `jaxdiff.guidance.RULES`.
      options: of the rule.
    """

    scale: ArrayLike
    rule: str = "cfg"
    options: dict[str, Any] = {}  # noqa: RUF012

    @property
    def needs_weak(self) -> bool:
        """Whether the second denoiser is a worse model, rather than this one told nothing."""
        return self.rule == "autoguidance"

    def of(self, denoise: Denoiser, other: Denoiser, schedule: Schedule) -> Denoiser:
        """The guided denoiser: towards the first, away from the other."""
        return RULES.build(self.rule, self.options, denoise, other, self.scale, schedule=schedule)


def denoiser(
    recipe: Recipe,
    params: Any,
    cond: Cond,
    *,
    guidance: Guidance | None = None,
    away: Cond | None = None,
    weak: Any = None,
    threshold: Callable[[Denoiser], Denoiser] | None = None,
    schedule: Schedule | None = None,
) -> Denoiser:
    """The recipe's network under a condition as a denoiser: guided, then thresholded.

    Args:
      recipe: the model.
      params: of its network, usually the EMA.
      cond: what it is told, a dict of [batch, ...].
      guidance: None for none. Where the network itself is told the scale (`extra_cond`), that is all it does.
      away: the cond that guidance goes away from, usually `Recipe.null`.
      weak: parameters of the worse model that autoguidance goes away from instead.
      threshold: Denoiser -> Denoiser, of x_0; None for none. Not of a `Span`, whose x_0 is no image.
      schedule: another than the recipe's, e.g. `schedules.interpolate` of it.
    """
    schedule, scale = schedule or recipe.schedule, None
    if "guidance" in recipe.extra_cond:
        scale, guidance = 1.0 if guidance is None else guidance.scale, None

    def plain(params: Any, cond: Cond) -> Denoiser:
        variables = prepared(params)
        if recipe.conditioner.encoder is not None:  # once for the whole walk
            cond = recipe.network.apply(variables, cond, method="encode")

        def predict(x_t: jax.Array, t: jax.Array, cond: Cond) -> Any:
            if scale is not None:
                cond = {**cond, "guidance": jnp.broadcast_to(jnp.asarray(scale, jnp.float32), x_t.shape[:1])}
            return recipe.network.apply(variables, x_t, t, cond)

        how = {"prediction": recipe.prediction, "learned_variance": recipe.learned_variance}
        how["two_times"] = "r" in recipe.extra_cond
        return as_denoiser(predict, schedule=schedule, cond=cond, **how)

    denoise = plain(params, cond)
    if guidance is not None:
        other = plain(weak, cond) if guidance.needs_weak else plain(params, away or {})
        denoise = guidance.of(denoise, other, schedule)
    if threshold is None:
        return denoise
    limited = threshold(denoise)
    return lambda x_t, t: (denoise if isinstance(t, Span) else limited)(x_t, t)


class Method(NamedTuple):
    """How samples are drawn.

    Attributes:
      sampler: eta -> the sampler; eta may be traced, and does nothing where the sampler has none.
      times: [N + 1], descending, padded with zeros so that other numbers of steps compile nothing.
      eta: randomness, 0 to 1.
      guidance: None for none; its scale is a value of the program.
      threshold: of x_0; None for none.
      start: time -> what unit noise is multiplied by there; None: the schedule's sigma.
      rounds: of RePaint at each step, where a part of the image is known.
    """

    sampler: Callable[[Any], Sampler]
    times: np.ndarray
    eta: float = 0.0
    guidance: Guidance | None = None
    threshold: Callable[[Denoiser], Denoiser] | None = None
    start: Callable[[Any], jax.Array] | None = None
    rounds: int = 1


def make_draw(
    recipe: Recipe, method: Method, batch_size: int, mesh: Mesh, *, trajectory: bool = False
) -> Callable[..., Any]:
    """(params, key, num, batch, first=0, ...) -> samples first, first + 1, ...: images [num, h, w, c] in NumPy.

    They are drawn batch_size at a time over all devices. Every process calls it, and gets all samples.

    Sample i depends on key and i alone (`jaxdiff.sample_keys`). One program draws every batch: a last, smaller one
    is drawn whole and cut. Times, eta and the guidance scale are values of that program and not part of it, so that
    another number of steps compiles nothing, and neither does another eta or guidance (but switching them on or off).

    Args:
      recipe: the model.
      method: how to draw.
      batch_size: rounded up to a multiple of the devices.
      mesh: the devices.
      trajectory: return (samples, Trajectory) of one batch; its memory, and the program, grow with the steps.

    Returns:
      The function. `batch` is what the conditioner embeds, NumPy [num, ...]. Keywords: `away`, the batch that guidance
      goes away from in place of the null cond; `weak`, parameters of autoguidance's worse model; `images`, uint8
      [num, h, w, c], from whose noised selves the walk starts at times[0], and `mask`, bool [num, h, w, 1], True where
      they stay as they are; `like`, a method that differs in times of as many steps or fewer, eta and scale alone.
    """
    schedule = recipe.schedule
    batch_size = -(-batch_size // mesh.size) * mesh.size
    rows = NamedSharding(mesh, P(mesh.axis_names))

    @jax.jit
    def run(params, frozen, weak, key, start, batch, away, given, times, eta, scale):
        keys = jax.lax.with_sharding_constraint(sample_keys(key, batch_size, start), rows)
        cond, guidance, other = recipe.embed(frozen, batch), None, None
        if method.guidance is not None:
            guidance = method.guidance._replace(scale=scale)
            other = recipe.embed(frozen, away) if away else recipe.null(frozen, batch_size)
        how = {"guidance": guidance, "away": other, "weak": weak, "threshold": method.threshold}
        denoise = denoiser(recipe, params, cond, **how)
        sampler, x_T = method.sampler(eta if method.eta else 0.0), None
        if given or method.start is not None:
            noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)[0]  # which `sample` would draw x_T with
            noise = normal_like(noise_keys, jnp.zeros((batch_size, *recipe.shape)))
        if given:
            x_0 = recipe.encode(frozen, given["image"])
            x_T = add_noise(x_0, noise, schedule(times[0]))
            if "mask" in given:
                sampler = inpaint(sampler, _like_x(given["mask"], x_0), x_0, method.rounds)
        elif method.start is not None:
            x_T = method.start(times[0]) * noise
        how = {"times": times, "schedule": schedule, "x_T": x_T, "shape": recipe.shape, "trajectory": trajectory}
        samples = sample(keys, denoise, sampler, **how)
        x, walk = samples if trajectory else (samples, None)
        if "mask" in given:  # their times may end a little before 0
            x = jnp.where(_like_x(given["mask"], x_0), x_0, x)
        x = recipe.decode(frozen, x)
        if walk is None:
            return x
        return x, Trajectory(*(jax.lax.map(lambda x: recipe.decode(frozen, x), part) for part in walk))

    def draw(
        params: Any,
        key: jax.Array,
        num: int,
        batch: dict[str, np.ndarray],
        first: int = 0,
        *,
        away: dict[str, np.ndarray] | None = None,
        weak: Any = None,
        images: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        like: Method = method,
    ) -> Any:
        scale = np.asarray(like.guidance.scale if like.guidance else 1.0, np.float32)
        given = {name: value for name, value in (("image", images), ("mask", mask)) if value is not None}
        batches = []
        for start in range(0, num, batch_size):
            indices = np.minimum(start + np.arange(batch_size), num - 1)
            placed = jax.tree.map(lambda x, i=indices: parallel.put(x[i], rows), (batch, away or {}, given))
            values = (like.times, np.float32(like.eta), scale)
            batches.append(whole(run(params, recipe.frozen, weak, key, np.int32(first + start), *placed, *values)))
        if trajectory:
            x, walk = batches[0]
            return x[:num], Trajectory(walk.x_t[:, :num], walk.x_0[:, :num])
        return np.concatenate(batches)[:num]

    return draw


def _like_x(mask: jax.Array, x_0: jax.Array) -> jax.Array:
    """A mask of pixels as one of x: a place of x is known where all of its pixels are.

    >>> _like_x(jnp.ones((1, 4, 4, 1), bool).at[0, 0, 0].set(False), jnp.zeros((1, 2, 2, 8)))[0, :, :, 0].tolist()
    [[False, True], [True, True]]
    """
    batch, h, w, _ = mask.shape
    rows, columns = x_0.shape[1:3]
    return mask.reshape(batch, rows, h // rows, columns, w // columns, 1).all(axis=(2, 4))


def strength_times(times: np.ndarray, strength: float) -> np.ndarray:
    """The last part of a walk, for image to image: strength in (0, 1] of its steps, at least one, padded as before.

    >>> strength_times(np.array([1.0, 0.75, 0.5, 0.25, 0.0], np.float32), 0.5).tolist()
    [0.5, 0.25, 0.0, 0.0, 0.0]
    """
    steps = int(np.count_nonzero(np.diff(times)))
    skipped = steps - max(1, round(steps * strength))
    return np.append(times[skipped:], np.repeat(times[-1:], skipped))


def whole(tree: Any) -> Any:
    """Global arrays in NumPy, in every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        processes.barrier_after_compiling("what makes the arrays")
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
