"""Interpolation: the fit is the best line per segment, and gateware equals golden."""

import numpy as np
import pytest

from bench import STALLS, run
from edgemoe.interpolation import Interpolation, Interpolator, cycles, interpolate


def square(**changes):
    options = {"index_bits": 4, "offset_bits": 6, "width": 13, "fraction_bits": 12, "guard": 8}
    return Interpolation.fit(lambda u: u * u + 0.25, **(options | changes))


def reciprocal_root(u):
    """Two octaves in one table, as for 1/sqrt: [1, 2) below, [2, 4) above; it jumps in the middle."""
    return 1 / np.sqrt(np.where(u < 0.5, 1 + 2 * u, 2 + 4 * (u - 0.5)))


ROOT = Interpolation.fit(reciprocal_root, index_bits=7, offset_bits=8, width=16, fraction_bits=16, guard=10)


def test_segments_are_centred():
    """The largest errors above and below are equal, and half of a chord's."""
    spec = square(width=31, fraction_bits=30, guard=0)
    x = np.arange(1 << 10)
    error = (interpolate(x, spec) / 2**30 - (x / 1024) ** 2 - 0.25).reshape(16, 64)
    chord = (63 / 1024) ** 2 / 4
    assert np.allclose(error.max(axis=1), chord / 2, rtol=2e-3)
    assert np.allclose(error.min(axis=1), -chord / 2, rtol=2e-3)


def test_result_is_rounded_and_clamped():
    x = np.arange(1 << 15)
    exact = reciprocal_root(x / x.size) * 65536
    y = interpolate(x, ROOT)
    assert y.max() == 65535 and exact.max() == 65536
    # The line: 3/4 of 2^-12 * 2^16 / 8, halved by centring; then half an ulp of rounding.
    assert np.abs(y - exact).max() <= 0.75 + 0.5 + 0.01


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Interpolation(3, 4, 8, 2, 255, (1,) * 7, (0,) * 8), "7 and 8 rows; 3 index bits need 8"),
        (lambda: square(limit=8192), "limit is 8192; an unsigned result of 13 bits ends at 8191"),
        (lambda: Interpolation(1, 2, 4, 0, 15, (1, 2), (0, -1)),
         "a segment reaches -1 before rounding; the result is unsigned"),
        (lambda: interpolate([1024], square()), "argument in 1024..1024; the table covers 10 unsigned bits"),
    ],
)  # fmt: skip
def test_spec_and_argument_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("spec", [square(), square(guard=0), square(limit=3000), ROOT],
                         ids=["square", "no guard", "limit", "root"])  # fmt: skip
@pytest.mark.parametrize("stall", STALLS)
def test_gateware_equals_golden(stall, spec):
    n, lanes = 150, 3
    x = np.random.default_rng(4).integers(0, 1 << spec.argument_bits, (n, lanes))
    x[:4] = [[0], [1], [(1 << spec.argument_bits) - 1], [1 << (spec.argument_bits - 1)]]
    sent = [{"x": row.tolist(), "tag": k} for k, row in enumerate(x)]
    result = run(Interpolator(spec, lanes, tag=8), {"i": sent}, {"o": n}, stall=stall)
    assert result.values["o"] == [{"y": y, "tag": k} for k, y in enumerate(interpolate(x, spec).tolist())]
    if stall == "none":
        assert result.cycles_out["o"][-1] - result.cycles_in["i"][0] + 1 == cycles(spec, n)
