"""SdramController in cocotb with the behavioural SDRAM behind it, which reports every broken rule."""

from dataclasses import replace

import cocotb
import numpy as np
from harness import examples, integers, many
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.periph.sdram import DEVICES, SdramSpec, serve
from edgemoe.simulation.sdram import SdramSystem, model_source

DEVICE = replace(DEVICES["ulx3s"], name="short", row_bits=6, refresh_ms=0.1, power_up_us=1)
"""A short initialisation, and a refresh every 200 cycles."""
PORT_BYTES = 4
WINDOW = 24
"""Port words that an example uses; all are written before one is read."""
LINE = 1024 // PORT_BYTES


def component() -> SdramSystem:
    return SdramSystem(SdramSpec(DEVICE), PORT_BYTES)


def sources() -> str:
    return model_source()


@st.composite
def cases(draw):
    """First address, what lies there at first, and operations on it."""
    base = draw(st.sampled_from([0, LINE - 7, 4 * LINE - 12, 9 * LINE - 1]))
    fill = draw(st.lists(integers(8 * PORT_BYTES), min_size=WINDOW, max_size=WINDOW))
    place = st.integers(0, WINDOW - 1)
    reads = draw(many(place.flatmap(lambda at: st.tuples(st.just(at), st.integers(1, WINDOW - at))), 12))
    writes = draw(many(st.tuples(place, integers(8 * PORT_BYTES)), 12))
    return base, fill, reads, writes


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    async def check(driver, case, gaps):
        base, fill, reads, writes = case
        while not driver.get("ready"):
            await driver.falling()
        violations = driver.get("violations")  # the chip does not know of the reset, and refreshes came late
        fills = [{"address": base + i, "data": word} for i, word in enumerate(fill)]
        await driver.run({"write": fills}, {}, gaps)

        requests = [{"address": base + at, "length": words - 1} for at, words in reads]
        stores = [{"address": base + at, "data": word} for at, word in writes]
        amount = sum(words for _, words in reads)
        result = await driver.run({"read_request": requests, "write": stores}, {"read_data": amount}, gaps)
        operations = [("read", at, words) for at, words in reads] + [("write", *write) for write in writes]
        when = result.cycles_in["read_request"] + result.cycles_in["write"]
        assert len(set(when)) == len(when), "two operations accepted in one cycle have no order"
        ordered = [operation for _, operation in sorted(zip(when, operations, strict=True))]
        memory = np.frombuffer(b"".join(word.to_bytes(PORT_BYTES, "little") for word in fill), "<u2").copy()
        assert result.values["read_data"] == serve(memory, ordered, PORT_BYTES)
        assert driver.get("violations") == violations

    await examples(dut, component(), stall, cases(), check)
