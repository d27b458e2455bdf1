"""Every operation of `edgemoe.numeric`: numpy against plain Python integers, gateware against numpy."""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, Value, signed, unsigned
from amaranth.sim import Simulator
from hypothesis import given
from hypothesis import strategies as st

from edgemoe import numeric


def evaluate(function, *columns):
    """Values of ``function(*signals)`` for each row of ``columns``, pairs of (shape, integers)."""
    signals = [Signal(shape) for shape, _ in columns]
    value = Value.cast(function(*signals))
    result, m, found = Signal(value.shape()), Module(), []
    m.d.comb += result.eq(value)

    async def bench(ctx):
        for row in zip(*(values for _, values in columns), strict=True):
            for signal, x in zip(signals, row, strict=True):
                ctx.set(signal, int(x))
            found.append(ctx.get(result))

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def draws(bits, count=400, is_signed=True):
    """Random integers of all magnitudes, with the extremes."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)
    rng = np.random.default_rng(bits)
    values = rng.integers(low, high, count, endpoint=True) >> rng.integers(0, bits, count)
    return np.concatenate([values, [low, high, 0, 1, max(low, -1)]])


@given(st.integers(-(2**50), 2**50), st.integers(0, 20))
def test_rounding_is_half_up(x, shift):
    assert numeric.rounding_shift(x, shift) == (x + (1 << shift >> 1)) >> shift
    assert numeric.floor_shift(x, shift) == x >> shift


@pytest.mark.parametrize("shift", [0, 1, 2, 7])
def test_rounding_in_gateware(shift):
    x = draws(12)
    got = evaluate(lambda v: numeric.rounding_shift_value(v, shift), (signed(12), x))
    assert got == numeric.rounding_shift(x, shift).tolist()
    got = evaluate(lambda v: numeric.floor_shift_value(v, shift), (signed(12), x))
    assert got == numeric.floor_shift(x, shift).tolist()


@pytest.mark.parametrize("bits", [2, 8, 11, 12, 13])
@pytest.mark.parametrize("is_signed", [True, False])
def test_saturation(bits, is_signed):
    x = draws(12, is_signed=is_signed)
    expected = [min(max(int(v), -(1 << (bits - 1))), (1 << (bits - 1)) - 1) for v in x]
    assert numeric.saturate(x, bits).tolist() == expected
    shape = signed(12) if is_signed else unsigned(12)
    assert evaluate(lambda v: numeric.saturate_value(v, bits), (shape, x)) == expected


@pytest.mark.parametrize("bits", [1, 2, 5, 16, 21])
def test_bit_length(bits):
    x = np.arange(1 << bits) if bits < 8 else draws(bits, is_signed=False)
    expected = [int(v).bit_length() for v in x]
    assert numeric.bit_length(x).tolist() == expected
    assert evaluate(numeric.bit_length_value, (unsigned(bits), x)) == expected
    assert numeric.bit_length([2**62, 2**31, 2**31 - 1]).tolist() == [63, 32, 31]


@pytest.mark.parametrize("shape", [signed(14), unsigned(12)])
@pytest.mark.parametrize("short", [1, 2, 7, 12])
def test_short_products(shape, short):
    a, b = draws(len(Signal(shape)), is_signed=shape.signed), draws(short, is_signed=False)
    a, b = np.concatenate([a, a[::-1]]), np.concatenate([b, np.roll(b, 3)])
    got = evaluate(numeric.short_product_value, (shape, a), (unsigned(short), b))
    assert got == (a * b).tolist()
    halves = evaluate(lambda x, y: sum(numeric.short_product_halves(x, y)), (shape, a), (unsigned(short), b))
    assert halves == got


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=40), st.integers(4, 16))
def test_block_exponents_are_the_smallest_that_fit(row, bits):
    exponent = int(numeric.block_exponent(row, bits))
    fits = [all(-(1 << (bits - 1)) <= x >> e < 1 << (bits - 1) for x in row) for e in range(17)]
    assert exponent == fits.index(True)
    codes = numeric.mantissa(row, exponent, bits)
    assert np.abs(codes * 2.0**exponent - row).max() <= 2.0**exponent  # half, or one where rounding saturates


@pytest.mark.parametrize(("low", "high"), [(0, 3), (1, 2), (2, 6)])
def test_stages_of_a_barrel_shifter(low, high):
    x, amount = draws(16), np.resize(np.arange(16), 405)
    got = evaluate(
        lambda v, a: numeric.shift_stage_value(v, a, low, high), (signed(16), x), (unsigned(4), amount)
    )
    mask = (1 << min(high, 4)) - (1 << low)
    assert got == (x >> (amount & mask)).tolist()


@given(st.integers(-(2**62), 2**62), st.integers(1, 40))
def test_sign_extension(x, bits):
    low = x & ((1 << bits) - 1)
    assert numeric.sign_extend(x, bits) == (low - (1 << bits) if low >> (bits - 1) else low)


def test_sizes():
    assert [numeric.ceil_div(a, 4) for a in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [numeric.round_up(a, 4) for a in (0, 1, 4, 5)] == [0, 4, 4, 8]
    assert [n for n in range(-2, 17) if numeric.is_power_of_two(n)] == [1, 2, 4, 8, 16]
    assert [numeric.bits_for_signed(*r) for r in ((0, 0), (-1, 0), (0, 1), (-128, 127), (-129, 0), (0, 128))] == [
        1, 1, 2, 8, 9, 9
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [unsigned(1), signed(9)])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5, 9, 16, 17, 33])
def test_register_moves_with_its_enable(shape, stages):
    """As many values later, however long it stands still; short lines are registers, long ones a memory."""
    value, enable, m = Signal(shape), Signal(), Module()
    result = numeric.register(m, enable, value, stages)
    assert result.shape() == shape
    rng = np.random.default_rng(stages)
    line, found, expected = [0] * stages, [], []

    async def bench(ctx):
        for _ in range(200):
            moves, x = int(rng.integers(2)), int(rng.integers(-256, 256) if shape.signed else rng.integers(2))
            ctx.set(enable, moves)
            ctx.set(value, x)
            found.append(ctx.get(result))
            expected.append(line[0])
            if moves:
                line[:] = [*line[1:], x]
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == expected and len(set(found)) > 1
