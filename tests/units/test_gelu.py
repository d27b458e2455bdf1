"""GELU: error against float for every input of every format, gateware against golden."""

import math

import numpy as np
import pytest

from bench import STALLS, run
from edgemoe.units.gelu import Gelu, GeluSpec, cycles, gelu

SPEC = GeluSpec()
FORMATS = range(SPEC.min_frac, SPEC.max_frac + 1)
ALL = np.arange(-(1 << 15), 1 << 15)


def exact(x):
    return x / 2 * np.array([math.erfc(-v / math.sqrt(2)) for v in x])


@pytest.mark.parametrize("frac", FORMATS)
def test_error_against_float_over_all_inputs(frac):
    error = np.abs(gelu(ALL, frac, SPEC) - exact(ALL / 2**frac) * 2**frac).max()
    print(f"frac {frac}: maximum error {error:.4f} ulp")
    assert error <= 0.65


@pytest.mark.parametrize("frac", FORMATS)
def test_correction_is_even(frac):
    x = ALL[1:]
    assert np.array_equal(gelu(x, frac, SPEC) - gelu(-x, frac, SPEC), x)


def test_format_is_checked():
    with pytest.raises(ValueError, match="frac is 14..14; GELU takes 8 to 13 fraction bits"):
        gelu([0], 14, SPEC)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"min_frac": 4}, "formats of 4 to 13 fraction bits; at most 8"),
        ({"delta_frac": 13}, "delta_frac is 13; rounding needs more than max_frac, 13"),
        ({"step_bits": 13}, "step_bits is 13; it lies between 1 and max_frac - 1"),
        ({"end": 8.0}, "end is 8.0; the table covers"),
    ],
)
def test_spec_is_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        GeluSpec(**wrong)


@pytest.mark.parametrize("stall", STALLS)
def test_gateware_equals_golden(stall):
    rng, lanes, n = np.random.default_rng(1), 8, 200
    x = rng.integers(-(1 << 15), 1 << 15, (n, lanes)) >> rng.integers(0, 12, (n, lanes))
    edges = [-(1 << 15), 1 - (1 << 15), (1 << 15) - 1, 0, 1, -1, 5632, -5632, 1407, 1408, -1408, 2048]
    x[::3, :4] = rng.choice(edges, x[::3, :4].shape)
    frac = rng.choice(FORMATS, n)
    active = rng.random(n) < 0.9
    expected = np.where(active[:, None], gelu(x, frac[:, None], SPEC), x)

    sent = [
        {"x": x[k].tolist(), "frac": int(frac[k]), "active": int(active[k]), "tag": k % 128} for k in range(n)
    ]
    result = run(Gelu(SPEC, lanes, tag=7), {"i": sent}, {"o": n}, stall=stall)
    assert [v["x"] for v in result.values["o"]] == expected.tolist()
    assert [v["tag"] for v in result.values["o"]] == [k % 128 for k in range(n)]
    if stall == "none":
        assert result.cycles_out["o"][-1] - result.cycles_in["i"][0] + 1 == cycles(n)
