"""Takes the memory port from the clock of the core into that of the memory."""

from __future__ import annotations

from amaranth.hdl import DomainRenamer, Module, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import AsyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from edgemoe.core.interface import READ_REQUEST, MemoryPort
from edgemoe.errors import BadInput
from edgemoe.numeric import is_power_of_two
from edgemoe.stream import Buffer, connect


class Crossing(wiring.Component):
    """Three queues between two clocks that need not be related.

    All streams keep their order. Requests are two cycles of the memory slower than writes: a request that is
    accepted after a write comes out of here when that write is already offered, so that a memory which prefers writes
    (`SdramController`) answers it with what was written. A write may overtake requests that came before it.

    Parameters
    ----------
    port_bytes : int
    depth : int
        Words of the queues of data, a power of two from 8. 8 covers the synchronisers' delay for one word per
        cycle with equal clocks; 16 for any ratio up to 2.
    requests : int
        Depth of the queue of requests, a power of two from 4.
    core_domain, memory_domain : str
        Both must be reset together: what one of them has lost the other would wait for.

    Members
    -------
    core : In(MemoryPort(port_bytes))
    memory : Out(MemoryPort(port_bytes))

    Throughput: one word per cycle of the slower clock in every stream. Latency: 4 to 5 cycles of the receiving
    clock, 2 more for requests. A queue of 16 words is distributed memory, one of 512 block RAM; its output is
    registered in either case.

    Source: C. E. Cummings, Simulation and Synthesis Techniques for Asynchronous FIFO Design, SNUG 2002.
    """

    def __init__(
        self,
        port_bytes: int,
        depth: int = 16,
        requests: int = 8,
        core_domain: str = "sync",
        memory_domain: str = "memory",
    ):
        for name, value, least in (("depth", depth, 8), ("requests", requests, 4)):
            if not is_power_of_two(value) or value < least:
                raise BadInput(f"crossing: {name} must be a power of two from {least}, found {value}")
        self.port_bytes, self.depth, self.requests = port_bytes, depth, requests
        self.core_domain, self.memory_domain = core_domain, memory_domain
        super().__init__({"core": In(MemoryPort(port_bytes)), "memory": Out(MemoryPort(port_bytes))})

    def elaborate(self, platform) -> Module:
        m = Module()
        core, memory = self.core, self.memory
        there = (self.core_domain, self.memory_domain)

        late = Buffer(READ_REQUEST), Buffer(READ_REQUEST)
        m.submodules.late0, m.submodules.late1 = (DomainRenamer(self.memory_domain)(b) for b in late)
        connect(m, late[0].o, late[1].i)
        connect(m, late[1].o, wiring.flipped(memory.read_request))

        self._queue(m, "read_request", wiring.flipped(core.read_request), late[0].i, self.requests, *there)
        self._queue(m, "write", wiring.flipped(core.write), wiring.flipped(memory.write), self.depth, *there)
        self._queue(
            m, "read_data", wiring.flipped(memory.read_data), wiring.flipped(core.read_data), self.depth, *there[::-1]
        )  # fmt: skip
        return m

    @staticmethod
    def _queue(m: Module, name: str, source: stream.Interface, sink: stream.Interface, depth: int,
               w_domain: str, r_domain: str) -> None:  # fmt: skip
        width = len(Value.cast(source.payload))
        queue = AsyncFIFOBuffered(width=width, depth=depth + 1, r_domain=r_domain, w_domain=w_domain)
        m.submodules[name] = queue
        m.d.comb += [
            queue.w_data.eq(Value.cast(source.payload)),
            queue.w_en.eq(source.valid),
            source.ready.eq(queue.w_rdy),
            Value.cast(sink.payload).eq(queue.r_data),
            sink.valid.eq(queue.r_rdy),
            queue.r_en.eq(sink.ready),
        ]
