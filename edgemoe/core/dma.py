"""Reading external memory: bursts into a prefetch queue, the weight stream, and the arbiter of the readers."""

from __future__ import annotations

from collections.abc import Iterable

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.fifo import Fifo
from edgemoe.core.interface import ADDRESS_BITS, LENGTH_BITS, MAX_BURST, READ_REQUEST
from edgemoe.gearbox import Gearbox
from edgemoe.numeric import register
from edgemoe.stream import Buffer, connect

REGION_LENGTH_BITS = 24
READ_COMMAND = data.StructLayout({"address": ADDRESS_BITS, "length": REGION_LENGTH_BITS})
"""A region to read: ``length`` port words (0: none) from the port word ``address``."""


def bursts(commands: Iterable[tuple[int, int]], burst: int) -> list[tuple[int, int]]:
    """Golden twin of the requests of `BurstReader`: (address, words) of each, for commands (address, length)."""
    return [
        (address + at, min(burst, length - at))
        for address, length in commands
        for at in range(0, length, burst)
    ]


class BurstReader(wiring.Component):
    """Reads regions through a queue; a burst is requested only when the queue has room for a whole one.

    Parameters
    ----------
    port_bytes : int
        Bytes of a port word.
    depth : int
        Words of the queue, a power of two from 4.
    burst : int
        Words of a request at most, a power of two up to a quarter of ``depth``.

    Members
    -------
    command : In(stream.Signature(READ_COMMAND))
    request : Out(stream.Signature(READ_REQUEST))
    data : In(stream.Signature(unsigned(8 * port_bytes)))
        ``ready`` is always high when data come.
    o : Out(stream.Signature(unsigned(8 * port_bytes)))
        The words of all commands in order.

    Throughput: one word per cycle for regions of whole bursts of at least 2 words, as long as ``depth -
    burst`` covers the memory's latency; a command takes at most 3 cycles and 2 per burst. Commands follow each
    other without waiting for data. Latency from ``data`` to ``o`` 3 cycles.
    """

    def __init__(self, port_bytes: int, depth: int, burst: int):
        if not 1 <= burst <= min(MAX_BURST, depth // 4):
            raise ValueError(
                f"burst must be 1..{min(MAX_BURST, depth // 4)} with depth {depth}, found {burst}"
            )
        self.port_bytes, self.depth, self.burst = port_bytes, depth, burst
        word = unsigned(8 * port_bytes)
        super().__init__(
            {
                "command": In(stream.Signature(READ_COMMAND)),
                "request": Out(stream.Signature(READ_REQUEST)),
                "data": In(stream.Signature(word)),
                "o": Out(stream.Signature(word)),
            }
        )

    def elaborate(self, platform) -> Module:
        """Cuts commands into bursts; counts the places of the queue that no burst has claimed."""
        m = Module()
        queue = m.submodules.queue = Fifo(unsigned(8 * self.port_bytes), self.depth)
        connect(m, wiring.flipped(self.data), queue.i)
        connect(m, queue.o, wiring.flipped(self.o))

        k = (self.burst - 1).bit_length()
        address = Signal(ADDRESS_BITS, reset_less=True)
        left = Signal(REGION_LENGTH_BITS, reset_less=True)
        size = Signal(k + 1, reset_less=True)
        last = Signal(reset_less=True)
        places = Signal(range(self.depth + 1), init=self.depth)
        claim, claimed = Signal(k + 1), Signal(k + 1)
        request = self.request
        m.d.sync += [
            claimed.eq(claim),
            places.eq(places + register(m, 1, queue.freed) - claimed),
        ]  # a cycle late: the state PLAN, and who takes the words lies far away

        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.command.ready.eq(1)
                m.d.sync += [address.eq(self.command.payload.address), left.eq(self.command.payload.length)]
                with m.If(self.command.valid):
                    m.next = "PLAN"
            with m.State("PLAN"):
                many = left[k:].any()
                m.d.sync += [
                    size.eq(Mux(many, self.burst, left[:k])),
                    last.eq(~many),
                ]
                m.next = "ASK"
                with m.If(left == 0):
                    m.next = "IDLE"
            with m.State("ASK"):
                with m.If(places[k:].any() & (request.ready | ~request.valid)):
                    m.d.comb += claim.eq(size)
                    m.d.sync += [
                        request.valid.eq(1),
                        request.payload.address.eq(address),
                        request.payload.length.eq(size - 1),
                        address.eq(address + size),
                        left.eq(left - size),
                    ]
                    m.next = "PLAN"
                    with m.If(last):
                        m.next = "IDLE"
        return m


class WeightDma(wiring.Component):
    """The weight stream: regions of external memory, prefetched across commands, as fill words.

    Parameters
    ----------
    hardware : HardwareConfig
        ``port_bytes``, ``fill_bytes``, and ``prefetch_bytes`` for the queue (block RAM).

    Members
    -------
    command : In(stream.Signature(READ_COMMAND))
    request : Out(stream.Signature(READ_REQUEST))
    data : In(stream.Signature(unsigned(8 * port_bytes)))
    o : Out(stream.Signature(unsigned(8 * fill_bytes)))

    Throughput: one port word or one fill word per cycle, whichever is wider, for a memory whose latency is
    below three quarters of the queue's words. Latency from ``data`` to ``o``: `latency`.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        self.depth = hardware.prefetch_bytes // hardware.port_bytes
        if self.depth < 4:
            raise ValueError(
                f"prefetch_bytes is {hardware.prefetch_bytes}; it must hold at least 4 words of the port, "
                f"{4 * hardware.port_bytes} bytes"
            )
        self.burst = min(MAX_BURST, self.depth // 4)
        super().__init__(
            {
                "command": In(stream.Signature(READ_COMMAND)),
                "request": Out(stream.Signature(READ_REQUEST)),
                "data": In(stream.Signature(unsigned(8 * hardware.port_bytes))),
                "o": Out(stream.Signature(unsigned(8 * hardware.fill_bytes))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a port word (the last one that a fill word needs) to the fill word."""
        return Fifo.LATENCY + (self.hardware.port_bytes != self.hardware.fill_bytes) + 1

    def elaborate(self, platform) -> Module:
        """Reader, gearbox, and a buffer that ends the path of ``ready``."""
        m = Module()
        reader = m.submodules.reader = BurstReader(self.hardware.port_bytes, self.depth, self.burst)
        gearbox = m.submodules.gearbox = Gearbox(self.hardware.port_bytes, self.hardware.fill_bytes)
        buffer = m.submodules.buffer = Buffer(unsigned(8 * self.hardware.fill_bytes))
        connect(m, wiring.flipped(self.command), reader.command)
        connect(m, reader.request, wiring.flipped(self.request))
        connect(m, wiring.flipped(self.data), reader.data)
        connect(m, reader.o, gearbox.i)
        connect(m, gearbox.o, buffer.i)
        connect(m, buffer.o, wiring.flipped(self.o))
        return m


class ReadArbiter(wiring.Component):
    """Lets several readers share the read side of the memory port.

    Parameters
    ----------
    port_bytes : int
        Bytes of a port word.
    clients : int
        Number of readers.
    outstanding : int
        Requests under way at most.

    Members
    -------
    request, data : arrays of ``clients`` streams
        In(READ_REQUEST) and Out(unsigned(8 * port_bytes)), one pair for each reader.
    port_request : Out(stream.Signature(READ_REQUEST))
    port_data : In(stream.Signature(unsigned(8 * port_bytes)))
        ``ready`` is a register.
    lost : Out(1)
        For simulation: a reader did not take its data. Never.

    Requests are granted in rotation. A reader asks only for data for which it has room, and takes them when they come: no path of
    ``ready`` leads from the readers to the memory.
    Throughput: one request and one word per cycle. Latency: a request 1 cycle, data 0.
    """

    def __init__(self, port_bytes: int, clients: int, outstanding: int = 16):
        if clients < 1:
            raise ValueError(f"clients must be at least 1, found {clients}")
        self.port_bytes, self.clients, self.outstanding = port_bytes, clients, outstanding
        word = unsigned(8 * port_bytes)
        super().__init__(
            {
                "request": In(stream.Signature(READ_REQUEST)).array(clients),
                "data": Out(stream.Signature(word)).array(clients),
                "port_request": Out(stream.Signature(READ_REQUEST)),
                "port_data": In(stream.Signature(word)),
                "lost": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """Grants into the request register; a queue of owners steers the words back."""
        m = Module()
        n = self.clients
        owners = m.submodules.owners = SyncFIFO(width=n + LENGTH_BITS, depth=self.outstanding)

        grant = Signal(n)
        turn = Signal(n, init=1)  # one-hot: who is first in line
        request = self.port_request
        asking = [self.request[i].valid for i in range(n)]
        for first in range(n):
            with m.If(turn[first]):
                for step in range(n):
                    earlier = Cat(asking[(first + s) % n] for s in range(step)).any()
                    m.d.comb += grant[(first + step) % n].eq(asking[(first + step) % n] & ~earlier)
        go = Signal()
        m.d.comb += go.eq((request.ready | ~request.valid) & owners.w_rdy)
        m.d.comb += owners.w_en.eq(go & grant.any())
        with m.If(request.ready):
            m.d.sync += request.valid.eq(0)
        for i in range(n):
            m.d.comb += self.request[i].ready.eq(go & grant[i])
            with m.If(grant[i]):
                m.d.comb += owners.w_data.eq(Cat(self.request[i].payload.length, grant))
                with m.If(go):
                    m.d.sync += [
                        request.valid.eq(1),
                        request.payload.eq(self.request[i].payload),
                        turn.eq(1 << (i + 1) % n),
                    ]

        owner, owned = Signal(n), Signal()
        left, last = Signal(LENGTH_BITS, reset_less=True), Signal(reset_less=True)
        following = Signal(n)
        take, fetch = Signal(), Signal()
        for i in range(n):
            m.d.comb += [
                self.data[i].valid.eq(self.port_data.valid & owner[i]),
                self.data[i].payload.eq(self.port_data.payload),
            ]
        m.d.comb += [
            self.port_data.ready.eq(owned),
            take.eq(owned & self.port_data.valid),
            self.lost.eq(take & ~Cat(self.data[i].ready & owner[i] for i in range(n)).any()),
            fetch.eq(~owned | (take & last)),
            owners.r_en.eq(fetch),
            following.eq(Mux(owners.r_rdy, owners.r_data[LENGTH_BITS:], 0)),
        ]
        with m.If(take):
            m.d.sync += [left.eq(left - 1), last.eq(left == 1)]
        with m.If(fetch):
            size = owners.r_data[:LENGTH_BITS]
            m.d.sync += [left.eq(size), last.eq(size == 0), owner.eq(following), owned.eq(owners.r_rdy)]
        return m
