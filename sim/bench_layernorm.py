"""LayerNorm in cocotb: parameters first, then the rows of a job, for several jobs without a reset between."""

import cocotb
import numpy as np
from harness import examples, many
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.units.layernorm import LayerNorm, LayerNormSpec
from units.test_layernorm import TAG, payloads, random_job

SPEC, Q = LayerNormSpec(in_lanes=4, norm_lanes=2, dim=24), 2


def component() -> LayerNorm:
    return LayerNorm(SPEC, Q, TAG)


JOB = st.builds(
    lambda seed, dim, rows: random_job(np.random.default_rng(seed), dim, rows),
    st.integers(0, 1 << 16), st.integers(1, SPEC.dim), st.integers(1, 5),
)  # fmt: skip


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    async def check(driver, jobs, gaps):
        for job in jobs:
            sent, expected = payloads(SPEC, Q, job)
            first = [item["parameters"] for item in sent if not item["rows"]]
            words = [item["word"] for item in sent if item["rows"]]
            driver.set(**sent[0]["configuration"])
            await driver.run({"parameters": first}, {}, gaps)
            result = await driver.run({"i": words}, {"o": len(expected)}, gaps)
            assert result.values["o"] == expected

    await examples(dut, component(), stall, many(JOB, 3), check)
