"""Training losses: per example, unreduced. A loss, its weighting and its time sampling do not know each other."""

from jaxdiff.losses.consistency import consistency_loss, narrowing
from jaxdiff.losses.denoising import denoising_loss, example_keys
from jaxdiff.losses.time_sampling import (
    LossAware,
    LossHistory,
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
    min_snr,
    output_weight,
    p2,
    sigmoid,
    truncated_snr,
)

__all__ = [
    "Bound",
    "LossAware",
    "LossHistory",
    "TimeSampling",
    "Weighting",
    "Weights",
    "bits_per_dim",
    "bound_term",
    "consistency_loss",
    "denoising_loss",
    "edm",
    "example_keys",
    "hybrid_loss",
    "log_normal",
    "logit_normal",
    "loss_aware",
    "min_snr",
    "narrowing",
    "output_weight",
    "p2",
    "prior_term",
    "sigmoid",
    "stratified",
    "truncated_snr",
    "uniform",
    "uniform_log_snr",
    "uniforms",
    "variational_bound",
]
