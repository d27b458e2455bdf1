"""GELU in cocotb."""

import cocotb
import numpy as np
from harness import payloads, rows
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.units.gelu import Gelu, GeluSpec, cycles, gelu

SPEC = GeluSpec()


def component() -> Gelu:
    return Gelu(SPEC, 4, tag=7)


def golden(sent):
    def row(beat):
        return gelu(np.array(beat["x"]), beat["frac"], SPEC).tolist() if beat["active"] else beat["x"]

    return [{"x": row(beat), "tag": beat["tag"]} for beat in sent]


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    unit = component()
    beats = payloads(unit.i.payload.shape(), frac=st.integers(SPEC.min_frac, SPEC.max_frac))
    await rows(dut, unit, stall, beats, golden, cycles)
