"""Explicit cells of an ECP5 and what is inferred, side by side in cocotb: a product and a sum of two, with enables at random."""

import os
import random

import cocotb
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from edgemoe.multiplier import MULTIPLIER_LATENCY, multiply, multiply_add

A_BITS = 16


class Multipliers(wiring.Component):
    """Operands B and D have ``b_bits``."""

    def __init__(self, b_bits):
        self.b_bits = b_bits
        product = signed(A_BITS + b_bits)
        total = signed(A_BITS + b_bits + 1)
        super().__init__(
            {
                "a": In(signed(A_BITS)),
                "b": In(signed(b_bits)),
                "c": In(signed(A_BITS)),
                "d": In(signed(b_bits)),
                "enable": In(1),
                "explicit": Out(product),
                "inferred": Out(product),
                "explicit_sum": Out(total),
                "inferred_sum": Out(total),
            }
        )

    def elaborate(self, platform):
        m = Module()
        pair, both = (self.a, self.b), (self.a, self.b, self.c, self.d)
        m.d.comb += [
            self.explicit.eq(multiply(m, *pair, self.enable, "ecp5")),
            self.inferred.eq(multiply(m, *pair, self.enable, None)),
            self.explicit_sum.eq(multiply_add(m, *both, self.enable, "ecp5")),
            self.inferred_sum.eq(multiply_add(m, *both, self.enable, None)),
        ]
        return m


@cocotb.test()
async def both_equal_the_product_and_the_sum(dut):
    b_bits = int(os.environ["B_BITS"])
    drawn = random.Random(b_bits)

    def limits(bits):
        return (-(1 << bits - 1), -1, 0, 1, (1 << bits - 1) - 1)

    def any_of(bits):
        return drawn.randrange(-(1 << bits - 1), 1 << bits - 1)

    edges = [(a, b) for a in limits(A_BITS) for b in limits(b_bits)]
    operands = [(*x, *y) for x in edges for y in edges]
    operands += [(any_of(A_BITS), any_of(b_bits), any_of(A_BITS), any_of(b_bits)) for _ in range(400)]
    dut.rst.value = 0
    Clock(dut.clk, 10, "ns").start()
    await FallingEdge(dut.clk)
    accepted = []
    for a, b, c, d in operands:
        enable = 0
        while not enable:
            enable = int(drawn.random() < 0.7)
            for pin, value, bits in (("a", a, A_BITS), ("b", b, b_bits), ("c", c, A_BITS), ("d", d, b_bits)):
                getattr(dut, pin).value = value % (1 << bits)
            dut.enable.value = enable
            await FallingEdge(dut.clk)
            if enable:
                accepted.append((a * b, a * b + c * d))
            if len(accepted) > MULTIPLIER_LATENCY:
                product, total = accepted[-MULTIPLIER_LATENCY][0], accepted[-MULTIPLIER_LATENCY - 1][1]
                for kind in ("explicit", "inferred"):
                    assert getattr(dut, kind).value.to_signed() == product
                    assert getattr(dut, f"{kind}_sum").value.to_signed() == total
