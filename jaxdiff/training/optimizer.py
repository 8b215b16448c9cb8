"""Optimizers and learning-rate schedules: two families by name, with clipping, warm-up and one rule for weight decay.

`OPTIMIZERS` and `LEARNING_RATES` are the registries. A member is a factory: what comes before the slash is handed over
by `make_optimizer`, the keyword parameters after it are the member's options.

An optimizer takes (rate, weight_decay, is_matrix): the learning-rate schedule, the decay, and (params) -> tree of
bool. A schedule takes (peak, warmup_steps, steps) and gives the learning rate of update n = 0, 1, ...
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.family import Family
from jaxdiff.training.state import leaf_name

if TYPE_CHECKING:
    from optax import GradientTransformation
else:
    GradientTransformation = Any  # optax is imported where an optimizer is made: sampling reads the options alone

Rate = Callable[[Any], Any]
Mask = Callable[[Any], Any]

_NOT_DECAYED = re.compile(r"bias|scale|gain|embed|token")  # in the last part of a leaf's name


def is_matrix(params: Any) -> Any:
    """Which leaves are weight matrices or convolution kernels: those decay acts on, and Muon orthogonalises.

    A leaf of two or more axes, unless its own name (the last part of its path) has bias, scale, gain, embed or token
    in it: norms, biases, embeddings and learned tokens stay out, also where layers are stacked on a leading axis.

    Args:
      params: a tree of arrays.

    Returns:
      The same tree of bool.

    >>> params = {"dense": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}, "classes": {"embedding": np.ones((9, 2))}}
    >>> is_matrix(params)
    {'classes': {'embedding': False}, 'dense': {'bias': False, 'kernel': True}}
    """

    def decide(path: tuple, leaf: Any) -> bool:
        return leaf.ndim > 1 and not _NOT_DECAYED.search(leaf_name(path).rpartition("/")[2])

    return jax.tree_util.tree_map_with_path(decide, params)


def adamw(
    rate: Rate,
    weight_decay: float,
    mask: Mask,
    /,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2)."""
    import optax

    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, nesterov=nesterov, weight_decay=weight_decay, mask=mask)


def adam(
    rate: Rate,
    weight_decay: float,
    mask: Mask,
    /,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam without weight decay (Kingma and Ba 2015, Algorithm 1)."""
    import optax

    del mask
    if weight_decay:
        raise ValueError(f"adam has no weight decay; set weight_decay to 0, not {weight_decay}, or choose adamw")
    return optax.adam(rate, b1=b1, b2=b2, eps=eps, nesterov=nesterov)


def lion(rate: Rate, weight_decay: float, mask: Mask, /, b1: float = 0.9, b2: float = 0.99) -> GradientTransformation:
    """Lion, the sign of a momentum (Chen et al. 2023, Algorithm 2): 3 to 10 times less rate than AdamW, more decay."""
    import optax

    return optax.lion(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)


def adafactor(
    rate: Rate,
    weight_decay: float,
    mask: Mask,
    /,
    min_dim_size_to_factor: int = 128,
    momentum: float | None = None,
) -> GradientTransformation:
    """Adafactor, second moments by rows and columns (Shazeer and Stern 2018, Algorithms 4 and 5).

    Where optax decays by the bare weight_decay, the decay here is multiplied by the rate as everywhere else.
    """
    import optax

    return optax.adafactor(
        rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        momentum=momentum,
        weight_decay_rate=(lambda count: weight_decay * rate(count)) if weight_decay else None,
        weight_decay_mask=mask,
    )


def muon(
    rate: Rate,
    weight_decay: float,
    mask: Mask,
    /,
    beta: float = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    consistent_rms: float | None = None,
) -> GradientTransformation:
    """Muon, the orthogonalised momentum of matrices (Jordan et al. 2024); all other leaves by Adam at the same rate.

    A convolution is the matrix (height * width * inputs, outputs); an odd number of axes means stacked layers, each
    orthogonalised by itself. Rates near 0.02 are usual; with consistent_rms=0.2 (Liu et al. 2025, equation 4) those
    of AdamW.
    """
    from optax import contrib

    def dimensions(params: Any) -> Any:
        def axes(leaf: Any, matrix: bool) -> Any:
            inputs = tuple(range(leaf.ndim % 2, leaf.ndim - 1))
            return contrib.MuonDimensionNumbers(inputs, (leaf.ndim - 1,)) if matrix else None

        return jax.tree.map(axes, params, mask(params))

    return contrib.muon(
        rate,
        beta=beta,
        ns_steps=ns_steps,
        nesterov=nesterov,
        consistent_rms=consistent_rms,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
        muon_weight_dimension_numbers=dimensions,
    )


def sgd(
    rate: Rate, weight_decay: float, mask: Mask, /, momentum: float = 0.0, nesterov: bool = False
) -> GradientTransformation:
    """Gradient descent with momentum, the decay decoupled from it (Loshchilov and Hutter 2019, Algorithm 1)."""
    import optax

    return optax.chain(
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS = Family(
    "optimizer", {"adamw": adamw, "adam": adam, "lion": lion, "adafactor": adafactor, "muon": muon, "sgd": sgd}
)


def _warm(peak: float, warmup_steps: int, n: Any) -> Any:
    """Peak, reached linearly: the first update has peak/warmup_steps, the last of the warm-up all of it."""
    return peak * n.__array_namespace__().minimum(1.0, (n + 1) / max(warmup_steps, 1))


def _check_end(end: float) -> None:
    if not 0 <= end <= 1:
        raise ValueError(f"end={end} is out of range; it is a part of the learning rate, 0 to 1")


def _annealed(name: str, warmup_steps: int, steps: int | None) -> int:
    """Updates after the warm-up."""
    if steps is None:
        raise ValueError(f"the {name} schedule needs to know the steps of the run; give steps")
    if steps <= warmup_steps:
        raise ValueError(f"the {name} schedule needs more steps than the warm-up: steps={steps}, {warmup_steps=}")
    return steps - warmup_steps


def constant(peak: float, warmup_steps: int, steps: int | None, /) -> Rate:
    """Warm-up, then the same rate for ever: peak min(1, (n + 1)/warmup_steps)."""
    del steps
    return lambda n: _warm(peak, warmup_steps, n)


def cosine(peak: float, warmup_steps: int, steps: int | None, /, end: float = 0.0) -> Rate:
    """Warm-up, then half a cosine down to end * peak after the last step (Loshchilov and Hutter 2017, equation 5)."""
    _check_end(end)
    length = _annealed("cosine", warmup_steps, steps)

    def rate(n: Any) -> Any:
        xp = n.__array_namespace__()
        part = xp.clip((n - warmup_steps) / length, 0.0, 1.0)
        return _warm(peak, warmup_steps, n) * (end + (1 - end) * (1 + xp.cos(np.pi * part)) / 2)

    return rate


def linear(peak: float, warmup_steps: int, steps: int | None, /, end: float = 0.0) -> Rate:
    """Warm-up, then a straight line down to end * peak after the last step."""
    _check_end(end)
    length = _annealed("linear", warmup_steps, steps)

    def rate(n: Any) -> Any:
        part = n.__array_namespace__().clip((n - warmup_steps) / length, 0.0, 1.0)
        return _warm(peak, warmup_steps, n) * (1 - (1 - end) * part)

    return rate


def inverse_sqrt(peak: float, warmup_steps: int, steps: int | None, /, decay_from: int = 70_000) -> Rate:
    """Warm-up, then peak/sqrt(max(n/decay_from, 1)), without an end (Karras et al. 2024, EDM2, equation 67).

    decay_from is their t_ref in updates: 70,000 for ImageNet-512 in latents, 35,000 for ImageNet-64, of 2,048 images.
    """
    del steps
    if decay_from < 1:
        raise ValueError(f"decay_from={decay_from} is out of range; it is a number of updates, >= 1")

    def rate(n: Any) -> Any:
        xp = n.__array_namespace__()
        return _warm(peak, warmup_steps, n) / xp.sqrt(xp.maximum(n / decay_from, 1.0))

    return rate


def wsd(
    peak: float,
    warmup_steps: int,
    steps: int | None,
    /,
    decay: float = 0.2,
    end: float = 0.0,
    shape: Literal["linear", "sqrt"] = "linear",
) -> Rate:
    """Warm-up, a stable rate, and a decay to end * peak over the last part `decay` of all steps (Hu et al. 2024).

    With s from 0 to 1 over the decay, the rate falls by 1 - s, or by 1 - sqrt(s) (Haegele et al. 2024, equation 1).
    Up to the decay a run does not depend on its length, so that one can be lengthened.
    """
    _check_end(end)
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} is out of range; it is a part of all steps, above 0 and up to 1")
    if shape not in ("linear", "sqrt"):
        raise ValueError(f"shape={shape!r} is unknown; use 'linear' or 'sqrt'")
    length = min(_annealed("wsd", warmup_steps, steps), round(decay * (steps or 0)) or 1)

    def rate(n: Any) -> Any:
        xp = n.__array_namespace__()
        part = xp.clip((n - (steps or 0) + length) / length, 0.0, 1.0)
        return _warm(peak, warmup_steps, n) * (1 - (1 - end) * (xp.sqrt(part) if shape == "sqrt" else part))

    return rate


LEARNING_RATES = Family(
    "learning-rate schedule",
    {"constant": constant, "cosine": cosine, "linear": linear, "inverse_sqrt": inverse_sqrt, "wsd": wsd},
)


def make_learning_rate(
    learning_rate: float,
    warmup_steps: int = 0,
    schedule: str = "constant",
    schedule_options: Mapping[str, Any] = {},
    steps: int | None = None,
) -> Rate:
    """The learning rate of update n = 0, 1, ..., an integer array; NumPy in, NumPy out.

    n counts applied updates: a batch that the NaN guard skips does not move the schedule, nor does the number of
    devices.

    Args:
      learning_rate: the rate after warm-up, > 0.
      warmup_steps: updates until the full rate, >= 0; the first update already moves.
      schedule: a name of `LEARNING_RATES`.
      schedule_options: its own.
      steps: of the run, for the schedules that end.

    Raises:
      ValueError: an argument is outside its range, or a name or option is unknown.

    >>> rate = make_learning_rate(0.1, 2, "cosine", {"end": 0.1}, steps=6)
    >>> [round(float(rate(np.asarray(n))), 4) for n in range(7)]
    [0.05, 0.1, 0.1, 0.0868, 0.055, 0.0232, 0.01]
    """
    for name, value, legal, bound in (
        ("learning_rate", learning_rate, learning_rate > 0, "> 0"),
        ("warmup_steps", warmup_steps, warmup_steps >= 0, ">= 0"),
    ):
        if not legal:
            raise ValueError(f"{name}={value} is out of range; it must be {bound}")
    return LEARNING_RATES.build(schedule, schedule_options, learning_rate, warmup_steps, steps)


def make_optimizer(
    learning_rate: float,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    name: str = "adamw",
    options: Mapping[str, Any] = {},
    **schedule: Any,
) -> GradientTransformation:
    """Clip the global norm, then an optimizer of `OPTIMIZERS`, at the rate of `make_learning_rate`.

    Args:
      learning_rate: the rate after warm-up, > 0.
      warmup_steps: updates until the full rate, >= 0; the first update already moves.
      weight_decay: decoupled decay, >= 0, multiplied by the rate; it acts on the leaves that `is_matrix` names.
      clip_norm: largest global norm of the gradient, > 0 (inf: no clipping).
      name: of the optimizer.
      options: its own.
      **schedule: schedule, schedule_options and steps, as `make_learning_rate` takes them.

    Returns:
      An optax transformation whose state depends on the parameters' structure alone.

    Raises:
      ValueError: an argument is outside its range, or a name or option is unknown.

    >>> import jax.numpy as jnp
    >>> optimizer = make_optimizer(0.1, warmup_steps=2)
    >>> params = {"w": jnp.zeros(1)}
    >>> updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)
    >>> round(float(updates["w"][0]), 6)
    -0.05
    """
    import optax

    for argument, value, legal, bound in (
        ("weight_decay", weight_decay, weight_decay >= 0, ">= 0"),
        ("clip_norm", clip_norm, clip_norm > 0, "> 0"),
    ):
        if not legal:
            raise ValueError(f"{argument}={value} is out of range; it must be {bound}")
    rate = make_learning_rate(learning_rate, warmup_steps, **schedule)

    def traced(count: Any) -> Float[Array, ""]:
        return rate(jnp.asarray(count))

    optimizer = OPTIMIZERS.build(name, options, traced, weight_decay, is_matrix)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def projected(optimizer: GradientTransformation, project: Callable[[Any], Any]) -> GradientTransformation:
    """The optimizer, after which parameters are project(params); its state is the optimizer's.

    >>> import jax.numpy as jnp, optax
    >>> on_circle = projected(optax.sgd(1.0), lambda w: w / jnp.linalg.norm(w))
    >>> w = jnp.array([1.0, 0.0])
    >>> updates, _ = on_circle.update(jnp.array([0.0, -1.0]), on_circle.init(w), w)
    >>> optax.apply_updates(w, updates).round(3)
    Array([0.707, 0.707], dtype=float32)
    """
    import optax

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda new, old: new - old, project(optax.apply_updates(params, updates)), params), state

    return optax.GradientTransformation(optimizer.init, update)  # type: ignore[arg-type]
