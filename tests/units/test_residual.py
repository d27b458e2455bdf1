"""Residual: golden against float, gateware against golden."""

import numpy as np
import pytest

from bench import STALLS, run
from edgemoe.units.residual import Residual, ResidualSpec, accumulate, cycles

EDGES_X = [-(1 << 15), (1 << 15) - 1, 0, -1, 1, 3, -3]
EDGES_MID = [-(1 << 21), (1 << 21) - 1, (1 << 15), -(1 << 15) - 1, (1 << 15) - 1, 0, 1, -1]


def beats(n, lanes):
    rng = np.random.default_rng(2)
    x = rng.integers(-(1 << 15), 1 << 15, (n, lanes))
    mid = rng.integers(-(1 << 16), 1 << 16, (n, lanes))
    x[::4] = rng.choice(EDGES_X, x[::4].shape)
    mid[::3] = rng.choice(EDGES_MID, mid[::3].shape)
    return x, mid, rng.integers(0, 8, (n, 1)), rng.random((n, 1)) < 0.8


def test_golden_is_the_rounded_sum():
    x, mid, realign, _ = beats(5000, 4)
    exact = np.floor(x / 2.0**realign + 0.5) + np.clip(mid, -(1 << 15), (1 << 15) - 1)
    assert np.array_equal(accumulate(x, mid, realign), np.clip(exact, -(1 << 15), (1 << 15) - 1))


def test_spec_is_checked():
    with pytest.raises(ValueError, match="mid_bits is 12; it is at least x_bits, 16"):
        ResidualSpec(mid_bits=12)
    with pytest.raises(ValueError, match="realign_bits is 4; one stage shifts by 1 to 3 bits"):
        ResidualSpec(realign_bits=4)


@pytest.mark.parametrize("stall", STALLS)
def test_gateware_equals_golden(stall):
    n, lanes = 300, 4
    x, mid, realign, add = beats(n, lanes)
    expected = np.where(add, accumulate(x, mid, realign), accumulate(0, mid))
    sent = [
        {"x": x[k].tolist(), "mid": mid[k].tolist(), "realign": int(realign[k, 0]), "add": int(add[k, 0]),
         "tag": k}
        for k in range(n)
    ]  # fmt: skip
    result = run(Residual(lanes, tag=9), {"i": sent}, {"o": n}, stall=stall)
    assert [v["x"] for v in result.values["o"]] == expected.tolist()
    assert [v["tag"] for v in result.values["o"]] == list(range(n))
    if stall == "none":
        assert result.cycles_out["o"][-1] - result.cycles_in["i"][0] + 1 == cycles(n)
