"""`Fetch` delivers what `fetched` says, for every port width, and ends with an error instead of a hang."""

import random
from dataclasses import asdict, replace

import pytest

from core.memory import MemoryModel, receive, simulate
from edgemoe.config import NAMED
from edgemoe.core.fetch import AHEAD, Fetch, fetched
from edgemoe.isa import CHECK, DESCRIPTOR_BYTES, Descriptor, Error, Op

PORTS = (2, 8, 32, 64, 128, 256)


def program(length, rng):
    ops = [op for op in Op if op != Op.END]
    return [
        Descriptor(op=rng.choice(ops), count=i, address=rng.randrange(1 << 28), pixel_bytes=rng.randrange(4))
        for i in range(length - 1)
    ] + [Descriptor(op=Op.END)]


def run(port, descriptors, images, stall="none", latency=10, seed=0, starts=1):
    """What `Fetch` delivers, the error, and the memory, after ``starts`` runs one after the other."""
    rng = random.Random(seed)
    dut = Fetch(replace(NAMED["nano"], port_bytes=port))
    base = rng.randrange(1000)
    raw = b"".join(d.pack() for d in descriptors)
    raw += bytes([0xFF]) * (-len(raw) % port)

    def words(address):
        at = (address - base) * port
        return int.from_bytes(raw[at : at + port] if 0 <= at < len(raw) else b"\xff" * port, "little")

    memory = MemoryModel(
        dut.request, dut.data, words, latency=latency, stall=stall in ("source", "both"), seed=seed
    )
    got = []

    async def control(ctx):
        for _ in range(starts):
            ctx.set(dut.program, base)
            ctx.set(dut.images, images)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.program, 0)
            ctx.set(dut.images, 0)
            for _ in range(20000):
                await ctx.tick()
                if not ctx.get(dut.busy):
                    break
            else:
                raise AssertionError(f"busy after {len(got)} descriptors")
        memory.error = Error(ctx.get(dut.error))

    simulate(
        dut, [control], [memory.run, receive(dut.o, None, got, rng if stall in ("sink", "both") else None)]
    )
    return got, memory


@pytest.mark.parametrize("stall", ["none", "source", "sink", "both"])
@pytest.mark.parametrize("port", PORTS)
def test_program(port, stall):
    rng = random.Random(port)
    descriptors, images, starts = program(rng.randrange(5, 12), rng), 3, 2
    got, memory = run(
        port, descriptors, images, stall, latency=rng.randrange(1, 40), seed=port, starts=starts
    )
    expected, error = fetched(descriptors, images)
    assert error == memory.error == Error.NONE
    assert [(g.number, g.index, g.last) for g in got] == expected * starts
    for g in got:
        wanted = asdict(descriptors[g.number])
        assert {name: g.descriptor[name] for name in wanted} == wanted
    assert memory.waiting == 0
    each = max(1, port // DESCRIPTOR_BYTES)
    assert len(memory.requests) <= starts * images * (len(descriptors) // each + 1 + AHEAD)


def test_one_descriptor():
    got, memory = run(8, [Descriptor(op=Op.END)], 2)
    assert [(g.number, g.index, g.last) for g in got] == [(0, 0, 0), (0, 1, 1)]
    assert memory.error == Error.NONE


@pytest.mark.parametrize("stall", ["none", "both"])
@pytest.mark.parametrize("port", [8, 128])
@pytest.mark.parametrize("fault", [{"check": CHECK ^ 0x80}, {"op": 8}, {"op": 15}])
def test_faults(port, fault, stall):
    descriptors = program(9, random.Random(1))
    descriptors[5] = replace(descriptors[5], **fault)
    got, memory = run(port, descriptors, 2, stall, starts=2)
    expected, error = fetched(descriptors, 2)
    assert len(expected) == 5 and error == Error.OPCODE == memory.error
    assert [(g.number, g.index, g.last) for g in got] == expected * 2


def test_no_end_and_no_image():
    got, memory = run(32, program(6, random.Random(2))[:-1], 1)
    assert len(got) == 5 and memory.error == Error.OPCODE
    got, memory = run(32, program(6, random.Random(2)), 0)
    assert got == [] and memory.error == Error.CONTROL and not memory.requests
