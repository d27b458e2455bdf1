"""Residual in cocotb."""

import cocotb
from harness import payloads, rows

from bench import STALLS
from edgemoe.units.residual import Residual, accumulate, cycles


def component() -> Residual:
    return Residual(4, tag=9)


def golden(sent):
    def row(beat):
        x, realign = (beat["x"], beat["realign"]) if beat["add"] else (0, 0)
        return accumulate(x, beat["mid"], realign).tolist()

    return [{"x": row(beat), "tag": beat["tag"]} for beat in sent]


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    unit = component()
    await rows(dut, unit, stall, payloads(unit.i.payload.shape()), golden, cycles)
