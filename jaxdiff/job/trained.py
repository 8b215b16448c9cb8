"""A trained model in Python, from its run or from an exported folder: schedule, prediction, denoiser and samples."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import UInt8

from jaxdiff import diffusion, pictures
from jaxdiff.assembly.recipe import make_method, make_recipe
from jaxdiff.conditioning import Cond
from jaxdiff.config import Config, Sampling, validate
from jaxdiff.config.arguments import options_field
from jaxdiff.config.files import EXPORTED, read_run
from jaxdiff.denoisers import Denoiser
from jaxdiff.diffusion import Guidance, Recipe, make_draw
from jaxdiff.errors import UserError
from jaxdiff.interop import safetensors
from jaxdiff.keys import purpose_key
from jaxdiff.models.winograd import prepared
from jaxdiff.parallel import make_mesh
from jaxdiff.schedules import Schedule
from jaxdiff.schema import suggestion
from jaxdiff.storage import fetched
from jaxdiff.training.checkpoints import report, restore_with_meta
from jaxdiff.training.snapshots import reconstruct
from jaxdiff.training.state import TrainState, leaf_name

ABOUT = "model.json"
"""What a folder says that `jaxdiff export` wrote, beside its config and weights: step, shape, classes."""


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
    """A trained model.

    Attributes:
      config: of its run.
      recipe: its schedule, network, conditioner and codec.
      params: of the network.
      step: after which they are.
      image_shape: (h, w, c) of the images it was trained on.
      class_names: by number; () where there are none.
      known: what its conditioner took from the data, see `known_words`.
      state: all that the run saved at that step; of an exported folder only the parameters.
    """

    config: Config
    recipe: Recipe
    params: Any
    step: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state: TrainState | None = None
    _drawn: dict[Any, Any] = dataclasses.field(default_factory=dict, compare=False)  # compiled, by what they are of

    def __repr__(self) -> str:
        diffusion = self.config.diffusion
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        network = f"{type(self.config.model).__name__} of {count:,} parameters"
        return f"<{network}, x {self.recipe.shape}, {diffusion.schedule}/{diffusion.prediction}, step {self.step}>"

    @property
    def schedule(self) -> Schedule:
        """The noise schedule it was trained on."""
        return self.recipe.schedule

    def predict(self, x_t: jax.Array, t: jax.Array, cond: Cond | None = None) -> jax.Array:
        """The network's output, a `config.diffusion.prediction`, for x_t [batch, h, w, c] and t [batch] in [0, 1]."""
        return self.recipe.network.apply(prepared(self.params), x_t, t, self._cond(cond, len(x_t)))

    def cond(self, words: str | Sequence[str] = (), num: int = 1) -> Cond:
        """The condition of `num` samples: classes by name or number, or texts, in turn; of no words, all of them."""
        return self.recipe.embed(self.recipe.frozen, jax.tree.map(jnp.asarray, self._batch(words, num)))

    def _batch(self, words: str | Sequence[str], num: int) -> dict[str, np.ndarray]:
        words = [words] if isinstance(words, str) else [str(word) for word in words]
        return self.recipe.conditioner.parse(words or self.recipe.conditioner.examples, num)

    def _cond(self, cond: Cond | None, num: int) -> Cond:
        return self.recipe.null(self.recipe.frozen, num) if cond is None else cond

    def denoise(
        self, cond: Cond | None = None, guidance: float = 1.0, *, rule: str = "cfg", **options: Any
    ) -> Denoiser:
        """(x_t, t) -> Prediction, for `jaxdiff.sample` and whatever else takes a denoiser.

        Args:
          cond: from `cond`; None says nothing.
          guidance: 1 is none.
          rule: how the condition is exaggerated, a name of `jaxdiff.guidance.RULES`.
          **options: of the rule.
        """
        exaggerated = Guidance(guidance, rule, options) if cond and guidance != 1 else None

        def denoise(x_t: jax.Array, t: Any) -> Any:
            away, own = self._cond(None, len(x_t)), self._cond(cond, len(x_t))
            return diffusion.denoiser(self.recipe, self.params, own, guidance=exaggerated, away=away)(x_t, t)

        return denoise

    def draw(
        self, num: int = 16, words: str | Sequence[str] = (), *, seed: int = 0, batch_size: int = 64, **sampling: Any
    ) -> UInt8[np.ndarray, "num h w c"]:
        """Samples as images; those that `sample.py` draws with the same seed and settings.

        Other steps, eta, guidance and seeds compile nothing.

        Args:
          num: how many.
          words: classes by name or number, or texts, in turn; of none, all classes.
          seed: sample i depends on the seed and i alone.
          batch_size: how many at once.
          **sampling: fields of `jaxdiff.config.Sampling` in place of the run's own: sampler, steps, guidance, ...
        """
        batch = self._batch(words, num)
        chosen = with_sampling(self.config.sampling, sampling)
        validate(dataclasses.replace(self.config, sampling=chosen))
        method = make_method(self.recipe, chosen)
        size = min(num, batch_size)
        kind = dataclasses.replace(chosen, steps=1, guidance=float(chosen.guidance != 1), eta=None)
        how = size, len(method.times), bool(method.eta), repr(kind)
        if how not in self._drawn:
            self._drawn[how] = make_draw(self.recipe, method, size, make_mesh())
        key = purpose_key(seed, "sample")
        return pictures.to_uint8(self._drawn[how](self.params, key, num, batch, like=method))


def load(
    run: Any,
    *,
    step: int | None = None,
    weights: str = "ema",
    ema: float | None = None,
    best: bool = False,
    sharding: Sharding | None = None,
) -> Trained:
    """The model of a run's folder, or of one that `jaxdiff export` wrote.

    Args:
      run: the folder, or an address in a bucket, or of an exported one on a hub, hf://OWNER/NAME.
      step: of the checkpoint; the newest unless given.
      weights: "ema", the average, or "raw", those that were trained.
      ema: the relative width of another average, of a run with train.posthoc_ema.
      best: the checkpoint with the best evaluation instead, of a run with train.evaluate_every.
      sharding: where the parameters go; a copy on every device unless given.

    Raises:
      UserError: no run, or no such checkpoint.
      CheckpointError: the checkpoint is corrupt.
    """
    folder, sharding = fetched(run), sharding or NamedSharding(make_mesh(), PartitionSpec())
    config = read_run(folder)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights {weights!r} must be ema or raw")
    if (folder / EXPORTED).exists():
        if step is not None or ema is not None or weights != "ema" or best:
            raise UserError(f"{folder} is exported: it has one set of weights, of one step")
        params, meta = _read_exported(Path(folder), sharding)
        state = None
    else:
        state, meta = restore_with_meta(folder, step, sharding, "best" if best else "checkpoints")
        params = state.ema_params if weights == "ema" else state.params
        meta = {**meta, "step": int(state.step)}
        if ema is not None:
            params = reconstruct(folder, state, config.train.posthoc_ema, ema, sharding)
    names = tuple(meta.get("class_names") or ())
    shape, known = image_shape(meta), known_words(meta)
    recipe = make_recipe(config, shape, {"names": names, **known})
    return Trained(config, recipe, params, meta["step"], shape, names, known, state)


def _read_exported(folder: Path, sharding: Sharding) -> tuple[Any, dict[str, Any]]:
    """(parameters, what is known of them) of a folder that `jaxdiff export` wrote."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        meta = {"step": int(about["step"]), "shape": about["shape"], "class_names": about["class_names"]}
        meta |= {"known": about.get("known")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ABOUT} cannot be read ({error}); export the run again") from None
    params: dict[str, Any] = {}
    for name, leaf in safetensors.read(folder / EXPORTED).items():
        *path, last = name.split(".")
        within = params
        for part in path:
            within = within.setdefault(part, {})
        within[last] = jax.device_put(np.asarray(leaf), sharding)
    return params, meta


def initial_leaves(init: str, weights: str, wanted: Any) -> dict[str, np.ndarray]:
    """The leaves that a new run takes from the `weights`, ema or raw, of another, by name; {} where init names none.

    Leaves that only one of the two has, or that have other shapes there, begin anew, and are listed.

    Raises:
      UserError: no such run, or none of its leaves fits.
    """
    if not init:
        return {}
    source = load(init, weights=weights)
    given = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source.params)}
    own = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)}
    fits = {name for name, leaf in own.items() if name in given and given[name].shape == leaf.shape}
    if not fits:
        raise UserError(f"init: no parameter of {init} has the name and shape of one of this network")
    report(f"note: {len(fits)} of {len(own)} parameters begin as in {init}, step {source.step}")
    for name in (name for name in {**own, **given} if name not in fits):
        shapes = [str(tree[name].shape) if name in tree else "none" for tree in (given, own)]
        report(f"note: {name} begins anew: {shapes[0]} there, {shapes[1]} here")
    return {name: np.asarray(given[name]) for name in fits}


def image_shape(meta: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape of the images the run was trained on, from its checkpoint.

    Raises:
      UserError: the checkpoint does not say.
    """
    shape = meta.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 0 < n <= 4096 for n in shape)):
        raise UserError("the checkpoint does not say what shape its images have; it is not one of train.py")
    h, w, c = shape
    return h, w, c


def known_words(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What `make_conditioner` is to know beside the names of classes: what the run's took from its data.

    Raises:
      UserError: it is not as train.py writes it.
    """
    known = meta.get("known") or {}
    texts = known.values() if isinstance(known, dict) else [None]
    if not all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in texts):
        raise UserError("the checkpoint does not say the words of its captions as train.py does")
    return {"known": known} if known else {}


def with_sampling(base: Sampling, overrides: Mapping[str, Any]) -> Sampling:
    """A way to sample with other settings, None for the same; options go with the member they are of.

    Raises:
      UserError: an unknown setting.

    >>> with_sampling(Sampling(eta=0.5), {"sampler": "unipc", "steps": 9}).eta
    """
    names = [field.name for field in dataclasses.fields(Sampling)]
    for name in overrides:
        if name not in names:
            raise UserError(f"sampling has no {name!r}{suggestion(name, names)}")
    for field in ("sampler", "guidance_rule", "spacing", "threshold"):
        options, name, given = options_field(field), overrides.get(field), {}
        if name not in (None, getattr(base, field)):
            given = {field: name, options: {}}
            if field == "sampler":  # eta and variance were the other sampler's
                given |= {"eta": None, "variance": "small"}
        base = dataclasses.replace(base, **given)
        base = dataclasses.replace(base, **{options: {**getattr(base, options), **overrides.get(options, {})}})
    rest = {name: value for name, value in overrides.items() if value is not None and not name.endswith("_options")}
    return dataclasses.replace(base, **rest)
