"""Takes the memory port from the clock of the core into that of the memory."""

from __future__ import annotations

from amaranth.hdl import Cat, DomainRenamer, Module, Shape, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from edgemoe.core.interface import READ_REQUEST, MemoryPort, write_layout
from edgemoe.errors import BadInput
from edgemoe.numeric import is_power_of_two
from edgemoe.stream import Buffer, connect


class AsyncQueue(wiring.Component):
    """First in, first out, between two clocks.

    Parameters
    ----------
    shape : shape-like
        Payload of both streams.
    depth : int
        Words of the memory, a power of two from 8; two more are in the registers behind it. ``i`` takes up to
        ``depth - 3`` of those in the memory, since it looks at pointers that are some cycles old.
    i_domain, o_domain : str
        Both must be reset together, for 4 cycles of the slower clock.

    Members
    -------
    i : In(stream.Signature(shape))
        ``ready`` is a register.
    o : Out(stream.Signature(shape))
        From registers. Once two words are known to this side they leave in consecutive cycles.

    Throughput: one word per cycle of the slower clock, from a depth of 16 on. Latency: one cycle of ``i`` and 4 to
    5 of ``o``. 16 words are distributed memory on an ECP5, from about 64 on block RAM is taken.

    `amaranth.lib.fifo.AsyncFIFOBuffered` does the same, but compares pointers, counts and addresses its memory in one
    cycle: 122 MHz in place of what docs/area.md says.

    Source: C. E. Cummings, Simulation and Synthesis Techniques for Asynchronous FIFO Design, SNUG 2002.
    """

    def __init__(self, shape, depth: int, i_domain: str, o_domain: str):
        self.shape, self.depth = shape, depth
        self.i_domain, self.o_domain = i_domain, o_domain
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform) -> Module:
        """Counters, their Gray codes on the way to the other side, and two registers behind the memory."""
        m = Module()
        i, o, i_d, o_d = self.i, self.o, m.d[self.i_domain], m.d[self.o_domain]
        bits = self.depth.bit_length()
        memory = m.submodules.memory = Memory(
            shape=unsigned(Shape.cast(self.shape).width), depth=self.depth, init=[]
        )
        write = memory.write_port(domain=self.i_domain)
        read = memory.read_port(domain=self.o_domain)

        # The pointer's code is a register of its own: what crosses must not glitch.
        written, written_code = Signal(bits), Signal(bits)
        taken, taken_code = Signal(bits), Signal(bits)
        written_seen, taken_seen, taken_before = Signal(bits), Signal(bits), Signal(bits)
        m.submodules.written = FFSynchronizer(written_code, written_seen, o_domain=self.o_domain)
        m.submodules.taken = FFSynchronizer(taken_code, taken_seen, o_domain=self.i_domain)

        level = Signal(bits)
        m.d.comb += [
            write.addr.eq(written),
            write.data.eq(Value.cast(i.payload)),
            write.en.eq(i.valid & i.ready),
        ]
        i_d += [
            taken_before.eq(Cat(taken_seen[k:].xor() for k in range(bits))),  # from Gray code
            level.eq(written - taken_before),
            i.ready.eq(level <= self.depth - 3),  # two words may have come since, one comes now
            written_code.eq(written ^ written[1:]),
        ]
        with m.If(write.en):
            i_d += written.eq(written + 1)

        some, first, move = Signal(), Signal(), Signal()
        m.d.comb += [
            read.addr.eq(taken),
            some.eq(written_seen != taken_code),
            move.eq(o.ready | ~o.valid),
            read.en.eq(move | ~first),
        ]
        upcoming = Signal(bits)
        m.d.comb += upcoming.eq(taken + 1)
        with m.If(read.en):
            o_d += first.eq(some)
            with m.If(some):
                o_d += [taken.eq(upcoming), taken_code.eq(upcoming ^ upcoming[1:])]
        with m.If(move):
            o_d += [o.valid.eq(first), Value.cast(o.payload).eq(read.data)]
        return m


class Crossing(wiring.Component):
    """Three queues between two clocks that need not be related.

    All streams keep their order. Requests are two cycles of the memory slower than writes: a request that is
    accepted after a write comes out of here when that write is already offered, so that a memory which prefers writes
    (`SdramController`) answers it with what was written. A write may overtake requests that came before it.

    Parameters
    ----------
    port_bytes : int
    depth, requests : int
        Depths of the queues of data and of requests (`AsyncQueue`).
    core_domain, memory_domain : str
        Both must be reset together: what one of them has lost the other would wait for.

    Members
    -------
    core : In(MemoryPort(port_bytes))
    memory : Out(MemoryPort(port_bytes))

    Throughput and latency as `AsyncQueue`; requests 2 cycles of the memory more.
    """

    def __init__(
        self,
        port_bytes: int,
        depth: int = 16,
        requests: int = 16,
        core_domain: str = "sync",
        memory_domain: str = "memory",
    ):
        for name, value in (("depth", depth), ("requests", requests)):
            if not is_power_of_two(value) or value < 8:
                raise BadInput(f"crossing: {name} must be a power of two from 8, found {value}")
        self.port_bytes, self.depth, self.requests = port_bytes, depth, requests
        self.core_domain, self.memory_domain = core_domain, memory_domain
        super().__init__({"core": In(MemoryPort(port_bytes)), "memory": Out(MemoryPort(port_bytes))})

    def elaborate(self, platform) -> Module:
        m = Module()
        core, memory = self.core, self.memory
        there = (self.core_domain, self.memory_domain)
        back = there[::-1]

        late = Buffer(READ_REQUEST), Buffer(READ_REQUEST)
        m.submodules.late0, m.submodules.late1 = (DomainRenamer(self.memory_domain)(b) for b in late)
        connect(m, late[0].o, late[1].i)
        connect(m, late[1].o, wiring.flipped(memory.read_request))

        for name, shape, depth, source, sink, domains in (
            ("read_request", READ_REQUEST, self.requests, core.read_request, late[0].i, there),
            ("write", write_layout(self.port_bytes), self.depth, core.write, memory.write, there),
            ("read_data", unsigned(8 * self.port_bytes), self.depth, memory.read_data, core.read_data, back),
        ):
            queue = m.submodules[name] = AsyncQueue(shape, depth, *domains)
            connect(m, wiring.flipped(source), queue.i)
            connect(m, queue.o, sink if sink is late[0].i else wiring.flipped(sink))
        return m
