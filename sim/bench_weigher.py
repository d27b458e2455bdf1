"""Weigher in cocotb: weights and sums are two streams that stall on their own."""

import cocotb
import numpy as np
from harness import examples, integers, many
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.numeric import sign_extend
from edgemoe.units.softmax import (
    SoftmaxSpec,
    Weigher,
    attention_weights,
    exponent,
    score_code,
    weigher_cycles,
    wide_weights,
)

SPEC, LANES = SoftmaxSpec(), 3
ONE = 1 << SPEC.score_frac


def component() -> Weigher:
    return Weigher(SPEC, LANES, tag=10)


@st.composite
def row(draw):
    """Beats of a row, what weights and sum it has; its scores lie below ``top`` by up to ``spread``.

    Most rows are short, so that their sums are due faster than they are taken.
    """
    beats = draw(st.sampled_from([1, 1, 1, 2, 4]))
    spread = draw(st.sampled_from([1, 3, 12, 30, 128]))
    top = draw(st.integers(-128 + spread, 127)) * ONE
    lanes = st.lists(st.integers(top - spread * ONE, top + ONE - 1), min_size=LANES, max_size=LANES)
    codes = score_code([draw(lanes) for _ in range(beats)], SPEC)
    mask = np.array([[draw(st.booleans()) for _ in range(LANES)] for _ in range(beats)])
    mask[draw(st.integers(0, beats - 1)), draw(st.integers(0, LANES - 1))] = True
    relative = np.array([[draw(st.integers(0, 8)) for _ in range(LANES)] for _ in range(beats)])
    active = draw(st.sampled_from([True, True, True, False]))
    maximum = int(exponent(codes[mask], SPEC).max())
    if active:
        inside = np.where(mask, codes, maximum << 14)
        weights = np.where(mask, attention_weights(inside, maximum, relative, SPEC), 0)
        total = [int(np.where(mask, wide_weights(inside, maximum, SPEC), 0).sum())]
    else:
        weights, total = sign_extend(codes, 16), []
    sent = [
        {"lane": codes[b].tolist(), "mask": sum(int(bit) << k for k, bit in enumerate(mask[b])), "maximum": maximum,
         "relative": relative[b].tolist(), "active": int(active), "last": int(b == beats - 1), "tag": draw(integers(10))}
        for b in range(beats)
    ]  # fmt: skip
    return (
        sent,
        [{"a": w, "last": s["last"], "tag": s["tag"]} for w, s in zip(weights.tolist(), sent, strict=True)],
        total,
    )


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    async def check(driver, drawn, gaps):
        sent, weights, totals = (sum(column, []) for column in zip(*drawn, strict=True))
        result = await driver.run({"i": sent}, {"o": len(sent), "sum": len(totals)}, gaps)
        assert result.values["o"] == weights
        assert result.values["sum"] == totals
        if stall == "none":
            assert result.cycles_out["o"][-1] - result.cycles_in["i"][0] + 1 == weigher_cycles(len(sent))

    await examples(dut, component(), stall, many(row(), 16), check)
