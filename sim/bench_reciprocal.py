"""Reciprocal in cocotb."""

import cocotb
from harness import payloads, rows
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.units.softmax import Reciprocal, SoftmaxSpec, reciprocal, reciprocal_cycles, row_factor

SPEC = SoftmaxSpec()
TOP = SPEC.sum_bits - 1
BESIDE_POWERS = st.builds(
    lambda power, offset: max(1, (1 << power) + offset), st.integers(0, TOP), st.integers(-2, 2)
)


def component() -> Reciprocal:
    return Reciprocal(SPEC, tag=10)


def golden(sent):
    d = [beat["d"] for beat in sent]
    multiplier, position = reciprocal(d, SPEC)
    shift = row_factor(d, SPEC)[1] % 64
    columns = (column.tolist() for column in (multiplier, shift, position))
    return [
        {"multiplier": m, "shift": s, "position": p, "tag": beat["tag"]}
        for m, s, p, beat in zip(*columns, sent, strict=True)
    ]


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    unit = component()
    beats = payloads(unit.i.payload.shape(), d=st.integers(1, (2 << TOP) - 1) | BESIDE_POWERS)
    await rows(dut, unit, stall, beats, golden, lambda n: reciprocal_cycles(SPEC, n))
