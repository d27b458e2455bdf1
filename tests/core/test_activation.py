"""`ActivationMemory` returns what `ActivationModel` holds, under random traffic of all its clients."""

import random
from dataclasses import replace

import pytest

from core.memory import refuses, simulate
from edgemoe.config import NAMED
from edgemoe.core.activation import (
    READ_LATENCY,
    TRANSPOSED_PAGE,
    ActivationMemory,
    ActivationModel,
    page_depth,
)

NANO = NAMED["nano"]
SMALL = {
    8: replace(NANO, tokens=10, dim=16, row=64, hidden=16, image=64, acc_bits=0),
    16: replace(NANO, in_lanes=16, tokens=9, dim=48, row=64, hidden=16, image=64, acc_bits=0, post_lanes=0),
}


@pytest.mark.parametrize("lanes", SMALL)
def test_random_traffic(lanes):
    hardware, rng = SMALL[lanes], random.Random(lanes)
    dut, model = ActivationMemory(hardware), ActivationModel(hardware)
    words = hardware.page_words
    seen = dict.fromkeys(dut.readers, 0)

    async def testbench(ctx):
        expected = []
        for cycle in range(400):
            pages, now = list(range(6)), {}
            rng.shuffle(pages)
            read_address = {}
            for name, page in zip(dut.readers, pages, strict=False):
                port = getattr(dut, f"read_{name}")
                en, address = rng.random() < 0.7, page * words + rng.randrange(words)
                ctx.set(port.en, en)
                ctx.set(port.address, address)
                if en:
                    now[name], read_address[page] = model.read(address), address
            rng.shuffle(pages)
            for name, page in zip(dut.writers, pages, strict=False):
                port = getattr(dut, f"write_{name}")
                mask = [rng.random() < 0.6 for _ in range(lanes)]
                value = [rng.randrange(-(1 << 21), 1 << 21) for _ in range(lanes)]
                transposed = name == "product" and page == TRANSPOSED_PAGE and rng.random() < 0.8
                free = [a for a in range(page * words, (page + 1) * words) if a != read_address.get(page)]
                address = [rng.choice(free) for _ in range(lanes)] if transposed else rng.choice(free)
                en = rng.random() < 0.8
                ctx.set(port.en, en)
                ctx.set(port.mask, sum(bit << i for i, bit in enumerate(mask)))
                ctx.set(port.value, value)
                if name == "product":
                    ctx.set(port.transposed, transposed)
                    if transposed:
                        ctx.set(port.lane_address, address)
                ctx.set(port.address, rng.randrange(6 * words) if transposed else address)
                if en:
                    model.write(address, mask, value)
            expected.append(now)
            if cycle >= READ_LATENCY:
                for name, value in expected[cycle - READ_LATENCY].items():
                    got = ctx.get(getattr(dut, f"read_{name}").data)
                    assert [int(got[i]) for i in range(lanes)] == value.tolist(), (cycle, name)
                    seen[name] += bool(value.any())
            await ctx.tick()
        assert not ctx.get(dut.collision) and not ctx.get(dut.overlap)

    simulate(dut, [testbench])
    assert min(seen.values()) > 80


def test_both_kinds_of_address_are_covered():
    assert [page_depth(hardware) for hardware in SMALL.values()] == [32, 48]
    assert [page_depth(hardware) for hardware in (NANO, NAMED["m3vit-256"])] == [512, 2048]


@pytest.mark.parametrize("case", ["readers", "writers", "foreign", "overlap", "apart"])
def test_contract_violations_are_noticed(case):
    hardware = SMALL[8]
    writers = {"product": range(6), "norm": (1,), "load": range(6)}
    dut, words = ActivationMemory(hardware, writers=writers), hardware.page_words

    async def testbench(ctx):
        def access(port, address):
            ctx.set(port.en, 1)
            ctx.set(port.address, address)

        if case == "readers":
            access(dut.read_a, words)
            access(dut.read_b, 2 * words - 1)
        elif case == "writers":
            access(dut.write_product, 3 * words)
            access(dut.write_load, 4 * words - 1)
        elif case == "foreign":
            access(dut.write_norm, 0)
        else:
            access(dut.read_a, 2 * words + 3)
            access(dut.write_load, 2 * words + (3 if case == "overlap" else 4))
            ctx.set(dut.write_load.mask, 1)
        await ctx.tick()
        for port in (dut.read_a, dut.read_b, dut.write_product, dut.write_norm, dut.write_load):
            ctx.set(port.en, 0)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.collision) == (case in ("readers", "writers", "foreign"))
        assert ctx.get(dut.overlap) == (case == "overlap")

    simulate(dut, [testbench])


def test_unknown_writer():
    refuses("lanes is 'dma'; the writers are product, norm, load", ActivationMemory, NANO, lanes="dma")
