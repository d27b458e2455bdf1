"""Queue in memory, whose output is registered twice: block RAM without its slow output path.

Short queues lie in distributed memory, which has more words than they need and is read without a register: there the first of the two
is only an address, to a word that nobody overwrites yet.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from edgemoe.numeric import is_power_of_two, register
from edgemoe.stream import pipeline

DISTRIBUTED_WORDS = 16
"""Words of the smallest distributed memory (ECP5)."""


SMALL_DEVICES = ("LFE5U-12F", "LFE5U-25F", "ecp5-12k", "ecp5-25k")


def scarce_tables(platform) -> bool:
    """Whether a device would rather spend block RAMs than lookup tables on wide queues."""
    return getattr(platform, "device", platform) in SMALL_DEVICES


class Fifo(wiring.Component):
    """First in, first out.

    Parameters
    ----------
    shape : shape-like
        Payload of both streams.
    depth : int
        Words of the memory, a power of two from 2; two more are in the registers behind it.
    block : bool
        Ask for block RAM, where synthesis would find the memory too small for it: 5 in place of 600 lookup tables, say.

    Members
    -------
    i : In(stream.Signature(shape))
        ``ready`` follows from registers.
    o : Out(stream.Signature(shape))
        From registers; ``ready`` enables the memory and one pointer.
    freed : Out(1)
        In this cycle a word leaves the memory, so that a place is free from the next on. Who counts places,
        starting at ``depth``, never sees ``i.ready`` low.

    Throughput 1 per cycle, latency 3 cycles.
    """

    LATENCY = 3

    def __init__(self, shape, depth: int, block: bool = False):
        if depth < 2 or not is_power_of_two(depth):
            raise ValueError(f"depth must be a power of two from 2, found {depth}")
        self.shape, self.depth = shape, depth
        self.attrs = {"ram_style": "block"} if block else {}
        super().__init__(
            {"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "freed": Out(1)}
        )

    def elaborate(self, platform) -> Module:
        """Memory, two pointers, the level, and the two stages of a read."""
        m = Module()
        i, o = self.i, self.o
        short = 2 * self.depth <= DISTRIBUTED_WORDS and not self.attrs
        memory = m.submodules.memory = Memory(
            shape=unsigned(Shape.cast(self.shape).width),
            depth=DISTRIBUTED_WORDS if short else self.depth,
            init=[],
            attrs={"ram_style": "distributed"} if short else self.attrs,
        )
        write, read = memory.write_port(), memory.read_port(domain="comb" if short else "sync")
        # The level is that of a cycle ago, and what it is compared with too: ``o.ready``, whose way is long, ends at one register.
        level, following = (Signal(range(self.depth + 1)) for _ in range(2))
        one, more, most, all_ = (Signal(name=n) for n in ("one", "more", "most", "all"))
        came, went = Signal(), Signal()
        some = more | Mux(one, came | ~went, came)
        full = (all_ | (most & came)) & ~went
        enable, valid = pipeline(m, some, o.ready, 2)
        m.d.comb += [
            i.ready.eq(~full),
            write.en.eq(i.valid & i.ready),
            write.data.eq(Value.cast(i.payload)),
            self.freed.eq(enable & some),
            o.valid.eq(valid),
            following.eq(level + came - went),
        ]
        m.d.sync += [
            came.eq(write.en),
            went.eq(self.freed),
            level.eq(following),
            one.eq(following == 1),
            more.eq(following > 1),
            most.eq(following == self.depth - 1),
            all_.eq(following == self.depth),
        ]
        with m.If(write.en):
            m.d.sync += write.addr.eq(write.addr + 1)
        first = Signal.like(read.addr)
        with m.If(self.freed):
            m.d.sync += first.eq(first + 1)
        if short:
            m.d.comb += read.addr.eq(register(m, enable, first))
        else:
            m.d.comb += [read.addr.eq(first), read.en.eq(enable)]
        m.d.comb += Value.cast(o.payload).eq(register(m, enable, read.data))
        return m
