"""From fetched descriptors to commands for the three engines that take the program at their own pace.

    fetch --> dispatcher --+--> queue --> regions --> weight DMA
                           +--> queue --> filler
                           +--> queue --> executor

Every queue holds a few descriptors, so the weight DMA runs ahead of the array across descriptors.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.dma import READ_COMMAND
from edgemoe.core.fetch import fetched_layout
from edgemoe.core.fifo import Fifo, scarce_tables
from edgemoe.core.filler import SEQUENCE_BITS, fill_command_layout, is_complete
from edgemoe.core.interface import ADDRESS_BITS
from edgemoe.isa import Error, Op, Source, descriptor_layout
from edgemoe.numeric import register
from edgemoe.stream import connect

QUEUE_DEPTH = 4


def region_layout() -> data.StructLayout:
    """A descriptor, as the weight DMA sees it."""
    return data.StructLayout(
        {
            "address": ADDRESS_BITS, "length": 24, "each": 1, "routed": 1, "experts": 8,
            "sequence": SEQUENCE_BITS, "after": 8,
        }
    )  # fmt: skip


def execute_layout() -> data.StructLayout:
    """A descriptor, as the executor sees it; ``address`` is absolute."""
    return data.StructLayout(
        {"descriptor": descriptor_layout(), "address": ADDRESS_BITS, "number": 32, "last": 1}
    )


class Dispatcher(wiring.Component):
    """Numbers descriptors, makes their addresses absolute, checks them, and hands them to the engines.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    i : In(stream)
        `fetched_layout`.
    program, image, output, task : In
        Control port, held while busy.
    region, fill, execute : Out(stream)
    error : Out(4)
        `Error.CAPACITY` or `Error.ADDRESS`; the descriptor and all that follow are withheld.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "i": In(stream.Signature(fetched_layout())),
                "program": In(ADDRESS_BITS),
                "image": In(ADDRESS_BITS),
                "output": In(ADDRESS_BITS),
                "task": In(8),
                "region": Out(stream.Signature(region_layout())),
                "fill": Out(stream.Signature(fill_command_layout())),
                "execute": Out(stream.Signature(execute_layout())),
                "error": Out(4),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.regions = regions = Fifo(region_layout(), QUEUE_DEPTH)
        block = scarce_tables(platform)  # 21 block RAMs in place of 1,000 lookup tables and 600 flip-flops
        m.submodules.fills = fills = Fifo(fill_command_layout(), QUEUE_DEPTH, block)
        m.submodules.executes = executes = Fifo(execute_layout(), QUEUE_DEPTH, block)
        connect(m, regions.o, wiring.flipped(self.region))
        connect(m, fills.o, wiring.flipped(self.fill))
        connect(m, executes.o, wiring.flipped(self.execute))

        held = Signal(fetched_layout(), reset_less=True)
        d = held.descriptor
        sequence = Signal(SEQUENCE_BITS)
        base, steps = Signal(ADDRESS_BITS), Signal(16)
        scaled, address = (
            Signal(ADDRESS_BITS + 1),
            Signal(ADDRESS_BITS + 1),
        )  # the top bits stay once they are set
        streams = (d.source != Source.NONE) & (d.length != 0)
        external = (d.op == Op.LOAD) | (d.op == Op.IMAGE)
        to_region, to_fill = Signal(), Signal()
        end, beyond = Signal(ADDRESS_BITS + 1), Signal()
        grown = address[:-1] + scaled[:-1]

        m.d.comb += [
            regions.i.payload.address.eq(address),
            regions.i.payload.length.eq(d.length),
            regions.i.payload.each.eq(d.op == Op.EXPERTS),
            regions.i.payload.sequence.eq(sequence),
            executes.i.payload.address.eq(address),
            Value.cast(executes.i.payload.descriptor).eq(Value.cast(d)),
            executes.i.payload.number.eq(held.number),
            executes.i.payload.last.eq(held.last),
            fills.i.payload.sequence.eq(sequence),
        ]
        m.d.comb += [getattr(regions.i.payload, k).eq(getattr(d, k)) for k in ("routed", "experts", "after")]
        m.d.comb += [
            getattr(fills.i.payload, k).eq(getattr(d, k))
            for k in fill_command_layout().members
            if k != "sequence"
        ]
        # A register, since the queues lie apart: what has room keeps it until something is pushed, which happens here alone.
        room = register(m, 1, regions.i.ready & fills.i.ready & executes.i.ready)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += Value.cast(held).eq(Value.cast(self.i.payload))
                    m.next = "BASE"
            with m.State("BASE"):
                m.d.sync += [base.eq(self.program), steps.eq(self.task)]
                with m.If(external & (d.op == Op.IMAGE)):
                    m.d.sync += [base.eq(self.image), steps.eq(held.index)]
                with m.If(d.op == Op.STORE):
                    m.d.sync += [base.eq(self.output), steps.eq(held.index)]
                m.d.sync += [to_region.eq(streams), to_fill.eq(d.source != Source.NONE)]
                m.d.sync += scaled.eq(d.stride)
                m.next = "ADD"
            with m.State("ADD"):
                m.d.sync += address.eq(base + d.address)
                m.next = "CHECK"
                with m.If(d.stride.any() & steps.any()):
                    m.next = "SCALE"
            with m.State("SCALE"):
                m.d.sync += [
                    scaled.eq(Cat(0, scaled[:-2], scaled[-2:].any())),
                    steps.eq(steps >> 1),
                ]
                with m.If(steps[0]):
                    m.d.sync += address.eq(Cat(grown[:-1], grown[-1] | address[-1] | scaled[-1]))
                with m.If(~steps[1:].any()):
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += end.eq(address + d.length)
                m.next = "JUDGE"
                with m.If(self._exceeds(m, d)):
                    m.d.sync += self.error.eq(Error.CAPACITY)
                    m.next = "ERROR"
            with m.State("JUDGE"):
                m.d.sync += beyond.eq(end > self.hardware.memory_words)
                m.next = "PUSH"
            with m.State("PUSH"):
                with m.If(beyond):
                    m.d.sync += self.error.eq(Error.ADDRESS)
                    m.next = "ERROR"
                with m.Elif(room):
                    m.d.comb += [
                        regions.i.valid.eq(to_region),
                        fills.i.valid.eq(to_fill),
                        executes.i.valid.eq(1),
                    ]
                    m.d.sync += sequence.eq(sequence + 1)
                    m.next = "IDLE"
            with m.State("ERROR"):
                pass
        return m

    def _exceeds(self, m: Module, d) -> Value:
        """Whether a size is beyond the hardware's capacities (compared once, a cycle ahead)."""
        hw = self.hardware
        product = (d.op == Op.PRODUCT) | (d.op == Op.EXPERTS)
        from_slots = d.source != Source.NORM
        too_long = (
            product
            & from_slots
            & (
                ((d.words << d.double) > hw.slot_words)
                | (d.words2 > hw.slot_words)
                | (d.count > max(hw.tokens, 1))
            )
        )
        empty = product & ((d.count == 0) | (d.words == 0) | (d.rows == 0))
        others = ((d.op == Op.NORM) & ((d.dim > hw.dim) | (d.count > hw.tokens))) | (
            (d.op == Op.ROUTE)
            & ((d.experts > hw.experts) | (d.top_k > hw.top_k) | (d.count > hw.tokens) | (d.top_k == 0))
        )
        heads = product & (d.head >= hw.heads)
        return register(m, 1, too_long | empty | others | heads)


class RegionSequencer(wiring.Component):
    """Gives the weight DMA its regions: one per descriptor, or one per non-empty expert.

    Members
    -------
    i : In(stream)
        `region_layout`.
    completed : In
        Number of complete descriptors.
    visits : In, visit_index : Out, expert : In
        Non-empty experts of the router.
    command : Out(stream)
        `READ_COMMAND`.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(stream.Signature(region_layout())),
                "completed": In(SEQUENCE_BITS),
                "visits": In(8),
                "visit_index": Out(8),
                "expert": In(8),
                "command": Out(stream.Signature(READ_COMMAND)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        here = self.i.payload
        address = Signal(ADDRESS_BITS, reset_less=True)  # of the region of expert ``at``
        at = Signal(8)
        visits = Signal(8)
        last = ~here.each | (self.visit_index + 1 == visits)
        m.d.comb += [
            self.command.payload.address.eq(address),
            self.command.payload.length.eq(here.length),
        ]
        expert = register(m, 1, Mux(here.routed, self.expert, self.visit_index))

        def forward() -> None:
            """To the next expert."""
            m.d.sync += [address.eq(address + here.length), at.eq(at + 1)]

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [self.visit_index.eq(0), at.eq(0), address.eq(here.address)]
                with m.If(self.i.valid):
                    m.next = "ASK"
                    with m.If(here.each):
                        m.next = "AFTER"
            with m.State("AFTER"):
                with m.If(~here.routed | is_complete(self.completed, here.sequence, here.after)):
                    m.d.sync += visits.eq(Mux(here.routed, self.visits, here.experts))
                    m.next = "LOOK"
            with m.State("LOOK"):
                m.next = "SEEK"
            with m.State("SEEK"):
                with m.If(at == expert):
                    m.next = "ASK"
                with m.Else():
                    forward()
            with m.State("ASK"):
                m.d.comb += [self.command.valid.eq(1), self.i.ready.eq(self.command.ready & last)]
                with m.If(self.command.ready):
                    forward()
                    m.d.sync += self.visit_index.eq(self.visit_index + 1)
                    m.next = "LOOK"
                    with m.If(last):
                        m.next = "IDLE"
        return m
