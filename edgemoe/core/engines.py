"""The two phases that are no product: layer norm and routing, between activation memory and their units."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.activation import READ_LATENCY, VALUE_BITS, ReadPort, WritePort
from edgemoe.core.fifo import Fifo
from edgemoe.core.interface import norm_record, route_record
from edgemoe.core.reader import FOLLOW, PROGRESS, permission
from edgemoe.numeric import register, short_product_halves, unreset
from edgemoe.stream import Buffer, connect
from edgemoe.units.layernorm import LayerNorm, LayerNormSpec
from edgemoe.units.router import Router, RouterSpec
from edgemoe.units.softmax import Reciprocal, SoftmaxSpec

FIFO_DEPTH = 16


def norm_job_layout() -> data.StructLayout:
    """Fields of `edgemoe.isa` that NORM uses, and the descriptor's number for the monitor."""
    return data.StructLayout(
        {
            "count": 12, "words": 12, "a_base": 16, "a_stride": 12, "d_base": 16, "d_stride": 12,
            "dim": 12, "eps_term": 40, "mean_reciprocal": 24, "shift": 6, "number": 32, "follow": FOLLOW,
        }
    )  # fmt: skip


class NormEngine(wiring.Component):
    """Runs layer norm over rows of the activation memory.

    Parameters
    ----------
    hardware : HardwareConfig
    parameters : int
        Gammas and betas per transfer.

    Members
    -------
    job : In(stream)
        `norm_job_layout`.
    parameter : In(stream)
        Gamma and beta, from the filler; the rows wait for them.
    progress : In
        `PROGRESS` of the product whose rows are followed.
    yield_read : In(1)
        Another client will read x in the next cycle.
    read : Out(ReadPort), write : Out(WritePort)
    runs, rows : Out
        A job runs; rows of it that have been written.
    done : Out(1)
        The last word has been written.
    record, record_valid : Out
        Monitor.

    Throughput: that of `LayerNorm`.
    """

    def __init__(self, hardware: HardwareConfig, parameters: int):
        self.hardware = hardware
        self.spec = LayerNormSpec(hardware.in_lanes, hardware.norm_lanes, hardware.dim)
        self.norm = LayerNorm(self.spec, q=parameters, tag=16)
        super().__init__(
            {
                "job": In(stream.Signature(norm_job_layout())),
                "parameter": In(stream.Signature(self.norm.parameters.payload.shape())),
                "progress": In(PROGRESS),
                "yield_read": In(1),
                "read": Out(ReadPort(hardware)),
                "write": Out(WritePort(hardware)),
                "runs": Out(1),
                "rows": Out(12),
                "done": Out(1),
                "record": Out(norm_record(hardware)),
                "record_valid": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes = self.hardware.in_lanes
        norm = self.norm
        m.submodules.norm = norm
        connect(m, wiring.flipped(self.parameter), norm.parameters)
        loaded = Signal()
        with m.If(norm.parameters.valid & norm.parameters.ready & norm.parameters.payload.last):
            m.d.sync += loaded.eq(1)
        job = Signal(norm_job_layout(), reset_less=True)
        active, reading = Signal(), Signal()
        m.d.comb += [
            self.job.ready.eq(~active),
            self.runs.eq(active),
            norm.dim.eq(job.dim),
            norm.words.eq(job.words),
            norm.eps_term.eq(job.eps_term),
            norm.mean_reciprocal.eq(job.mean_reciprocal),
            norm.shift.eq(job.shift),
        ]

        # read, as far as there is room for what comes back
        row, following, word = Signal(12), Signal(12, init=1), Signal(12)
        source, target = Signal(16), Signal(16)
        source_row, target_row = Signal(16), Signal(16)
        room = Signal(range(FIFO_DEPTH + 1), init=FIFO_DEPTH)
        m.submodules.addresses = addresses = Fifo(data.StructLayout({"address": 16, "last": 1}), FIFO_DEPTH)
        m.submodules.words = words = Fifo(data.ArrayLayout(signed(VALUE_BITS), lanes), FIFO_DEPTH)
        accepted = self.job.valid & self.job.ready
        follow = Mux(accepted, self.job.payload.follow.as_value(), job.follow.as_value())
        may_read = permission(m, FOLLOW(follow), self.progress)
        # Whether this row has been written, as a register: the comparison of rows is no part of the long way to the memory.
        written = Signal()
        issue = reading & loaded & (room != 0) & ~self.yield_read & written
        word_last, row_last = Signal(), following == job.count  # the former a register
        m.d.sync += [
            room.eq(room - issue + register(m, 1, words.freed)),
            self.read.en.eq(issue),
            self.read.address.eq(source),
            written.eq(written | may_read(row)),
        ]
        with m.If(issue):
            m.d.sync += [word.eq(word + 1), source.eq(source + 1), target.eq(target + 1)]
            m.d.sync += word_last.eq(Mux(word_last, job.words == 1, word + 2 == job.words))
            with m.If(word_last):
                next_source, next_target = source_row + job.a_stride, target_row + job.d_stride
                m.d.sync += [
                    word.eq(0), row.eq(following), following.eq(following + 1), written.eq(may_read(following)),
                    source.eq(next_source), source_row.eq(next_source),
                    target.eq(next_target), target_row.eq(next_target),
                ]  # fmt: skip
                with m.If(row_last):
                    m.d.sync += reading.eq(0)
        m.d.comb += [
            addresses.i.valid.eq(issue),
            addresses.i.payload.address.eq(target),
            addresses.i.payload.last.eq(word_last),
            words.i.valid.eq(register(m, 1, self.read.en, READ_LATENCY)),
            Value.cast(words.i.payload).eq(Value.cast(self.read.data)),
        ]
        m.submodules.seam = seam = Buffer(norm.i.payload.shape())  # ends the way of ``ready``
        both, into = addresses.o.valid & words.o.valid, seam.i.payload
        m.d.comb += [
            seam.i.valid.eq(both),
            into.last.eq(addresses.o.payload.last),
            into.tag.eq(addresses.o.payload.address),
            addresses.o.ready.eq(both & seam.i.ready),
            words.o.ready.eq(both & seam.i.ready),
        ]
        m.d.comb += [into.x[lane].eq(words.o.payload[lane][:16]) for lane in range(lanes)]
        connect(m, seam.o, norm.i)

        # write
        out = norm.o.payload
        rows_left = Signal(12)
        write = self.write
        value, address = unreset(m, write.value), unreset(m, write.address)
        last = norm.o.valid & out.last & (rows_left == 1)
        m.d.comb += norm.o.ready.eq(1)
        m.d.sync += [
            write.en.eq(norm.o.valid),
            address.eq(out.tag),
            write.mask.eq(-1),
            self.done.eq(last),
            self.record_valid.eq(norm.o.valid),
            self.record.number.eq(job.number),
            self.record.address.eq(out.tag),
            Value.cast(self.record.value).eq(Value.cast(out.x)),
        ]
        m.d.sync += [value[lane].eq(out.x[lane]) for lane in range(lanes)]
        with m.If(norm.o.valid & out.last):
            m.d.sync += [rows_left.eq(rows_left - 1), self.rows.eq(self.rows + 1)]
        with m.If(last):
            m.d.sync += [active.eq(0), loaded.eq(0)]
        with m.If(accepted):
            fresh = self.job.payload
            m.d.sync += [
                Value.cast(job).eq(Value.cast(fresh)),
                active.eq(1), reading.eq(1), row.eq(0), following.eq(1), written.eq(0), word.eq(0),
                word_last.eq(fresh.words == 1), rows_left.eq(fresh.count), self.rows.eq(0),
                source.eq(fresh.a_base), source_row.eq(fresh.a_base),
                target.eq(fresh.d_base), target_row.eq(fresh.d_base),
            ]  # fmt: skip
        return m


def route_job_layout() -> data.StructLayout:
    """Fields of `edgemoe.isa` that ROUTE uses, and the descriptor's number for the monitor."""
    return data.StructLayout(
        {"count": 12, "experts": 8, "top_k": 5, "a_base": 16, "a_stride": 12, "number": 32}
    )


class GateEngine(wiring.Component):
    """Runs the router over the gate's scores.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    job : In(stream)
        `route_job_layout`.
    read : Out(ReadPort)
    done : Out(1)
    visits, visit_index_{0..2}, visit_{0..2}, entry_index, entry_en, entry
        Of `Router`.
    record, record_valid : Out
        Monitor.
    """

    READERS = 3

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        self.spec = RouterSpec(
            hardware.gate_lanes, hardware.tokens, hardware.experts, min(hardware.top_k, hardware.experts)
        )
        self.router = Router(self.spec, readers=self.READERS)
        self.softmax = SoftmaxSpec(b_bits=hardware.b_bits)
        members = {
            "job": In(stream.Signature(route_job_layout())),
            "read": Out(ReadPort(hardware)),
            "done": Out(1),
            "visits": Out(8),
            "entry_index": In(self.router.entry_index.shape()),
            "entry_en": In(1),
            "entry": Out(data.StructLayout({"token": 12, "score": 16})),
            "record": Out(route_record()),
            "record_valid": Out(1),
        }
        for n in range(self.READERS):
            members[f"visit_index_{n}"] = In(8)
            members[f"visit_{n}"] = Out(data.StructLayout({"expert": 8, "start": 16, "count": 12}))
        super().__init__(members)

    def elaborate(self, platform) -> Module:
        m = Module()
        router = self.router
        m.submodules.router = router
        m.submodules.reciprocal = reciprocal = Reciprocal(self.softmax)
        job = Signal(route_job_layout(), reset_less=True)
        fresh = self.job.payload
        m.d.comb += [
            router.job.valid.eq(self.job.valid),
            self.job.ready.eq(router.job.ready),
            router.job.payload.tokens.eq(fresh.count),
            router.job.payload.experts.eq(fresh.experts),
            router.job.payload.top_k.eq(fresh.top_k),
            self.done.eq(router.done),
            self.visits.eq(router.visits),
            router.entry_index.eq(self.entry_index),
            router.entry_en.eq(self.entry_en),
            self.entry.token.eq(router.entry.token),
            self.entry.score.eq(router.entry.score),
            reciprocal.i.valid.eq(router.divide.valid),
            reciprocal.i.payload.d.eq(router.divide.payload.d),
            router.divide.ready.eq(reciprocal.i.ready),
            router.quotient.valid.eq(reciprocal.o.valid),
            router.quotient.payload.multiplier.eq(reciprocal.o.payload.multiplier),
            router.quotient.payload.position.eq(reciprocal.o.payload.position),
            reciprocal.o.ready.eq(router.quotient.ready),
        ]
        for n in range(self.READERS):
            m.d.comb += getattr(router, f"visit_index_{n}").eq(getattr(self, f"visit_index_{n}"))
            source, target = getattr(router, f"visit_{n}"), getattr(self, f"visit_{n}")
            m.d.comb += [getattr(target, k).eq(getattr(source, k)) for k in ("expert", "start", "count")]
        with m.If(self.job.valid & self.job.ready):
            m.d.sync += Value.cast(job).eq(Value.cast(fresh))

        # Requests become addresses in two cycles; answers have room before they are asked for. A request is for
        # `gate_lanes` scores of a word of the memory, which is read as often as it has such parts.
        codes = data.ArrayLayout(signed(VALUE_BITS), self.spec.in_lanes)
        part_bits = (self.hardware.in_lanes // self.spec.in_lanes).bit_length() - 1
        room = Signal(range(FIFO_DEPTH + 1), init=FIFO_DEPTH)
        m.submodules.words = words = Fifo(codes, FIFO_DEPTH)
        request = router.request.payload
        issue = router.request.valid & (room != 0)
        m.d.comb += router.request.ready.eq(room != 0)
        m.d.sync += room.eq(room - issue + register(m, 1, words.freed))
        low, high = (register(m, 1, x[:16]) for x in short_product_halves(job.a_stride, request.row))
        inside = register(m, 1, job.a_base + Value.cast(request.word)[part_bits:])
        part = register(m, 1, Value.cast(request.word)[:part_bits], 2 + READ_LATENCY)
        m.d.sync += [
            self.read.en.eq(register(m, 1, issue)),
            self.read.address.eq(low + high + inside),
        ]
        m.d.comb += [
            words.i.valid.eq(register(m, 1, self.read.en, READ_LATENCY)),
            Value.cast(words.i.payload).eq(Value.cast(self.read.data).word_select(part, codes.size)),
            router.response.valid.eq(words.o.valid),
            Value.cast(router.response.payload.code).eq(Value.cast(words.o.payload)),
            words.o.ready.eq(router.response.ready),
        ]
        chosen = router.chosen
        m.d.sync += [
            self.record_valid.eq(chosen.valid),
            self.record.number.eq(job.number),
            self.record.token.eq(chosen.token),
            self.record.rank.eq(chosen.rank),
            self.record.expert.eq(chosen.expert),
            self.record.score.eq(chosen.score),
        ]
        return m
