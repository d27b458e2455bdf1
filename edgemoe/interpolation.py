"""A function of one variable from a table of linear segments.

The argument is an unsigned integer ``x = index : offset``. One table row per index holds a base and
a slope, so a value costs one table read, one small multiplication and one addition:

    y = min((base[index] + slope[index] * offset) >> guard, limit)

The rows are fitted when the spec is built: the slope joins the ends of the segment, and the base is
placed so that the largest errors above and below are equal (for a function that is convex or concave
within a segment this is the best straight line, with half the error of the chord). The half
ulp that makes the final shift round instead of floor is part of ``base``.

             x ---+--> index -->[ table ]--> base ----------------+
                  |                  |                            v
                  +--> offset        +-----> slope --> (x) ----> (+) --> shift, clamp --> y
                         |                              ^
                         +------------------------------+
    stage            1 (table)        2 (output register)  3 (product)  4 (sum)   5 (clamp)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Shape, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike, NDArray

from edgemoe.numeric import (
    IntArray,
    bits_for_signed,
    floor_shift,
    floor_shift_value,
    register,
)
from edgemoe.stream import pipeline

STAGES = 5
"""Register stages from ``x`` to ``y``."""


@dataclass(frozen=True)
class Interpolation:
    """Table of linear segments; made by `fit`.

    Parameters
    ----------
    index_bits, offset_bits : int
        Fields of the argument; ``2**index_bits`` segments.
    width : int
        Bits of the unsigned result.
    guard : int
        Fraction bits below the result's, in ``base`` and ``slope``.
    limit : int
        Largest result; greater ones are clamped to it.
    base, slope : tuple of int
        One row per segment; ``base`` includes the half ulp of rounding.
    """

    index_bits: int
    offset_bits: int
    width: int
    guard: int
    limit: int
    base: tuple[int, ...]
    slope: tuple[int, ...]

    def __post_init__(self) -> None:
        rows = 1 << self.index_bits
        if len(self.base) != rows or len(self.slope) != rows:
            raise ValueError(
                f"tables have {len(self.base)} and {len(self.slope)} rows; "
                f"{self.index_bits} index bits need {rows}"
            )
        if not 0 <= self.limit < 1 << self.width:
            raise ValueError(f"limit is {self.limit}; an unsigned result of {self.width} bits ends at "
                             f"{(1 << self.width) - 1}")  # fmt: skip
        last = (1 << self.offset_bits) - 1
        low = min(min(b, b + s * last) for b, s in zip(self.base, self.slope, strict=True))
        if low < 0:
            raise ValueError(
                f"a segment reaches {low} before rounding; the result is unsigned, shift the function"
            )

    @classmethod
    def fit(
        cls,
        function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        *,
        index_bits: int,
        offset_bits: int,
        width: int,
        fraction_bits: int,
        guard: int,
        limit: int | None = None,
    ) -> Interpolation:
        """Fit every segment to ``function`` at each of its arguments.

        Args:
            function: float function of ``u = x / 2**(index_bits + offset_bits)``, 0 <= u < 1, on arrays. It
                may jump between segments.
            fraction_bits: ``y / 2**fraction_bits`` approximates ``function(u)``.
            limit: default ``2**width - 1``.
        """
        x = np.arange(1 << (index_bits + offset_bits))
        exact = np.asarray(function(x / x.size), np.float64) * 2.0 ** (fraction_bits + guard)
        exact = exact.reshape(1 << index_bits, 1 << offset_bits)
        offset = np.arange(1 << offset_bits)
        slope = np.rint((exact[:, -1] - exact[:, 0]) / max(offset[-1], 1)).astype(np.int64)
        rest = exact - slope[:, None] * offset
        half = (1 << guard) >> 1
        base = np.rint((rest.max(axis=1) + rest.min(axis=1)) / 2).astype(np.int64) + half
        return cls(index_bits, offset_bits, width, guard, (1 << width) - 1 if limit is None else limit,
                   tuple(base.tolist()), tuple(slope.tolist()))  # fmt: skip

    @property
    def argument_bits(self) -> int:
        """Bits of the unsigned argument."""
        return self.index_bits + self.offset_bits

    @property
    def row(self) -> data.StructLayout:
        """Layout of a table row."""
        base = max(max(self.base).bit_length(), 1)
        slope = bits_for_signed(min(self.slope), max(self.slope))
        return data.StructLayout({"base": unsigned(base), "slope": signed(slope)})


def interpolate(x: ArrayLike, spec: Interpolation) -> IntArray:
    """``spec``'s function of each ``x``; any shape."""
    x = np.asarray(x, np.int64)
    if x.size and not 0 <= x.min() <= x.max() < 1 << spec.argument_bits:
        raise ValueError(
            f"argument in {x.min()}..{x.max()}; the table covers {spec.argument_bits} unsigned bits"
        )
    index, offset = floor_shift(x, spec.offset_bits), x & ((1 << spec.offset_bits) - 1)
    line = np.array(spec.base)[index] + np.array(spec.slope)[index] * offset
    return np.minimum(floor_shift(line, spec.guard), spec.limit)


def interpolation_stages(
    m: Module, enable: Value, spec: Interpolation, arguments: Sequence[Value], name: str = "table"
) -> list[Value]:
    """Add the `STAGES` register stages of one interpolation per argument to a pipeline.

    The lanes share one ROM with a read port for each; it becomes the submodule ``name`` of ``m``.
    """
    rows = [{"base": b, "slope": s} for b, s in zip(spec.base, spec.slope, strict=True)]
    m.submodules[name] = rom = Memory(shape=spec.row, depth=len(rows), init=rows)
    results = []
    for x in arguments:
        x = Value.cast(x)
        assert len(x) == spec.argument_bits, f"{len(x)} bits drive a table of {spec.argument_bits}"
        port = rom.read_port()
        m.d.comb += [port.addr.eq(x[spec.offset_bits :]), port.en.eq(enable)]
        offset = register(m, enable, x[: spec.offset_bits], 2)
        base = register(m, enable, port.data.base)
        slope = register(m, enable, port.data.slope)
        if max(spec.slope) < 0:  # the sign is that of every row: it needs no register
            slope = Cat(slope[:-1], Const(1, 1)).as_signed()
        product = register(m, enable, slope * offset)
        # The spec's check makes every sum non-negative, so its sign bit is dropped.
        line = register(m, enable, (register(m, enable, base) + product)[:-1])
        y = floor_shift_value(line, spec.guard)
        over = y[spec.width :].any() | (y[: spec.width] > spec.limit)
        results.append(register(m, enable, Mux(over, spec.limit, y[: spec.width])))
    return results


class Interpolator(wiring.Component):
    """One value of a tabulated function per lane and cycle.

    ``y[lane] = interpolate(x[lane], spec)``

    Parameters
    ----------
    spec : Interpolation
    lanes : int
    tag : shape-like
        Passed through unchanged, in step with the data.

    Members
    -------
    i : In(stream.Signature({x: Array(unsigned(spec.argument_bits), lanes), tag}))
    o : Out(stream.Signature({y: Array(unsigned(spec.width), lanes), tag}))

    Throughput 1 per cycle, latency 5 cycles. Cost per lane: a multiplier, one ROM port.
    """

    latency = STAGES

    def __init__(self, spec: Interpolation, lanes: int = 1, tag=0):
        tag = Shape.cast(tag) if isinstance(tag, int) else tag
        self.spec, self.lanes = spec, lanes
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout(
                            {"x": data.ArrayLayout(unsigned(spec.argument_bits), lanes), "tag": tag}
                        )
                    )
                ),
                "o": Out(
                    stream.Signature(
                        data.StructLayout({"y": data.ArrayLayout(unsigned(spec.width), lanes), "tag": tag})
                    )
                ),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        enable, valid = pipeline(m, self.i.valid, self.o.ready, self.latency)
        arguments = [self.i.payload.x[lane] for lane in range(self.lanes)]
        for lane, y in enumerate(interpolation_stages(m, enable, self.spec, arguments)):
            m.d.comb += self.o.payload.y[lane].eq(y)
        m.d.comb += [
            self.i.ready.eq(enable),
            self.o.valid.eq(valid),
            Value.cast(self.o.payload.tag).eq(register(m, enable, self.i.payload.tag, self.latency)),
        ]
        return m


def cycles(spec: Interpolation, n: int) -> int:
    """Cycles from the first of ``n`` arguments to the last result, both counted, without stalls."""
    return n + Interpolator.latency
