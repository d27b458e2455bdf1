"""Requantiser: golden against exact integers, gateware against golden."""

import numpy as np
import pytest

from bench import STALLS, run
from edgemoe.units.requantise import ChannelParameter, Mode, Requantise, RequantiseSpec, cycles, requantise

SPEC = RequantiseSpec(acc_bits=38)


def signed_edges(bits):
    return [-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 0, 1, -1]


def beats(n, lanes, spec, seed=3):
    """Random operands over all magnitudes, mixed with edge values; most results stay in range."""
    rng = np.random.default_rng(seed)

    def signed_values(bits):
        value = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, lanes)) >> rng.integers(
            0, bits, (n, lanes)
        )
        return np.where(rng.random((n, lanes)) < 0.2, rng.choice(signed_edges(bits), (n, lanes)), value)

    def factors(shape, low, high):
        multiplier = np.where(rng.random(shape) < 0.2, rng.choice([0, 1, 65535, 32768], shape),
                              rng.integers(0, 1 << 16, shape))  # fmt: skip
        shift = np.where(rng.random(shape) < 0.2, rng.choice([1, 2, 8, 9, 62, 63], shape),
                         rng.integers(low, high, shape))  # fmt: skip
        return multiplier, shift

    acc, bias = signed_values(spec.acc_bits), signed_values(spec.bias_bits)
    multiplier, shift = factors((n, lanes), 10, 45)
    row_multiplier, row_shift = factors((n, 1), 10, 30)
    mode = rng.integers(0, 3, (n, 1))
    return acc, bias, multiplier, shift, row_multiplier, row_shift, mode


def golden(acc, bias, multiplier, shift, row_multiplier, row_shift, mode, spec):
    args = (acc, bias, multiplier, shift, row_multiplier, row_shift)
    return np.select([mode == x.value for x in Mode], [requantise(*args, x, spec) for x in Mode])


def exact(acc, bias, multiplier, shift, row_multiplier, row_shift, mode):
    """One value with Python's unbounded integers."""
    pairs = {0: [(multiplier, shift)], 1: [(multiplier, shift), (row_multiplier, row_shift)],
             2: [(row_multiplier, row_shift), (multiplier, shift)]}  # fmt: skip
    x = acc + bias
    for factor, s in pairs[mode]:
        x = (x * factor + (1 << (s - 1))) // (1 << s)
        x = min(max(x, -(1 << 21)), (1 << 21) - 1)
    return x


def test_golden_equals_unbounded_integers():
    values = beats(4000, 2, RequantiseSpec(46))
    got = golden(*values, RequantiseSpec(46)).ravel()
    wanted = [
        exact(*map(int, v))
        for v in zip(*(np.broadcast_to(x, (4000, 2)).ravel() for x in values), strict=True)
    ]
    assert got.tolist() == wanted
    inside = np.abs(got) < (1 << 21) - 1
    assert 0.3 < inside.mean() < 0.95 and (got == (1 << 21) - 1).any() and (got == -(1 << 21)).any()


def test_parameter_is_the_memory_layout():
    assert RequantiseSpec(32).parameter == ChannelParameter
    word = ChannelParameter.const({"multiplier": 0x8001, "shift": 5, "bias": -2}).as_bits()
    assert word == 0x8001 | 5 << 16 | ((1 << 42) - 2) << 22


def test_identity_factor_changes_nothing():
    multiplier, shift = SPEC.identity
    mid = np.array(signed_edges(SPEC.mid_bits))
    assert np.array_equal(requantise(mid, 0, multiplier, shift, 0, 0, Mode.CHANNEL, SPEC), mid)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RequantiseSpec(47), "acc is 47 bits and bias 42; .* product has 64, at most 63"),
        (
            lambda: RequantiseSpec(32, multiplier_bits=18),
            "multiplier_bits is 18; one hardware multiplier takes 17",
        ),
        (lambda: RequantiseSpec(32, shift_bits=7), "shift_bits is 7; the two shifter stages take 4 to 6"),
        (lambda: RequantiseSpec(32, mid_bits=1), "mid_bits is 1; a signed result needs 2"),
        (lambda: requantise(1 << 37, 0, 1, 1, 0, 0, Mode.CHANNEL, SPEC), "acc is .* it has 38 signed bits"),
        (lambda: requantise(0, 1 << 41, 1, 1, 0, 0, Mode.CHANNEL, SPEC), "bias is .* it has 42 signed bits"),
        (
            lambda: requantise(0, 0, 1, 0, 0, 0, Mode.CHANNEL, SPEC),
            "shift is 0; a factor's shift is at least 1",
        ),
        (
            lambda: requantise(0, 0, 1, 64, 0, 0, Mode.CHANNEL, SPEC),
            r"shift is 64..64; it has 6 unsigned bits",
        ),
        (lambda: requantise(0, 0, 1, 1, 65536, 1, Mode.CHANNEL_ROW, SPEC), "multiplier is 65536..65536"),
    ],
)
def test_values_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def check(spec, n, lanes, stall):
    acc, bias, multiplier, shift, row_multiplier, row_shift, mode = values = beats(n, lanes, spec)
    expected = golden(*values, spec)
    sent = [
        {
            "acc": acc[k].tolist(),
            "parameter": [
                {"multiplier": int(multiplier[k, j]), "shift": int(shift[k, j]), "bias": int(bias[k, j])}
                for j in range(lanes)
            ],
            "row_multiplier": int(row_multiplier[k, 0]),
            "row_shift": int(row_shift[k, 0]),
            "mode": Mode(int(mode[k, 0])),
            "tag": k,
        }
        for k in range(n)
    ]
    result = run(Requantise(spec, lanes, tag=10), {"i": sent}, {"o": n}, stall=stall)
    assert [v["mid"] for v in result.values["o"]] == expected.tolist()
    assert [v["tag"] for v in result.values["o"]] == list(range(n))
    if stall == "none":
        assert result.cycles_out["o"][-1] - result.cycles_in["i"][0] + 1 == cycles(spec, n)


@pytest.mark.parametrize("stall", STALLS)
def test_gateware_equals_golden(stall):
    check(SPEC, 300, 2, stall)


@pytest.mark.parametrize(
    "spec",
    [RequantiseSpec(46), RequantiseSpec(16, bias_bits=16), RequantiseSpec(20, bias_bits=30),
     RequantiseSpec(30, mid_bits=18, bias_bits=33)],
    ids=["46", "16+16", "20+30", "mid18"],
)  # fmt: skip
def test_gateware_equals_golden_at_other_widths(spec):
    check(spec, 200, 1, "none")


def test_padding_lane_gives_zero():
    """A channel beyond the last one has a parameter word of zero."""
    sent = [{"acc": [12345], "parameter": [{"multiplier": 0, "shift": 0, "bias": 0}], "mode": Mode.CHANNEL}]
    result = run(Requantise(SPEC, 1), {"i": sent}, {"o": 1})
    assert result.values["o"][0]["mid"] == [int(requantise(12345, 0, 0, 0, 0, 0, Mode.CHANNEL, SPEC))] == [0]
