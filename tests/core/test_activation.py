"""`ActivationMemory` returns what `ActivationModel` holds, under random traffic of all its clients."""

import random
from dataclasses import replace

import pytest

from core.memory import refuses, simulate
from edgemoe.config import NAMED
from edgemoe.core.activation import (
    DISTRIBUTED_WORDS,
    READ_LATENCY,
    TRANSPOSED_PAGE,
    ActivationMemory,
    ActivationModel,
    Banks,
    page_banks,
    page_size,
)

NANO = NAMED["nano"]
SMALL = {
    "8 lanes": replace(NANO, tokens=10, dim=16, row=64, hidden=16, image=64, acc_bits=0),
    "16 lanes": replace(
        NANO, in_lanes=16, tokens=9, dim=48, row=64, hidden=16, image=64, acc_bits=0, post_lanes=0
    ),
    "quarters": replace(NANO, tokens=33, dim=192, row=384, hidden=48, image=8 * 1600, experts=64, acc_bits=0),
    "1600 words of v": replace(NANO, tokens=33, dim=320, row=640, hidden=48, acc_bits=0),
}


def places(hardware, page):
    """Words of ``page`` near the edges of its quarters, or all of them if they are few."""
    first, size = hardware.page_base(page), page_size(hardware, page)
    if size < 64:
        return range(first, first + size)
    ends = {(first + i) // 512 * 512 for i in range(size)} | {first, first + size}
    return sorted({a + d for a in ends for d in range(-2, 3) if first <= a + d < first + size})


WAYS = {
    "own ways": {},
    "shared ways": {
        "read_ways": (("a", "store"), ("residual", "norm")),
        "write_ways": (("load", "product"),),
    },
}


def silent(rng, ways):
    """All clients of each way but one."""
    return {name for way in ways for name in rng.sample(way, len(way) - 1)}


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("name", SMALL)
def test_random_traffic(name, ways):
    hardware, rng, ways = SMALL[name], random.Random(name), WAYS[ways]
    dut, model = ActivationMemory(hardware, **ways), ActivationModel(hardware)
    lanes, count = hardware.in_lanes, hardware.pages
    candidates = [places(hardware, page) for page in range(count)]
    seen = dict.fromkeys(dut.readers, 0)

    async def testbench(ctx):
        expected = []
        for cycle in range(400):
            pages, now = list(range(count)), {}
            rng.shuffle(pages)
            read_address = {}
            quiet = silent(rng, ways.get("read_ways", ()))
            for name, page in zip(dut.readers, pages, strict=False):
                port = getattr(dut, f"read_{name}")
                en, address = rng.random() < 0.7 and name not in quiet, rng.choice(candidates[page])
                ctx.set(port.en, en)
                ctx.set(port.address, address)
                if en:
                    now[name] = model.read(address), model.bits[address]
                    read_address[page] = address
            rng.shuffle(pages)
            quiet = silent(rng, ways.get("write_ways", ()))
            for name, page in zip(dut.writers, pages, strict=False):
                port = getattr(dut, f"write_{name}")
                mask = [rng.random() < 0.6 for _ in range(lanes)]
                value = [rng.randrange(-(1 << 21), 1 << 21) for _ in range(lanes)]
                transposed = name == "product" and page == TRANSPOSED_PAGE and rng.random() < 0.8
                free = [a for a in candidates[page] if a != read_address.get(page)]
                address = [rng.choice(free) for _ in range(lanes)] if transposed else rng.choice(free)
                en = rng.random() < 0.8 and name not in quiet
                ctx.set(port.en, en)
                ctx.set(port.mask, sum(bit << i for i, bit in enumerate(mask)))
                ctx.set(port.value, value)
                if name == "product":
                    ctx.set(port.transposed, transposed)
                    if transposed:
                        ctx.set(port.lane_address, address)
                ctx.set(port.address, rng.randrange(hardware.activation_words) if transposed else address)
                if en:
                    model.write(address, mask, value)
            expected.append(now)
            if cycle >= READ_LATENCY:
                for name, (value, bits) in expected[cycle - READ_LATENCY].items():
                    got = ctx.get(getattr(dut, f"read_{name}").data)
                    got = [int(got[i]) for i in range(lanes)]
                    if bits == 16:  # the bits above are undefined
                        got = [((x + 0x8000) & 0xFFFF) - 0x8000 for x in got]
                    assert got == value.tolist(), (cycle, name)
                    seen[name] += bool(value.any())
            await ctx.tick()
        assert not ctx.get(dut.collision)

    simulate(dut, [testbench])
    assert min(seen.values()) > 40


def test_banks_hold_every_word_and_no_more_than_needed():
    assert [page_banks(SMALL["8 lanes"], page).banks for page in range(5)] == [((32, False),)] * 5
    assert page_banks(NANO, 1).banks == ((512, False),)
    tiny = NAMED["m3vit-128"]
    words = [[bank.depth for bank in page_banks(tiny, page).banks] for page in range(4)]
    assert words == [[24, 512, 512, 500], [512, 512, 512, 12], [512, 512, 12, 512], [512, 24, 500, 512]]
    assert page_banks(tiny, 4).banks == ((2048, False),)
    for base, words in ((488, 1548), (1548, 1548), (5000, 1025), (77, 1664), (9, 2048)):
        banks = Banks(base, words)
        size = (1 << banks.row_bits) // len(banks.banks)
        for row in ((base + i) % (1 << banks.row_bits) for i in range(words)):
            depth, falling = banks.banks[row // size]
            assert (size - 1 - row % size if falling else row % size) < depth


def test_pages_start_where_they_need_few_words_more_than_three_quarters():
    for hardware in NAMED.values():
        window = 1 << (hardware.page_words - 1).bit_length()

        def words(first, hardware=hardware, window=window):
            banks = [Banks(first + page * hardware.page_words, hardware.page_words) for page in range(4)]
            depths = [b.depth for bank in banks for b in bank.banks]
            return sum(d if d <= DISTRIBUTED_WORDS else window // 4 for d in depths)

        if len(page_banks(hardware, 0).banks) > 1:
            assert words(hardware.first_word) == min(words(first) for first in range(0, window // 4, 4))


@pytest.mark.parametrize("case", ["readers", "writers", "foreign", "way", "apart"])
def test_contract_violations_are_noticed(case):
    hardware = SMALL["8 lanes"]
    writers = {"product": range(5), "norm": (1,), "load": range(5)}
    dut = ActivationMemory(hardware, writers=writers, read_ways=[("a", "norm")])

    async def testbench(ctx):
        def access(port, address):
            ctx.set(port.en, 1)
            ctx.set(port.address, address)

        if case == "readers":
            access(dut.read_a, hardware.page_base(1))
            access(dut.read_b, hardware.page_base(2) - 1)
        elif case == "writers":
            access(dut.write_product, hardware.page_base(3))
            access(dut.write_load, hardware.page_base(4) - 1)
        elif case == "foreign":
            access(dut.write_norm, hardware.page_base(0))
        else:
            access(dut.read_a, hardware.page_base(2) + 3)
            access(dut.read_norm if case == "way" else dut.read_store, hardware.page_base(1))
            access(dut.write_load, hardware.page_base(2) + 3)
        await ctx.tick()
        for name in (*(f"read_{n}" for n in dut.readers), *(f"write_{n}" for n in dut.writers)):
            ctx.set(getattr(dut, name).en, 0)
        await ctx.tick().repeat(4)
        assert ctx.get(dut.collision) == (case != "apart")

    simulate(dut, [testbench])


def test_unknown_clients():
    refuses("lanes is 'dma'; the writers are product, norm, load", ActivationMemory, NANO, lanes="dma")
    refuses("a way names dma; the clients are", ActivationMemory, NANO, read_ways=[("a", "dma")])
