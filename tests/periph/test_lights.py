"""Lights hold what is too short to be seen, and the share gives the memory to one master at a time."""

import pytest
from amaranth.sim import Simulator

from edgemoe.errors import BadInput
from edgemoe.periph.lights import Lights
from edgemoe.periph.share import MemoryShare

HZ = 256


def test_a_pulse_is_held_and_life_blinks_once_per_second():
    dut = Lights(HZ, 2)
    seen, blinks = [], []

    async def bench(ctx):
        for cycle in range(3 * HZ):
            ctx.set(dut.i, 0b01 if cycle == 100 else 0b10 if 200 <= cycle < 400 else 0)
            await ctx.tick()
            seen.append(ctx.get(dut.o))
            blinks.append(ctx.get(dut.alive))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    first = [cycle for cycle, value in enumerate(seen) if value & 1]
    assert first[0] == 100 and first == list(range(first[0], first[-1] + 1))
    assert HZ / 16 <= len(first) <= HZ / 8 + 2
    second = [cycle for cycle, value in enumerate(seen) if value & 2]
    assert second[0] == 200 and second == list(range(200, second[-1] + 1))
    assert 200 + HZ / 16 <= len(second) <= 200 + HZ / 8 + 2
    rising = [cycle for cycle in range(1, len(blinks)) if blinks[cycle] and not blinks[cycle - 1]]
    assert len(rising) >= 2 and all(b - a == HZ for a, b in zip(rising, rising[1:]))


def test_a_clock_that_is_too_slow_is_refused():
    with pytest.raises(BadInput, match="clock_hz must be at least 16, found 3"):
        Lights(3, 1)


@pytest.mark.parametrize("turn", [0, 1])
def test_only_the_master_with_the_turn_sees_the_memory(turn):
    dut = MemoryShare(8)

    async def bench(ctx):
        masters = (dut.first, dut.second)
        ctx.set(dut.turn, turn)
        for number, master in enumerate(masters):
            ctx.set(master.read_request.payload.address, 10 + number)
            ctx.set(master.read_request.valid, 1)
            ctx.set(master.write.payload.data, 20 + number)
            ctx.set(master.write.valid, 1)
            ctx.set(master.read_data.ready, number == turn)
        for stream in (dut.memory.read_request, dut.memory.write):
            ctx.set(stream.ready, 1)
        ctx.set(dut.memory.read_data.valid, 1)
        ctx.set(dut.memory.read_data.payload, 77)
        await ctx.delay(1e-9)
        assert ctx.get(dut.memory.read_request.payload.address) == 10 + turn
        assert ctx.get(dut.memory.write.payload.data) == 20 + turn
        assert ctx.get(dut.memory.read_request.valid) and ctx.get(dut.memory.write.valid)
        assert ctx.get(dut.memory.read_data.ready)
        for number, master in enumerate(masters):
            mine = number == turn
            assert ctx.get(master.read_request.ready) == mine and ctx.get(master.write.ready) == mine
            assert ctx.get(master.read_data.valid) == mine
        assert ctx.get(masters[turn].read_data.payload) == 77
        ctx.set(masters[turn].read_request.valid, 0)
        ctx.set(masters[turn].write.valid, 0)
        ctx.set(masters[turn].read_data.ready, 0)
        ctx.set(masters[1 - turn].read_data.ready, 1)
        await ctx.delay(1e-9)
        assert not ctx.get(dut.memory.read_request.valid) and not ctx.get(dut.memory.write.valid)
        assert not ctx.get(dut.memory.read_data.ready)

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()
