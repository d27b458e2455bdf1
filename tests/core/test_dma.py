"""Readers return the words of their regions in order, in legal bursts, never blocking the port."""

import random
from dataclasses import replace

import pytest

from core.memory import MemoryModel, receive, refuses, send, simulate
from edgemoe.config import NAMED
from edgemoe.core.dma import BurstReader, ReadArbiter, WeightDma, bursts
from edgemoe.core.interface import MAX_BURST
from edgemoe.gearbox import regroup

NANO = NAMED["nano"]


def collect(port, amount, into, limit):
    """Always ready: (cycle, payload)."""

    async def testbench(ctx):
        ctx.set(port.ready, 1)
        for cycle in range(limit):
            _, _, valid, payload = await ctx.tick().sample(port.valid, port.payload)
            if valid:
                into.append((cycle, payload))
            if len(into) == amount:
                return
        raise AssertionError(f"{len(into)} of {amount} after {limit} cycles")

    return testbench


def content(port_bytes, seed=0):
    rng = random.Random(seed)
    words = [rng.randrange(1 << 8 * port_bytes) for _ in range(509)]
    return lambda address: words[address % 509]


@pytest.mark.parametrize("stall", ["none", "source", "sink", "both"])
@pytest.mark.parametrize(
    ("port", "prefetch"), [(2, 64), (4, 1024), (8, 256), (16, 64), (32, 4096), (64, 1024)]
)
def test_weight_stream(port, prefetch, stall):
    hardware = replace(NANO, port_bytes=port, prefetch_bytes=prefetch)
    rng = random.Random(port)
    unit = max(1, hardware.fill_bytes // port)  # port words of a whole fill word
    commands = [(rng.randrange(1 << 20), n * unit) for n in (3, 0, 1, 0, 0, 40, 65, 16, 1)]
    dut = WeightDma(hardware)
    words = content(port)
    memory = MemoryModel(
        dut.request, dut.data, words, latency=rng.randrange(1, 20), stall=stall in ("source", "both")
    )
    read = [words(address + i) for address, length in commands for i in range(length)]
    expected, got = regroup(read, port, hardware.fill_bytes), []
    payloads = [{"address": a, "length": n} for a, n in commands]
    simulate(
        dut,
        [receive(dut.o, len(expected), got, rng if stall in ("sink", "both") else None)],
        [memory.run, send(dut.command, payloads, rng if stall in ("source", "both") else None)],
    )
    assert got == expected
    assert memory.requests == bursts(commands, dut.burst)
    assert max(n for _, n in memory.requests) <= min(MAX_BURST, dut.depth // 4)
    assert memory.waiting == 0


@pytest.mark.parametrize(
    ("port", "prefetch", "latency"), [(8, 2048, 100), (32, 8192, 100), (2, 1024, 100), (4, 32, 1)]
)
def test_full_rate(port, prefetch, latency):
    hardware = replace(NANO, port_bytes=port, prefetch_bytes=prefetch)
    dut = WeightDma(hardware)
    words, got = content(port), []
    memory = MemoryModel(dut.request, dut.data, words, latency=latency)
    lengths = [64, 192, 8 * dut.burst] if prefetch > 64 else [128]
    amount = sum(lengths) * port // hardware.fill_bytes
    payloads = [{"address": 1000 * i, "length": n} for i, n in enumerate(lengths)]
    simulate(dut, [collect(dut.o, amount, got, 3000)], [memory.run, send(dut.command, payloads)])
    step = max(1, hardware.fill_bytes // port)
    assert got[-1][0] - got[0][0] == (amount - 1) * step
    assert got[0][0] - memory.sent[step - 1] == dut.latency


def test_prefetch_crosses_commands_and_stops_when_full():
    dut = WeightDma(replace(NANO, prefetch_bytes=512))
    memory = MemoryModel(dut.request, dut.data, content(8))

    async def wait(ctx):
        await ctx.tick().repeat(300)

    simulate(
        dut, [wait], [memory.run, send(dut.command, [{"address": 8 * i, "length": 8} for i in range(20)])]
    )
    kept = sum(n for _, n in memory.requests)
    assert dut.depth - dut.burst < kept <= dut.depth + 4  # 4 words are beyond the queue
    assert len(memory.sent) == kept


def test_prefetch_must_hold_bursts():
    refuses(
        "prefetch_bytes is 16; it must hold at least 4 words of the port, 32 bytes",
        WeightDma,
        replace(NANO, prefetch_bytes=16),
    )


@pytest.mark.parametrize("stall", [False, True])
@pytest.mark.parametrize("clients", [1, 2, 3, 4])
def test_arbiter(clients, stall):
    dut = ReadArbiter(4, clients)
    memory = MemoryModel(dut.port_request, dut.port_data, lambda address: address, latency=30, stall=stall)
    benches, background, got, expected = [], [memory.run], [], []
    for i in range(clients):
        rng = random.Random(i)
        asked = [(i << 24 | 100 * j, rng.choice((1, 2, 16, 64))) for j in range(20)]
        expected.append([address + k for address, n in asked for k in range(n)])
        got.append([])
        background.append(send(dut.request[i], [{"address": a, "length": n - 1} for a, n in asked], rng))
        benches.append(receive(dut.data[i], len(expected[i]), got[i]))
    simulate(dut, benches, background)
    assert got == expected
    if not stall:
        assert memory.waiting == 0


def test_data_that_a_reader_does_not_take_are_told():
    dut = ReadArbiter(4, 2)
    lost = []

    async def watch(ctx):
        ctx.set(dut.port_request.ready, 1)
        ctx.set(dut.request[1].payload, {"address": 0, "length": 2})
        ctx.set(dut.request[1].valid, 1)
        await ctx.tick()
        ctx.set(dut.request[1].valid, 0)
        await ctx.tick().repeat(8)
        ctx.set(dut.port_data.valid, 1)
        for ready in (1, 0, 1):
            ctx.set(dut.data[1].ready, ready)
            ctx.set(dut.data[0].ready, 1)
            lost.append(ctx.get(dut.lost))
            await ctx.tick()

    simulate(dut, [watch], [])
    assert lost == [0, 1, 0]


def test_arbiter_rotates_at_full_rate():
    dut = ReadArbiter(4, 3)
    memory = MemoryModel(dut.port_request, dut.port_data, lambda address: address, latency=12)
    background, got = [memory.run], [[], [], []]
    for i in range(3):
        background.append(send(dut.request[i], [{"address": i << 8 | j, "length": 0} for j in range(40)]))
    benches = [receive(dut.data[i], 40, got[i]) for i in range(3)]
    simulate(dut, benches, background)
    owners = [address >> 8 for address, _ in memory.requests]
    assert owners[:60] == [0, 1, 2] * 20
    assert memory.sent[-1] - memory.sent[0] == 119


def test_bursts_and_clients_are_checked():
    refuses(r"burst must be 1\.\.16 with depth 64, found 32", BurstReader, 8, 64, 32)
    refuses("clients must be at least 1, found 0", ReadArbiter, 8, 0)
