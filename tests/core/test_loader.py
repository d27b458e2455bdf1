"""`Loader` writes what `load_words` and `cut_patches` say: same writes, same order."""

import random
from dataclasses import replace

import numpy as np
import pytest

from core.memory import MemoryModel, send, simulate
from edgemoe.config import NAMED
from edgemoe.core.loader import Loader, cut_patches, load_words, piece_cycles
from edgemoe.isa import Op
from edgemoe.numeric import ceil_div, round_up


def hardware(port, lanes):
    return replace(NAMED["nano"], port_bytes=port, in_lanes=lanes, post_lanes=4, acc_bits=0)


def segment_of(width, lanes):
    return round_up(width, lanes) if width >= lanes else 1 << (width - 1).bit_length()


def image_job(rng, port, lanes, shape, pixel_bytes, surplus=0):
    """(job without address, bytes in memory, expected writes)."""
    channels, grid_y, grid_x, patch_y, patch_x = shape
    data = np.random.default_rng(rng.randrange(1 << 30))
    size = (channels, grid_y * patch_y, grid_x * patch_x)
    image = (
        data.integers(0, 256, size, np.uint8)
        if pixel_bytes == 1
        else data.integers(-32768, 32768, size, "<i2")
    )
    segment = segment_of(patch_x, lanes)
    stride = ceil_div(channels * patch_y * segment, lanes)
    raw = image.tobytes()
    job = {
        "op": Op.IMAGE, "length": ceil_div(len(raw), port) + surplus, "d_base": rng.randrange(1000), "d_stride": stride,
        "channels": channels, "grid_y": grid_y, "grid_x": grid_x, "patch_y": patch_y, "patch_x": patch_x,
        "segment": segment, "pixel_bytes": pixel_bytes,
    }  # fmt: skip
    return job, raw, cut_patches(image, lanes, job["d_base"], stride, patch_y, patch_x, segment)


def load_job(rng, port, lanes, length):
    raw = rng.randbytes(length * port)
    job = {"op": Op.LOAD, "length": length, "d_base": rng.randrange(1000)}
    return job, raw, load_words(raw, lanes, job["d_base"])


def run(port, lanes, jobs, stall="none", latency=10, seed=0, limit=20000):
    """All writes of the jobs as (address, mask, values), and the cycles of the writes and of ``done``."""
    dut = Loader(hardware(port, lanes))
    rng = random.Random(seed)
    memory_words, addressed = {}, []
    for job, raw, _ in jobs:
        address = rng.randrange(1 << 17) * 1000
        raw += rng.randbytes(port * (job["length"] + 1) - len(raw))
        for i in range(job["length"]):
            memory_words[address + i] = int.from_bytes(raw[i * port : (i + 1) * port], "little")
        addressed.append({**job, "address": address})
    memory = MemoryModel(
        dut.request, dut.data, memory_words.__getitem__, latency, stall in ("source", "both"), seed
    )
    writes, done = [], []

    async def watch(ctx):
        for cycle in range(limit):
            if len(done) == len(jobs):
                break
            if ctx.get(dut.write.en):
                value = ctx.get(dut.write.value)
                writes.append(
                    (ctx.get(dut.write.address), ctx.get(dut.write.mask), [value[i] for i in range(lanes)])
                )
            if ctx.get(dut.done):
                done.append((cycle, len(writes)))
            await ctx.tick()
        else:
            raise AssertionError(f"{len(done)} of {len(jobs)} jobs, {len(writes)} writes")

    simulate(dut, [watch], [memory.run, send(dut.job, addressed, rng if stall == "both" else None)])
    assert memory.waiting == 0
    return writes, done


def check(writes, done, jobs):
    expected = []
    for (job, _, golden), (_, count) in zip(jobs, done, strict=True):
        for address, mask, value in zip(*golden, strict=True):
            expected.append((address, sum(int(bit) << i for i, bit in enumerate(mask)), value.tolist()))
        assert count == len(expected), f"done of {job} after {count} writes"
    assert writes == expected


@pytest.mark.parametrize("stall", ["none", "source", "both"])
@pytest.mark.parametrize(("port", "lanes"), [(2, 8), (4, 16), (8, 8), (16, 32), (32, 16), (64, 8), (32, 32)])
def test_random_jobs(port, lanes, stall):
    rng = random.Random(f"{port} {lanes}")
    jobs = []
    for patch_x in (1, lanes - 1, lanes // 2, lanes // 2 - 1, lanes, lanes + 3, 2 * lanes):
        shape = [rng.randrange(1, 3) for _ in range(4)] + [patch_x]
        jobs.append(image_job(rng, port, lanes, shape, rng.choice((1, 2)), surplus=rng.randrange(3)))
        length = rng.choice((0, 1, 2, 5)) * max(1, 2 * lanes // port)
        jobs.append(load_job(rng, port, lanes, length))
    writes, done = run(port, lanes, jobs, stall, latency=rng.randrange(1, 30), seed=port)
    check(writes, done, jobs)


@pytest.mark.parametrize("pixel_bytes", [1, 2])
def test_every_dimension_counts(pixel_bytes):
    rng = random.Random(pixel_bytes)
    jobs = [
        image_job(rng, 8, 8, (3, 2, 4, 3, 7), pixel_bytes),
        image_job(rng, 8, 8, (2, 3, 2, 5, 19), pixel_bytes),
    ]
    check(*run(8, 8, jobs), jobs)


def test_nothing_to_write():
    rng = random.Random(0)
    image, raw, _ = image_job(rng, 8, 8, (1, 1, 1, 1, 8), 1)
    nothing = np.zeros(0, int), np.zeros((0, 8), bool), np.zeros((0, 8), int)
    jobs = [load_job(rng, 8, 8, 1), ({**image, "grid_y": 0}, raw, nothing), load_job(rng, 8, 8, 4)]
    check(*run(8, 8, jobs), jobs)


@pytest.mark.parametrize(
    ("port", "lanes", "patch_x", "pixel_bytes", "per_write"),
    [
        (16, 8, 8, 1, 1),
        (16, 8, 16, 2, 1),
        (16, 16, 16, 1, 1),
        (32, 16, 12, 2, 4 / 3),
        (4, 8, 8, 1, 2),
        (32, 8, 4, 1, 1),
    ],
)
def test_rate(port, lanes, patch_x, pixel_bytes, per_write):
    """Cycles per write once the first data are there: one, or as the port supplies the bytes; pieces of 12 lanes out of
    16 wait in every third cycle for a chunk.
    """
    jobs = [image_job(random.Random(1), port, lanes, (1, 4, 4, 16, patch_x), pixel_bytes)]
    writes, done = run(port, lanes, jobs, latency=8)
    assert done[0][0] <= len(writes) * per_write + 45


def test_load_rate():
    jobs = [load_job(random.Random(1), 32, 16, 300)]
    writes, done = run(32, 16, jobs, latency=40)
    assert len(writes) == 300 and done[0][0] <= 300 + 40 + 25


@pytest.mark.parametrize(("lanes", "patch_x"), [(8, 6), (8, 7), (8, 8), (8, 19), (16, 12), (16, 14)])
def test_cycles_of_a_piece(lanes, patch_x):
    """The aligner alone decides where the port gives two chunks a cycle."""
    jobs = [image_job(random.Random(1), 4 * lanes, lanes, (1, 4, 4, 16, patch_x), 2)]
    writes, done = run(4 * lanes, lanes, jobs, latency=8)
    assert done[0][0] == pytest.approx(len(writes) * piece_cycles(patch_x, lanes), abs=40)
