"""What all benches of units have in common: hypothesis inside of a running simulation.

Hypothesis draws rows and gaps, and runs in a thread of its own beside the simulation, which it continues example
by example with a reset before each. So a failing example shrinks in the one simulation that found it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from amaranth.hdl import Shape, UnusedElaboratable
from amaranth.lib import data
from amaranth.lib.wiring import In
from cocotb.task import bridge, resume
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from streams import Driver, Gaps

SUMMARY = "summary.jsonl"
"""File in the folder of a run: a line for each cocotb test, with its numbers of cases and cycles."""

EXAMPLES = int(os.environ.get("EDGEMOE_SIM_EXAMPLES", "12"))
"""Examples for each stall pattern."""

warnings.simplefilter("ignore", UnusedElaboratable)  # a bench asks a Component for its ports only

Check = Callable[[Driver, Any, Gaps], Awaitable[None]]


def integers(bits: int, signed: bool = False) -> st.SearchStrategy[int]:
    """All values of a width, its limits often."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed and bits else (0, (1 << bits) - 1)
    return st.integers(low, high) | st.sampled_from(sorted({low, max(low, -1), 0, min(high, 1), high}))


def payloads(shape, **fields: st.SearchStrategy) -> st.SearchStrategy:
    """Random payloads of a shape, as dicts, lists and ints; ``fields`` replaces those of a structure."""
    if isinstance(shape, data.StructLayout):
        return st.fixed_dictionaries({name: fields.get(name, payloads(field.shape)) for name, field in shape})
    if isinstance(shape, data.ArrayLayout):
        return st.lists(payloads(shape.elem_shape), min_size=shape.length, max_size=shape.length)
    shape = Shape.cast(shape)
    return integers(shape.width, shape.signed)


def many(strategy: st.SearchStrategy, most: int) -> st.SearchStrategy[list]:
    """Lists of 1 to ``most`` values, long ones as often as short ones."""
    return st.integers(1, most).flatmap(lambda n: st.lists(strategy, min_size=n, max_size=n))


def streams(component) -> dict[str, str]:
    """The side, ``source`` or ``sink``, of each stream port."""
    members = component.signature.members
    return {
        n: "source" if member.flow == In else "sink" for n, member in members.items() if member.is_signature
    }


def gaps(component, stall: str) -> st.SearchStrategy[Gaps]:
    """Idle cycles of the stalled sides' ports; none for the others."""
    some = st.lists(st.integers(0, 3) | st.integers(0, 20), min_size=1, max_size=9)
    stalled = {name for name, side in streams(component).items() if stall in (side, "both")}
    return st.fixed_dictionaries(dict.fromkeys(sorted(stalled), some))


async def examples(
    handle, component, stall: str, cases: st.SearchStrategy, check: Check, amount: int = EXAMPLES
) -> None:
    """Check ``amount`` drawn cases under one stall pattern."""
    driver = Driver(handle, component)
    await driver.reset()
    ran = 0

    @resume
    async def one(case: Any, pattern: Gaps) -> None:
        nonlocal ran
        ran += 1
        await driver.reset()
        await check(driver, case, pattern)

    @bridge
    def search() -> None:
        @settings(
            max_examples=amount, derandomize=True, database=None, deadline=None,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(cases, gaps(component, stall))
        def draw(case, pattern):
            one(case, pattern)

        draw()

    await search()
    note(stall=stall, cases=ran, cycles=driver.cycles)


async def rows(handle, component, stall: str, beats: st.SearchStrategy, golden: Callable[[list], list],
               latency: Callable[[int], int], most: int = 24) -> None:  # fmt: skip
    """A unit with the streams ``i`` and ``o``, and one beat out for each beat in.

    Args:
        beats: draws a payload of ``i``.
        golden: payloads of ``o`` for those of ``i``.
        latency: cycles for a number of beats, asserted without stalls.
    """

    async def check(driver: Driver, sent: Sequence[Any], pattern: Gaps) -> None:
        result = await driver.run({"i": sent}, {"o": len(sent)}, pattern)
        assert result.values["o"] == golden(sent)
        if stall == "none":
            assert result.cycles_out["o"][-1] - result.cycles_in["i"][0] + 1 == latency(len(sent))

    await examples(handle, component, stall, many(beats, most), check)


def note(**numbers: Any) -> None:
    """Add a line to the summary, and start none in a folder that is not a run's."""
    with Path(SUMMARY).open("a") as file:
        file.write(json.dumps(numbers) + "\n")
