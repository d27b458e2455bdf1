"""`Crossing` keeps order and rate for clocks of any ratio; with the SDRAM behind it all is as without."""

import random
import warnings
from dataclasses import replace

import pytest
from amaranth.lib.cdc import FFSynchronizer
from amaranth.sim import Simulator

from bench import STALLS
from edgemoe.errors import BadInput
from edgemoe.periph import crossing
from edgemoe.periph.crossing import Crossing
from edgemoe.periph.sdram import DEVICES, SdramSpec, serve
from edgemoe.simulation.sdram import SdramSystem
from periph.memory_bench import DATA, REQUEST, WRITE, build, run
from periph.test_sdram import contents

RATIOS = [(10, 7.5), (10, 10.01), (7, 15), (20, 7.3)]
"""Periods of core and memory in ns."""


def simulate(dut, core_ns, memory_ns, *testbenches):
    """Run until the first of ``testbenches`` returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulator = Simulator(dut)
    simulator.add_clock(core_ns * 1e-9, domain="sync")
    simulator.add_clock(memory_ns * 1e-9, phase=0.3e-9, domain="memory")
    for index, testbench in enumerate(testbenches):
        simulator.add_testbench(testbench, background=index > 0)
    simulator.run()


def source(port, payloads, domain, rng=None):
    async def testbench(ctx):
        for payload in payloads:
            while rng and rng.random() < 0.5:
                await ctx.tick(domain)
            ctx.set(port.payload, payload)
            ctx.set(port.valid, 1)
            ready = False
            while not ready:
                _, _, ready = await ctx.tick(domain).sample(port.ready)
            ctx.set(port.valid, 0)

    return testbench


def sink(port, amount, domain, into, rng=None):
    """Takes (cycle, payload) of each transfer; a transfer too many would be one in 50 more cycles."""

    async def testbench(ctx):
        cycle, quiet = 0, 0
        while quiet < 50:
            assert cycle < 20_000, f"deadlock: {len(into)} of {amount}"
            ready = not (rng and rng.random() < 0.5)
            ctx.set(port.ready, ready)
            _, _, valid, payload = await ctx.tick(domain).sample(port.valid, port.payload)
            if ready and valid:
                into.append((cycle, payload))
            cycle += 1
            quiet += len(into) >= amount

    return testbench


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(("core_ns", "memory_ns"), RATIOS)
@pytest.mark.parametrize("name", ["read_request", "write", "read_data"])
def test_a_stream_keeps_order_and_rate(name, core_ns, memory_ns, stall):
    dut, rng = Crossing(4), random.Random(1)
    amount = 160
    if name == "read_data":
        ports, periods = (dut.memory.read_data, dut.core.read_data), (memory_ns, core_ns)
        domains, sent = ("memory", "sync"), [rng.getrandbits(32) for _ in range(amount)]
    else:
        ports, periods = (getattr(dut.core, name), getattr(dut.memory, name)), (core_ns, memory_ns)
        field = {"read_request": "length", "write": "data"}[name]
        domains = ("sync", "memory")
        sent = [{"address": rng.getrandbits(28), field: rng.getrandbits(8)} for _ in range(amount)]
    got = []
    simulate(
        dut, core_ns, memory_ns,
        sink(ports[1], amount, domains[1], got, random.Random(2) if stall in ("sink", "both") else None),
        source(ports[0], sent, domains[0], random.Random(3) if stall in ("source", "both") else None),
    )  # fmt: skip
    values = [payload for _, payload in got]
    if name != "read_data":
        values = [{key: getattr(payload, key) for key in sent[0]} for payload in values]
    assert values == sent
    if stall == "none":
        steady = [cycle for cycle, _ in got[20:]]  # after the queue has been filled once
        took = (steady[-1] - steady[0]) * periods[1]
        assert took <= (len(steady) + 1) * max(periods)


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize(("core_ns", "memory_ns"), RATIOS)
def test_a_request_after_a_write_comes_out_after_it(core_ns, memory_ns, late, monkeypatch):
    """The memory's side looks at both streams as the controller does: writes first.

    A synchroniser may see a change a cycle later than another one that sees it at the same time: ``late`` does so to
    that of the writes.
    """
    stages = iter([2, 2, 2 + late, 2, 2, 2])  # of requests, writes and data, to the other side and back

    def synchroniser(i, o, o_domain):
        return FFSynchronizer(i, o, o_domain=o_domain, stages=next(stages))

    monkeypatch.setattr(crossing, "FFSynchronizer", synchroniser)
    dut = Crossing(4)
    order = []

    async def core(ctx):
        for number in range(60):
            writes = [{"address": 4 * number + k} for k in range(1 + number % 4)]
            await source(dut.core.write, writes, "sync")(ctx)
            await source(dut.core.read_request, [{"address": 4 * number + number % 4}], "sync")(ctx)
            for _ in range(number % 7):
                await ctx.tick()
        await ctx.tick().repeat(1500)

    async def memory(ctx):
        write, request = dut.memory.write, dut.memory.read_request
        rng = random.Random(5)
        while True:
            ready = rng.random() < 0.2  # both streams are often there when it is high
            write_waits = ctx.get(write.valid)
            ctx.set(write.ready, ready)
            ctx.set(request.ready, ready and not write_waits)
            _, _, stores, data, asks, what = await ctx.tick("memory").sample(
                write.valid, write.payload.address, request.valid, request.payload.address
            )
            if ready and stores:
                order.append(("write", data))
            elif ready and asks:
                order.append(("read", what))

    simulate(dut, core_ns, memory_ns, core, memory)
    assert len(order) == 60 + 150 and next(stages, None) is None
    for number in range(60):  # the last write before the request
        address = 4 * number + number % 4
        assert order.index(("write", address)) < order.index(("read", address))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"depth": 12}, "crossing: depth must be a power of two from 8, found 12"),
    ({"requests": 4}, "crossing: requests must be a power of two from 8, found 4"),
])  # fmt: skip
def test_depths(arguments, message):
    Crossing._MustUse__silence = True  # Amaranth would warn of the object that never came to be
    with pytest.raises(BadInput, match=message):
        Crossing(4, **arguments)


# -- with the SDRAM -----------------------------------------------------------------------------

SPEC = SdramSpec(replace(DEVICES["ulx3s"], power_up_us=2), 133)


@pytest.fixture(scope="module")
def system():
    return build(SdramSystem(SPEC, 32, crossing=True), core_mhz=100)


def test_a_linear_stream_has_the_rate_of_the_memory(system, tmp_path):
    """A core at 100 MHz takes all that a memory at 133 MHz gives."""
    total = (1 << 17) // 32
    result = run(system, 32, tmp_path, requests=[(0, at, 64) for at in range(0, total, 64)])
    cycle = result.cycles(DATA)
    peak = 2 * SPEC.clock_mhz / 100  # bytes per cycle of the core
    rate = (total - 1) * 32 / (cycle[-1] - cycle[0]) / peak
    print(f"{rate:.4f} of the peak, {rate * SPEC.peak_mbytes:.1f} MB/s")
    assert result.violations == 0 and rate >= 0.97


@pytest.mark.parametrize("stall", STALLS)
def test_what_was_written_before_is_read(system, stall, tmp_path):
    """Every word is written once; a request that was accepted later has it, one before may have either."""
    rng = random.Random(STALLS.index(stall))
    memory, path = contents(tmp_path, SPEC.device.bytes // 2, rng)
    idle = stall in ("source", "both")
    words = rng.sample(range(900), 600)
    writes = [(rng.randrange(60 if idle else 20), at, rng.getrandbits(256)) for at in words]
    # Half of the requests begin where something was written shortly before.
    starts = [words[4 * i] if i % 2 else rng.randrange(900) for i in range(140)]
    requests = [(rng.randrange(30) if idle else 0, at, rng.choice([1, 1, 5, 16])) for at in starts]
    gaps = [rng.choice([0, 1, 7]) for _ in range(97)] if stall in ("sink", "both") else [0]
    result = run(system, 32, tmp_path, requests=requests, writes=writes, gaps=gaps, load=path)
    assert result.messages == [] and result.violations == 0

    old = serve(memory, [("read", 0, 1000)], 32)
    new = {at: (cycle, data) for (_, at, data), cycle in zip(writes, result.cycles(WRITE), strict=True)}
    got, fresh = iter(result.words), 0
    for (_, start, amount), asked in zip(requests, result.cycles(REQUEST), strict=True):
        for at in range(start, start + amount):
            cycle, data = new.get(at, (None, None))
            allowed = {old[at]} if cycle is None else {data} if cycle < asked else {data, old[at]}
            assert next(got) in allowed
            fresh += cycle is not None and cycle < asked
    assert fresh > 100
