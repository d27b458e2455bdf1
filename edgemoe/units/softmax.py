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
    saturate,
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
        return Interpolation.fit(lambda f: np.exp2(f) - 1, index_bits=6, offset_bits=self.score_frac - 6,
                                 width=self.mantissa_frac, fraction_bits=self.mantissa_frac, guard=10)  # fmt: skip

    @cached_property
    def reciprocal(self) -> Interpolation:
        """1/(1 + u) for the bits of d below its leading one: 256 segments.

        The argument is d truncated, so the table is fitted to the middle of what was cut off.
        """
        index_bits, offset_bits = 8, 9
        middle = 0.5 / (1 << (index_bits + offset_bits))
        return Interpolation.fit(lambda u: 1 / (1 + u + middle), index_bits=index_bits, offset_bits=offset_bits,
                                 width=16, fraction_bits=16, guard=10)  # fmt: skip

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
        raise ValueError(f"an exponent is {-gap.min()} above the row's maximum; take the maximum over all keys")
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
    scale = r * np.exp2(spec.guard - 16.0 - position)
    return attention_weights(codes, maximum, 0, spec) * scale[..., None]
