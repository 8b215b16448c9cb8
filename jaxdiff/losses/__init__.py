"""Training losses: per example, unreduced. A loss, its weighting and its time sampling do not know each other."""

from collections.abc import Callable
from typing import Any

from jaxdiff.family import Family
from jaxdiff.keys import example_keys
from jaxdiff.losses.consistency import consistency_loss, narrowing
from jaxdiff.losses.continuous_consistency import continuous_consistency_loss
from jaxdiff.losses.denoising import denoising_loss
from jaxdiff.losses.latent_consistency import latent_consistency_loss
from jaxdiff.losses.mean_flow import mean_flow_loss
from jaxdiff.losses.progressive import progressive_loss
from jaxdiff.losses.shortcut import shortcut_loss
from jaxdiff.losses.time_sampling import (
    LossAware,
    LossHistory,
    Stratified,
    TimeSampling,
    log_normal,
    logit_normal,
    loss_aware,
    stratified,
    uniform,
    uniform_log_snr,
    uniforms,
)
from jaxdiff.losses.variational import Bound, bits_per_dim, bound_term, hybrid_loss, prior_term, variational_bound
from jaxdiff.losses.weightings import (
    Weighting,
    Weights,
    edm,
    from_log_snr,
    min_snr,
    output_weight,
    p2,
    sigmoid,
    simple,
    truncated_snr,
)

WEIGHTINGS = Family(
    "weighting",
    {"simple": simple, "min_snr": min_snr, "truncated_snr": truncated_snr, "p2": p2, "sigmoid": sigmoid, "edm": edm},
)


def _uniform() -> TimeSampling:
    """Uniform on k/T, k = 1..T, or on [1e-5, 1] of a continuous schedule (Ho et al. 2020, algorithm 1)."""
    return uniform


def _stratified(base: str = "uniform", **options: Any) -> Stratified:
    """Another sampling's times, evenly spread over each batch (Kingma et al. 2021, VDM, appendix I.1)."""
    if base in ("stratified", "loss_aware"):
        raise ValueError(
            f"stratified has no base {base!r}; it spreads uniform, uniform_log_snr, log_normal, logit_normal"
        )
    return Stratified(TIME_SAMPLINGS.build(base, options))


_TIME_SAMPLINGS: dict[str, Callable[..., Any]] = {
    "uniform": _uniform,
    "stratified": _stratified,
    "uniform_log_snr": uniform_log_snr,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "loss_aware": loss_aware,
}
TIME_SAMPLINGS = Family("time sampling", _TIME_SAMPLINGS, given=("num_steps",))

__all__ = [
    "TIME_SAMPLINGS",
    "WEIGHTINGS",
    "Bound",
    "LossAware",
    "LossHistory",
    "Stratified",
    "TimeSampling",
    "Weighting",
    "Weights",
    "bits_per_dim",
    "bound_term",
    "consistency_loss",
    "continuous_consistency_loss",
    "denoising_loss",
    "edm",
    "example_keys",
    "from_log_snr",
    "hybrid_loss",
    "latent_consistency_loss",
    "log_normal",
    "logit_normal",
    "loss_aware",
    "mean_flow_loss",
    "min_snr",
    "narrowing",
    "output_weight",
    "p2",
    "prior_term",
    "progressive_loss",
    "shortcut_loss",
    "sigmoid",
    "simple",
    "stratified",
    "truncated_snr",
    "uniform",
    "uniform_log_snr",
    "uniforms",
    "variational_bound",
]
