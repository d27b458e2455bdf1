"""RowMaximum in cocotb: no streams, so an idle cycle takes the place of a stall."""

import cocotb
from cocotb.triggers import ReadOnly
from harness import examples, many, payloads
from hypothesis import strategies as st

from bench import STALLS
from edgemoe.units.softmax import RowMaximum

ROWS, LANES = 5, 3


def component() -> RowMaximum:
    return RowMaximum(ROWS, LANES)


def ports(unit):
    """Draws an update; in idle cycles its values lie at the ports too."""
    members = unit.signature.members
    fields = {name: payloads(members[name].shape) for name in ("n", "mask", "first")}
    return st.fixed_dictionaries(
        fields | {"row": st.integers(0, ROWS - 1), "row_read": st.integers(0, ROWS - 1)}
    )


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    unit = component()
    idle = st.booleans() if stall in ("source", "both") else st.just(False)

    async def check(driver, updates, _):
        history, model = [{}] * unit.latency, {}
        for update, skip in updates:
            row, old = update["row"], update["row"] not in model or update["first"]
            driver.set(**update | {"first": int(old)}, valid=int(not skip))
            if not skip:
                masked = [v for lane, v in enumerate(update["n"]) if update["mask"] >> lane & 1]
                model = model | {row: max([-128 if old else model[row], *masked])}
            await ReadOnly()
            visible = history[-unit.latency]
            if update["row_read"] in visible:
                assert driver.get("maximum") == visible[update["row_read"]]
            history.append(model)
            await driver.falling()

    await examples(dut, unit, stall, many(st.tuples(ports(unit), idle), 60), check)
