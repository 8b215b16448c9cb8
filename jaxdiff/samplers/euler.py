"""Euler: order 1, one network evaluation a step; the probability-flow ODE in sigma/alpha, which is DDIM."""

from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.ddim import ddim


def euler() -> Sampler:
    """y_s = y_t + (rho_s - rho_t) dy/drho, with y = x/alpha, rho = sigma/alpha and dy/drho = noise.

    Times alpha_s this is alpha_s x_0 + sigma_s noise: DDIM without noise, whose step is used. With the EDM schedule
    it is EDM's Euler step in sigma; with rectified flow, x_s = x_t + (s - t) (noise - x_0), Euler in t; and
    `ddim(eta=1)` is what k-diffusion calls Euler ancestral.

    Source: Karras et al. 2022 (EDM), algorithm 1 without lines 6 to 8; Song et al. 2021 (DDIM), section 4.3.

    >>> euler().nfe
    1
    """
    return ddim(0.0)
