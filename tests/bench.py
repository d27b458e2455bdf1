"""Drives the streams of a Component in Amaranth's simulator, with and without stalls.

One bench for all units: values go in at every source port, a number of values is taken from every
sink port, and what came out is returned with the cycle of each transfer. The stall patterns are
those of every equality test: ``none``, ``source``, ``sink`` and ``both``.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Fragment
from amaranth.lib import data
from amaranth.sim import Simulator

STALLS = ("none", "source", "sink", "both")


@dataclass
class Result:
    """What left the sinks (``values``), and in which cycle every transfer happened."""

    values: dict[str, list[Any]] = field(default_factory=dict)
    cycles_in: dict[str, list[int]] = field(default_factory=dict)
    cycles_out: dict[str, list[int]] = field(default_factory=dict)


def plain(value: Any) -> Any:
    """A simulator constant as plain Python: dict for structures, list for arrays, int else."""
    if isinstance(value, data.Const):
        layout = value.shape()
        if isinstance(layout, data.ArrayLayout):
            return [plain(value[i]) for i in range(layout.length)]
        return {name: plain(value[name]) for name, _ in layout}
    return int(value)


def run(dut, sources: dict[str, list], sinks: dict[str, int], stall: str = "none", seed: int = 0,
        constants: dict[str, int] | None = None, limit: int = 200_000, processes=()) -> Result:  # fmt: skip
    """Run ``dut`` until every sink port has given its number of values.

    Args:
        sources: stream port (dotted name) -> payloads to send, as ints or nested dicts and lists.
        sinks: stream port -> number of payloads to take.
        stall: one of `STALLS`; a stalled side idles in about half of the cycles.
        constants: plain input ports to set before the first cycle.
        processes: further simulator processes, for example counters.
        limit: cycles after which a deadlock is reported as AssertionError.
    """
    assert stall in STALLS
    result = Result()
    clock = {"n": 0}

    def port(name: str):
        here = dut
        for part in name.split("."):
            here = getattr(here, part)
        return here

    async def count(ctx):
        async for _ in ctx.tick():
            clock["n"] += 1

    def source(name, payloads, rng):
        async def process(ctx):
            here = port(name)
            for payload in payloads:
                while stall in ("source", "both") and rng.random() < 0.5:
                    await ctx.tick()
                ctx.set(here.payload, payload)
                ctx.set(here.valid, 1)
                await ctx.tick().until(here.ready)
                result.cycles_in[name].append(clock["n"])
                ctx.set(here.valid, 0)

        return process

    def sink(name, amount, rng):
        async def process(ctx):
            here = port(name)
            for _ in range(amount):
                while stall in ("sink", "both") and rng.random() < 0.5:
                    await ctx.tick()
                ctx.set(here.ready, 1)
                (payload,) = await ctx.tick().sample(here.payload).until(here.valid)
                ctx.set(here.ready, 0)
                result.values[name].append(plain(payload))
                result.cycles_out[name].append(clock["n"])

        return process

    async def finish(ctx):
        for name, value in (constants or {}).items():
            ctx.set(port(name), value)
        for _ in range(limit):
            if all(len(result.values[n]) == amount for n, amount in sinks.items()):
                return
            await ctx.tick()
        got = {n: f"{len(result.values[n])} of {amount}" for n, amount in sinks.items()}
        raise AssertionError(f"deadlock: after {limit} cycles the sinks have {got}")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulator = Simulator(Fragment.get(dut, None))
    simulator.add_clock(1e-6)
    simulator.add_process(count)
    for process in processes:
        simulator.add_process(process)
    for index, (name, payloads) in enumerate(sources.items()):
        result.cycles_in[name] = []
        simulator.add_testbench(source(name, payloads, random.Random(seed * 1000 + index)), background=True)
    for index, (name, amount) in enumerate(sinks.items()):
        result.values[name], result.cycles_out[name] = [], []
        simulator.add_testbench(sink(name, amount, random.Random(seed * 1000 + 500 + index)), background=True)
    simulator.add_testbench(finish)
    simulator.run()
    return result
