"""Layer normalisation of rows of integers: exact sums, a table for 1/sigma, one pass over the input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2
from numpy.typing import ArrayLike, NDArray

from edgemoe.interpolation import STAGES, Interpolation, interpolate, interpolation_stages
from edgemoe.numeric import (
    IntArray,
    bit_length,
    bit_length_value,
    ceil_div,
    floor_shift,
    floor_shift_value,
    is_power_of_two,
    register,
    rounding_shift,
    rounding_shift_value,
    saturate,
    saturate_value,
    shift_stage_value,
)
from edgemoe.stream import pipeline

X_BITS = 16
"""Width of an activation."""
MEAN_FRAC = 6
"""Fraction bits that the mean has beyond those of x."""
RECIPROCAL_BITS = 24
"""Width of the normalised reciprocal of the row length."""
C_BITS, Z_BITS, Z_FRAC = 18, 18, 12
"""Width of the centred value c; width and fraction bits of the normalised value z (Q5.12)."""
GAMMA_BITS, BETA_BITS, SHIFT_BITS, EPS_BITS = 16, 42, 6, 40
"""Widths of the parameters of the affine step and of ``eps_term``."""
LIMB = 17
"""Unsigned bits of one operand of an 18 x 18 bit signed multiplier."""
R_BITS, ROOT_BITS = 16, LIMB
"""Width of the mantissa of 1/sigma, and of the table's 1/sqrt."""
MEAN_SHIFT = RECIPROCAL_BITS - 1 - MEAN_FRAC
MAX_RIGHT, MAX_LEFT = 10, 13
"""How far c is to the right or left of ``64 x - mean6``."""
WIDE_DIM = 256
"""Longer rows may have values beyond 16 sigma."""


@dataclass(frozen=True)
class LayerNormSpec:
    """Capacities of a layer normalisation, and its table of ``1 / sqrt(u)``, 1 <= u < 4.

    Parameters
    ----------
    in_lanes : int
        Values per word of both streams; a power of two.
    norm_lanes : int
        Values normalised per cycle; a power of two, at most ``in_lanes``.
    dim : int
        Longest row, 1..4096.
    """

    in_lanes: int
    norm_lanes: int
    dim: int

    def __post_init__(self) -> None:
        for name in ("in_lanes", "norm_lanes"):
            if not is_power_of_two(getattr(self, name)):
                raise ValueError(f"{name} must be a power of two, not {getattr(self, name)}")
        if self.norm_lanes > self.in_lanes:
            raise ValueError(f"norm_lanes ({self.norm_lanes}) exceeds in_lanes ({self.in_lanes}); lower it")
        if not 1 <= self.dim <= 4096:
            raise ValueError(f"dim must be 1..4096, not {self.dim}: c would need more than {C_BITS} bits")

    @property
    def ratio(self) -> int:
        """Groups of ``norm_lanes`` values in a word."""
        return self.in_lanes // self.norm_lanes

    @property
    def words(self) -> int:
        """Words of the longest row."""
        return ceil_div(self.dim, self.in_lanes)

    @property
    def dim_bits(self) -> int:
        """Width of the row length."""
        return self.dim.bit_length()

    @property
    def variance_bits(self) -> int:
        """Width of V; the largest ``D**2 * 2**30`` and ``eps_term`` leave one bit to spare."""
        return max(2 * self.dim_bits + 2 * (X_BITS - 1), EPS_BITS) + 1

    @property
    def group_bits(self) -> int:
        """Width of a count of groups of a row."""
        return (self.words * self.ratio).bit_length()

    @property
    def buffer_words(self) -> int:
        """Words of the row buffer: one row, and what arrives until its first word has left."""
        return 1 << ceil_log2(self.words + ceil_div(latency(self), self.ratio) + 2)

    @cached_property
    def root(self) -> Interpolation:
        """``1 / sqrt(u)`` for ``u = (1 + f) * 2**odd``; the argument is odd above the 18 upper bits of f.

        f is cut off below these bits, so the table is fitted to the middle of what was cut.
        """
        index_bits, offset_bits = 9, 10
        middle = 0.5 / (1 << (index_bits + offset_bits - 1))

        def function(x: NDArray[np.float64]) -> NDArray[np.float64]:
            odd = x >= 0.5
            return 1 / np.sqrt((1 + 2 * x - odd + middle) * (1 + odd))

        return Interpolation.fit(function, index_bits=index_bits, offset_bits=offset_bits,
                                 width=ROOT_BITS, fraction_bits=ROOT_BITS, guard=9)  # fmt: skip


# -- golden -------------------------------------------------------------------------------------


def mean_reciprocal(dim: int) -> int:
    """``2**(e + 23) / dim`` rounded, with ``e = bit_length(dim - 1)``: 24 bits, at least ``2**23``."""
    exponent = (dim - 1).bit_length()
    return ((1 << (exponent + RECIPROCAL_BITS)) // dim + 1) >> 1


def epsilon_term(eps: float, dim: int, frac: int) -> int:
    """``eps`` as it enters V, for a row of ``dim`` values with ``frac`` fraction bits."""
    term = round(eps * dim * dim * 4.0**frac)
    limit = min(1 << EPS_BITS, (dim * dim) << (2 * (X_BITS - 1)))
    if not 0 <= term < limit:
        raise ValueError(
            f"eps {eps} is {term} in codes of {frac} fraction bits and must be below {limit}; lower frac or eps"
        )
    return term


def inverse_sigma(variance: ArrayLike, dim: int, spec: LayerNormSpec) -> tuple[IntArray, IntArray]:
    """``dim / sqrt(variance) = r * 2**-(15 + k)`` with a 16-bit mantissa r; relative error below 2**-15.

    ``variance`` is V, that is ``dim**2`` times the variance. V = 0 is read as 1; c is 0 then, whatever r.
    """
    variance = np.maximum(np.asarray(variance, np.int64), 1)
    exponent = bit_length(variance) - 1
    bits = spec.root.argument_bits - 1
    mantissa = floor_shift(variance << np.maximum(bits - exponent, 0), np.maximum(exponent - bits, 0))
    argument = (mantissa & ((1 << bits) - 1)) | ((exponent & 1) << bits)
    product = (dim << (spec.dim_bits - dim.bit_length())) * interpolate(argument, spec.root)
    upper = floor_shift(product, spec.dim_bits + ROOT_BITS - 1)
    r = np.minimum(rounding_shift(product, spec.dim_bits + upper), (1 << R_BITS) - 1)
    return r, 2 - upper - dim.bit_length() + floor_shift(exponent, 1)


def layernorm(x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, shift: int, eps_term: int,
              spec: LayerNormSpec) -> IntArray:  # fmt: skip
    """Rows ``x`` (..., D) normalised: integers of 16 bits.

        S1 = sum x;  S2 = sum x^2;  V = D * S2 - S1^2 + eps_term
        mean6 = rs(S1 * mean_reciprocal(D), bit_length(D - 1) + 17)
        (r, k) = inverse_sigma(V, D);  wide = 1 if D > 256 else 0
        right = clip(k - 7 + wide, -13, 10)
        c = sat(rs((64 x - mean6) * 2^(10 - right), 10), 18)
        z = sat(rs(c * r * 2^wide, 16), 18)
        norm = sat(rs(z * gamma + beta, shift), 16)

    |z| is at most sqrt(D - 1): c spans 16 sigma up to D = 256, and 32 sigma, one bit coarser, beyond.
    """
    x = np.asarray(x, np.int64)
    gamma, beta = np.asarray(gamma, np.int64), np.asarray(beta, np.int64)
    return saturate(rounding_shift(normalised(x, eps_term, spec) * gamma + beta, shift), X_BITS)


def normalised(x: ArrayLike, eps_term: int, spec: LayerNormSpec) -> IntArray:
    """z of `layernorm`, Q5.12. RMS error for rows with sigma >= 64 codes: 2**-13.2 (D <= 256), 2**-12.6."""
    x = np.asarray(x, np.int64)
    dim = x.shape[-1]
    if not 1 <= dim <= spec.dim:
        raise ValueError(f"a row has {dim} values, the unit was built for 1 to {spec.dim}; raise dim")
    total = x.sum(axis=-1, keepdims=True)
    variance = dim * (x * x).sum(axis=-1, keepdims=True) - total * total + eps_term
    mean = rounding_shift(total * mean_reciprocal(dim), (dim - 1).bit_length() + MEAN_SHIFT)
    r, k = inverse_sigma(variance, dim, spec)
    wide = int(dim > WIDE_DIM)
    right = np.clip(k - 7 + wide, -MAX_LEFT, MAX_RIGHT)
    c = rounding_shift(((x << MEAN_FRAC) - mean) << (MAX_RIGHT - right), MAX_RIGHT)
    return saturate(rounding_shift(saturate(c, C_BITS) * (r << wide), R_BITS), Z_BITS)


# -- gateware -----------------------------------------------------------------------------------

SCALAR_INTERVAL = 11
"""Cycles from a row's scalars to the next row's: ten products of its own, one of an earlier row."""
SCALAR_LATENCY = 23 + STAGES
"""Cycles from the sums of a row to its mean and factor."""
ROWS_IN_FLIGHT = 8
"""Rows whose scalars are under way or wait for the lanes."""
LANE_STAGES = 16
"""Registers from the row buffer's address to the output."""


def _statistics_stages(spec: LayerNormSpec) -> int:
    """Operands, squares, one level of the adder tree per stage."""
    return 2 + ceil_log2(spec.norm_lanes)


def latency(spec: LayerNormSpec) -> int:
    """Cycles from the last word of a row to the first group of its result, counted as in `cycles`."""
    return _statistics_stages(spec) + 1 + SCALAR_LATENCY + 1 + LANE_STAGES + 1


class RowScalars(wiring.Component):
    """Mean and 1/sigma of a row from its sums, on one 18 x 18 bit multiplier.

    The ten products of S1^2, D * S2 and S1 / D take a slot each; D / sqrt(V) of an earlier row takes
    precedence when it is due, so a row can start every `SCALAR_INTERVAL` cycles.

    Parameters
    ----------
    spec : LayerNormSpec

    Members
    -------
    claim : In(1), ready : Out(1)
        A row whose sums are on their way takes its place here; only while ``ready``, which follows from registers.
    start : In(1)
        Take ``s1`` and ``s2``, for every row equally long after its ``claim``: nothing waits between the two.
    s1, s2 : In
        Sum of x (signed) and of x^2 (unsigned).
    dim, eps_term, mean_reciprocal : In
        As in `LayerNorm`.
    valid : Out(1), take : In(1)
        A result is there; ``take`` drops it.
    mean : Out(signed(22))
        mean6.
    factor : Out(17)
        ``r * 2**wide``.
    right : Out(5)
        ``right + 13``.

    Latency `SCALAR_LATENCY`, initiation interval `SCALAR_INTERVAL`. Cost: one multiplier, one
    interpolation of 512 rows.
    """

    def __init__(self, spec: LayerNormSpec):
        self.spec = spec
        super().__init__(
            {
                "claim": In(1),
                "ready": Out(1),
                "start": In(1),
                "s1": In(signed(X_BITS + spec.dim_bits)),
                "s2": In(2 * X_BITS - 2 + spec.dim_bits),
                "dim": In(spec.dim_bits),
                "eps_term": In(EPS_BITS),
                "mean_reciprocal": In(RECIPROCAL_BITS),
                "valid": Out(1),
                "take": In(1),
                "mean": Out(signed(X_BITS + MEAN_FRAC)),
                "factor": Out(R_BITS + 1),
                "right": Out(5),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        spec = self.spec
        always = 1

        # Constants of the job.
        length = register(m, always, bit_length_value(self.dim))
        exponent = register(m, always, bit_length_value((self.dim - 1)[: spec.dim_bits]))
        dim_normal = register(m, always, (self.dim << (spec.dim_bits - length)[:4])[: spec.dim_bits])
        wide = register(m, always, self.dim > WIDE_DIM)

        # Which rows are where. A fixed latency keeps the throughput independent of the slots' order.
        interval = Signal(range(SCALAR_INTERVAL))
        in_flight, available = Signal(range(ROWS_IN_FLIGHT + 1)), Signal(range(ROWS_IN_FLIGHT + 1))
        started = Signal(SCALAR_LATENCY - 1)
        rested, full = Signal(init=1), Signal()  # interval is 0; in_flight is at its end
        m.d.comb += [
            self.ready.eq(rested & ~full),
            self.valid.eq(available != 0),
        ]
        with m.If(self.claim & ~self.take):
            m.d.sync += full.eq(in_flight == ROWS_IN_FLIGHT - 1)
        with m.If(self.take & ~self.claim):
            m.d.sync += full.eq(0)
        m.d.sync += [
            started.eq(Cat(self.start, started)),
            in_flight.eq(in_flight + self.claim - self.take),
            available.eq(available + started[-1] - self.take),
        ]
        with m.If(self.claim):
            m.d.sync += [interval.eq(SCALAR_INTERVAL - 1), rested.eq(0)]
        with m.Elif(~rested):
            m.d.sync += [interval.eq(interval - 1), rested.eq(interval == 1)]

        # The products of a row: operands, weight, subtracted.
        s1, s2 = Signal(signed(2 * LIMB)), Signal(3 * LIMB)
        post, root = Signal(), Signal(ROOT_BITS)
        operands_a = [self.dim, s1[:LIMB], s1[LIMB:].as_signed(), dim_normal]
        operands_b = [
            *(s2[n * LIMB : (n + 1) * LIMB] for n in range(3)),
            *operands_a[1:3],
            self.mean_reciprocal[:LIMB],
            self.mean_reciprocal[LIMB:],
            root,
        ]
        weights = [0, LIMB, LIMB + 1, 2 * LIMB]
        schedule = [
            *((0, 0, 0, 0), (0, 1, 1, 0), (0, 2, 3, 0)),  # D * S2
            *((1, 3, 0, 1), (1, 4, 2, 1), (2, 4, 3, 1)),  # - S1^2
            *((1, 5, 0, 0), (1, 6, 1, 0), (2, 5, 1, 0), (2, 6, 3, 0)),  # S1 / D
        ]
        first_of_mean = 6
        slot = data.StructLayout(
            {"weight": 2, "subtract": 1, "first": 1, "mean": 1, "add": 1, "last": 1, "root": 1}
        )
        step, following, busy = Signal(range(len(schedule))), Signal(range(len(schedule))), Signal()
        planned, select_a, select_b = Signal(slot), Signal(2), Signal(3)
        m.d.comb += following.eq(Mux(self.start, 0, step + 1))
        with m.If(self.start):
            m.d.sync += [busy.eq(1), s1.eq(self.s1), s2.eq(self.s2)]
        with m.If(self.start | (busy & ~post)):
            m.d.sync += step.eq(following)
            with m.If(~self.start & (step == len(schedule) - 1)):
                m.d.sync += busy.eq(0)
            with m.Switch(following):
                for n, (a, b, weight, subtract) in enumerate(schedule):
                    with m.Case(n):
                        m.d.sync += [
                            select_a.eq(a),
                            select_b.eq(b),
                            planned.weight.eq(weight),
                            planned.subtract.eq(subtract),
                            planned.first.eq(n in (0, first_of_mean)),
                            planned.mean.eq(n >= first_of_mean),
                            planned.last.eq(n in (first_of_mean - 1, len(schedule) - 1)),
                        ]

        # Multiplier: operands, product, product at its weight, sum.
        now = Signal(slot)
        m.d.comb += [now.eq(planned), now.add.eq(busy & ~post), now.root.eq(post)]
        at_product = register(m, always, now, 2)
        at_placed = register(m, always, at_product)
        at_sum = register(m, always, at_placed)
        at_product, at_placed, at_sum = (data.View(slot, x) for x in (at_product, at_placed, at_sum))
        a, b = Signal(signed(LIMB + 1)), Signal(signed(LIMB + 1))
        total = Signal(signed(max(spec.variance_bits, X_BITS + spec.dim_bits + RECIPROCAL_BITS) + 1))
        m.d.sync += [
            a.eq(Array(operands_a)[select_a | post.replicate(2)]),
            b.eq(Array(operands_b)[select_b | post.replicate(3)]),
        ]
        product = register(m, always, a * b)
        placed = register(m, always, Array([product << w for w in weights])[at_product.weight][: len(total)])
        base = register(m, always, Mux(at_product.mean, 0, self.eps_term))
        start = Mux(at_placed.first, base, total)
        with m.If(at_placed.add):
            m.d.sync += total.eq(
                Mux(at_placed.subtract, start - placed.as_signed(), start + placed.as_signed())
            )

        # Mean: rs(total, exponent + 17).
        mean = register(
            m, always, shift_stage_value(floor_shift_value(total, MEAN_SHIFT - 1), exponent, 2, 4)
        )
        mean = register(m, always, shift_stage_value(mean, exponent, 0, 2))
        mean = register(m, always, rounding_shift_value(mean, 1))
        mean_valid = _delayed(m, at_sum.add & at_sum.last & at_sum.mean, 3)

        # V's leading one goes to the top; its position gives the exponent.
        bits = spec.variance_bits
        normal, zeros = total[:bits], Cat()
        steps = (bits - 1).bit_length()
        for n in reversed(range(steps)):
            move = ~normal[-(1 << n) :].any()
            zeros = register(m, always, Cat(move, zeros))
            normal = register(m, always, Mux(move, normal << (1 << n), normal)[:bits])
        top = (bits - 1 - zeros).as_signed()
        argument = Cat(normal[-spec.root.argument_bits : -1], top[0])
        (root_value,) = interpolation_stages(m, always, spec.root, [argument], "root")
        m.d.sync += [
            root.eq(root_value),
            post.eq(_delayed(m, at_sum.add & at_sum.last & ~at_sum.mean, steps + STAGES)),
        ]

        # r = D / sqrt(V) and the shift of c.
        high = spec.dim_bits + ROOT_BITS - 1
        upper = product[high]
        r = register(
            m, always, Mux(upper, product[high - R_BITS : high + 1], product[high - R_BITS - 1 : high])
        )
        r = register(m, always, rounding_shift_value(r, 1))
        offset = MAX_LEFT + 2 - 7
        right = register(m, always, (floor_shift_value(top, 1) + wide) - length, STAGES + 3)
        right = register(m, always, right + offset - upper)
        limit = MAX_LEFT + MAX_RIGHT
        right = register(m, always, Mux(right < 0, 0, Mux(right > limit, limit, right))[:5])
        r_valid = _delayed(m, at_product.root, 2)

        # Results wait in two small memories until the lanes take them.
        m.submodules.means = means = Memory(shape=signed(X_BITS + MEAN_FRAC), depth=ROWS_IN_FLIGHT, init=[])
        result = data.StructLayout({"factor": R_BITS + 1, "right": 5})
        m.submodules.factors = factors = Memory(shape=result, depth=ROWS_IN_FLIGHT, init=[])
        head = Signal(range(ROWS_IN_FLIGHT))
        m.d.sync += head.eq(head + self.take)
        for memory, valid in ((means, mean_valid), (factors, r_valid)):
            tail = Signal(range(ROWS_IN_FLIGHT))
            writer = memory.write_port()
            m.d.comb += [writer.addr.eq(tail), writer.en.eq(valid)]
            m.d.sync += tail.eq(tail + valid)
            if memory is means:
                m.d.comb += writer.data.eq(mean)
            else:
                full = Mux(r[R_BITS], (1 << R_BITS) - 1, r[:R_BITS])
                m.d.comb += [
                    writer.data.factor.eq(Mux(wide, full << 1, full)),
                    writer.data.right.eq(right),
                ]
        mean_reader, factor_reader = means.read_port(domain="comb"), factors.read_port(domain="comb")
        m.d.comb += [
            mean_reader.addr.eq(head),
            factor_reader.addr.eq(head),
            self.mean.eq(mean_reader.data),
            self.factor.eq(factor_reader.data.factor),
            self.right.eq(factor_reader.data.right),
        ]
        return m


def _delayed(m: Module, pulse: Value, stages: int) -> Value:
    """``pulse`` after ``stages`` registers that are reset, unlike data."""
    line = Signal(stages)
    m.d.sync += line.eq(Cat(pulse, line))
    return line[-1]


class LayerNorm(wiring.Component):
    """Layer normalisation of a stream of rows; each word is read once.

    ``o.x[row] = layernorm(i.x[row], gamma, beta, shift, eps_term, spec)``

        i --> groups --+--> squares, sums --> RowScalars --> mean, 1/sigma --+
                       |                                                     v
                       +--> row buffer ----------------------------------> lanes --> words --> o
                                             gamma, beta --> (read per group) ^

    The sums of a row are taken while earlier rows are normalised.

    Parameters
    ----------
    spec : LayerNormSpec
    q : int
        Channels per transfer of ``parameters``; a power of two.
    tag : shape-like
        Passed from each word of ``i`` to the word of ``o`` at the same place.

    Members
    -------
    dim : In(spec.dim_bits)
        D, true length of the rows. This and the next four are held while rows are in flight.
    words : In
        Words of a row, ``ceil(D / in_lanes)``. It decides where a row ends; ``last`` only passes through.
    eps_term : In(40)
        `epsilon_term`.
    mean_reciprocal : In(24)
        `mean_reciprocal` of D.
    shift : In(6)
        Right shift of ``z * gamma + beta``.
    parameters : In(stream.Signature({gamma: Array(signed(16), q), beta: Array(signed(42), q), last: 1}))
        Of channels 0, 1, ...; at least ``words * in_lanes`` channels, zeros beyond D. ``last`` makes the
        next transfer start at channel 0. Only while no row is in flight.
    i : In(stream.Signature({x: Array(signed(16), in_lanes), last: 1, tag}))
        Rows; lanes beyond D are 0.
    o : Out(stream.Signature({x: Array(signed(16), in_lanes), last: 1, tag}))

    Throughput: a row per ``max(words * in_lanes / norm_lanes, 11)`` cycles; latency `latency` from its last
    word. Cost per norm lane: 3 multipliers; per unit: 1 multiplier.
    Error: that of `normalised`, and the rounding of the result.

    Source: the normalisation of Edge-MoE, Sarkar et al., ICCAD 2023 (arXiv 2305.18691), in integers.
    """

    def __init__(self, spec: LayerNormSpec, q: int = 1, tag=0):
        if not is_power_of_two(q):
            raise ValueError(f"q must be a power of two, not {q}: channels per transfer of parameters")
        tag = unsigned(tag) if isinstance(tag, int) else tag
        self.spec, self.q = spec, q
        word = data.StructLayout(
            {"x": data.ArrayLayout(signed(X_BITS), spec.in_lanes), "last": 1, "tag": tag}
        )
        parameters = data.StructLayout(
            {
                "gamma": data.ArrayLayout(signed(GAMMA_BITS), q),
                "beta": data.ArrayLayout(signed(BETA_BITS), q),
                "last": 1,
            }
        )
        super().__init__(
            {
                "dim": In(spec.dim_bits),
                "words": In(spec.words.bit_length()),
                "eps_term": In(EPS_BITS),
                "mean_reciprocal": In(RECIPROCAL_BITS),
                "shift": In(SHIFT_BITS),
                "parameters": In(stream.Signature(parameters)),
                "i": In(stream.Signature(word)),
                "o": Out(stream.Signature(word)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        spec, i = self.spec, self.i.payload
        lanes, ratio, depth = spec.norm_lanes, spec.ratio, spec.buffer_words
        group = data.ArrayLayout(signed(X_BITS), lanes)

        m.submodules.scalars = scalars = RowScalars(spec)
        m.d.comb += [
            scalars.dim.eq(self.dim),
            scalars.eps_term.eq(self.eps_term),
            scalars.mean_reciprocal.eq(self.mean_reciprocal),
        ]
        words_end = (self.words - 1)[: spec.group_bits]
        part_end = Const(ratio - 1, ceil_log2(ratio))  # of every word: beside the registers, not in them
        groups_end = Cat(part_end, words_end)[: spec.group_bits]
        groups_last = Cat(part_end, register(m, 1, words_end))[: spec.group_bits]

        # Words of the row buffer that are in use, from their arrival to their departure.
        used = Signal(range(depth + 1))
        arrival, departure = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        m.d.sync += used.eq(used + arrival - departure)

        # A word leaves the input register in groups of norm_lanes.
        held, held_valid, part = (
            Signal(spec.in_lanes * X_BITS, reset_less=True),
            Signal(),
            Signal(range(ratio)),
        )
        # The last group of a row waits until there is a place for its scalars; behind it nothing ever waits.
        count, row_end, moves = Signal(spec.group_bits), Signal(), Signal()  # row_end: count is at its end
        following_ends = Mux(row_end, groups_end == 0, count + 1 == groups_end)
        m.d.sync += row_end.eq(Mux(moves, following_ends, count == groups_end))
        held_end = moves & (part == ratio - 1)
        m.d.comb += [
            moves.eq(held_valid & (~row_end | scalars.ready)),
            self.i.ready.eq((~held_valid | held_end) & ~used[-1]),
            scalars.claim.eq(moves & row_end),
        ]
        with m.If(moves):
            m.d.sync += count.eq(Mux(row_end, 0, count + 1))
            m.d.sync += [held.eq(held[lanes * X_BITS :]), part.eq(part + 1)]
        with m.If(arrival):
            m.d.sync += [held.eq(i.x), held_valid.eq(1), part.eq(0)]
        with m.Elif(held_end):
            m.d.sync += held_valid.eq(0)

        # Row buffer, one group wide.
        m.submodules.buffer = buffer = Memory(shape=group, depth=depth * ratio, init=[])
        write, write_at = buffer.write_port(), Signal(range(depth * ratio))
        m.d.comb += [write.addr.eq(write_at), write.data.eq(held), write.en.eq(moves)]
        m.d.sync += write_at.eq(write_at + write.en)

        # S1 and S2.
        stages = _statistics_stages(spec)
        operands = [register(m, 1, held[n * X_BITS : (n + 1) * X_BITS].as_signed()) for n in range(lanes)]
        squares = [register(m, 1, (x * x).as_unsigned()[: 2 * X_BITS - 1]) for x in operands]
        values = [register(m, 1, x) for x in operands]
        while len(values) > 1:
            squares, values = (
                [register(m, 1, a + b) for a, b in zip(level[::2], level[1::2], strict=True)]
                for level in (squares, values)
            )
        valid, last, first = _delayed(m, moves, stages), register(m, 1, row_end, stages), Signal(init=1)
        s1, s2 = Signal.like(scalars.s1), Signal.like(scalars.s2)
        m.d.comb += [scalars.s1.eq(s1), scalars.s2.eq(s2)]
        m.d.sync += scalars.start.eq(valid & last)
        with m.If(valid):
            m.d.sync += [
                s1.eq(Mux(first, 0, s1) + values[0]),
                s2.eq(Mux(first, 0, s2) + squares[0]),
                first.eq(last),
            ]

        self._normalise(m, scalars, buffer, arrival, groups_last)
        return m

    def _normalise(self, m: Module, scalars: RowScalars, buffer: Memory, arrival: Value,
                   groups_last: Value) -> None:  # fmt: skip
        """The lanes: from the row buffer to the output."""
        spec = self.spec
        lanes, ratio = spec.norm_lanes, spec.ratio
        out_enable = Signal()

        # Stage 0: the row and its group.
        running, at = Signal(), Signal(spec.group_bits)
        mean, factor, right = (Signal.like(x) for x in (scalars.mean, scalars.factor, scalars.right))
        enable, valid = pipeline(m, running, out_enable, LANE_STAGES - 1)
        row_end = at == groups_last
        read, read_at = buffer.read_port(), Signal(range(buffer.depth))
        m.d.comb += [
            read.addr.eq(read_at),
            read.en.eq(enable),
            scalars.take.eq(enable & (~running | row_end) & scalars.valid),
        ]
        with m.If(enable):
            m.d.sync += read_at.eq(read_at + running)
            with m.If(~running | row_end):
                m.d.sync += [
                    running.eq(scalars.valid),
                    at.eq(0),
                    mean.eq(scalars.mean),
                    factor.eq(scalars.factor),
                    right.eq(scalars.right),
                ]
            with m.Else():
                m.d.sync += at.eq(at + 1)

        def later(value: Value, stages: int) -> Value:
            return register(m, enable, value, stages)

        gammas, betas = self._parameters(m, enable, later(at, 6), later(at, 8))
        mean, coarse, fine = later(mean, 2), later(right, 3), later(right, 4)
        factor = Cat(later(factor, 7), 0).as_signed()
        group = later(read.data, 1)
        results = []
        for lane in range(lanes):
            x = data.View(buffer.shape, group)[lane]
            centred = later((x << MEAN_FRAC) - mean, 1) << (MAX_LEFT + MAX_RIGHT)
            centred = later(shift_stage_value(centred, coarse, 3, 5), 1)
            centred = later(shift_stage_value(centred, fine, 0, 3), 1)
            c = later(saturate_value(later(rounding_shift_value(centred, MAX_RIGHT), 1), C_BITS), 1)
            z = later(rounding_shift_value(later(c * factor, 1), R_BITS), 1)
            z = later(saturate_value(z, Z_BITS), 1)
            # The sum keeps one bit for its rounding: rs(x, s) = ((2 x >> s) + 1) >> 1, also for s = 0.
            total = later(later(z * gammas[lane], 1) + betas[lane], 1) << 1
            total = later(shift_stage_value(total, self.shift, 3, 6), 1)
            total = later(shift_stage_value(total, self.shift, 0, 3), 1)
            results.append(saturate_value(later(rounding_shift_value(total, 1), 1), X_BITS))

        # Groups are put together to words; the word's tag comes from the memory of the input's tags.
        part = Signal(range(ratio))
        word_end = part == ratio - 1
        whole = Signal()
        last_enable, last_valid = pipeline(m, valid, self.o.ready | ~whole, 1)
        word = Signal(spec.in_lanes * X_BITS, reset_less=True)
        note = data.StructLayout({"last": 1, "tag": self.i.payload.shape().members["tag"]})
        m.submodules.notes = notes = Memory(shape=note, depth=spec.buffer_words, init=[])
        write, write_at = notes.write_port(), Signal(range(notes.depth))
        read, read_at = notes.read_port(), Signal(range(notes.depth))
        m.d.comb += [
            out_enable.eq(last_enable),
            write.addr.eq(write_at),
            write.en.eq(arrival),
            write.data.last.eq(self.i.payload.last),
            Value.cast(write.data.tag).eq(Value.cast(self.i.payload.tag)),
            read.addr.eq(read_at),
            read.en.eq(last_enable),
            self.o.valid.eq(last_valid & whole),
            self.o.payload.x.eq(word),
            self.o.payload.last.eq(read.data.last),
            Value.cast(self.o.payload.tag).eq(Value.cast(read.data.tag)),
        ]
        m.d.sync += write_at.eq(write_at + arrival)
        with m.If(valid & last_enable):
            m.d.sync += [
                word.eq(Cat(word[lanes * X_BITS :], *results)),
                part.eq(part + 1),
                whole.eq(word_end),
                read_at.eq(read_at + word_end),
            ]

    def _parameters(self, m: Module, enable: Value, gamma_at: Value, beta_at: Value):
        """Memories of gamma and beta; the values of a group, three registers after its number."""
        spec, q, p = self.spec, self.q, self.parameters.payload
        lanes = spec.norm_lanes
        slices, parts = max(lanes // q, 1), max(q // lanes, 1)
        transfer = Signal(range(ceil_div(spec.words * spec.in_lanes, q) + 1))
        m.d.comb += self.parameters.ready.eq(1)
        with m.If(self.parameters.valid):
            m.d.sync += transfer.eq(Mux(p.last, 0, transfer + 1))
        slice_bits, part_bits = ceil_log2(slices), ceil_log2(parts)
        depth = ceil_div(spec.words * spec.in_lanes, slices * q)

        def values(name: str, at: Value, array) -> list[Value]:
            width = array.shape().elem_shape.width
            wide = []
            for n in range(slices):
                m.submodules[f"{name}{n}"] = memory = Memory(shape=q * width, depth=depth, init=[])
                write, read = memory.write_port(), memory.read_port()
                m.d.comb += [
                    write.addr.eq(transfer[slice_bits:]),
                    write.data.eq(Value.cast(array)),
                    write.en.eq(self.parameters.valid & (transfer[:slice_bits] == n)),
                    read.addr.eq(at[part_bits:]),
                    read.en.eq(enable),
                ]
                wide.append(register(m, enable, read.data))
            part = register(m, enable, at[:part_bits], 2)
            wide = Cat(*wide)
            group = register(m, enable, wide.word_select(part, lanes * width) if parts > 1 else wide)
            return [group[n * width : (n + 1) * width].as_signed() for n in range(lanes)]

        gammas = [register(m, enable, x) for x in values("gamma", gamma_at, p.gamma)]
        return gammas, values("beta", beta_at, p.beta)


# -- cycles -------------------------------------------------------------------------------------


def cycles(spec: LayerNormSpec, rows: int, dim: int) -> int:
    """Cycles from the first word of ``rows`` rows to the last result, both counted, without stalls."""
    groups = ceil_div(dim, spec.in_lanes) * spec.ratio
    return (rows - 1) * max(groups, SCALAR_INTERVAL) + 2 * groups - 1 + latency(spec)
