"""The filler: brings rows of operand B, and the parameters of their channels, to the slots.

Weights come from the weight stream; rows of K and V from the activation memory, where they are int16 and become
mantissas on the way. The filler takes the program at its own pace: it runs ahead of the array as far as slots and
parameter sets have room, and waits only for the rows of K and V, a router's queues, or a busy layer norm.

Throughput one fill word per cycle (fill_rows rows of weights, or one row of K or V, word by word).
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.activation import READ_LATENCY, ReadPort
from edgemoe.core.fifo import Fifo
from edgemoe.isa import Op, Source
from edgemoe.numeric import (
    ceil_div,
    register,
    rounding_shift_value,
    saturate_value,
    shift_stage_value,
)
from edgemoe.units.attention import fill_job_layout, set_bits
from edgemoe.units.requantise import ChannelParameter

FIFO_DEPTH = 16
SEQUENCE_BITS = 16
PARAMETER_BYTES = 8


def fill_command_layout() -> data.StructLayout:
    """A descriptor, as the filler sees it; ``sequence`` numbers descriptors across images."""
    return data.StructLayout(
        {
            "op": 4, "source": 3, "sequence": SEQUENCE_BITS, "after": 8, "rows": 16, "words": 12, "double": 1,
            "b_base": 16, "b_stride": 12, "head": 6, "multiplier": 16, "shift": 6,
            "routed": 1, "experts": 8, "rows2": 16, "words2": 12,
        }
    )  # fmt: skip


def is_complete(completed: Value, sequence: Value, after: Value) -> Value:
    """Whether the descriptor ``after`` positions before ``sequence`` is among the ``completed`` ones."""
    missing = (sequence - after - completed)[:SEQUENCE_BITS]
    return (after == 0) | missing[-1]


class Filler(wiring.Component):
    """Operand B of every product, and the parameters of layer norms.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    command : In(stream)
        `fill_command_layout`, in program order.
    completed : In(16)
        Number of complete descriptors (modulo 2**16).
    weights : In(stream)
        Fill words of the weight DMA.
    memory : Out(ReadPort)
        Rows of K and V.
    key_head, key_word : Out, key_exponents : In; value_head, value_word : Out, value_exponents, value_maximum : In
        Exponent tables, combinational.
    visits, visit_index : non-empty experts; ``visit_expert`` is not needed here, only their number.
    fill_job, fill : Out(stream)
        To the reorder unit.
    parameter_en, parameter_set, parameter_index, parameter : Out
        Up to ``parameters`` channel parameters from slot ``parameter_index`` on; with ``parameter_single`` only the
        first.
    used_set : In(set_bits)
        Newest parameter set that the writer has used.
    norm_parameter : Out(stream)
        Gamma and beta of layer norm, ``parameters`` channels at a time.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        lanes, rows = hardware.in_lanes, hardware.fill_rows
        self.parameters = max(1, hardware.fill_bytes // PARAMETER_BYTES)
        self.head_bits = max(1, (hardware.heads - 1).bit_length())
        self.word_bits = max(1, (hardware.token_words - 1).bit_length())
        self.slot_bits = max(1, (hardware.out_lanes - 1).bit_length())
        self.set_bits = set_bits(hardware.slot_sets)
        b_word = data.ArrayLayout(signed(hardware.b_bits), lanes)
        exponents = data.ArrayLayout(unsigned(4), lanes)
        norm = {
            "gamma": data.ArrayLayout(signed(16), self.parameters),
            "beta": data.ArrayLayout(signed(42), self.parameters),
            "last": 1,
        }
        super().__init__(
            {
                "command": In(stream.Signature(fill_command_layout())),
                "completed": In(SEQUENCE_BITS),
                "weights": In(stream.Signature(unsigned(8 * hardware.fill_bytes))),
                "memory": Out(ReadPort(hardware)),
                "key_head": Out(self.head_bits),
                "key_word": Out(self.word_bits),
                "key_exponents": In(exponents),
                "value_head": Out(self.head_bits),
                "value_word": Out(self.word_bits),
                "value_exponents": In(exponents),
                "value_maximum": In(4),
                "visits": In(8),
                "fill_job": Out(stream.Signature(fill_job_layout())),
                "fill": Out(stream.Signature(data.StructLayout({"b": data.ArrayLayout(b_word, rows)}))),
                "parameter_en": Out(1),
                "parameter_single": Out(1),
                "parameter_set": Out(self.set_bits),
                "parameter_index": Out(self.slot_bits),
                "parameter": Out(data.ArrayLayout(ChannelParameter, self.parameters)),
                "used_set": In(self.set_bits),
                "norm_parameter": Out(stream.Signature(data.StructLayout(norm))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        hardware = self.hardware
        slots, group = hardware.out_lanes, hardware.fill_rows
        command = Signal(fill_command_layout(), reset_less=True)
        second = Signal()  # the second product of an expert
        visit = Signal(8)
        rows, words = Signal(16), Signal(12)  # rows left, words of a row
        block_rows = Signal(range(slots + 1))
        block_set = Signal(self.set_bits)
        count = Signal(16)  # fill words left of the parameters, of a group of rows, or of a layer norm's
        groups = Signal(self.slot_bits)  # groups of rows left after this one
        index = Signal(self.slot_bits)
        surplus = Signal(range(max(2, hardware.port_bytes // hardware.fill_bytes)))
        page = _PageRows(m, self, command, words, block_set)

        from_page = (command.source == Source.KEYS) | (command.source == Source.VALUES)
        is_experts = command.op == Op.EXPERTS
        norm = command.source == Source.NORM
        in_stream = Signal()  # this state consumes the weight stream
        taken = self.weights.valid & self.weights.ready
        ratio = hardware.port_bytes // hardware.fill_bytes
        if ratio > 1:
            with m.If(taken):
                m.d.sync += surplus.eq(surplus + 1)
        job_rows = Mux(second, command.rows2, command.rows)
        job_words = Mux(second, command.words2, command.words << command.double)
        parameter_words = ceil_div(slots, self.parameters)
        norm_bytes = command.words * (hardware.in_lanes * PARAMETER_BYTES)
        norm_words = (norm_bytes + hardware.fill_bytes - 1) >> (hardware.fill_bytes.bit_length() - 1)
        self._parameters(m, command, block_set, index, in_stream, page)
        visits = Mux(command.routed, self.visits, command.experts)
        fill_word = self.fill.payload.b

        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += self.command.ready.eq(1)
                with m.If(self.command.valid):
                    m.d.sync += [
                        Value.cast(command).eq(Value.cast(self.command.payload)),
                        second.eq(0),
                        visit.eq(0),
                        surplus.eq(0),
                    ]
                    with m.If(self.command.payload.source != Source.NONE):
                        m.next = "AFTER"
            with m.State("AFTER"):
                with m.If(is_complete(self.completed, command.sequence, command.after)):
                    m.next = "JOB"
                    with m.If(norm):
                        m.d.sync += count.eq(norm_words)
                        m.next = "NORM"
            with m.State("JOB"):
                m.d.comb += self.fill_job.valid.eq(1)
                with m.If(self.fill_job.ready):
                    m.d.sync += [rows.eq(job_rows), words.eq(job_words)]
                    m.next = "BLOCK"
            with m.State("BLOCK"):
                m.d.sync += [
                    block_rows.eq(Mux(rows > slots, slots, rows)),
                    count.eq(parameter_words),
                    index.eq(0),
                ]
                # the writer may still need the sets of its newest block and of the one before
                with m.If(~(block_set - self.used_set)[: self.set_bits].all()):
                    m.next = "PARAMETERS"
                    with m.If(command.source == Source.KEYS):
                        m.next = "PAGE"
            with m.State("PARAMETERS"):
                m.d.comb += [in_stream.eq(1), self.weights.ready.eq(1)]
                with m.If(self.weights.valid):
                    m.d.sync += [count.eq(count - 1), index.eq(index + self.parameters)]
                    with m.If(count == 1):
                        m.d.sync += [
                            count.eq(words),
                            groups.eq((block_rows - 1) >> (group.bit_length() - 1)),
                        ]
                        m.next = "WEIGHTS"
                        with m.If(from_page):
                            m.next = "PAGE"
            with m.State("WEIGHTS"):
                m.d.comb += [
                    self.fill.valid.eq(self.weights.valid),
                    self.weights.ready.eq(self.fill.ready),
                    Value.cast(fill_word).eq(self.weights.payload),
                ]
                with m.If(taken):
                    m.d.sync += count.eq(count - 1)
                    with m.If(count == 1):
                        m.d.sync += [count.eq(words), groups.eq(groups - 1)]
                        with m.If(groups == 0):
                            m.next = "NEXT"
            with m.State("PAGE"):
                m.d.comb += page.start.eq(1)
                m.next = "ROWS"
            with m.State("ROWS"):
                m.d.comb += [
                    self.fill.valid.eq(page.valid),
                    page.ready.eq(self.fill.ready),
                    Value.cast(fill_word[0]).eq(page.word),
                ]
                with m.If(page.done):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += [
                    rows.eq(rows - block_rows),
                    block_set.eq(block_set + 1),
                ]
                m.next = "BLOCK"
                with m.If(rows == block_rows):
                    m.next = "PRODUCT"
            with m.State("PRODUCT"):
                m.next = "SURPLUS"
                with m.If(is_experts):
                    m.d.sync += second.eq(~second)
                    with m.If(~second):
                        m.next = "JOB"
            with m.State("SURPLUS"):
                # a region is padded to whole port words
                m.next = "IDLE"
                if ratio > 1:
                    with m.If(surplus != 0):
                        m.d.comb += self.weights.ready.eq(1)
                        m.next = "SURPLUS"
                    with m.Elif(is_experts & (visit + 1 != visits)):
                        m.d.sync += visit.eq(visit + 1)
                        m.next = "JOB"
                else:
                    with m.If(is_experts & (visit + 1 != visits)):
                        m.d.sync += visit.eq(visit + 1)
                        m.next = "JOB"
            with m.State("NORM"):
                m.d.comb += [
                    self.norm_parameter.valid.eq(self.weights.valid),
                    self.weights.ready.eq(self.norm_parameter.ready),
                ]
                with m.If(taken):
                    m.d.sync += count.eq(count - 1)
                    with m.If(count == 1):
                        m.next = "SURPLUS"

        m.d.comb += [
            page.rows.eq(block_rows),
            self.fill_job.payload.rows.eq(job_rows),
            self.fill_job.payload.words.eq(job_words),
            self.fill_job.payload.single.eq(from_page),
            self.norm_parameter.payload.last.eq(count == 1),
        ]
        raw = self.weights.payload
        for i in range(self.parameters):
            parameter = data.View(ChannelParameter, raw.word_select(i, 64))
            m.d.comb += [
                self.norm_parameter.payload.gamma[i].eq(parameter.multiplier.as_signed()),
                self.norm_parameter.payload.beta[i].eq(parameter.bias),
            ]
        return m

    def _parameters(self, m, command, block_set, index, in_stream, page) -> None:
        """Channel parameters: from the stream, lowered by V's exponent; or made for each row of K."""
        lower = Mux(command.source == Source.VALUES, self.value_maximum, 0)
        raw = self.weights.payload
        with m.If(page.key_valid):
            first = self.parameter[0]
            m.d.comb += [
                self.parameter_en.eq(1),
                self.parameter_single.eq(1),
                self.parameter_set.eq(block_set),
                self.parameter_index.eq(page.key_index),
                first.multiplier.eq(command.multiplier),
                first.shift.eq(command.shift - page.key_exponent),
                first.bias.eq(0),
            ]
        with m.Else():
            m.d.comb += [
                self.parameter_en.eq(in_stream & self.weights.valid),
                self.parameter_set.eq(block_set),
                self.parameter_index.eq(index),
            ]
            for i in range(self.parameters):
                parameter = data.View(ChannelParameter, raw.word_select(i, 64))
                m.d.comb += [
                    self.parameter[i].multiplier.eq(parameter.multiplier),
                    self.parameter[i].shift.eq(parameter.shift - lower),
                    self.parameter[i].bias.eq(parameter.bias),
                ]


class _PageRows:
    """Fetches the rows of one block from the activation memory and turns them into mantissas."""

    def __init__(self, m: Module, filler: Filler, command: Signal, words: Signal, block_set: Signal):
        hardware = filler.hardware
        lanes = hardware.in_lanes
        lane_bits = (lanes - 1).bit_length()
        values = command.source == Source.VALUES
        self.start, self.done, self.rows = Signal(), Signal(), Signal(range(hardware.out_lanes + 1))
        self.valid, self.ready = Signal(), Signal()
        self.word = Signal(lanes * hardware.b_bits)
        self.key_valid, self.key_index, self.key_exponent = Signal(), Signal(filler.slot_bits), Signal(4)

        # addresses, as far as there is room for what comes back
        active, row, word = Signal(), Signal(16), Signal(12)
        block_row = Signal(filler.slot_bits)
        base, address = Signal(16), Signal(16)
        room = Signal(range(FIFO_DEPTH + 1), init=FIFO_DEPTH)
        side = data.StructLayout({"word": 12, "row": 16, "slot": filler.slot_bits, "first": 1, "last": 1})
        m.submodules.page_sides = sides = Fifo(side, FIFO_DEPTH)
        mantissas = data.StructLayout({"word": lanes * hardware.b_bits, "last": 1})
        m.submodules.page_words = done = Fifo(mantissas, FIFO_DEPTH)
        word_last, row_last = Signal(), Signal()  # registers
        issue = active & (room != 0)
        m.d.sync += room.eq(room - issue + register(m, 1, done.freed))
        with m.If(filler.command.valid & filler.command.ready):
            m.d.sync += [base.eq(filler.command.payload.b_base), row.eq(0)]
        with m.If(self.start):
            m.d.sync += [active.eq(1), word.eq(0), block_row.eq(0), address.eq(base)]
            m.d.sync += [word_last.eq(words == 1), row_last.eq(self.rows == 1)]
        with m.If(issue):
            m.d.sync += [word.eq(word + 1), address.eq(address + 1)]
            m.d.sync += word_last.eq(Mux(word_last, words == 1, word + 2 == words))
            with m.If(word_last):
                m.d.sync += row_last.eq(block_row + 2 == self.rows)
                following = (base + command.b_stride)[:16]
                m.d.sync += [
                    word.eq(0), row.eq(row + 1), block_row.eq(block_row + 1),
                    base.eq(following), address.eq(following),
                ]  # fmt: skip
                with m.If(row_last):
                    m.d.sync += active.eq(0)
        into = sides.i.payload
        m.d.sync += [filler.memory.en.eq(issue), filler.memory.address.eq(address)]
        m.d.comb += [
            sides.i.valid.eq(issue),
            into.word.eq(word),
            into.row.eq(row),
            into.slot.eq(block_row),
            into.first.eq(word == 0),
            into.last.eq(word_last & row_last),
        ]

        # stage 1: exponents of both kinds; 2, 3: rotation of V; 4, 5: shift; 6: rounding and saturation. None of them waits.
        stages = 6
        take = register(m, 1, filler.memory.en, READ_LATENCY)
        here = sides.o.payload
        m.d.comb += [
            sides.o.ready.eq(take),
            filler.key_head.eq(command.head),
            filler.key_word.eq(here.row[lane_bits:]),
            filler.value_head.eq(command.head),
            filler.value_word.eq(here.word),
        ]
        key_exponent = register(
            m, 1, Array(filler.key_exponents[lane] for lane in range(lanes))[here.row[:lane_bits]]
        )
        value_exponents = [register(m, 1, filler.value_exponents[lane]) for lane in range(lanes)]
        exponents = [Mux(values, v, key_exponent) for v in value_exponents]
        m.d.comb += [
            self.key_valid.eq(register(m, 1, take & here.first & ~values)),
            self.key_index.eq(register(m, 1, here.slot)),
            self.key_exponent.eq(key_exponent),
        ]
        word_lanes = [register(m, 1, filler.memory.data[lane][:16]) for lane in range(lanes)]
        turn = register(m, 1, Mux(values, here.row[:lane_bits], 0))
        half = (lane_bits + 1) // 2
        for low, high in ((0, half), (half, lane_bits)):
            for bit in range(low, high):
                turned = [word_lanes[(lane + (1 << bit)) % lanes] for lane in range(lanes)]
                word_lanes = [Mux(turn[bit], t, w) for t, w in zip(turned, word_lanes, strict=True)]
            word_lanes = [register(m, 1, w) for w in word_lanes]
            turn = register(m, 1, turn)
            exponents = [register(m, 1, e) for e in exponents]
        # one bit more than the mantissa is kept for its rounding: rs(x, e) = ((2 x >> e) + 1) >> 1
        doubled = [Cat(Const(0, 1), w).as_signed() for w in word_lanes]
        for low, high in ((0, 2), (2, 4)):
            doubled = [
                register(m, 1, shift_stage_value(x, e, low, high).as_signed())
                for x, e in zip(doubled, exponents, strict=True)
            ]
            exponents = [register(m, 1, e) for e in exponents]
        result = [
            register(m, 1, saturate_value(rounding_shift_value(x.as_signed(), 1), hardware.b_bits))
            for x in doubled
        ]
        m.d.comb += [
            done.i.valid.eq(register(m, 1, take, stages)),
            done.i.payload.word.eq(Cat(result)),
            done.i.payload.last.eq(register(m, 1, here.last, stages)),
            self.valid.eq(done.o.valid),
            self.word.eq(done.o.payload.word),
            done.o.ready.eq(self.ready),
            self.done.eq(done.o.valid & self.ready & done.o.payload.last),
        ]
