"""What a person sees of a board: pulses made long, and a sign of life."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from edgemoe.errors import BadInput


class Lights(wiring.Component):
    """Levels for lights: each input is held until it can be seen, and ``alive`` blinks.

    Parameters
    ----------
    clock_hz : int
        From 16. Lights are held for between a 16th and an 8th of a second and blink about once per second.
    count : int
        Number of lights.

    Members
    -------
    i : In(count), o : Out(count)
        ``o`` is a register.
    alive : Out(1)
    """

    def __init__(self, clock_hz: int, count: int):
        if clock_hz < 16:
            raise BadInput(f"lights: clock_hz must be at least 16, found {clock_hz}")
        self.clock_hz = clock_hz
        super().__init__({"i": In(count), "o": Out(count), "alive": Out(1)})

    def elaborate(self, platform) -> Module:
        """One counter for all: a light goes out at the second tick without its input."""
        m = Module()
        ticks = (self.clock_hz // 16 - 1).bit_length()
        counter = Signal(ticks + 4)
        before, tick = Signal(), Signal()
        seen = Signal.like(self.i)
        m.d.sync += [
            counter.eq(counter + 1),
            before.eq(counter[ticks - 1]),
            tick.eq(before & ~counter[ticks - 1]),
        ]
        m.d.comb += self.alive.eq(counter[-1])
        m.d.sync += [seen.eq(seen | self.i), self.o.eq(self.o | self.i)]
        with m.If(tick):
            m.d.sync += [seen.eq(self.i), self.o.eq(seen | self.i)]
        return m
