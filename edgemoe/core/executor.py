"""The executor: takes the program in order and starts what computes, loads and stores.

Products and layer norms are started one after the other without waiting for the results of the last one, unless the
descriptor says so: `Wait.ALL` waits for all of them, `Wait.ROWS` lets the readers follow row by row what the phase
before writes, which hides the depth of the pipeline and most of layer norm. Routing, loading and storing end
before the next descriptor starts. EXPERTS becomes two products for each expert that has a token; the second one
follows the rows of the first (with one slot set, it waits for it).
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.engines import norm_job_layout, route_job_layout
from edgemoe.core.filler import SEQUENCE_BITS
from edgemoe.core.loader import loader_job
from edgemoe.core.reader import FOLLOW, read_job_layout
from edgemoe.core.sequencer import execute_layout
from edgemoe.core.storer import storer_job
from edgemoe.core.writer import write_job_layout
from edgemoe.isa import Dest, Op, Wait
from edgemoe.units.attention import job_layout
from edgemoe.units.requantise import Mode


class Executor(wiring.Component):
    """Starts everything but the filling of slots.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    i : In(stream)
        `execute_layout`.
    read, reorder, write : Out(stream)
        A product, for reader, reorder unit and writer; the three are given in the same cycle.
    written, descriptor_written : In(1)
        A product is complete; its descriptor is, too.
    norm, route, load, store : Out(stream); norm_done, route_done, load_done, store_done : In(1)
    visits, visit_index, visit : the router's list
    completed : Out(16)
        Complete descriptors, modulo 2**16.
    finished : Out(1)
        Pulse: the END of the last image is complete.
    number : Out(32)
        Index of the current descriptor, for the monitor.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "i": In(stream.Signature(execute_layout())),
                "read": Out(stream.Signature(read_job_layout())),
                "reorder": Out(stream.Signature(job_layout())),
                "write": Out(stream.Signature(write_job_layout())),
                "written": In(1),
                "descriptor_written": In(1),
                "norm": Out(stream.Signature(norm_job_layout())),
                "route": Out(stream.Signature(route_job_layout())),
                "load": Out(stream.Signature(loader_job())),
                "store": Out(stream.Signature(storer_job())),
                "norm_done": In(1),
                "route_done": In(1),
                "load_done": In(1),
                "store_done": In(1),
                "visits": In(8),
                "visit_index": Out(8),
                "visit": In(data.StructLayout({"expert": 8, "start": 16, "count": 12})),
                "completed": Out(SEQUENCE_BITS),
                "finished": Out(1),
                "number": Out(32),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        held = Signal(execute_layout(), reset_less=True)
        d = held.descriptor
        pending = Signal(4)  # products' descriptors that are not complete
        running = Signal(4)  # products that are not complete
        started, issued, done = Signal(), Signal(), Signal()
        second = Signal()
        norm_runs = Signal()  # a layer norm has been started and is not complete
        products = Signal(4)  # started, modulo 16
        follow = Signal(FOLLOW)
        after_norm = Signal()  # the phase before the current descriptor is a layer norm
        visits = Signal(8)
        start, count = Signal(16), Signal(12)
        last_visit = self.visit_index + 1 == visits
        product = (d.op == Op.PRODUCT) | (d.op == Op.EXPERTS)
        m.d.sync += [
            pending.eq(pending + started - self.descriptor_written),
            running.eq(running + issued - self.written),
            self.completed.eq(self.completed + self.descriptor_written + self.norm_done + done),
            products.eq(products + issued),
        ]
        ready = self.read.ready & self.reorder.ready & self.write.ready
        give = Signal()
        m.d.comb += [
            issued.eq(give & ready),
            self.read.valid.eq(issued),
            self.reorder.valid.eq(issued),
            self.write.valid.eq(issued),
        ]
        m.d.comb += self.number.eq(held.number)
        with m.If(self.norm_done):
            m.d.sync += norm_runs.eq(0)
        with m.If(issued):
            m.d.sync += [after_norm.eq(0), Value.cast(follow).eq(0)]
        self._jobs(m, held, second, start, count, last_visit, follow)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(pending[2:] == 0)
                m.d.sync += [self.visit_index.eq(0), second.eq(0)]
                with m.If(self.i.valid & self.i.ready):
                    m.d.sync += Value.cast(held).eq(Value.cast(self.i.payload))
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += [
                    visits.eq(Mux(d.routed, self.visits, d.experts)),
                    start.eq(0),
                    count.eq(d.count),
                ]
                rows = d.wait == Wait.ROWS
                m.d.sync += [
                    follow.norm.eq(rows & after_norm),
                    follow.product.eq(rows & ~after_norm),
                    follow.index.eq(products - 1),
                ]
                with m.If((d.wait != Wait.ALL) | ((pending == 0) & ~norm_runs)):
                    m.d.comb += started.eq(product)
                    with m.Switch(d.op):
                        for op, state in (
                            (Op.PRODUCT, "ISSUE"), (Op.EXPERTS, "VISIT"), (Op.NORM, "NORM"),
                            (Op.ROUTE, "ROUTE"), (Op.LOAD, "LOAD"), (Op.IMAGE, "LOAD"),
                            (Op.STORE, "STORE"), (Op.END, "END"),
                        ):  # fmt: skip
                            with m.Case(op):
                                m.next = state
            with m.State("ISSUE"):
                m.d.comb += give.eq(1)
                with m.If(issued):
                    m.next = "IDLE"
            with m.State("VISIT"):
                with m.If(d.routed):
                    m.d.sync += [start.eq(self.visit.start), count.eq(self.visit.count)]
                m.next = "FIRST"
            with m.State("FIRST"):
                m.d.comb += give.eq(1)
                with m.If(issued):
                    m.d.sync += second.eq(1)
                    m.next = "SECOND"
            with m.State("SECOND"):
                if self.hardware.slot_sets > 1:
                    m.d.sync += [follow.product.eq(1), follow.index.eq(products - 1)]
                    m.d.comb += give.eq(follow.product)
                else:
                    m.d.comb += give.eq(running == 0)
                with m.If(issued):
                    m.d.sync += [second.eq(0), self.visit_index.eq(self.visit_index + 1)]
                    m.next = "VISIT"
                    with m.If(last_visit):
                        m.next = "IDLE"
            with m.State("NORM"):
                m.d.comb += self.norm.valid.eq(1)
                with m.If(self.norm.ready):
                    m.d.sync += [norm_runs.eq(1), after_norm.eq(1)]
                    m.next = "IDLE"
            for name in ("route", "load", "store"):
                port = getattr(self, name)
                with m.State(name.upper()):
                    m.d.comb += port.valid.eq(1)
                    with m.If(port.ready):
                        m.next = f"{name.upper()} RUNS"
                with m.State(f"{name.upper()} RUNS"):
                    with m.If(getattr(self, f"{name}_done")):
                        m.d.comb += done.eq(1)
                        m.next = "IDLE"
            with m.State("END"):
                m.d.comb += [done.eq(1), self.finished.eq(held.last)]
                m.next = "IDLE"
        return m

    def _jobs(self, m: Module, held, second, start, count, last_visit, follow) -> None:
        """The jobs of the current descriptor, in the words of each engine."""
        d = held.descriptor
        experts = d.op == Op.EXPERTS
        slots = self.hardware.out_lanes
        rows = Mux(second, d.rows2, d.rows)
        words = Mux(second, d.words2, d.words)
        read, reorder, write = self.read.payload, self.reorder.payload, self.write.payload
        m.d.comb += [
            read.count.eq(count),
            read.words.eq(words),
            read.blocks.eq((rows + slots - 1) >> (slots.bit_length() - 1)),
            read.a_base.eq(Mux(second, d.a2_base, d.a_base)),
            read.a_stride.eq(Mux(second, d.d_stride, d.a_stride)),
            read.d_base.eq(Mux(second, d.d2_base, d.d_base)),
            read.d_stride.eq(Mux(second, d.d2_stride, Mux(write.dest == Dest.VALUES, 0, d.d_stride))),
            read.start.eq(start),
            read.queued.eq(d.routed),
            read.indirect_a.eq(d.routed & ~second),
            read.indirect_d.eq(d.routed & second),
            read.double.eq(d.double),
            read.weigh.eq(d.weigh),
            read.head.eq(d.head),
            read.keys.eq(d.keys),
            Value.cast(read.follow).eq(Value.cast(follow)),
            Value.cast(self.norm.payload.follow).eq(Value.cast(follow)),
            reorder.count.eq(count),
            reorder.words.eq(words << d.double),
            reorder.rows.eq(rows),
            reorder.half.eq(Mux(d.double, words, 0)),
            write.rows.eq(rows),
            write.dest.eq(Mux(experts, Mux(second, Dest.RESIDUAL, Dest.ROWS), d.dest)),
            write.mode.eq(Mux(experts, Mux(second, Mode.CHANNEL_ROW, Mode.CHANNEL), d.mode)),
            write.gelu.eq(Mux(experts, ~second, d.gelu)),
            write.frac.eq(d.frac),
            write.realign.eq(Mux(experts, 0, d.realign)),
            write.d_base.eq(d.d_base),
            write.d_stride.eq(d.d_stride),
            write.head.eq(d.head),
            write.completes.eq(~experts | (second & last_visit)),
            write.number.eq(held.number),
            write.visit.eq((self.visit_index << 1) | second),
        ]
        for port in (self.norm, self.route, self.load, self.store):
            for name in (n for n in port.payload.shape().members if n != "follow"):
                source = getattr(held if name in ("address", "number") else d, name)
                m.d.comb += getattr(port.payload, name).eq(source)
