"""Writes rows of activations to external memory (STORE)."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from edgemoe.config import HardwareConfig
from edgemoe.core.activation import READ_LATENCY, ReadPort
from edgemoe.core.fifo import Fifo
from edgemoe.core.interface import ADDRESS_BITS, write_layout
from edgemoe.gearbox import Gearbox
from edgemoe.isa import FIELDS
from edgemoe.stream import Buffer, connect


def storer_job() -> data.StructLayout:
    """A STORE; the fields are those of the descriptor, but ``address`` is absolute."""
    return data.StructLayout(
        {name: FIELDS[name] for name in ("address", "a_base", "a_stride", "count", "words")}
    )


def store_bytes(words: NDArray, a_base: int, a_stride: int, count: int, width: int, port_bytes: int) -> bytes:
    """Golden twin of `Storer`: what it writes; ``words`` is the activation memory (words x lanes)."""
    rows = [words[a_base + t * a_stride : a_base + t * a_stride + width] for t in range(count)]
    raw = b"".join((row & 0xFFFF).astype("<u2").tobytes() for row in rows)
    return raw + bytes(-len(raw) % port_bytes)


class Storer(wiring.Component):
    """Executes STORE: ``count`` rows of ``words`` words, int16 lanes, contiguous, padded to a port word.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    job : In(stream.Signature(storer_job()))
        Taken when the job before is done.
    read : Out(ReadPort(hardware))
        `READ_LATENCY` cycles.
    write : Out(stream.Signature(write_layout(port_bytes)))
    done : Out(1)
        Pulse, after the last word of a job was accepted.

    Throughput: one activation word or one port word per cycle, whichever is wider. Latency from the job to the
    first word: `LATENCY`, 1 less where both words are equal, 1 more for each further activation word in a port word.
    """

    LATENCY = READ_LATENCY + Fifo.LATENCY + 5
    DEPTH = 16
    """Words that are read ahead: more than the cycles from a read to the gearbox."""

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "job": In(stream.Signature(storer_job())),
                "read": Out(ReadPort(hardware)),
                "write": Out(stream.Signature(write_layout(hardware.port_bytes))),
                "done": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """Two counters that read ahead, a queue, the gearbox with its padding, and an address."""
        m = Module()
        n, port = self.hardware.in_lanes, self.hardware.port_bytes
        word = unsigned(16 * n)
        queue = m.submodules.queue = Fifo(word, self.DEPTH)
        gearbox = m.submodules.gearbox = Gearbox(2 * n, port)
        buffer = m.submodules.buffer = Buffer(write_layout(port))
        connect(m, buffer.o, wiring.flipped(self.write))

        # Reading ahead.
        job = Signal(storer_job(), reset_less=True)
        row = Signal(16, reset_less=True)
        column = Signal(FIELDS["words"], reset_less=True)
        columns_left, columns_less = Signal.like(column), Signal.like(column)
        rows_left = Signal(FIELDS["count"], reset_less=True)
        reading, go = Signal(), Signal()
        places = Signal(range(self.DEPTH + 1), init=self.DEPTH)
        arrived = Signal(READ_LATENCY)
        m.d.comb += go.eq(reading & places.any())
        m.d.sync += [
            places.eq(places + queue.freed - go),
            self.read.en.eq(go),
            self.read.address.eq(row + column),
            arrived.eq(Cat(self.read.en, arrived)),
        ]
        with m.If(go):
            m.d.sync += [column.eq(column + 1), columns_left.eq(columns_left - 1)]
            with m.If(columns_left == 0):
                m.d.sync += [
                    column.eq(0),
                    columns_left.eq(columns_less),
                    row.eq(row + job.a_stride),
                    rows_left.eq(rows_left - 1),
                ]
                with m.If(rows_left == 0):
                    m.d.sync += reading.eq(0)
        m.d.comb += [
            queue.i.valid.eq(arrived[-1]),
            queue.i.payload.eq(Cat(self.read.data[i][:16] for i in range(n))),
        ]

        # Packing: zeros behind the last word until a port word is full.
        per_port = max(1, port // (2 * n))
        phase = Signal(range(max(2, per_port)))
        padding = Signal()
        under_way = Signal(range(self.DEPTH + 3))  # words that were asked for and have not left the queue
        left_queue = queue.o.valid & queue.o.ready
        m.d.sync += under_way.eq(under_way + go - left_queue)
        m.d.comb += [
            gearbox.i.valid.eq(queue.o.valid | padding),
            gearbox.i.payload.eq(Mux(padding, 0, queue.o.payload)),
            queue.o.ready.eq(gearbox.i.ready),
        ]
        if per_port > 1:
            with m.If(gearbox.i.valid & gearbox.i.ready):
                m.d.sync += phase.eq(phase + 1)

        address = Signal(ADDRESS_BITS, reset_less=True)
        m.d.comb += [
            buffer.i.valid.eq(gearbox.o.valid),
            buffer.i.payload.data.eq(gearbox.o.payload),
            buffer.i.payload.address.eq(address),
            gearbox.o.ready.eq(buffer.i.ready),
        ]
        with m.If(buffer.i.valid & buffer.i.ready):
            m.d.sync += address.eq(address + 1)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.job.ready.eq(1)
                m.d.sync += job.eq(self.job.payload)
                with m.If(self.job.valid):
                    m.next = "PREPARE"
            with m.State("PREPARE"):
                m.d.sync += [
                    address.eq(job.address),
                    row.eq(job.a_base),
                    column.eq(0),
                    columns_left.eq(job.words - 1),
                    columns_less.eq(job.words - 1),
                    rows_left.eq(job.count - 1),
                    reading.eq(job.count.any() & job.words.any()),
                ]
                m.next = "COPY"
            with m.State("COPY"):
                with m.If(~reading & (under_way == 0)):
                    m.next = "PAD"
            with m.State("PAD"):
                m.d.comb += padding.eq(phase != 0)
                with m.If(phase == 0):
                    m.next = "END"
            with m.State("END"):
                with m.If(~gearbox.o.valid & ~buffer.o.valid):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
