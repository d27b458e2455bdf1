"""Width conversion of a byte stream: port words to fill words or activation words, and back."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.numeric import is_power_of_two, unreset


def regroup(words: Sequence[int], i_bytes: int, o_bytes: int) -> list[int]:
    """Golden twin of `Gearbox`: the same bytes in words of ``o_bytes``; an incomplete last word is absent."""
    raw = b"".join(int(word).to_bytes(i_bytes, "little") for word in words)
    whole = len(raw) // o_bytes * o_bytes
    return [int.from_bytes(raw[at : at + o_bytes], "little") for at in range(0, whole, o_bytes)]


class Gearbox(wiring.Component):
    """Stream of ``i_bytes`` a word -> stream of ``o_bytes`` a word, the first byte lowest.

    Parameters
    ----------
    i_bytes, o_bytes : int
        Powers of two.

    Members
    -------
    i : In(stream.Signature(unsigned(8 * i_bytes)))
    o : Out(stream.Signature(unsigned(8 * o_bytes)))

    Throughput: the narrower side transfers in every cycle. Latency 1 cycle after the last part (0 if
    the widths are equal: a wire). ``i.ready`` is combinational from ``o.ready``; ``o`` comes from
    registers: one word of the wider side.
    """

    def __init__(self, i_bytes: int, o_bytes: int):
        for name, value in (("i_bytes", i_bytes), ("o_bytes", o_bytes)):
            if not is_power_of_two(value):
                raise ValueError(f"{name} must be a power of two, found {value}")
        self.i_bytes, self.o_bytes = i_bytes, o_bytes
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(8 * i_bytes))),
                "o": Out(stream.Signature(unsigned(8 * o_bytes))),
            }
        )

    def elaborate(self, platform) -> Module:
        """Wires, or one word of the wider side that shifts by the narrower one."""
        m = Module()
        i, o = self.i, self.o
        if self.i_bytes == self.o_bytes:
            m.d.comb += [o.valid.eq(i.valid), o.payload.eq(i.payload), i.ready.eq(o.ready)]
            return m
        ratio = max(self.i_bytes, self.o_bytes) // min(self.i_bytes, self.o_bytes)
        part = Signal(range(ratio))
        if self.i_bytes < self.o_bytes:
            payload = unreset(m, o.payload)
            m.d.comb += i.ready.eq(o.ready | ~o.valid)
            with m.If(i.ready):
                m.d.sync += o.valid.eq(i.valid & (part == ratio - 1))
                with m.If(i.valid):
                    m.d.sync += [part.eq(part + 1), payload.eq(Cat(payload[len(i.payload) :], i.payload))]
        else:
            word = Signal(8 * self.i_bytes, reset_less=True)
            last = part == ratio - 1
            m.d.comb += [
                o.payload.eq(word[: 8 * self.o_bytes]),
                i.ready.eq(~o.valid | (o.ready & last)),
            ]
            with m.If(i.ready):
                m.d.sync += [o.valid.eq(i.valid), word.eq(i.payload), part.eq(0)]
            with m.Elif(o.ready):
                m.d.sync += [part.eq(part + 1), word.eq(word >> 8 * self.o_bytes)]
        return m
