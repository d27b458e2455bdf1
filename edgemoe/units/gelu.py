"""GELU as ReLU minus a small, even correction (technique 3 of Edge-MoE).

    gelu(x) = x * Phi(x) = max(x, 0) - delta(|x|),   delta(a) = a * (1 - Phi(a)) = a/2 * erfc(a / sqrt 2)

delta is at most 0.17 and below every format's resolution at a = 5.5, so a small table with linear
interpolation serves the whole range, for both signs. The format of x is chosen per beat:
|x| is brought to 13 fraction bits for the table, and delta from 17 fraction bits to those of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike

from edgemoe.interpolation import STAGES, Interpolation, interpolate, interpolation_stages
from edgemoe.numeric import IntArray, floor_shift_value, register, rounding_shift, shift_stage_value
from edgemoe.stream import pipeline

_erfc = np.frompyfunc(math.erfc, 1, 1)


@dataclass(frozen=True)
class GeluSpec:
    """Formats and table of GELU.

    Parameters
    ----------
    x_bits : int
        Bits of x and of the result, signed.
    min_frac, max_frac : int
        Formats that a beat may choose, in fraction bits; the table's argument has ``max_frac``.
    step_bits : int
        The table has a segment per ``2**-step_bits``.
    delta_frac : int
        Fraction bits of delta before its last rounding.
    end : float
        delta is 0 from here on.
    """

    x_bits: int = 16
    min_frac: int = 8
    max_frac: int = 13
    step_bits: int = 6
    delta_frac: int = 17
    end: float = 5.5

    def __post_init__(self) -> None:
        if not 0 <= self.max_frac - self.min_frac <= 7:
            raise ValueError(
                f"formats of {self.min_frac} to {self.max_frac} fraction bits; at most 8 formats"
            )
        if self.delta_frac <= self.max_frac:
            raise ValueError(
                f"delta_frac is {self.delta_frac}; rounding needs more than max_frac, {self.max_frac}"
            )
        if not 0 < self.step_bits < self.max_frac:
            raise ValueError(f"step_bits is {self.step_bits}; it lies between 1 and max_frac - 1")
        if self.end > 7.5:
            raise ValueError(f"end is {self.end}; the table covers |x| < 8, so at most 7.5")

    @cached_property
    def delta(self) -> Interpolation:
        """delta(a) for 0 <= a < 8."""

        def function(u):
            a = 8 * u
            return np.where(a < self.end, a / 2 * _erfc(a / math.sqrt(2)).astype(np.float64), 0)

        return Interpolation.fit(
            function,
            index_bits=self.step_bits + 3,
            offset_bits=self.max_frac - self.step_bits,
            width=self.delta_frac - 2,  # delta is below 1/4
            fraction_bits=self.delta_frac,
            guard=7,
        )

    def check_frac(self, frac: ArrayLike) -> None:
        """Raise ValueError for a format that the unit does not have."""
        frac = np.asarray(frac)
        if frac.size and not self.min_frac <= frac.min() <= frac.max() <= self.max_frac:
            raise ValueError(
                f"frac is {frac.min()}..{frac.max()}; "
                f"GELU takes {self.min_frac} to {self.max_frac} fraction bits"
            )


def gelu(x: ArrayLike, frac: ArrayLike, spec: GeluSpec) -> IntArray:
    """GELU of ``x * 2**-frac`` in the same format; shapes broadcast. At most 1 ulp from float."""
    x, frac = np.asarray(x, np.int64), np.asarray(frac, np.int64)
    spec.check_frac(frac)
    top = (1 << spec.delta.argument_bits) - 1
    a = np.minimum(np.abs(x) << (spec.max_frac - frac), top)
    return np.maximum(x, 0) - rounding_shift(interpolate(a, spec.delta), spec.delta_frac - frac)


class Gelu(wiring.Component):
    """GELU on every lane, or nothing.

    ``o.x = gelu(i.x, frac) if active else i.x``

    Parameters
    ----------
    spec : GeluSpec
    lanes : int
    tag : shape-like
        Passed through unchanged.

    Members
    -------
    i : In(stream.Signature({x: Array(signed(16), lanes), frac: 4, active: 1, tag}))
        ``frac`` is 8..13, the fraction bits of x.
    o : Out(stream.Signature({x: Array(signed(16), lanes), tag}))

    Throughput 1 per cycle, latency 10 cycles. Cost per lane: one interpolation of 512 rows
    (no multiplier), two shifters. Error: 1 ulp at most (0.62 at 13 fraction bits, 0.50 at 8).

    Source: Sarkar et al., Edge-MoE, ICCAD 2023 (arXiv 2305.18691), section on GELU.
    """

    latency = 3 + STAGES + 2

    def __init__(self, spec: GeluSpec, lanes: int, tag=0):
        self.spec, self.lanes = spec, lanes
        x = data.ArrayLayout(signed(spec.x_bits), lanes)
        i = data.StructLayout({"x": x, "frac": unsigned(4), "active": 1, "tag": tag})
        o = data.StructLayout({"x": x, "tag": tag})
        super().__init__({"i": In(stream.Signature(i)), "o": Out(stream.Signature(o))})

    def elaborate(self, platform) -> Module:
        m = Module()
        spec, i, o = self.spec, self.i.payload, self.o.payload
        table = spec.delta
        enable, valid = pipeline(m, self.i.valid, self.o.ready, self.latency)

        # lift = max_frac - frac: |x| goes up by it on the way in, delta comes down by it on the way out.
        lift = register(m, enable, (spec.max_frac - i.frac)[:3])
        arguments = []
        for lane in range(self.lanes):
            x = i.x[lane]
            sign = x[-1]
            a = register(m, enable, ((x ^ sign.replicate(spec.x_bits)) + sign)[: spec.x_bits])
            a = register(m, enable, a << lift)
            beyond = a[table.argument_bits :].any()
            arguments.append(
                register(m, enable, a[: table.argument_bits] | beyond.replicate(table.argument_bits))
            )

        lift = register(m, enable, lift, 2 + STAGES)
        xs = [register(m, enable, i.x[lane], self.latency - 1) for lane in range(self.lanes)]
        active = register(m, enable, i.active, self.latency - 1)
        for lane, delta in enumerate(interpolation_stages(m, enable, table, arguments, "delta")):
            # relu - rs(delta, s) is (2 relu - (delta >> (s - 1))) >> 1: one adder.
            half = floor_shift_value(delta, spec.delta_frac - spec.max_frac - 1)
            half = register(m, enable, shift_stage_value(half, lift, 0, 3))
            x = xs[lane]
            relu = Mux(x[-1], 0, x[:-1])
            y = floor_shift_value(Cat(Const(0, 1), relu) - half, 1)
            m.d.comb += o.x[lane].eq(register(m, enable, Mux(active, y[: spec.x_bits].as_signed(), x)))
        m.d.comb += [
            self.i.ready.eq(enable),
            self.o.valid.eq(valid),
            Value.cast(o.tag).eq(register(m, enable, i.tag, self.latency)),
        ]
        return m


def cycles(n: int) -> int:
    """Cycles from the first of ``n`` beats to the last result, without stalls."""
    return n + Gelu.latency
