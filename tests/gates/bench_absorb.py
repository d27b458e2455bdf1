"""Memories with a register behind their output against a model in Python, in cocotb; every enable is drawn at random."""

import os
import random

import cocotb
from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, Timer

BYTE = 8
KINDS = ("always", "enabled", "kept", "open")
CYCLES = 3000


def contents(width, depth):
    drawn = random.Random(width)
    return [drawn.randrange(1 << width) for _ in range(depth)]


class Memories(wiring.Component):
    """Memories that are written and read alike, and differ in what is behind them: a register that is ``always``
    enabled, one that is ``enabled`` by an input, one whose signal is to be ``kept``, and one beside which the output
    is used without register (``open``).
    """

    def __init__(self, width, depth):
        self.width, self.depth = width, depth
        address = range(depth)
        super().__init__(
            {
                "write": In(-(-width // BYTE)),
                "write_address": In(address),
                "data": In(width),
                "read": In(1),
                "read_address": In(address),
                "enable": In(1),
                **{kind: Out(width) for kind in KINDS},
                "latch": Out(width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for kind in KINDS:
            memory = Memory(
                shape=unsigned(self.width), depth=self.depth, init=contents(self.width, self.depth)
            )
            m.submodules[kind] = memory
            # a mask needs a width that is a multiple of a byte
            whole = self.width % BYTE != 0
            write = memory.write_port() if whole else memory.write_port(granularity=BYTE)
            read = memory.read_port()
            m.d.comb += [
                write.en.eq(self.write.any() if whole else self.write),
                write.addr.eq(self.write_address),
                write.data.eq(self.data),
                read.en.eq(self.read),
                read.addr.eq(self.read_address),
            ]
            attributes = {"keep": 1} if kind == "kept" else {}
            register = Signal(self.width, reset_less=True, name=f"{kind}_register", attrs=attributes)
            with m.If(self.enable if kind == "enabled" else 1):
                m.d.sync += register.eq(read.data)
            m.d.comb += getattr(self, kind).eq(register)
        m.d.comb += self.latch.eq(read.data)
        return m


@cocotb.test()
async def registers_equal_the_model(dut):
    width, depth = int(os.environ["WIDTH"]), int(os.environ["DEPTH"])
    drawn = random.Random(depth)
    stored = contents(width, depth)
    lanes = -(-width // BYTE)
    latch = always = enabled = 0  # as configuration leaves them
    dut.rst.value = dut.write.value = dut.read.value = dut.enable.value = 0
    await Timer(1, "ns")  # before the first edge
    Clock(dut.clk, 10, "ns").start()
    await FallingEdge(dut.clk)
    for cycle in range(CYCLES):
        assert int(dut.always.value) == int(dut.kept.value) == int(dut.open.value) == always, cycle
        assert int(dut.enabled.value) == enabled, cycle
        assert int(dut.latch.value) == latch, cycle
        write = drawn.randrange(1 << lanes) * drawn.randrange(2)
        write_address = drawn.randrange(min(depth, 64))
        read_address = drawn.randrange(min(depth, 64))
        if (
            read_address >> 3 == write_address >> 3
        ):  # a row at most; what a read of one that is written returns is not defined
            write = 0
        data, read, enable = drawn.randrange(1 << width), drawn.randrange(2), drawn.randrange(2)
        dut.write.value, dut.write_address.value, dut.data.value = write, write_address, data
        dut.read.value, dut.read_address.value, dut.enable.value = read, read_address, enable
        always = latch
        enabled = latch if enable else enabled
        latch = stored[read_address] if read else latch
        mask = sum(0xFF << BYTE * k for k in range(lanes) if write >> k & 1)
        if width % BYTE:
            mask = (1 << width) - 1 if write else 0
        stored[write_address] = stored[write_address] & ~mask | data & mask
        await FallingEdge(dut.clk)
