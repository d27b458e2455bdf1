"""Reads the program from external memory and hands out its descriptors, image after image."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.fifo import Fifo
from edgemoe.core.interface import ADDRESS_BITS, READ_REQUEST
from edgemoe.gearbox import Gearbox
from edgemoe.isa import CHECK, DESCRIPTOR_BYTES, Descriptor, Error, Op, descriptor_layout
from edgemoe.numeric import unreset
from edgemoe.stream import connect

AHEAD = 4
"""Requests under way or waiting; each is one descriptor, or one port word where that is wider."""


def fetched_layout() -> data.StructLayout:
    """A descriptor on its way to the engines.

    ``number`` is its index within the program, ``index`` that of the image, ``last`` marks the END of the
    last image.
    """
    return data.StructLayout({"descriptor": descriptor_layout(), "number": 32, "index": 16, "last": 1})


def fetched(program: Sequence[Descriptor], images: int) -> tuple[list[tuple[int, int, int]], Error]:
    """Golden twin of `Fetch`: (number, index, last) of all that is delivered, and the error at the end."""
    if not images:
        return [], Error.CONTROL
    delivered = []
    for index in range(images):
        for number, descriptor in enumerate(program):
            if descriptor.check != CHECK or descriptor.op not in list(Op):
                return delivered, Error.OPCODE
            end = descriptor.op == Op.END
            delivered.append((number, index, int(end and index == images - 1)))
            if end:
                break
    return delivered, Error.NONE


class Fetch(wiring.Component):
    """Delivers the descriptors of a program in order, ``images`` times.

    Parameters
    ----------
    hardware : HardwareConfig
        ``port_bytes`` decides how many port words a descriptor is, or descriptors a word.

    Members
    -------
    start : In(1)
        Pulse; ignored while ``busy``.
    program : In(28), images : In(16)
        Port word of the first descriptor, and how often to run; read with ``start``.
    o : Out(stream.Signature(fetched_layout()))
    request : Out(stream.Signature(READ_REQUEST)), data : In(stream.Signature(unsigned(8 * port_bytes)))
        ``data.ready`` is always high when data come.
    busy : Out(1)
        From ``start`` until all is delivered and nothing that was asked for is on its way.
    error : Out(4)
        `Error.OPCODE` after a descriptor with a wrong ``check`` or unknown ``op``, which is not delivered, nor is
        anything after it; `Error.CONTROL` where ``images`` is 0. Cleared by ``start``.

    Throughput: a descriptor every 64 / port_bytes cycles, at best every second. Latency from the
    last of its words 6 cycles, 1 less where the port is 64 bytes wide. At most `AHEAD` requests are read
    beyond an END; before the next image they are awaited and dropped.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "start": In(1),
                "program": In(ADDRESS_BITS),
                "images": In(16),
                "o": Out(stream.Signature(fetched_layout())),
                "request": Out(stream.Signature(READ_REQUEST)),
                "data": In(stream.Signature(unsigned(8 * hardware.port_bytes))),
                "busy": Out(1),
                "error": Out(4),
            }
        )

    def elaborate(self, platform) -> Module:
        """Requests, the queue of words, and one stage that checks a descriptor."""
        m = Module()
        port = self.hardware.port_bytes
        words = max(1, DESCRIPTOR_BYTES // port)
        each = max(1, port // DESCRIPTOR_BYTES)  # descriptors of a request

        queue = m.submodules.queue = Fifo(unsigned(8 * port), AHEAD * words)
        gearbox = m.submodules.gearbox = Gearbox(port, DESCRIPTOR_BYTES)
        connect(m, wiring.flipped(self.data), queue.i)
        connect(m, queue.o, gearbox.i)

        first = Signal(ADDRESS_BITS, reset_less=True)
        images_left = Signal(16, reset_less=True)
        final = Signal(reset_less=True)
        address = Signal(ADDRESS_BITS, reset_less=True)
        owed = Signal(range(AHEAD * each + 1))  # descriptors asked for and not yet out of the gearbox
        number, index = Signal(32), Signal(16)
        running = Signal()
        ask, drop = Signal(), Signal()
        owing = Signal()

        # Requests.
        request = self.request
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        m.d.comb += ask.eq(running & ~request.valid & (owed <= (AHEAD - 1) * each))
        with m.If(ask):
            m.d.sync += [
                request.valid.eq(1),
                request.payload.address.eq(address),
                request.payload.length.eq(words - 1),
                address.eq(address + words),
            ]

        # One descriptor after the other: looked at in one cycle, passed on in the next.
        here = data.View(descriptor_layout(), gearbox.o.payload)
        looked, good, end = Signal(), Signal(), Signal()
        take = Signal()
        m.d.comb += gearbox.o.ready.eq(take | drop)
        popped = gearbox.o.ready & gearbox.o.valid
        m.d.sync += [
            owed.eq(owed + ask * each - popped),
            looked.eq(gearbox.o.valid & ~gearbox.o.ready & running),
            good.eq((here.check == CHECK) & Cat(here.op == op for op in Op).any()),
            end.eq(here.op == Op.END),
        ]
        o, payload = self.o, unreset(m, self.o.payload)
        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)
        m.d.comb += take.eq(running & looked & (o.ready | ~o.valid))
        with m.If(take & good):
            m.d.sync += [
                o.valid.eq(1),
                payload.descriptor.eq(here),
                payload.number.eq(number),
                payload.index.eq(index),
                payload.last.eq(end & final),
                number.eq(number + 1),
            ]
        m.d.sync += final.eq(images_left == 1)

        m.d.comb += owing.eq((owed != 0) | o.valid)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [
                    first.eq(self.program),
                    images_left.eq(self.images),
                    index.eq(0),
                ]
                with m.If(self.start):
                    m.d.sync += self.error.eq(0)
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += self.busy.eq(1)
                m.d.sync += [address.eq(first), number.eq(0), running.eq(1)]
                m.next = "RUN"
                with m.If(images_left == 0):
                    m.d.sync += [running.eq(0), self.error.eq(Error.CONTROL)]
                    m.next = "DROP"
            with m.State("RUN"):
                m.d.comb += self.busy.eq(1)
                with m.If(take & (end | ~good)):
                    m.d.sync += running.eq(0)
                    m.next = "DROP"
                with m.If(take & ~good):
                    m.d.sync += [self.error.eq(Error.OPCODE), images_left.eq(0)]
                with m.Elif(take & end):
                    m.d.sync += [images_left.eq(images_left - 1), index.eq(index + 1)]
            with m.State("DROP"):
                m.d.comb += [self.busy.eq(1), drop.eq(1)]
                with m.If(~owing):
                    m.next = "BEGIN"
                    with m.If(images_left == 0):
                        m.next = "IDLE"
        return m
