"""The shared array computes exact dot products, single and double, under every stall pattern."""

import numpy as np
import pytest

from bench import STALLS, run
from edgemoe.units.matmul import DotArray, MatmulSpec, matmul


def beats(a, b, spec, double):
    """Payloads of all beats of one block: every token of ``a`` against the rows ``b``."""
    lanes = spec.in_lanes
    out = []
    for t, row in enumerate(a):
        row = np.concatenate([row, row]) if double else row
        words = len(row) // lanes
        for w in range(words):
            part = slice(w * lanes, (w + 1) * lanes)
            out.append(
                {
                    "a": row[part].tolist(),
                    "b": b[:, part].tolist(),
                    "first": int(w == 0),
                    "shift": int(double and w == words // 2),
                    "last": int(w == words - 1),
                    "tag": t,
                }
            )
    return out


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(
    ("lanes", "slots", "b_bits", "double"), [(8, 2, 8, False), (4, 4, 16, False), (8, 1, 8, True)]
)
def test_array_equals_golden(lanes, slots, b_bits, double, stall):
    spec = MatmulSpec(lanes, slots, b_bits, 40)
    rng = np.random.default_rng(lanes + slots)
    a = rng.integers(-32768, 32768, (6, 3 * lanes))
    b = rng.integers(-(1 << (b_bits - 1)), 1 << (b_bits - 1), (slots, (6 if double else 3) * lanes))
    a[0], b[0] = -32768, -(1 << (b_bits - 1))
    sent = beats(a, b, spec, double)
    result = run(DotArray(spec, tag=8), {"i": sent}, {"o": len(a)}, stall=stall)
    assert [r["tag"] for r in result.values["o"]] == list(range(len(a)))
    assert np.array_equal([r["acc"] for r in result.values["o"]], matmul(a, b, spec, double))
    if stall == "none":
        assert result.cycles_out["o"][0] - result.cycles_in["i"][len(sent) // len(a) - 1] == spec.latency
        assert result.cycles_out["o"][-1] - result.cycles_out["o"][0] == (len(a) - 1) * len(sent) // len(a)


def test_accumulator_too_narrow():
    with pytest.raises(ValueError, match="acc_bits is 20; one beat of 8 products of 16x8 bits needs 27"):
        MatmulSpec(8, 1, 8, 20)
