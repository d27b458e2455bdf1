"""Multipliers with a register behind them, one always enabled and one by an input, against a model in Python."""

import random

import cocotb
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, Timer

BITS = 16
CYCLES = 1000


class Products(wiring.Component):
    """Products of ``a`` and ``b``."""

    def __init__(self):
        operand, product = signed(BITS), signed(2 * BITS)
        super().__init__(
            {
                "a": In(operand),
                "b": In(operand),
                "enable": In(1),
                "always": Out(product),
                "enabled": Out(product),
            }
        )

    def elaborate(self, platform):
        m = Module()
        always, enabled = (
            Signal(signed(2 * BITS), reset_less=True, name=n) for n in ("always_q", "enabled_q")
        )
        m.d.sync += always.eq(self.a * self.b)
        with m.If(self.enable):
            m.d.sync += enabled.eq(self.a * self.b.as_unsigned())
        m.d.comb += [self.always.eq(always), self.enabled.eq(enabled)]
        return m


@cocotb.test()
async def products_equal_the_model(dut):
    drawn = random.Random(BITS)
    always = enabled = 0
    dut.rst.value = dut.a.value = dut.b.value = dut.enable.value = 0
    await Timer(1, "ns")  # before the first edge
    Clock(dut.clk, 10, "ns").start()
    await FallingEdge(dut.clk)
    for _ in range(CYCLES):
        assert dut.always.value.to_signed() == always
        assert dut.enabled.value.to_signed() == enabled
        a, b = (drawn.randrange(-(1 << BITS - 1), 1 << BITS - 1) for _ in range(2))
        enable = drawn.randrange(2)
        dut.a.value, dut.b.value, dut.enable.value = a % (1 << BITS), b % (1 << BITS), enable
        always = a * b
        enabled = a * (b % (1 << BITS)) if enable else enabled
        await FallingEdge(dut.clk)
