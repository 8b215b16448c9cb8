"""The largest batch that fits in memory, by bisection with few compilations."""

from collections.abc import Callable
from typing import NamedTuple

from jaxdiff.plan.compiling import Compiled

_LIMIT = 1_000_000  # a config's own


class Largest(NamedTuple):
    """A bracket around the largest batch that fits; both ends were compiled.

    Attributes:
      fits: images a step, over all devices, that fit; 0 if not even one a device does.
      too_large: that do not; None where the search met the largest batch a config may have.
      peak: bytes a device that the one that fits takes.
      compilations: it took to find out, with the first.
    """

    fits: int
    too_large: int | None
    peak: int
    compilations: int


def largest_batch(
    compile_size: Callable[[int], Compiled], size: int, first: Compiled, unit: int, precision: float = 1 / 16
) -> Largest:
    """Bisects for the largest batch that fits.

    Memory is nearly affine in the batch, and a compilation dear: each probe is where the line through the two
    results nearest to the limit meets it, so that some four suffice; where it does not help, the bracket is halved.

    Args:
      compile_size: compiles the step of a batch size.
      size: the batch size compiled already.
      first: what that came to.
      unit: batch sizes are multiples of it.
      precision: the bracket may be so wide, as a fraction of what fits, but is a unit at least.

    >>> def compile_size(size):
    ...     peak = 100 + 7 * size
    ...     return Compiled(peak <= 1000, peak, 1000, 100, 0, peak - 100, 0, (), 0.0, "", "")
    >>> largest_batch(compile_size, 8, compile_size(8), unit=1)
    Largest(fits=128, too_large=136, peak=996, compilations=3)
    """
    unit_size, limit = size // unit, _LIMIT // unit
    done = {unit_size: first}

    def probe(units: int) -> None:
        done[units] = compile_size(units * unit)

    while True:
        low = max((n for n, result in done.items() if result.fits), default=0)
        high = min((n for n, result in done.items() if not result.fits), default=limit + 1)
        if high - low <= max(1, precision * low):
            break
        probe(_next(done, low, high, precision))
    peak = done[low].peak if low else done[high].peak
    return Largest(low * unit, None if high > limit else high * unit, peak, len(done))


def _next(done: dict[int, Compiled], low: int, high: int, precision: float) -> int:
    """Where to look next, strictly between low and high."""
    result = done[min(done)]
    nearest = sorted(done, key=lambda n: abs(done[n].peak - done[n].available))[:2]
    if len(nearest) == 1:  # as if all temporaries grew with the batch: too steep, so most often it will fit
        slope = max(result.temporaries or result.peak, 1) / min(done)
        point, base = nearest[0], result
    else:
        a, b = nearest
        slope = max((done[a].peak - done[b].peak) / (a - b), 1e-9)
        point, base = a, done[a]
    guess = int(point + (base.available - base.peak) / slope)
    if guess in done:  # this end is exact: look at the other
        guess += max(1, int(precision * guess)) * (1 if done[guess].fits else -1)
    line_helps = len(done) < 6 and low < guess < high
    return guess if line_helps else (low + high) // 2
