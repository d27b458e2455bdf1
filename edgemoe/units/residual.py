"""The residual stream: ``x' = sat(rs(x, realign) + out, 16)``.

Every block's residual has a format of its own, chosen when the model is compiled. ``realign`` moves
x into the format of a new block, in that block's first contribution, and is 0 everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike

from edgemoe.numeric import (
    IntArray,
    floor_shift_value,
    register,
    rounding_shift,
    saturate,
    saturate_value,
    shift_stage_value,
)
from edgemoe.stream import pipeline


@dataclass(frozen=True)
class ResidualSpec:
    """Widths of the residual and of what is added to it, and of ``realign``."""

    x_bits: int = 16
    mid_bits: int = 22
    realign_bits: int = 3

    def __post_init__(self) -> None:
        if self.mid_bits < self.x_bits:
            raise ValueError(f"mid_bits is {self.mid_bits}; it is at least x_bits, {self.x_bits}")
        if not 1 <= self.realign_bits <= 3:
            raise ValueError(f"realign_bits is {self.realign_bits}; one stage shifts by 1 to 3 bits of it")


def accumulate(
    x: ArrayLike, out: ArrayLike, realign: ArrayLike = 0, spec: ResidualSpec | None = None
) -> IntArray:
    """Residual x, rounded by ``realign`` bits, plus ``out``, saturated first; shapes broadcast."""
    bits = (spec or ResidualSpec()).x_bits
    return saturate(rounding_shift(x, realign) + saturate(out, bits), bits)


class Residual(wiring.Component):
    """Adds a contribution to the residual, or replaces it.

    ``o.x = accumulate(i.x, mid, realign) if add else saturate(mid, 16)``

    Parameters
    ----------
    lanes : int
    tag : shape-like
        Passed through unchanged.
    spec : ResidualSpec

    Members
    -------
    i : In(stream.Signature({x: Array(signed(16), lanes), mid: Array(signed(22), lanes),
            realign: 3, add: 1, tag}))
        ``mid`` has the fraction bits of the result, x has ``realign`` more.
    o : Out(stream.Signature({x: Array(signed(16), lanes), tag}))

    Throughput 1 per cycle, latency 3 cycles. Exact but for the rounding of ``realign`` (half an ulp).
    """

    latency = 3

    def __init__(self, lanes: int, tag=0, spec: ResidualSpec | None = None):
        self.lanes, self.spec = lanes, spec or ResidualSpec()
        x = data.ArrayLayout(signed(self.spec.x_bits), lanes)
        i = {
            "x": x,
            "mid": data.ArrayLayout(signed(self.spec.mid_bits), lanes),
            "realign": unsigned(self.spec.realign_bits),
            "add": 1,
            "tag": tag,
        }
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout(i))),
                "o": Out(stream.Signature(data.StructLayout({"x": x, "tag": tag}))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        i, o, bits = self.i.payload, self.o.payload, self.spec.x_bits
        enable, valid = pipeline(m, self.i.valid, self.o.ready, self.latency)
        for lane in range(self.lanes):
            # rs(x, s) + out is (((2 x) >> s) + 2 out + 1) >> 1: one adder.
            double = Cat(Const(0, 1), i.x[lane]).as_signed()
            half = shift_stage_value(double, i.realign, 0, self.spec.realign_bits)
            half = register(m, enable, Mux(i.add, half, 0))
            out = register(m, enable, saturate_value(i.mid[lane], bits))
            total = register(m, enable, floor_shift_value(half + Cat(Const(1, 1), out).as_signed(), 1))
            m.d.comb += o.x[lane].eq(register(m, enable, saturate_value(total, bits)))
        m.d.comb += [
            self.i.ready.eq(enable),
            self.o.valid.eq(valid),
            Value.cast(o.tag).eq(register(m, enable, i.tag, self.latency)),
        ]
        return m


def cycles(n: int) -> int:
    """Cycles from the first of ``n`` beats to the last result, without stalls."""
    return n + Residual.latency
