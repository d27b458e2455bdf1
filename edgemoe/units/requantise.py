"""From exact accumulators back to operand formats, with one or two factors.

    mid = sat(rs((acc + bias) * factor1, shift1), 22)
    mid = sat(rs(mid * factor2, shift2), 22)            only in the modes with two factors

A factor is an unsigned 16-bit multiplier and a shift. The *channel* factor belongs to an output channel,
the *row* factor to a token: its gate score, or 1/d of a query. The order matters for the range of
what lies between, so the mode chooses it.

The first product is up to 60 bits wide. The accumulator is cut into digits of 17 bits, so that each
partial product is one 18 x 18 multiplier, and the partial products are added one per stage:

    acc, bias --> (+) --> digits x factor1 --> (+) (+) --> >> 8s, >> 1s --> sat --> round, sat --> mid
                                            one per digit   two stages
"""

# No `from __future__ import annotations`: data.Struct reads its annotations as shapes.

from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Value, ValueLike, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike

from edgemoe.numeric import (
    IntArray,
    ceil_div,
    register,
    rounding_shift,
    rounding_shift_value,
    saturate,
    saturate_value,
    shift_stage_value,
)
from edgemoe.stream import pipeline

DIGIT = 17
"""Bits of an unsigned digit that fits a signed 18-bit multiplier input."""


class Mode(enum.Enum, shape=unsigned(2)):
    """Which factors are applied, in which order."""

    CHANNEL = 0
    CHANNEL_ROW = 1
    ROW_CHANNEL = 2


class ChannelParameter(data.Struct):
    """Bias and factor of an output channel, as they lie in memory (64 bits, this order from bit 0)."""

    multiplier: unsigned(16)  # pyright: ignore[reportInvalidTypeForm]
    shift: unsigned(6)  # pyright: ignore[reportInvalidTypeForm]
    bias: signed(42)  # pyright: ignore[reportInvalidTypeForm]


@dataclass(frozen=True)
class RequantiseSpec:
    """Widths of the requantiser.

    Parameters
    ----------
    acc_bits : int
        Accumulator, signed.
    mid_bits : int
        Result, signed.
    bias_bits, multiplier_bits, shift_bits : int
        Channel parameter; the row factor has the same widths.
    """

    acc_bits: int
    mid_bits: int = 22
    bias_bits: int = 42
    multiplier_bits: int = 16
    shift_bits: int = 6

    def __post_init__(self) -> None:
        if self.product_bits > 63:
            raise ValueError(
                f"acc is {self.acc_bits} bits and bias {self.bias_bits}; with a multiplier of "
                f"{self.multiplier_bits} bits their product has {self.product_bits}, at most 63 are exact"
            )
        if not 1 <= self.multiplier_bits <= DIGIT:
            raise ValueError(
                f"multiplier_bits is {self.multiplier_bits}; one hardware multiplier takes {DIGIT}"
            )
        if not 4 <= self.shift_bits <= 6:
            raise ValueError(f"shift_bits is {self.shift_bits}; the two shifter stages take 4 to 6")
        if self.mid_bits < 2:
            raise ValueError(f"mid_bits is {self.mid_bits}; a signed result needs 2")

    @property
    def sum_bits(self) -> int:
        """Bits of acc + bias, signed."""
        return max(self.acc_bits, self.bias_bits) + 1

    @property
    def product_bits(self) -> int:
        """Bits of (acc + bias) * multiplier, signed."""
        return self.sum_bits + self.multiplier_bits

    @property
    def identity(self) -> tuple[int, int]:
        """The factor that changes nothing: multiplier ``2**shift``, and shift."""
        return 1 << (self.multiplier_bits - 1), self.multiplier_bits - 1

    @property
    def parameter(self) -> data.StructLayout:
        """Layout of a channel parameter; equal to `ChannelParameter` at the default widths."""
        return data.StructLayout(
            {
                "multiplier": unsigned(self.multiplier_bits),
                "shift": unsigned(self.shift_bits),
                "bias": signed(self.bias_bits),
            }
        )


def _scale(x: IntArray, multiplier: ArrayLike, shift: ArrayLike, spec: RequantiseSpec) -> IntArray:
    multiplier, shift = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    for name, value, bits in (
        ("multiplier", multiplier, spec.multiplier_bits),
        ("shift", shift, spec.shift_bits),
    ):
        if value.size and not 0 <= value.min() <= value.max() < 1 << bits:
            raise ValueError(f"{name} is {value.min()}..{value.max()}; it has {bits} unsigned bits")
    if np.any((shift == 0) & (multiplier != 0)):
        raise ValueError(
            "shift is 0; a factor's shift is at least 1 (only a multiplier of 0 may have shift 0)"
        )
    return saturate(rounding_shift(x * multiplier, shift), spec.mid_bits)


def requantise(
    acc: ArrayLike,
    bias: ArrayLike,
    multiplier: ArrayLike,
    shift: ArrayLike,
    row_multiplier: ArrayLike,
    row_shift: ArrayLike,
    mode: Mode,
    spec: RequantiseSpec,
) -> IntArray:
    """``mid`` of each accumulator; shapes broadcast. Exact but for the roundings (half an ulp each).

    In mode `Mode.CHANNEL` the row factor is ignored.
    """
    acc, bias = np.asarray(acc, np.int64), np.asarray(bias, np.int64)
    for name, value, bits in (("acc", acc, spec.acc_bits), ("bias", bias, spec.bias_bits)):
        if np.any(saturate(value, bits) != value):
            raise ValueError(f"{name} is {value.min()}..{value.max()}; it has {bits} signed bits")
    factors = [(multiplier, shift), (row_multiplier, row_shift)]
    if mode == Mode.ROW_CHANNEL:
        factors.reverse()
    mid = _scale(acc + bias, *factors[0], spec)
    return mid if mode == Mode.CHANNEL else _scale(mid, *factors[1], spec)


class Requantise(wiring.Component):
    """Adds the bias, applies one or two factors, rounds and saturates.

    ``mid = requantise(acc, bias, multiplier, shift, row_multiplier, row_shift, mode)``

    Parameters
    ----------
    spec : RequantiseSpec
    lanes : int
    tag : shape-like
        Passed through unchanged.

    Members
    -------
    i : In(stream.Signature({acc: Array(signed(acc_bits), lanes), parameter: Array(ChannelParameter, lanes),
            row_multiplier: 16, row_shift: 6, mode: Mode, tag}))
        Shifts are 1..63.
    o : Out(stream.Signature({mid: Array(signed(22), lanes), tag}))

    Throughput 1 per cycle; latency ``10 + ceil(sum_bits / 17) + ceil(mid_bits / 17) - 1`` cycles (14 for a
    sum of 35 to 51 bits). Cost per lane: an 18 x 18 multiplier per digit of the sum and two for mid, two
    shifters.
    """

    def __init__(self, spec: RequantiseSpec, lanes: int, tag=0):
        self.spec, self.lanes = spec, lanes
        i = data.StructLayout(
            {
                "acc": data.ArrayLayout(signed(spec.acc_bits), lanes),
                "parameter": data.ArrayLayout(spec.parameter, lanes),
                "row_multiplier": unsigned(spec.multiplier_bits),
                "row_shift": unsigned(spec.shift_bits),
                "mode": Mode,
                "tag": tag,
            }
        )
        o = data.StructLayout({"mid": data.ArrayLayout(signed(spec.mid_bits), lanes), "tag": tag})
        super().__init__({"i": In(stream.Signature(i)), "o": Out(stream.Signature(o))})

    @property
    def latency(self) -> int:
        """Cycles from acc to mid."""
        return 1 + _scale_latency(self.spec.sum_bits) + _scale_latency(self.spec.mid_bits)

    def elaborate(self, platform) -> Module:
        m = Module()
        spec, i, o = self.spec, self.i.payload, self.o.payload
        enable, valid = pipeline(m, self.i.valid, self.o.ready, self.latency)
        row_first = i.mode == Mode.ROW_CHANNEL
        single = i.mode == Mode.CHANNEL
        for lane in range(self.lanes):
            channel = i.parameter[lane]
            row = (i.row_multiplier, i.row_shift)
            first = [
                Mux(row_first, r, c) for r, c in zip(row, (channel.multiplier, channel.shift), strict=True)
            ]
            second = [
                Mux(row_first, c, r) for r, c in zip(row, (channel.multiplier, channel.shift), strict=True)
            ]
            second = [Mux(single, one, x) for one, x in zip(spec.identity, second, strict=True)]
            # rs(x, s) is ((x >> (s - 1)) + 1) >> 1, so the shifters take s - 1.
            factor1 = register(m, enable, first[0])
            shift1 = register(m, enable, (first[1] - 1)[: spec.shift_bits])
            factor2 = register(m, enable, second[0], 1 + _scale_latency(spec.sum_bits))
            shift2 = register(
                m, enable, (second[1] - 1)[: spec.shift_bits], 1 + _scale_latency(spec.sum_bits)
            )

            mid = register(m, enable, i.acc[lane] + channel.bias)
            mid = _scale_stages(m, enable, mid, factor1, shift1, spec)
            mid = _scale_stages(m, enable, mid, factor2, shift2, spec)
            m.d.comb += o.mid[lane].eq(mid)
        m.d.comb += [
            self.i.ready.eq(enable),
            self.o.valid.eq(valid),
            Value.cast(o.tag).eq(register(m, enable, i.tag, self.latency)),
        ]
        return m


def _scale_latency(bits: int) -> int:
    """Stages of `_scale_stages`: product, additions, two of shift, saturation, rounding."""
    return 1 + (ceil_div(bits, DIGIT) - 1) + 2 + 1 + 1


def _scale_stages(
    m: Module, enable: Value, x: Value, factor: Value, shift: Value, spec: RequantiseSpec
) -> ValueLike:
    """``sat(rs(x * factor, shift + 1), mid_bits)`` of registered operands."""
    digits = [x[k : k + DIGIT] for k in range(0, len(x), DIGIT)]
    digits[-1] = digits[-1].as_signed()
    products = [register(m, enable, digit * factor) for digit in digits]
    stages = len(digits) - 1
    total = products[0]
    for k, product in enumerate(products[1:], 1):
        # The bits below the digit are final.
        low, high = total[: k * DIGIT], total[k * DIGIT :]
        summed = high + register(m, enable, product, k - 1)
        total = register(m, enable, Cat(low, summed))
    total = total[: len(x) + spec.multiplier_bits].as_signed()

    shift = register(m, enable, shift, 1 + stages)
    total = register(m, enable, shift_stage_value(total, shift, 3, 6))
    total = register(m, enable, shift_stage_value(total, register(m, enable, shift), 0, 3))
    # One bit more than mid is enough to round correctly, since all steps are monotone.
    half = register(m, enable, saturate_value(total, spec.mid_bits + 1))
    return register(m, enable, saturate_value(rounding_shift_value(half, 1), spec.mid_bits))


def cycles(spec: RequantiseSpec, n: int) -> int:
    """Cycles from the first of ``n`` beats to the last result, without stalls."""
    return n + 1 + _scale_latency(spec.sum_bits) + _scale_latency(spec.mid_bits)
