"""Softmax in base 2 and in one pass: no score is read twice before its weight is used.

**Algorithm.** With y = score * log2(e), softmax(y)_i = 2^y_i / sum 2^y_j. A score is split once, as
it leaves the array, into an integer exponent n = floor(y) and a mantissa m = 2^(y - n) in [1, 2). The
pair is monotone in y, so it is stored as one number, the *code*. While the scores of a row arrive,
only the running *integer* maximum M = max n is updated. When the row is used, each weight is a shift:
w = m * 2^(n - M). The weights enter the second product of attention unnormalised; the
same weights are summed beside it, and the row of results is multiplied by 1/d once.

                 Exponential                          Weigher                      Reciprocal
    scores --> n, m = 2^f  --+--> score memory --> shift by M - n --> a (to A * V)
                             |                      ^      |
                             +--> RowMaximum -- M --+      +--> sum --> d --> 1/d (multiplier, shift)

**Arithmetic.** y has 13 fraction bits, m has 14, d has 26: its terms are shifted weights with
12 guard bits below the weights' own 14, and are added without rounding, so d does not depend on
the order of the keys (slots, wrap-around and blocking change that order). A key's weight may carry
a second exponent v, the block exponent of its V, which is not part of d.
Because M is an integer, the largest weight of a row is m in [1, 2) and not 1: one bit of headroom
buys that every rescaling is exact. 1/d is a normalisation, a table and a shift.

**Timing.** Every Component takes one beat per cycle. No multiplier or divider is part of a
recurrence: the loops are a comparison (RowMaximum) and an addition (Weigher).

Accuracy against float: `tests/units/test_softmax.py`.

Sources: Sarkar et al., Edge-MoE, ICCAD 2023 (arXiv 2305.18691), section on single-pass softmax, which
keeps a running maximum and a running sum; Dukhan and Ablavatski, The Two-Pass Softmax Algorithm
(arXiv 2001.04438), whose (mantissa, exponent) pairs make the maximum an integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike, NDArray

from edgemoe.interpolation import STAGES, Interpolation, interpolate, interpolation_stages
from edgemoe.numeric import (
    IntArray,
    bit_length,
    floor_shift,
    register,
    rounding_shift,
    rounding_shift_value,
    saturate_value,
    shift_stage_value,
)
from edgemoe.stream import pipeline

NEVER = 31
"""The shift that makes every weight 0: that of a key far below the maximum, or of no key."""


@dataclass(frozen=True)
class SoftmaxSpec:
    """Formats and tables of the softmax.

    Parameters
    ----------
    b_bits : int
        Bits of operand B, which decide how many fraction bits ``mid`` keeps after the scaling by 1/d.
    score_frac, score_bits : int
        Format of y.
    mantissa_frac : int
        Fraction bits of m and of the weights.
    guard : int
        Bits of d below the weights'.
    keys : int
        Longest row, which decides the width of d.
    """

    b_bits: int = 8
    score_frac: int = 13
    score_bits: int = 21
    mantissa_frac: int = 14
    guard: int = 12
    keys: int = 1024
    mid_bits: int = 22

    def __post_init__(self) -> None:
        if not 2 <= self.b_bits <= 16:
            raise ValueError(f"b_bits is {self.b_bits}; operand B has 2 to 16 bits")
        if self.keys < 1:
            raise ValueError(f"keys is {self.keys}; a row has at least one key")
        if self.score_bits >= self.mid_bits or self.score_frac >= self.score_bits:
            raise ValueError(
                f"a score of {self.score_bits} bits with {self.score_frac} fraction bits does not fit "
                f"below the {self.mid_bits} bits of mid"
            )
        if self.mantissa_frac + self.guard + 1 > NEVER:
            raise ValueError(
                f"mantissa_frac + guard is {self.mantissa_frac + self.guard}; "
                f"a shift of {NEVER} must clear a weight, so at most {NEVER - 1}"
            )

    @property
    def exponent_bits(self) -> int:
        """Bits of n and M, signed."""
        return self.score_bits - self.score_frac

    @property
    def code_bits(self) -> int:
        """Bits of a code, signed."""
        return self.exponent_bits + self.mantissa_frac

    @property
    def sum_bits(self) -> int:
        """Bits of d, unsigned: ``keys`` terms below 2."""
        return (self.keys * (((2 << self.mantissa_frac) - 1) << self.guard)).bit_length()

    @property
    def mid_frac(self) -> int:
        """Fraction bits that a weighted mean of B keeps in ``mid``: one bit of headroom remains."""
        return self.mid_bits - 1 - self.b_bits

    @cached_property
    def exp2(self) -> Interpolation:
        """2^f - 1 for a fraction f of a score: 64 segments."""
        return Interpolation.fit(
            lambda f: np.exp2(f) - 1,
            index_bits=6,
            offset_bits=self.score_frac - 6,
            width=self.mantissa_frac,
            fraction_bits=self.mantissa_frac,
            guard=10,
        )

    @cached_property
    def reciprocal(self) -> Interpolation:
        """1/(1 + u) for the bits of d below its leading one: 256 segments.

        The argument is d truncated, so the table is fitted to the middle of what was cut off.
        """
        index_bits, offset_bits = 8, 9
        middle = 0.5 / (1 << (index_bits + offset_bits))
        return Interpolation.fit(
            lambda u: 1 / (1 + u + middle),
            index_bits=index_bits,
            offset_bits=offset_bits,
            width=16,
            fraction_bits=16,
            guard=10,
        )

    @property
    def code(self) -> data.StructLayout:
        """Fields of a code: n above mf."""
        return data.StructLayout({"mf": unsigned(self.mantissa_frac), "n": signed(self.exponent_bits)})


# -- golden -------------------------------------------------------------------------------------


def score_code(y: ArrayLike, spec: SoftmaxSpec) -> IntArray:
    """Code of each score: exponent n and mantissa fraction mf as ``n * 2^mantissa_frac + mf``."""
    y = np.asarray(y, np.int64)
    n, f = floor_shift(y, spec.score_frac), y & ((1 << spec.score_frac) - 1)
    return n * (1 << spec.mantissa_frac) + interpolate(f, spec.exp2)


def exponent(codes: ArrayLike, spec: SoftmaxSpec) -> IntArray:
    """n of each code."""
    return floor_shift(codes, spec.mantissa_frac)


def fraction(codes: ArrayLike, spec: SoftmaxSpec) -> IntArray:
    """mf of each code."""
    return np.asarray(codes, np.int64) & ((1 << spec.mantissa_frac) - 1)


def row_maximum(codes: ArrayLike, spec: SoftmaxSpec) -> IntArray:
    """M, the largest n along the last axis."""
    return exponent(codes, spec).max(axis=-1)


def _mantissa_and_gap(codes: ArrayLike, maximum: ArrayLike, spec: SoftmaxSpec) -> tuple[IntArray, IntArray]:
    gap = np.asarray(maximum, np.int64) - exponent(codes, spec)
    if gap.size and gap.min() < 0:
        raise ValueError(
            f"an exponent is {-gap.min()} above the row's maximum; take the maximum over all keys"
        )
    return (1 << spec.mantissa_frac) + fraction(codes, spec), gap


def wide_weights(codes: ArrayLike, maximum: ArrayLike, spec: SoftmaxSpec) -> IntArray:
    """Weights with guard bits, as they are summed: ``(m << guard) >> min(M - n, 31)``."""
    m, gap = _mantissa_and_gap(codes, maximum, spec)
    return floor_shift(m << spec.guard, np.minimum(gap, NEVER))


def attention_weights(codes: ArrayLike, maximum: ArrayLike, v: ArrayLike, spec: SoftmaxSpec) -> IntArray:
    """Weights as operand A: ``rs(m, min(M - n + v, 31))``; v is the relative exponent of the key's V."""
    m, gap = _mantissa_and_gap(codes, maximum, spec)
    return rounding_shift(m, np.minimum(gap + np.asarray(v, np.int64), NEVER))


def row_sum(codes: ArrayLike, maximum: ArrayLike, spec: SoftmaxSpec) -> IntArray:
    """d, the sum of the wide weights along the last axis; ``maximum`` has that axis (of length 1)."""
    return wide_weights(codes, maximum, spec).sum(axis=-1)


def reciprocal(d: ArrayLike, spec: SoftmaxSpec) -> tuple[IntArray, IntArray]:
    """``(r, p)`` with ``1/d = r * 2^-(16 + p)``: p is the position of d's leading one.

    Error of r: at most 1 ulp, relative 2.0e-5.
    """
    d = np.asarray(d, np.int64)
    if d.size and d.min() < 1:
        raise ValueError(f"d is {d.min()}; a row needs at least one key")
    position = bit_length(d) - 1
    # d's bits below the leading one, left-aligned, cut to the argument of the table.
    top = spec.sum_bits - 1
    aligned = (d << (top - position)) & ((1 << top) - 1)
    return interpolate(floor_shift(aligned, top - spec.reciprocal.argument_bits), spec.reciprocal), position


def row_factor(d: ArrayLike, spec: SoftmaxSpec) -> tuple[IntArray, IntArray]:
    """``(multiplier, shift)`` that turn a row's accumulator into ``mid`` (`edgemoe.units.requantise`)."""
    r, position = reciprocal(d, spec)
    return r, position + 4 - spec.mid_frac


def softmax(y: ArrayLike, spec: SoftmaxSpec) -> NDArray[np.float64]:
    """The probabilities, as float, that the integers stand for: along the last axis of scores ``y``."""
    codes = score_code(y, spec)
    maximum = row_maximum(codes, spec)[..., None]
    r, position = reciprocal(row_sum(codes, maximum, spec), spec)
    scale = r.astype(np.float64) * np.exp2(spec.guard - 16.0 - position)
    return attention_weights(codes, maximum, 0, spec) * scale[..., None]


# -- gateware -----------------------------------------------------------------------------------


class Exponential(wiring.Component):
    """Turns scores into codes, as they leave the requantiser.

    ``code = score_code(saturate(mid, score_bits))``

    Parameters
    ----------
    spec : SoftmaxSpec
    lanes : int
    tag : shape-like
        Passed through unchanged.

    Members
    -------
    i : In(stream.Signature({mid: Array(signed(22), lanes), tag}))
        y with 13 fraction bits.
    o : Out(stream.Signature({code: Array(signed(22), lanes), saturated: lanes, tag}))
        ``saturated`` has the bit of each lane whose score was clipped to 21 bits.

    Throughput 1 per cycle, latency 6 cycles. Cost per lane: one interpolation, no multiplier.
    Error of m: relative 3.8e-5, of which 3.05e-5 is its rounding.
    """

    latency = 1 + STAGES

    def __init__(self, spec: SoftmaxSpec, lanes: int, tag=0):
        self.spec, self.lanes = spec, lanes
        i = data.StructLayout({"mid": data.ArrayLayout(signed(spec.mid_bits), lanes), "tag": tag})
        o = data.StructLayout(
            {
                "code": data.ArrayLayout(signed(spec.code_bits), lanes),
                "saturated": unsigned(lanes),
                "tag": tag,
            }
        )
        super().__init__({"i": In(stream.Signature(i)), "o": Out(stream.Signature(o))})

    def elaborate(self, platform) -> Module:
        m = Module()
        spec, i, o = self.spec, self.i.payload, self.o.payload
        enable, valid = pipeline(m, self.i.valid, self.o.ready, self.latency)

        scores, saturated = [], []
        for lane in range(self.lanes):
            clipped = saturate_value(i.mid[lane], spec.score_bits)
            scores.append(register(m, enable, clipped))
            saturated.append(register(m, enable, clipped != i.mid[lane]))
        fractions = [y[: spec.score_frac] for y in scores]
        for lane, mf in enumerate(interpolation_stages(m, enable, spec.exp2, fractions, "exp2")):
            n = register(m, enable, scores[lane][spec.score_frac :], STAGES)
            m.d.comb += Value.cast(o.code[lane]).eq(Cat(mf, n))
        m.d.comb += [
            self.i.ready.eq(enable),
            self.o.valid.eq(valid),
            o.saturated.eq(register(m, enable, Cat(saturated), STAGES)),
            Value.cast(o.tag).eq(register(m, enable, i.tag, self.latency)),
        ]
        return m


class RowMaximum(wiring.Component):
    """Keeps the running maximum of n of every row.

    ``maximum[row] = max(n[lane] over lanes in mask, maximum[row] unless first)``

    Parameters
    ----------
    rows : int
    lanes : int
    exponent_bits : int

    Members
    -------
    valid : In(1)
        Take an update in this cycle; there is no back-pressure.
    row : In(range(rows))
    n : In(Array(signed(8), lanes))
    mask : In(lanes)
        Lanes that hold a key. Without any, the row keeps its value (with ``first``: becomes -128).
    first : In(1)
        The stored value is old: ignore it.
    row_read : In(range(rows))
    maximum : Out(signed(8))
        Of ``row_read``, combinational.

    Throughput 1 update per cycle, to any row. An update is visible at ``maximum`` ``latency`` cycles
    later: ``ceil(log2(lanes))`` for the tree and 2 for the memory. Cost: rows x 8 bits of distributed
    memory, twice.
    """

    def __init__(self, rows: int, lanes: int, exponent_bits: int = 8):
        self.rows, self.lanes, self.exponent_bits = rows, lanes, exponent_bits
        super().__init__(
            {
                "valid": In(1),
                "row": In(range(rows)),
                "n": In(data.ArrayLayout(signed(exponent_bits), lanes)),
                "mask": In(lanes),
                "first": In(1),
                "row_read": In(range(rows)),
                "maximum": Out(signed(exponent_bits)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an update to its effect."""
        return (self.lanes - 1).bit_length() + 2

    def elaborate(self, platform) -> Module:
        m = Module()
        always = Const(1)
        lowest = Const(-(1 << (self.exponent_bits - 1)), signed(self.exponent_bits))

        level = [Mux(self.mask[lane], self.n[lane], lowest) for lane in range(self.lanes)]
        while len(level) > 1:
            pairs = [Mux(a > b, a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
            level = [register(m, always, x) for x in pairs + level[len(pairs) * 2 :]]

        # `valid`, `row` and `first` belong to the update that reads its row, `writes` and `row_written` to
        # the one before, which writes. The same row twice in succession takes the value past the memory.
        valid = self.valid
        for _ in range(self.latency - 2):
            following = Signal()
            m.d.sync += following.eq(valid)
            valid = following
        row, first = (register(m, always, x, self.latency - 2) for x in (self.row, self.first))
        writes = Signal()
        m.d.sync += writes.eq(valid)
        row_written = register(m, always, row)
        new = register(m, always, level[0])
        again = writes & (row == row_written)

        m.submodules.memory = memory = Memory(
            shape=signed(self.exponent_bits), depth=self.rows, init=[], attrs={"ram_style": "distributed"}
        )
        stored = memory.read_port(domain="comb")
        write = memory.write_port()
        old = register(m, always, Mux(first, lowest, Mux(again, write.data, stored.data)))
        m.d.comb += [
            stored.addr.eq(row),
            write.addr.eq(row_written),
            write.en.eq(writes),
            write.data.eq(Mux(new > old, new, old)),
        ]

        reader = memory.read_port(domain="comb")
        m.d.comb += [reader.addr.eq(self.row_read), self.maximum.eq(reader.data)]
        return m


class Weigher(wiring.Component):
    """Turns the codes of a row into attention weights, and adds up their sum.

    ``a = attention_weights(lane, maximum, relative)``, ``sum = row_sum`` over the row's lanes in ``mask``

    Parameters
    ----------
    spec : SoftmaxSpec
    lanes : int
    tag : shape-like
        Passed through to ``o`` unchanged.

    Members
    -------
    i : In(stream.Signature({lane: Array(signed(22), lanes), mask: lanes, maximum: signed(8),
            relative: Array(4, lanes), active: 1, last: 1, tag}))
        A lane outside ``mask`` has weight 0 and is not part of d. ``last`` ends a row.
        Not ``active``: the low 16 bits of every lane pass through as they are, and there is no sum.
    o : Out(stream.Signature({a: Array(signed(16), lanes), last: 1, tag}))
    sum : Out(stream.Signature(unsigned(spec.sum_bits)))
        One d for each active row.

    Throughput 1 beat per cycle; latency to ``o`` 5 cycles, from ``last`` to ``sum`` ``sum_latency``
    cycles (one adder level per stage). The streams stall separately: while a sum is not taken,
    the next row passes until its own sum is due. Cost per lane: two shifters, no multiplier.
    """

    latency = 5

    def __init__(self, spec: SoftmaxSpec, lanes: int, tag=0):
        self.spec, self.lanes = spec, lanes
        i = data.StructLayout(
            {
                "lane": data.ArrayLayout(signed(spec.code_bits), lanes),
                "mask": unsigned(lanes),
                "maximum": signed(spec.exponent_bits),
                "relative": data.ArrayLayout(unsigned(4), lanes),
                "active": 1,
                "last": 1,
                "tag": tag,
            }
        )
        o = data.StructLayout({"a": data.ArrayLayout(signed(16), lanes), "last": 1, "tag": tag})
        super().__init__(
            {
                "i": In(stream.Signature(i)),
                "o": Out(stream.Signature(o)),
                "sum": Out(stream.Signature(unsigned(spec.sum_bits))),
            }
        )

    @property
    def sum_latency(self) -> int:
        """Cycles from the last beat of a row to its sum."""
        return self.latency - 1 + self._levels + 1

    @property
    def _levels(self) -> int:
        return max((self.lanes - 1).bit_length(), 1)

    def elaborate(self, platform) -> Module:
        m = Module()
        spec, i, o = self.spec, self.i.payload, self.o.payload

        # A beat leaves the front for both branches at once, when both can take it.
        fork = Signal()
        enable, valid = pipeline(m, self.i.valid, fork, self.latency - 1)
        moved = valid & fork
        m.d.comb += self.i.ready.eq(enable)

        codes, halves, wides = [], [], []
        for lane in range(self.lanes):
            code = data.View(spec.code, i.lane[lane])
            counts = i.mask[lane] & i.active
            far = Const((1 << spec.exponent_bits) - 1, spec.exponent_bits)
            gap = register(m, enable, Mux(counts, (i.maximum - code.n)[: spec.exponent_bits], far))
            relative = register(m, enable, i.relative[lane])
            low = register(m, enable, i.lane[lane][:16])

            shift = [register(m, enable, _at_most_never(x)) for x in (gap, gap + relative)]
            low = register(m, enable, low)

            # The weight keeps one bit for its rounding: rs(m, k) = ((2 m >> k) + 1) >> 1.
            mantissa = Cat(low[: spec.mantissa_frac], Const(1, 1))
            wide = Cat(Const(0, spec.guard), mantissa)
            half = Cat(Const(0, 1), mantissa)
            wide, half = (
                register(m, enable, shift_stage_value(x, s, 2, 5))
                for x, s in zip((wide, half), shift, strict=True)
            )
            shift = [register(m, enable, s) for s in shift]
            wides.append(register(m, enable, shift_stage_value(wide, shift[0], 0, 2)))
            halves.append(register(m, enable, shift_stage_value(half, shift[1], 0, 2)))
            codes.append(register(m, enable, low, 2))
        active, last = (register(m, enable, x, self.latency - 1) for x in (i.active, i.last))
        tag = register(m, enable, i.tag, self.latency - 1)

        o_enable, o_valid = pipeline(m, moved, self.o.ready, 1)
        for lane in range(self.lanes):
            weight = rounding_shift_value(halves[lane], 1)
            m.d.comb += o.a[lane].eq(register(m, o_enable, Mux(active, weight[:16], codes[lane]).as_signed()))
        m.d.comb += [
            self.o.valid.eq(o_valid),
            o.last.eq(register(m, o_enable, last)),
            Value.cast(o.tag).eq(register(m, o_enable, tag)),
        ]

        tree_ready = Signal()
        tree_enable, tree_valid = pipeline(m, moved, tree_ready, self._levels)
        level = wides
        for _ in range(self._levels):
            pairs = [a + b for a, b in zip(level[::2], level[1::2], strict=False)]
            level = [register(m, tree_enable, x) for x in pairs + level[len(pairs) * 2 :]]
        row_end = register(m, tree_enable, last & active, self._levels)

        sum_enable, sum_valid = pipeline(m, tree_valid & row_end, self.sum.ready, 1)
        partial = Signal(spec.sum_bits)
        total = Signal(spec.sum_bits)
        m.d.comb += [
            fork.eq(o_enable & tree_enable),
            tree_ready.eq(~row_end | sum_enable),
            total.eq(partial + level[0]),
            self.sum.valid.eq(sum_valid),
            self.sum.payload.eq(register(m, sum_enable, total)),
        ]
        with m.If(tree_valid & tree_ready):
            m.d.sync += partial.eq(Mux(row_end, 0, total))
        return m


def _at_most_never(shift: Value) -> Value:
    """``min(shift, NEVER)`` in 5 bits."""
    return Mux(shift[5:].any(), NEVER, shift[:5])


class Reciprocal(wiring.Component):
    """1/d of a row, in the form that the requantiser and the router need.

    ``multiplier, position = reciprocal(d)``, ``shift = position + 4 - mid_frac``

    Parameters
    ----------
    spec : SoftmaxSpec
    tag : shape-like
        Passed through unchanged.

    Members
    -------
    i : In(stream.Signature({d: unsigned(spec.sum_bits), tag}))
        At least 1.
    o : Out(stream.Signature({multiplier: 16, shift: 6, position: 6, tag}))

    Throughput 1 per cycle; latency ``ceil(log2(sum_bits)) + 5`` cycles (11 at 37 bits): one stage per
    step of the normalisation, then the interpolation. Cost: that, no multiplier.
    Error of the multiplier: 1 ulp, relative 2.0e-5.
    """

    def __init__(self, spec: SoftmaxSpec, tag=0):
        self.spec = spec
        i = data.StructLayout({"d": unsigned(spec.sum_bits), "tag": tag})
        o = data.StructLayout({"multiplier": 16, "shift": 6, "position": 6, "tag": tag})
        super().__init__({"i": In(stream.Signature(i)), "o": Out(stream.Signature(o))})

    @property
    def latency(self) -> int:
        """Cycles from d to its reciprocal."""
        return (self.spec.sum_bits - 1).bit_length() + STAGES

    def elaborate(self, platform) -> Module:
        m = Module()
        spec, i, o = self.spec, self.i.payload, self.o.payload
        enable, valid = pipeline(m, self.i.valid, self.o.ready, self.latency)

        # Shift the leading one to the top, by 32, 16, ... 1; the steps taken are the bits of the count.
        d = i.d
        zeros = Const(0, 0)
        for step in reversed(range((spec.sum_bits - 1).bit_length())):
            move = ~d[-(1 << step) :].any()
            zeros = register(m, enable, Cat(move, zeros))
            d = register(m, enable, Mux(move, d << (1 << step), d)[: spec.sum_bits])

        argument = d[-1 - spec.reciprocal.argument_bits : -1]
        (r,) = interpolation_stages(m, enable, spec.reciprocal, [argument], "reciprocal")
        top = spec.sum_bits - 1
        position = register(m, enable, (top - zeros)[:6])
        shift = register(m, enable, (top + 4 - spec.mid_frac - zeros)[:6])
        m.d.comb += [
            self.i.ready.eq(enable),
            self.o.valid.eq(valid),
            o.multiplier.eq(r),
            o.position.eq(register(m, enable, position, STAGES - 1)),
            o.shift.eq(register(m, enable, shift, STAGES - 1)),
            Value.cast(o.tag).eq(register(m, enable, i.tag, self.latency)),
        ]
        return m


# -- cycles -------------------------------------------------------------------------------------


def exponential_cycles(n: int) -> int:
    """Cycles from the first of ``n`` beats to the last result, without stalls."""
    return n + Exponential.latency


def weigher_cycles(n: int) -> int:
    """Cycles from the first of ``n`` beats to the last weights, without stalls."""
    return n + Weigher.latency


def reciprocal_cycles(spec: SoftmaxSpec, n: int) -> int:
    """Cycles from the first of ``n`` sums to the last reciprocal, without stalls."""
    return n + (spec.sum_bits - 1).bit_length() + STAGES
