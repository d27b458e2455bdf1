"""Integer rounding and saturation, once in numpy and once as gateware, side by side.

Every change of a number's format in this project goes through one of these pairs. Rounding is
always half up: ``(x + 2**(s-1)) >> s``, which needs one adder and no look at the sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike
from amaranth.lib.memory import Memory
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]


def bits_for_signed(low: int, high: int) -> int:
    """Width of the narrowest two's complement integer that holds ``low`` and ``high``."""
    return max(low.bit_length() if low >= 0 else (~low).bit_length(), high.bit_length()) + 1


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def round_up(a: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``a``."""
    return ceil_div(a, multiple) * multiple


def is_power_of_two(n: int) -> bool:
    """True for 1, 2, 4, 8, ..."""
    return n > 0 and n & (n - 1) == 0


# -- rounding shift -----------------------------------------------------------------------------


_HALF = np.array([(1 << shift) >> 1 for shift in range(64)])
"""Half of what a shift drops, by shift."""


def rounding_shift(x: ArrayLike, shift: ArrayLike) -> IntArray:
    """``x / 2**shift`` rounded half up; a shift of 0 changes nothing, 63 is the largest.

    Shapes broadcast; all values must fit in int64 with one bit to spare.
    """
    shift = np.asarray(shift, np.int64)
    return (np.asarray(x, np.int64) + _HALF[shift]) >> shift


def rounding_shift_value(x: Value, shift: int) -> Value:
    """Gateware twin of `rounding_shift` for a constant ``shift``; one adder, no register."""
    if shift == 0:
        return x
    half = x >> (shift - 1)
    return (half + 1) >> 1


# -- short products -----------------------------------------------------------------------------


def short_product_value(a: ValueLike, b: ValueLike) -> Value:
    """``a * b`` for an unsigned ``b`` of few bits, as a sum of the rows of a written multiplication; no register.

    Synthesis puts every ``*`` into a multiplier block, of which a small device has none to spare for addresses and tables.
    """
    a, b = Value.cast(a), Value.cast(b)
    rows: list[Value] = [Mux(bit, a, 0).shift_left(i) for i, bit in enumerate(b)]
    while len(rows) > 1:
        rows = [x + y for x, y in zip(rows[::2], rows[1::2])] + rows[len(rows) & ~1 :]
    return rows[0] if rows else Const(0, 1)


def short_product_halves(a: ValueLike, b: ValueLike) -> tuple[Value, Value]:
    """Two values whose sum is `short_product_value`; registers between them and the sum make two short paths of a long one."""
    b = Value.cast(b)
    half = len(b) // 2
    return short_product_value(a, b[:half]), short_product_value(a, b[half:]).shift_left(half)


# -- saturation ---------------------------------------------------------------------------------


def saturate(x: ArrayLike, bits: int) -> IntArray:
    """Clip to the range of a signed integer of ``bits`` bits."""
    limit = 1 << (bits - 1)
    return np.minimum(np.maximum(np.asarray(x, np.int64), -limit), limit - 1)


def saturate_value(x: Value, bits: int) -> Value:
    """Gateware twin of `saturate`: a signed value of ``bits`` bits, combinational."""
    x = Value.cast(x)
    if x.shape().signed and len(x) <= bits:
        return x
    if len(x) < bits:
        return Cat(x, Const(0, 1)).as_signed()
    sign = x[-1] if x.shape().signed else Const(0, 1)
    rest = x[bits - 1 : -1] if x.shape().signed else x[bits - 1 :]
    fits = Mux(sign, rest.all(), ~rest.any())
    limit = Cat((~sign).replicate(bits - 1), sign)
    return Mux(fits, x[:bits], limit).as_signed()


# -- leading bit --------------------------------------------------------------------------------


def bit_length(x: ArrayLike) -> IntArray:
    """Number of bits of each non-negative integer: 0 for 0, ``floor(log2(x)) + 1`` else."""
    x = np.asarray(x, np.int64)
    exponent = np.frexp((x >> 31).astype(np.float64))[1], np.frexp((x & 0x7FFFFFFF).astype(np.float64))[1]
    return np.where(x >> 31 > 0, exponent[0] + 31, exponent[1]).astype(np.int64)


def bit_length_value(x: Value) -> Value:
    """Gateware twin of `bit_length`: a tree over halves, combinational, depth ``log2(len(x))``."""
    n = len(x)
    if n == 1:
        return x[0]
    half = 1 << ((n - 1).bit_length() - 1)
    low, high = x[:half], x[half:]
    return Mux(high.any(), half + bit_length_value(high), bit_length_value(low))


# -- block floating point -----------------------------------------------------------------------


def magnitude(x: ArrayLike) -> IntArray:
    """One's complement magnitude ``x ^ (x >> 63)``: ``x`` if not negative, else ``-x - 1``."""
    x = np.asarray(x, np.int64)
    return x ^ (x >> 63)


def block_exponent(x: ArrayLike, bits: int, axis: int = -1) -> IntArray:
    """Smallest exponent ``e >= 0`` with which ``x / 2**e`` fits in ``bits`` signed bits along ``axis``.

    It is computed from the OR of the magnitudes, as the gateware does while the row is written.
    """
    union = np.bitwise_or.reduce(magnitude(x), axis=axis)
    return np.maximum(bit_length(union) - (bits - 1), 0)


def mantissa(x: ArrayLike, exponent: ArrayLike, bits: int) -> IntArray:
    """``x / 2**exponent`` rounded half up and saturated to ``bits`` signed bits."""
    return saturate(rounding_shift(x, exponent), bits)


# -- two's complement fields --------------------------------------------------------------------


def sign_extend(x: ArrayLike, bits: int) -> IntArray:
    """Read the low ``bits`` bits of each integer as two's complement."""
    x = np.asarray(x, np.int64) & ((1 << bits) - 1)
    return x - ((x >> (bits - 1)) << bits)


# -- shifts in pipelines ------------------------------------------------------------------------


def floor_shift(x: ArrayLike, shift: ArrayLike) -> IntArray:
    """``x / 2**shift`` rounded down (truncation; where half an ulp was added before, rounding)."""
    return np.asarray(x, np.int64) >> np.asarray(shift, np.int64)


def floor_shift_value(x: Value, shift: int) -> Value:
    """Gateware twin of `floor_shift` for a constant ``shift``; wires only."""
    return Value.cast(x) >> shift


def shift_stage_value(x: Value, amount: Value, low: int, high: int) -> Value:
    """One stage of a barrel shifter: `floor_shift` of ``x`` by the bits ``low .. high - 1`` of ``amount``.

    ``high - low`` levels of two-way multiplexers, no register; the width of ``x`` is kept.
    """
    for bit in range(low, min(high, len(amount))):
        x = Mux(amount[bit], x >> (1 << bit), x)
    return x


def unreset(m: Module, target: Any) -> Any:
    """The register that drives ``target``, a value or a view, not reset: for what only counts beside a valid signal."""
    held = Signal(target.shape(), reset_less=True, name="held")
    m.d.comb += Value.cast(target).eq(Value.cast(held))
    return held


RING_STAGES, RING_BITS = 4, 32
"""From so many stages on, and so many bits in all of them but the last, a memory is smaller than registers."""


def register(m: Module, enable: ValueLike, value: ValueLike, stages: int = 1) -> Value:
    """``value`` after ``stages`` registers that move when ``enable`` is high; they are not reset.

    Where they are many, all but the last are a ring in distributed memory: of 16 stages, 6 lookup tables in place of
    60 flip-flops for 4 bits.
    """
    value = Value.cast(value)
    if stages >= RING_STAGES and len(value) * (stages - 1) >= RING_BITS:
        value, stages = _ring(m, enable, value, stages - 1), 1
    for _ in range(stages):
        following = Signal(value.shape(), reset_less=True, name="stage")
        with m.If(enable):
            m.d.sync += following.eq(value)
        value = following
    return value


def _ring(m: Module, enable: ValueLike, value: Value, stages: int) -> Value:
    """``value`` after ``stages`` cycles with ``enable``, out of a memory without a register behind it."""
    memory = Memory(shape=value.shape(), depth=stages, init=[], attrs={"ram_style": "distributed"})
    m.submodules += memory
    read, write = memory.read_port(domain="comb"), memory.write_port()
    at = Signal(range(stages), name="ring")
    with m.If(enable):
        m.d.sync += at.eq(Mux(at == stages - 1, 0, at + 1))
    m.d.comb += [read.addr.eq(at), write.addr.eq(at), write.en.eq(enable), write.data.eq(value)]
    return read.data
