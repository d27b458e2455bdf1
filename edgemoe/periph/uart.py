"""Receiver and transmitter of a serial line: 8 bits, no parity, one stop bit, any ratio of clock and rate.

Both count bits with a phase accumulator of `PHASE_BITS`: its carry is the tick of a bit, so that a bit may have a
broken number of cycles. D is the cycles of a bit, ``clock_hz / baud``; times are in cycles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from edgemoe.errors import BadInput
from edgemoe.numeric import ceil_div
from edgemoe.stream import connect

PHASE_BITS = 24
MIN_CYCLES = 4
"""Cycles of a bit that the receiver needs: it knows an edge to one cycle."""
MAX_DRIFT = Fraction(1, 50)
"""Of a bit, that the rounded rate may be off at the end of a byte."""
BITS = 10
"""Of a byte on the line: start, eight data bits with the lowest first, stop."""
SYNCHRONISER = 2
"""Cycles of delay of the receiver's input."""
DEAF = 2
"""Cycles from the sample that ends a byte or a glitch to the first one that can begin a byte."""


@dataclass(frozen=True)
class UartSpec:
    """Clock and rate.

    Raises:
        BadInput: a bit has fewer than `MIN_CYCLES`, or is so long that the accumulator cannot count it.
    """

    clock_hz: int
    baud: int

    def __post_init__(self) -> None:
        if self.baud < 1 or self.clock_hz < MIN_CYCLES * self.baud:
            raise BadInput(
                f"uart: baud must be 1..clock/{MIN_CYCLES} ({self.clock_hz // MIN_CYCLES}), found {self.baud}; "
                "use a faster clock or a slower line"
            )
        drift = BITS * abs(Fraction(self.increment * self.clock_hz, self.baud << PHASE_BITS) - 1)
        if drift > MAX_DRIFT:
            raise BadInput(
                f"uart: {self.baud} baud from {self.clock_hz} Hz is off by {float(drift):.1%} of a bit after a byte, "
                f"may be {float(MAX_DRIFT):.0%}; use a faster line"
            )

    @property
    def increment(self) -> int:
        """Of the phase, per cycle."""
        return round(Fraction(self.baud << PHASE_BITS, self.clock_hz))

    @property
    def receive_phase(self) -> int:
        """Of the receiver when it sees the edge, so that it samples half a bit behind the edge, to a cycle."""
        return (1 << (PHASE_BITS - 1)) + self.increment

    def sample(self, bit: int) -> int:
        """Cycles from the first low sample of a start bit to the sample of ``bit`` (0 start, 9 stop).

        The edge lies up to one cycle before that first sample, so a sample is less than a cycle, and `MAX_DRIFT`,
        from the middle of its bit.
        """
        return ceil_div(((bit + 1) << PHASE_BITS) - self.receive_phase, self.increment)

    def edge(self, bit: int) -> int:
        """Cycles from the edge of a first start bit to the begin of ``bit``, counted on through bytes without a gap."""
        return ceil_div(bit << PHASE_BITS, self.increment)


def transmit(data: Iterable[int], spec: UartSpec) -> list[int]:
    """Golden: the line in each cycle while ``data`` are sent without a gap."""
    bits = [bit for byte in data for bit in (0, *((byte >> k) & 1 for k in range(8)), 1)]
    line: list[int] = []
    for number, bit in enumerate(bits):
        line += [bit] * (spec.edge(number + 1) - spec.edge(number))
    return line


@dataclass(frozen=True)
class Received:
    """What a receiver makes of a line: bytes, and the number of framing errors."""

    data: bytes
    framing_errors: int


def receive(line: Sequence[int], spec: UartSpec) -> Received:
    """Golden: what the receiver finds on a line with these values in each cycle, idle before and after."""
    data, errors, at = [], 0, 0
    while at < len(line):
        if line[at]:
            at += 1
            continue
        first, middle = at, at + spec.sample(0)
        high = next((t for t in range(first, middle + 1) if t >= len(line) or line[t]), None)
        if high is not None:
            at = high + DEAF  # a glitch
            continue
        samples = [line[t] if t < len(line) else 1 for t in (first + spec.sample(k) for k in range(1, BITS))]
        stop = first + spec.sample(BITS - 1)
        at = stop + DEAF
        if samples[-1]:
            data.append(sum(bit << k for k, bit in enumerate(samples[:-1])))
        else:
            errors += 1
            at = next((t for t in range(stop, len(line)) if line[t]), len(line)) + DEAF
    return Received(bytes(data), errors)


class UartReceiver(wiring.Component):
    """Line -> bytes.

    A start bit counts if the line stays low to its middle; whatever is shorter is a glitch. A byte without a stop
    bit is dropped, and the line must be high before the next one. Rates that differ by up to 5 % less two
    cycles in ten bits are read.

    Parameters
    ----------
    spec : UartSpec

    Members
    -------
    rx : In(1)
        Asynchronous.
    o : Out(stream.Signature(8))
        A byte that is not taken while the next one comes is kept, the next one is lost.
    framing_error, overrun : Out(1)
        Pulse: a byte without a stop bit; a byte that was lost.

    Latency: `SYNCHRONISER` + 3 cycles from the middle of the stop bit.
    """

    def __init__(self, spec: UartSpec):
        self.spec = spec
        super().__init__(
            {
                "rx": In(1, init=1),
                "o": Out(stream.Signature(8)),
                "framing_error": Out(1),
                "overrun": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """The tick comes from a register; the line that it samples is one cycle late too."""
        m = Module()
        line, late = Signal(init=1), Signal(init=1)
        m.submodules.synchroniser = FFSynchronizer(self.rx, line, init=1, stages=SYNCHRONISER)
        phase, tick = Signal(PHASE_BITS), Signal()
        m.d.sync += [Cat(phase, tick).eq(phase + self.spec.increment), late.eq(line)]
        bits = Signal(8)
        count = Signal(range(8))
        m.d.sync += [self.framing_error.eq(0), self.overrun.eq(0)]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                with m.If(~line):
                    m.d.sync += [phase.eq(self.spec.receive_phase), tick.eq(0)]
                    m.next = "START"
            with m.State("START"):
                m.d.sync += count.eq(0)
                with m.If(late):
                    m.next = "IDLE"
                with m.Elif(tick):
                    m.next = "DATA"
            with m.State("DATA"):
                with m.If(tick):
                    m.d.sync += [bits.eq(Cat(bits[1:], late)), count.eq(count + 1)]
                    with m.If(count == 7):
                        m.next = "STOP"
            with m.State("STOP"):
                with m.If(tick):
                    m.d.sync += self.framing_error.eq(~late)
                    m.next = "BREAK"
                    with m.If(late):
                        m.d.sync += [self.overrun.eq(self.o.valid & ~self.o.ready), self.o.valid.eq(1)]
                        m.next = "IDLE"
                        with m.If(~self.o.valid | self.o.ready):
                            m.d.sync += self.o.payload.eq(bits)
            with m.State("BREAK"):
                with m.If(late):
                    m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Bytes -> line.

    Parameters
    ----------
    spec : UartSpec

    Members
    -------
    i : In(stream.Signature(8))
        ``ready`` comes from registers.
    tx : Out(1)
        From a register.

    Throughput: one byte in 10 D cycles on average; the edges of bytes without a gap are those of `transmit`.
    Latency: 1 cycle to the start bit.
    """

    def __init__(self, spec: UartSpec):
        self.spec = spec
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        phase, tick = Signal(PHASE_BITS), Signal()
        m.d.sync += Cat(phase, tick).eq(phase + self.spec.increment)
        rest = Signal(BITS - 1)  # what is to be sent behind the bit on the line; only the stop bit has none
        left = Signal(range(BITS))
        busy, last = Signal(), Signal()
        m.d.comb += self.i.ready.eq(~busy | (tick & last))
        with m.If(self.i.ready):
            m.d.sync += [busy.eq(self.i.valid), last.eq(0), left.eq(BITS - 1)]
            with m.If(self.i.valid):
                m.d.sync += [self.tx.eq(0), rest.eq(Cat(self.i.payload, Const(1, 1)))]
            with m.If(~busy):
                m.d.sync += [phase.eq(self.spec.increment), tick.eq(0)]
        with m.Elif(tick):
            m.d.sync += [
                Cat(self.tx, rest).eq(Cat(rest, Const(1, 1))),
                left.eq(left - 1),
                last.eq(left == 1),
            ]
        return m


class Uart(wiring.Component):
    """Both directions of a line; see `UartReceiver` and `UartTransmitter`.

    Parameters
    ----------
    spec : UartSpec

    Members
    -------
    rx : In(1), tx : Out(1)
    i : In(stream.Signature(8)), o : Out(stream.Signature(8))
    framing_error, overrun : Out(1)
    """

    def __init__(self, spec: UartSpec):
        self.receiver, self.transmitter = UartReceiver(spec), UartTransmitter(spec)
        super().__init__({**self.receiver.signature.members, **self.transmitter.signature.members})

    def elaborate(self, platform) -> Module:
        """Wires."""
        m = Module()
        m.submodules.receiver, m.submodules.transmitter = receiver, transmitter = (
            self.receiver,
            self.transmitter,
        )
        connect(m, receiver.o, wiring.flipped(self.o))
        connect(m, wiring.flipped(self.i), transmitter.i)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            self.framing_error.eq(receiver.framing_error),
            self.overrun.eq(receiver.overrun),
        ]
        return m
