"""The chart: points where they belong."""

import numpy as np
import pytest

from jaxdiff.evaluation.chart import chart


def rows_of(picture, colour):
    ys, xs = np.nonzero((picture == np.array(colour)).all(-1))
    return ys[xs < 700], xs[xs < 700]


def test_axes_are_logarithmic():
    """Three points a factor ten apart: the middle one half-way, in x and in y; a lower value lower."""
    picture = chart({"a": [(1, 1.0)], "b": [(10, 10.0)], "c": [(100, 100.0)]}, None, "FID")
    centres = [rows_of(picture, colour) for colour in ((0x1F, 0x77, 0xB4), (0xD6, 0x27, 0x28), (0x2C, 0xA0, 0x2C))]
    ys, xs = (np.array([np.mean(centre[i]) for centre in centres]) for i in (0, 1))
    assert abs(xs[1] - (xs[0] + xs[2]) / 2) < 1.5 and xs[0] < xs[1] < xs[2]
    assert abs(ys[1] - (ys[0] + ys[2]) / 2) < 1.5 and ys[0] > ys[1] > ys[2]


def test_what_has_no_logarithm_is_refused():
    with pytest.raises(ValueError, match="positive"):
        chart({"a": [(10, 0.0)]}, None, "KID")
