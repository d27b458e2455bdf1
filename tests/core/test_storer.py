"""`Storer` writes what `store_bytes` says, out of the activation memory itself."""

import random
from dataclasses import replace

import numpy as np
import pytest

from core.memory import receive, send, simulate
from edgemoe.config import NAMED
from edgemoe.core.activation import READ_LATENCY
from edgemoe.core.storer import Storer, store_bytes


def run(port, lanes, jobs, words, stall="none", seed=0):
    """(address, data) of all writes, and the words accepted and the cycle at each ``done``."""
    dut = Storer(replace(NAMED["nano"], port_bytes=port, in_lanes=lanes, post_lanes=4, acc_bits=0))
    rng = random.Random(seed)
    got, done = [], []

    async def memory(ctx):
        queue = [None] * (READ_LATENCY - 1)
        while True:
            _, _, en, address = await ctx.tick().sample(dut.read.en, dut.read.address)
            queue.append(address if en else None)
            address = queue.pop(0)
            ctx.set(
                dut.read.data,
                [0x155 * i for i in range(lanes)] if address is None else words[address].tolist(),
            )

    async def watch(ctx):
        for cycle in range(20000):
            if ctx.get(dut.done):
                done.append((len(got), cycle))
            if len(done) == len(jobs):
                return
            await ctx.tick()
        raise AssertionError(f"{len(done)} of {len(jobs)} jobs, {len(got)} words")

    sink = receive(dut.write, None, got, rng if stall in ("sink", "both") else None)
    simulate(dut, [watch], [memory, sink, send(dut.job, jobs, rng if stall in ("source", "both") else None)])
    return [(g.address, g.data) for g in got], done


def activations(lanes, seed):
    return np.random.default_rng(seed).integers(-(1 << 21), 1 << 21, (400, lanes))


@pytest.mark.parametrize("stall", ["none", "source", "sink", "both"])
@pytest.mark.parametrize(("port", "lanes"), [(2, 8), (8, 16), (16, 8), (32, 8), (64, 8), (64, 16), (16, 32)])
def test_random_jobs(port, lanes, stall):
    rng, words = random.Random(f"{port} {lanes}"), activations(lanes, port)
    jobs, expected, ends = [], [], []
    for count, width in ((3, 5), (1, 1), (0, 3), (4, 2), (2, 0), (1, 7)):
        job = {"address": rng.randrange(1 << 28), "a_base": rng.randrange(100), "a_stride": rng.randrange(60),
               "count": count, "words": width}  # fmt: skip
        raw = store_bytes(words, job["a_base"], job["a_stride"], count, width, port)
        for i in range(len(raw) // port):
            data = int.from_bytes(raw[i * port : (i + 1) * port], "little")
            expected.append(((job["address"] + i) % (1 << 28), data))
        jobs.append(job)
        ends.append(len(expected))
    got, done = run(port, lanes, jobs, words, stall, seed=port)
    assert got == expected
    assert [count for count, _ in done] == ends


@pytest.mark.parametrize(("port", "lanes", "cycles"), [(16, 8, 200), (4, 8, 800), (64, 8, 200)])
def test_rate(port, lanes, cycles):
    job = {"address": 0, "a_base": 0, "a_stride": 20, "count": 10, "words": 20}
    _, done = run(port, lanes, [job], activations(lanes, 0))
    assert done[0][1] <= cycles + Storer.LATENCY + 6
