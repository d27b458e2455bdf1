"""Exponential in cocotb."""

import cocotb
import numpy as np
from harness import payloads, rows
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.numeric import saturate
from edgemoe.units.softmax import Exponential, SoftmaxSpec, exponential_cycles, score_code

SPEC, LANES = SoftmaxSpec(), 4
INSIDE = st.integers(-(1 << SPEC.score_bits - 1), (1 << SPEC.score_bits - 1) - 1)


def component() -> Exponential:
    return Exponential(SPEC, LANES, tag=9)


def golden(sent):
    def row(mid):
        y = saturate(mid, SPEC.score_bits)
        bits = sum(int(bit) << lane for lane, bit in enumerate(y != np.array(mid)))
        return {"code": score_code(y, SPEC).tolist(), "saturated": bits}

    return [row(beat["mid"]) | {"tag": beat["tag"]} for beat in sent]


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    shape = component().i.payload.shape()
    beats = payloads(shape) | payloads(shape, mid=st.lists(INSIDE, min_size=LANES, max_size=LANES))
    await rows(dut, component(), stall, beats, golden, exponential_cycles)
