"""Both multipliers side by side in cocotb: the explicit MULT18X18D and the inferred one, with enables at random."""

import os
import random

import cocotb
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from edgemoe.units.matmul import MULTIPLIER_LATENCY, multiply

A_BITS = 16


class Multipliers(wiring.Component):
    """Operand B has ``b_bits``."""

    def __init__(self, b_bits):
        self.b_bits = b_bits
        super().__init__(
            {
                "a": In(signed(A_BITS)),
                "b": In(signed(b_bits)),
                "enable": In(1),
                "explicit": Out(signed(A_BITS + b_bits)),
                "inferred": Out(signed(A_BITS + b_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.explicit.eq(multiply(m, self.a, self.b, self.enable, "ecp5")),
            self.inferred.eq(multiply(m, self.a, self.b, self.enable, None)),
        ]
        return m


def signed_value(handle, bits):
    value = int(handle.value)
    return value - (value >> bits - 1 << bits)


@cocotb.test()
async def both_equal_the_product(dut):
    b_bits = int(os.environ["B_BITS"])
    width = A_BITS + b_bits
    drawn = random.Random(b_bits)
    limits_a = (-(1 << A_BITS - 1), -1, 0, 1, (1 << A_BITS - 1) - 1)
    limits_b = (-(1 << b_bits - 1), -1, 0, 1, (1 << b_bits - 1) - 1)
    operands = [(a, b) for a in limits_a for b in limits_b]
    operands += [
        (drawn.randrange(-(1 << 15), 1 << 15), drawn.randrange(-(1 << b_bits - 1), 1 << b_bits - 1))
        for _ in range(400)
    ]
    dut.rst.value = 0
    Clock(dut.clk, 10, "ns").start()
    await FallingEdge(dut.clk)
    accepted = []
    for a, b in operands:
        enable = 0
        while not enable:
            enable = int(drawn.random() < 0.7)
            dut.a.value, dut.b.value, dut.enable.value = a % (1 << A_BITS), b % (1 << b_bits), enable
            await FallingEdge(dut.clk)
            if enable:
                accepted.append(a * b)
            if len(accepted) >= MULTIPLIER_LATENCY:
                expected = accepted[-MULTIPLIER_LATENCY]
                assert signed_value(dut.explicit, width) == expected
                assert signed_value(dut.inferred, width) == expected
