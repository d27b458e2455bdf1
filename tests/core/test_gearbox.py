"""`Gearbox` and `Fifo` pass all bytes in order, at full rate, under every stall pattern."""

import random

import pytest
from amaranth.back import rtlil

from bench import STALLS, run
from core.memory import refuses
from edgemoe.core.fifo import Fifo, scarce_tables
from edgemoe.core.sequencer import Dispatcher
from edgemoe.gearbox import Gearbox, regroup
from models import HARDWARE


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(("i_bytes", "o_bytes"), [(2, 16), (8, 4), (16, 1), (1, 2)])
def test_bytes_keep_their_order(i_bytes, o_bytes, stall):
    wide, rng = max(i_bytes, o_bytes), random.Random(i_bytes)
    sent = [rng.randrange(1 << 8 * i_bytes) for _ in range(20 * wide // i_bytes)]
    expected = regroup(sent, i_bytes, o_bytes)
    result = run(Gearbox(i_bytes, o_bytes), {"i": sent}, {"o": len(expected)}, stall=stall)
    assert result.values["o"] == expected
    if stall == "none":
        cycles = result.cycles_in["i"] if i_bytes < o_bytes else result.cycles_out["o"]
        assert cycles[-1] - cycles[0] == 20 * wide // min(i_bytes, o_bytes) - 1


@pytest.mark.parametrize("widths", [(3, 4), (4, 0)])
def test_widths_are_powers_of_two(widths):
    refuses("_bytes must be a power of two, found [30]", Gearbox, *widths)


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("depth", [2, 8, 16])
def test_fifo(depth, block, stall):
    sent = [random.Random(depth).randrange(256) for _ in range(100)]
    result = run(Fifo(8, depth, block), {"i": sent}, {"o": len(sent)}, stall=stall)
    assert result.values["o"] == sent
    if stall == "none":
        assert result.cycles_out["o"][-1] - result.cycles_out["o"][0] == len(sent) - 1
        assert result.cycles_out["o"][0] - result.cycles_in["i"][0] == Fifo.LATENCY


@pytest.mark.parametrize("stall", STALLS)
def test_short_queues_keep_the_cycles_of_those_in_block_ram(stall):
    sent = list(range(100))
    ours, block = (run(Fifo(8, 8, block), {"i": sent}, {"o": 100}, stall=stall) for block in (False, True))
    assert ours.cycles_in == block.cycles_in and ours.cycles_out == block.cycles_out


def test_wide_queues_lie_in_block_ram_where_lookup_tables_are_scarce():
    assert scarce_tables("ecp5-25k") and not scarce_tables("ecp5-85k") and not scarce_tables(None)
    sizes = {}
    for platform in ("ecp5-25k", "ecp5-85k"):
        text = rtlil.convert(Dispatcher(HARDWARE["two sets"]), platform=platform, emit_src=False)
        sizes[platform] = text.count('ram_style "block"'), text.count('ram_style "distributed"')
    assert sizes == {"ecp5-25k": (2, 1), "ecp5-85k": (0, 3)}


def test_fifo_depth():
    refuses("depth must be a power of two from 2, found 3", Fifo, 8, 3)
