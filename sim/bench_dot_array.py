"""DotArray in cocotb: tokens of one to four words, each against rows of its own, single and double."""

import cocotb
import numpy as np
from harness import examples, integers, many
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench import STALLS
from edgemoe.units.matmul import DotArray, MatmulSpec, matmul

SPEC = MatmulSpec(in_lanes=4, out_lanes=2, b_bits=8, acc_bits=40)


def component() -> DotArray:
    return DotArray(SPEC, tag=8)


@st.composite
def token(draw):
    """Beats of a token and its result."""
    words, double = draw(st.integers(1, 3)), draw(st.booleans())
    size = words * SPEC.in_lanes
    a = draw(arrays(np.int64, size, elements=integers(16, True)))
    b = draw(arrays(np.int64, (SPEC.out_lanes, size * (1 + double)), elements=integers(SPEC.b_bits, True)))
    tag = draw(integers(8))
    streamed = np.concatenate([a, a]) if double else a
    beats = len(streamed) // SPEC.in_lanes
    sent = []
    for w in range(beats):
        part = slice(w * SPEC.in_lanes, (w + 1) * SPEC.in_lanes)
        flags = {"first": int(w == 0), "shift": int(double and w == words), "last": int(w == beats - 1)}
        sent.append(
            {"a": streamed[part].tolist(), "b": b[:, part].tolist(), "tag": tag if flags["last"] else 0}
            | flags
        )
    return sent, {"acc": matmul(a[None], b, SPEC, double)[0].tolist(), "tag": tag}


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    async def check(driver, tokens, gaps):
        sent = [beat for beats, _ in tokens for beat in beats]
        result = await driver.run({"i": sent}, {"o": len(tokens)}, gaps)
        assert result.values["o"] == [expected for _, expected in tokens]
        if stall == "none":
            assert result.cycles_out["o"][-1] - result.cycles_in["i"][-1] == SPEC.latency

    await examples(dut, component(), stall, many(token(), 8), check)
