"""The shared array: in_lanes x out_lanes multipliers that compute every matrix product of the model.

Each *slot* holds one row of operand B. In every beat one word of operand A (in_lanes values) is
broadcast to all slots; a slot multiplies it with the word of the same position of its row, adds the
products in a tree and accumulates. After the last beat of a token every slot has one dot product::

    a[L] --+--> x b[0] --> tree --> acc[0] --> result[0]
           +--> x b[1] --> tree --> acc[1] --> result[1]      one multiplier latency everywhere,
           ...                                                one adder level per stage
           +--> x b[O-1] ...

Attention needs no second mode: the rows of B are then rows of K or of V transposed. A gate with
16-bit weights on an 8-bit B streams the token twice, and ``shift`` moves the accumulator left by
b_bits in between: ``acc = sum(a * high) * 2**b_bits + sum(a * low)``.

Source: Edge-MoE (arXiv 2305.18691), "unified linear layer"; here attention runs on it too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike

from edgemoe.multiplier import MULTIPLIER_LATENCY, multiply, multiply_add
from edgemoe.numeric import IntArray, is_power_of_two, register, sign_extend, unreset
from edgemoe.stream import pipeline


@dataclass(frozen=True)
class MatmulSpec:
    """Lanes and widths of the array.

    Attributes:
        in_lanes: values of operand A per beat, a power of two.
        out_lanes: slots, a power of two.
        b_bits: width of operand B (8 or 16); operand A has ``a_bits`` = 16.
        acc_bits: width of the accumulators. The compiler proves that no product overflows it.
    """

    in_lanes: int
    out_lanes: int
    b_bits: int
    acc_bits: int
    a_bits: int = 16

    def __post_init__(self) -> None:
        for name in ("in_lanes", "out_lanes"):
            if not is_power_of_two(getattr(self, name)):
                raise ValueError(f"{name} must be a power of two, found {getattr(self, name)}")
        if self.acc_bits < self.tree_bits:
            raise ValueError(
                f"acc_bits is {self.acc_bits}; one beat of {self.in_lanes} products of "
                f"{self.a_bits}x{self.b_bits} bits needs {self.tree_bits}"
            )

    @property
    def levels(self) -> int:
        """Adder levels of the tree."""
        return self.in_lanes.bit_length() - 1

    @property
    def tree_bits(self) -> int:
        """Width of the sum of one beat."""
        return self.a_bits + self.b_bits + self.levels

    @property
    def latency(self) -> int:
        """Cycles from a beat to the accumulators that contain it."""
        return MULTIPLIER_LATENCY + self.levels + 1


def matmul(a: ArrayLike, b: ArrayLike, spec: MatmulSpec, double: bool = False) -> IntArray:
    """Golden dot products: ``a`` (T, K) with every row of ``b`` (rows, K or 2K) -> (T, rows).

    With ``double`` a row of B is its high digits followed by its low digits. Wraps at ``acc_bits`` as
    the accumulator does, which a compiled program never reaches.
    """
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    if double:
        high, low = np.split(b, 2, axis=-1)
        return sign_extend(((a @ high.T) << spec.b_bits) + a @ low.T, spec.acc_bits)
    return sign_extend(a @ b.T, spec.acc_bits)


def cycles(words: int, rows: int, spec: MatmulSpec, tokens: int) -> int:
    """Beats of a product of ``tokens`` rows of ``words`` words with ``rows`` rows of B, no stalls."""
    return -(-rows // spec.out_lanes) * tokens * words


class DotProduct(wiring.Component):
    """One slot's arithmetic: in_lanes multipliers, the adder tree and the accumulator.

    Parameters
    ----------
    spec : MatmulSpec

    Members
    -------
    enable : In(1)
        All registers stand still without it.
    a, b : In(ArrayLayout(signed, in_lanes))
    add, first, shift : In(1)
        Aligned with the tree's output, ``spec.latency - 1`` beats after their word: take it; start a new sum; move
        the old one left by b_bits.
    acc : Out(signed(acc_bits))
        Valid ``spec.latency`` enabled cycles after its last word.

    Cost: in_lanes multipliers, in_lanes - 1 adders, one accumulator.
    """

    def __init__(self, spec: MatmulSpec):
        self.spec = spec
        super().__init__(
            {
                "enable": In(1),
                "a": In(data.ArrayLayout(signed(spec.a_bits), spec.in_lanes)),
                "b": In(data.ArrayLayout(signed(spec.b_bits), spec.in_lanes)),
                "add": In(1),
                "first": In(1),
                "shift": In(1),
                "acc": Out(signed(spec.acc_bits)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        operands = list(zip(self.a, self.b, strict=True))
        if len(operands) == 1:
            level = [multiply(m, *operands[0], self.enable, platform)]
        else:  # the first level of the tree is part of the multipliers
            pairs = zip(operands[::2], operands[1::2], strict=True)
            level = [multiply_add(m, *first, *second, self.enable, platform) for first, second in pairs]
        while len(level) > 1:
            pairs = list(zip(level[::2], level[1::2], strict=True))
            level = [register(m, self.enable, x + y) for x, y in pairs]
        total = unreset(m, self.acc)
        old = Mux(self.shift, total << self.spec.b_bits, total)
        with m.If(self.enable & self.add):
            m.d.sync += total.eq(Mux(self.first, 0, old) + level[0])
        return m


class DotArray(wiring.Component):
    """out_lanes dot products at once.

    Parameters
    ----------
    spec : MatmulSpec
    tag : shape-like
        Payload that travels from the last beat of a token to its result.

    Members
    -------
    i : In(stream)
        A beat: ``a`` (in_lanes), ``b`` (out_lanes x in_lanes), ``first``, ``shift``, ``last``, ``tag``.
    o : Out(stream)
        ``acc`` (out_lanes, signed acc_bits) and ``tag`` of the beat with ``last``.

    Throughput one beat per cycle, latency ``spec.latency``; P = in_lanes * out_lanes multipliers.
    """

    def __init__(self, spec: MatmulSpec, tag=0):
        self.spec = spec
        words = data.ArrayLayout(signed(spec.b_bits), spec.in_lanes)
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "a": data.ArrayLayout(signed(spec.a_bits), spec.in_lanes),
                                "b": data.ArrayLayout(words, spec.out_lanes),
                                "first": 1,
                                "shift": 1,
                                "last": 1,
                                "tag": tag,
                            }
                        )
                    )
                ),
                "o": Out(
                    stream.Signature(
                        data.StructLayout(
                            {"acc": data.ArrayLayout(signed(spec.acc_bits), spec.out_lanes), "tag": tag}
                        )
                    )
                ),
            }
        )
        self.tag = tag

    def elaborate(self, platform) -> Module:
        m = Module()
        i, latency = self.i.payload, self.spec.latency
        enable, result = pipeline(m, self.i.valid & i.last, self.o.ready, latency)
        m.d.comb += [self.i.ready.eq(enable), self.o.valid.eq(result)]
        add = Signal(latency - 1)
        with m.If(enable):
            m.d.sync += add.eq((add << 1) | self.i.valid)
        first, shift = (register(m, enable, x, latency - 1) for x in (i.first, i.shift))
        m.d.comb += Value.cast(self.o.payload.tag).eq(register(m, enable, Value.cast(i.tag), latency))
        for slot in range(self.spec.out_lanes):
            dot = DotProduct(self.spec)
            m.submodules[f"slot{slot}"] = dot
            m.d.comb += [
                dot.enable.eq(enable),
                Value.cast(dot.a).eq(Value.cast(i.a)),
                Value.cast(dot.b).eq(Value.cast(i.b[slot])),
                dot.add.eq(add[-1]),
                dot.first.eq(first),
                dot.shift.eq(shift),
                self.o.payload.acc[slot].eq(dot.acc),
            ]
        return m
