"""Requantise in cocotb."""

import cocotb
from harness import payloads, rows
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.units.requantise import ChannelParameter, Mode, Requantise, RequantiseSpec, cycles, requantise

SPEC, LANES = RequantiseSpec(acc_bits=38), 2
SHIFTS = st.integers(1, 45) | st.integers(1, 63)


def component() -> Requantise:
    return Requantise(SPEC, LANES, tag=10)


def golden(sent):
    def row(beat):
        bias, multiplier, shift = (
            [p[key] for p in beat["parameter"]] for key in ("bias", "multiplier", "shift")
        )
        factor = beat["row_multiplier"], beat["row_shift"]
        return requantise(beat["acc"], bias, multiplier, shift, *factor, Mode(beat["mode"]), SPEC).tolist()

    return [{"mid": row(beat), "tag": beat["tag"]} for beat in sent]


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    unit = component()
    parameters = st.lists(payloads(ChannelParameter.as_shape(), shift=SHIFTS), min_size=LANES, max_size=LANES)
    beats = payloads(
        unit.i.payload.shape(),
        parameter=parameters,
        row_shift=SHIFTS,
        mode=st.sampled_from([m.value for m in Mode]),
    )
    await rows(dut, unit, stall, beats, golden, lambda n: cycles(SPEC, n))
