"""Cuts read requests and writes into segments, the parts that lie in one row of the memory."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from edgemoe.core.interface import MAX_BURST, READ_REQUEST, write_layout


def segment_layout(position_bits: int, line_bits: int) -> data.StructLayout:
    """Work in one row.

    ``start`` and ``end`` are the first and the last position, counted in bursts of the memory; ``single`` says
    that they are equal. ``line`` is the row with the bank in its lowest bits; ``same`` says that the segment
    before had the same.
    """
    return data.StructLayout(
        {
            "write": 1,
            "same": 1,
            "single": 1,
            "start": position_bits,
            "end": position_bits,
            "line": line_bits,
        }
    )


class Segments(wiring.Component):
    """Segments of requests and writes, in the order in which they are accepted; one write is one segment.

    Parameters
    ----------
    word_bits : int
        A port word is 2**word_bits bursts of the memory.
    position_bits : int
        A line is 2**position_bits bursts.
    line_bits : int
        Bits of bank and row.
    port_bytes : int

    Members
    -------
    request : In(stream.Signature(READ_REQUEST))
    write : In(stream.Signature(write_layout(port_bytes)))
        Goes first when both are offered.
    o : Out(stream.Signature(segment_layout(position_bits, line_bits)))
    data : Out(stream.Signature(unsigned(8 * port_bytes)))
        Data of the writes, each no later than its segment may be taken by a user that looks at it for 2 cycles.

    Throughput: a segment in 2 cycles. Latency 2 cycles.
    """

    def __init__(self, word_bits: int, position_bits: int, line_bits: int, port_bytes: int):
        self.word_bits, self.position_bits, self.line_bits = word_bits, position_bits, line_bits
        self.port_bytes = port_bytes
        super().__init__(
            {
                "request": In(stream.Signature(READ_REQUEST)),
                "write": In(stream.Signature(write_layout(port_bytes))),
                "o": Out(stream.Signature(segment_layout(position_bits, line_bits))),
                "data": Out(stream.Signature(unsigned(8 * port_bytes))),
            }
        )

    def elaborate(self, platform) -> Module:
        """Adds the length to the index in the line: the sum's upper bits say how many lines follow."""
        m = Module()
        request, write, o = self.request, self.write, self.o
        queue = m.submodules.queue = SyncFIFOBuffered(width=8 * self.port_bytes, depth=5)
        w = self.position_bits - self.word_bits  # bits of a word's index in its line

        index = Signal(w, reset_less=True)
        last = Signal(w, reset_less=True)
        lines = Signal(max(w, MAX_BURST.bit_length()) + 1 - w, reset_less=True)
        line = Signal(self.line_bits, reset_less=True)
        before = Signal(self.line_bits)
        writes = Signal(reset_less=True)
        pending = Signal()
        room = Signal(init=1)
        m.d.sync += room.eq(queue.w_rdy)  # a cycle late: no write follows another at once

        m.d.comb += [
            write.ready.eq(~pending & room),
            request.ready.eq(~pending & ~write.valid),
            queue.w_data.eq(write.payload.data),
            queue.w_en.eq(write.valid & write.ready),
            self.data.valid.eq(queue.r_rdy),
            self.data.payload.eq(queue.r_data),
            queue.r_en.eq(self.data.ready),
        ]
        address = Mux(write.valid, write.payload.address, request.payload.address)
        length = Mux(write.valid, 0, request.payload.length[: (MAX_BURST - 1).bit_length()])
        more = lines.any()
        end = last | more.replicate(w)
        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)
        with m.If(~pending):
            m.d.sync += [
                index.eq(address[:w]),
                Cat(last, lines).eq(address[:w] + length),
                line.eq(address[w:]),
                writes.eq(write.valid),
                pending.eq((write.valid & write.ready) | (request.valid & request.ready)),
            ]
        with m.Elif(o.ready | ~o.valid):
            m.d.sync += [
                o.valid.eq(1),
                o.payload.write.eq(writes),
                o.payload.same.eq(line == before),
                o.payload.single.eq((index == end) & (self.word_bits == 0)),
                o.payload.start.eq(Cat(Const(0, self.word_bits), index)),
                o.payload.end.eq(Cat(Const((1 << self.word_bits) - 1, self.word_bits), end)),
                o.payload.line.eq(line),
                before.eq(line),
                index.eq(0),
                lines.eq(lines - 1),
                line.eq(line + 1),
                pending.eq(more),
            ]
        return m
