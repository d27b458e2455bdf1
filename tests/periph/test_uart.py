"""Receiver and transmitter equal their golden functions; samples lie in the middle of the bits for any ratio."""

import random
import warnings
from fractions import Fraction
from math import ceil, floor

import pytest
from amaranth.sim import Simulator

from edgemoe.errors import BadInput
from edgemoe.periph.uart import (
    BITS,
    DEAF,
    Received,
    UartReceiver,
    UartSpec,
    UartTransmitter,
    receive,
    transmit,
)

SPECS = [UartSpec(80_000_000, 3_000_000), UartSpec(4_000_000, 1_000_000), UartSpec(48_000_000, 9_216_000),
         UartSpec(1_000_000, 19_200), UartSpec(62_500_000, 12_000_000)]  # fmt: skip
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.clock_hz / s.baud:.2f}")


def cycles_of(spec):
    return Fraction(spec.clock_hz, spec.baud)


def simulate(dut, testbench):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def read(spec, line, stalled=lambda cycle: False):
    """Bytes, framing errors and overruns of the gateware on that line; ``stalled`` tells when nothing is taken."""
    dut = UartReceiver(spec)
    data, counts = [], [0, 0]

    async def testbench(ctx):
        for cycle, value in enumerate([*line, *[1] * ceil(2 * BITS * cycles_of(spec))]):
            ctx.set(dut.rx, value)
            ready = not stalled(cycle)
            ctx.set(dut.o.ready, ready)
            o = dut.o
            _, _, valid, byte, *pulses = await ctx.tick().sample(
                o.valid, o.payload, dut.framing_error, dut.overrun
            )
            data.extend([byte] if valid and ready else [])
            counts[:] = [n + pulse for n, pulse in zip(counts, pulses)]

    simulate(dut, testbench)
    return bytes(data), *counts


def write(spec, data, pause=lambda: 0):
    """The line of the gateware in each cycle from its first start bit on, with pauses before the bytes."""
    dut, line = UartTransmitter(spec), []
    silence = ceil(BITS * cycles_of(spec))

    async def testbench(ctx):
        pending, wait = list(data), pause()
        while pending or not all(line[-silence:]):
            ctx.set(dut.i.valid, bool(pending and not wait))
            ctx.set(dut.i.payload, pending[0] if pending else 0)
            _, _, ready, value = await ctx.tick().sample(dut.i.ready, dut.tx)
            line.append(value)
            if wait:
                wait -= 1
            elif ready and pending:
                pending.pop(0)
                wait = pause()

    simulate(dut, testbench)
    return line[line.index(0) :]


def wave(data, cycles, offset, shape=lambda bit, number, at: bit):
    """The line in each cycle, with bits of ``cycles`` whose edges come ``offset`` before an edge of the clock.

    ``shape(bit, number, at)`` is its value at ``at`` cycles from the middle of a bit.
    """
    bits = [bit for byte in data for bit in (0, *((byte >> k) & 1 for k in range(8)), 1)]
    line = [1] * 5
    for cycle in range(floor(len(bits) * cycles)):
        number, at = divmod(cycle + offset, cycles)
        line.append(shape(bits[int(number)], int(number) % BITS, at - cycles / 2))
    return line


@each_spec
def test_bytes_without_a_gap_have_the_edges_of_the_golden_function(spec):
    data = random.Random(1).randbytes(8)
    line, expected = write(spec, data), transmit(data, spec)
    assert line[: len(expected)] == expected and all(line[len(expected) :])
    assert abs(len(expected) - len(data) * BITS * cycles_of(spec)) <= 1


@each_spec
def test_a_byte_waits_for_the_one_before(spec):
    rng = random.Random(3)
    data = rng.randbytes(8)
    longest = ceil(12 * cycles_of(spec))
    line = write(spec, data, lambda: rng.choice([0, 1, rng.randrange(longest)]))
    assert receive(line, spec).data == data


@each_spec
@pytest.mark.parametrize("offset", [0, Fraction(1, 3), Fraction(99, 100)], ids=str)
def test_a_sample_is_less_than_a_cycle_from_the_middle_of_its_bit(spec, offset):
    """Every bit has its value only within a cycle of its middle."""

    def narrow(bit, number, at):
        within = -1 <= at <= 1 or number == 0 and at < 0  # a start bit must be low from its edge on
        return bit if within else 1 - bit

    for byte in (0x00, 0xFF, 0x5A, 0xC9):
        line = [*wave([byte], cycles_of(spec), offset, narrow), *[1] * 50]
        late = floor(5 + 9.5 * cycles_of(spec)) + 3  # a stop bit that ends soon is no start bit
        line[late:] = [1] * (len(line) - late)
        assert receive(line, spec).data[:1] == bytes([byte])
        assert read(spec, line)[0][:1] == bytes([byte])


@each_spec
@pytest.mark.parametrize("ratio", [0.965, 1, 1.035])
def test_a_sender_may_be_faster_or_slower(spec, ratio):
    """By 3.5 % with bits of many cycles; the rounding to a cycle leaves less where there are few."""
    rng = random.Random(5)
    few = cycles_of(spec) < 8
    data = rng.randbytes(6)
    line = wave(
        data, cycles_of(spec) * Fraction(1 + (ratio - 1) / (3.5 if few else 1)), Fraction(rng.random())
    )
    assert receive(line, spec).data == data
    assert read(spec, line) == (data, 0, 0)


@each_spec
def test_glitches_are_no_start_bits(spec):
    """Low for less than half a bit, also shortly before a byte."""
    line = []
    for length in range(1, spec.sample(0) + 1):
        line += [0] * length + [1] * DEAF + wave(b"\x35", cycles_of(spec), Fraction(1, 2))[5:] + [1] * 3
    assert receive(line, spec) == Received(b"\x35" * spec.sample(0), 0)
    assert read(spec, line) == (b"\x35" * spec.sample(0), 0, 0)


@each_spec
def test_a_byte_without_a_stop_bit_is_dropped_and_the_line_must_rise(spec):
    cycles = cycles_of(spec)
    low = wave(b"\x81", cycles, 0, lambda bit, number, at: bit if number < 9 else 0)
    line = low + [0] * floor(25 * cycles) + [1] * 4 + wave(b"\x42", cycles, 0)
    assert receive(line, spec).data == b"\x42" and receive(line, spec).framing_errors == 1
    assert read(spec, line) == (b"\x42", 1, 0)


@each_spec
def test_noise_is_read_as_the_golden_function_reads_it(spec):
    rng, line = random.Random(7), []
    while len(line) < 120 * cycles_of(spec):
        line += [rng.getrandbits(1)] * rng.choice([1, 2, rng.randrange(1, ceil(6 * cycles_of(spec)))])
    found = receive(line, spec)
    assert read(spec, line) == (found.data, found.framing_errors, 0)
    assert found.framing_errors and found.data


def test_a_byte_that_is_not_taken_is_kept_and_the_next_one_lost():
    spec = SPECS[0]
    line = transmit(b"abcd", spec)
    taken = round(2.5 * BITS * cycles_of(spec))
    assert read(spec, line, lambda cycle: cycle < taken) == (b"acd", 0, 1)


def test_both_ends_agree():
    for spec in SPECS:
        data = random.Random(9).randbytes(5)
        assert read(spec, write(spec, data)) == (data, 0, 0)


@pytest.mark.parametrize(("clock", "baud", "message"), [
    (10_000_000, 3_000_000, "uart: baud must be 1..clock/4 .2500000., found 3000000"),
    (80_000_000, 0, "uart: baud must be 1..clock/4"),
    (100_000_000, 7, "uart: 7 baud from 100000000 Hz is off by .* may be 2%; use a faster line"),
])  # fmt: skip
def test_rates_that_cannot_be(clock, baud, message):
    with pytest.raises(BadInput, match=message):
        UartSpec(clock, baud)
