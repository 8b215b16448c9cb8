"""Discrete schedules of T steps: their betas, in float64."""

import math
import operator

import numpy as np

from jaxdiff.schedules.base import Schedule, from_betas


def linear(num_steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> Schedule:
    """Betas rising linearly. Defaults: DDPM's 1e-4 to 0.02 times 1000/T, so that any T ends as noisy.

    Args:
      num_steps: T >= 1; with the default betas T >= 21.
      beta_start: the first beta, in (0, 1).
      beta_end: the last beta, in (0, 1).

    Raises:
      ValueError: a beta would not be below 1 (names the smallest legal T).

    Source: Ho et al. 2020 (DDPM), section 4.

    >>> f"{float(linear(1000)(1.0).alpha) ** 2:.4e}"  # alpha_bar_T
    '4.0358e-05'
    """
    start, end = _beta_range(num_steps, beta_start, beta_end, 1e-4, 0.02)
    return from_betas(np.linspace(start, end, num_steps))


def scaled_linear(num_steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> Schedule:
    """Betas whose square roots rise linearly. Defaults: Stable Diffusion's 0.00085 to 0.012 times 1000/T.

    Args:
      num_steps: T >= 1; with the default betas T >= 13.
      beta_start: the first beta, in (0, 1).
      beta_end: the last beta, in (0, 1).

    Raises:
      ValueError: a beta would not be below 1 (names the smallest legal T).

    Source: Rombach et al. 2022 (latent diffusion), released configurations.

    >>> round(float(scaled_linear()(1.0).sigma), 4)
    0.9977
    """
    start, end = _beta_range(num_steps, beta_start, beta_end, 0.00085, 0.012)
    return from_betas(np.linspace(math.sqrt(start), math.sqrt(end), num_steps) ** 2)


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar(t) = f(t)/f(0), f(t) = cos^2((t + offset)/(1 + offset) pi/2), betas capped at max_beta.

    Args:
      num_steps: T >= 1.
      offset: keeps the first betas from vanishing; >= 0.
      max_beta: cap in (0, 1). The cap sets the terminal alpha: 4.9e-5 at T = 1000, so the x_0 that a noise
        prediction implies at t = 1 is amplified 2e4 times: clip it, or predict v.

    Raises:
      ValueError: an argument is out of its range.

    Source: Nichol & Dhariwal 2021 (improved DDPM), eq. 17.

    >>> f"{float(cosine()(1.0).alpha):.1e}"
    '4.9e-05'
    """
    if not offset >= 0:
        raise ValueError(f"offset must be at least 0, got {offset}")
    t = np.arange(_count(num_steps) + 1) / num_steps
    return _from_alpha_bar(np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2, max_beta)


def sigmoid(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """alpha_bar(t) = (g(end) - g(start + t (end - start))) / (g(end) - g(start)), g(u) = 1/(1 + exp(-u/tau)).

    Args:
      num_steps: T >= 1.
      start: where the sigmoid is entered at t = 0.
      end: where it is left at t = 1; > start.
      tau: its width; > 0, smaller is steeper.
      max_beta: cap in (0, 1), as for the cosine schedule.

    Raises:
      ValueError: an argument is out of its range.

    Source: Jabri et al. 2022 (RIN), appendix; Chen 2023, "On the Importance of Noise Scheduling", algorithm 1.

    >>> round(float(sigmoid()(0.5).alpha) ** 2, 3)
    0.5
    """
    if not (tau > 0 and end > start):
        raise ValueError(f"sigmoid needs tau > 0 and end > start, got tau={tau}, start={start}, end={end}")
    t = np.arange(_count(num_steps) + 1) / num_steps
    gate = 1.0 / (1.0 + np.exp(-(start + t * (end - start)) / tau))
    return _from_alpha_bar(gate[-1] - gate, max_beta)


def _from_alpha_bar(alpha_bar: np.ndarray, max_beta: float) -> Schedule:
    """alpha_bar at k/T, k = 0..T, up to a factor -> schedule with betas capped at max_beta."""
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie in (0, 1), got {max_beta}")
    return from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def _beta_range(
    num_steps: int, start: float | None, end: float | None, default_start: float, default_end: float
) -> tuple[float, float]:
    """Explicit betas, or the defaults times 1000/T, checked to lie in (0, 1)."""
    scale = 1000 / _count(num_steps)
    smallest = math.floor(1000 * default_end) + 1
    if end is None and default_end * scale >= 1:
        raise ValueError(f"num_steps={num_steps} makes the last beta {default_end * scale:.3g} >= 1; use >= {smallest}")
    start = default_start * scale if start is None else start
    end = default_end * scale if end is None else end
    if not (0 < start < 1 and 0 < end < 1):
        raise ValueError(f"beta_start and beta_end must lie in (0, 1), got {start} and {end}")
    return start, end


def _count(num_steps: int) -> int:
    if operator.index(num_steps) < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return num_steps
