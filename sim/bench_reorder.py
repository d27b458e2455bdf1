"""ReorderUnit in cocotb: several products, one after the other; four sources and a sink."""

import cocotb
from harness import examples, many
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.units.attention import ReorderUnit
from units.test_attention import check as follows_schedule
from units.test_attention import spec_for, stimulus

SPEC = spec_for(slots=4, sets=2, fill_rows=2, interval=3)


def component() -> ReorderUnit:
    return ReorderUnit(SPEC, tag=8)


JOBS = many(st.tuples(st.integers(1, 5), st.integers(1, 13), st.sampled_from([2, 4])), 5)
"""Tokens, rows and words of each product; the fourth is double, so words are even."""


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    async def check(driver, drawn, gaps):
        jobs, single = drawn
        rows, sources = stimulus(SPEC, jobs, single=single)
        result = await driver.run(sources, {"o": len(sources["a"])}, gaps)
        follows_schedule(SPEC, jobs, rows, result.values["o"])

    await examples(dut, component(), stall, st.tuples(JOBS, st.sets(st.integers(0, 4))), check)
