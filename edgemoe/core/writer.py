"""The writer: takes results from the array to the activation memory.

A step's results wait in a register and leave it ``post_lanes`` at a time. Every beat then runs through the same
stages whatever its destination, so that writes never meet::

    results --> requantise --+--> gelu --------+--> residual --> write
       ^  parameters, 1/d    +--> exponential -+       ^
                                     |                 x (activation memory)
                                     +--> row maxima

In the staircase a step holds results of two blocks: the group of lanes in which they meet leaves twice, with
complementary masks.

Throughput ``post_lanes`` results per cycle; a step occupies ``interval(hardware)`` cycles. Latency from a result to its
write: `Writer.latency`.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.activation import READ_LATENCY, ReadPort, WritePort
from edgemoe.core.interface import product_record
from edgemoe.core.reader import ROW_FACTOR, SCORE_ONE, TOKEN_TAG
from edgemoe.isa import Dest
from edgemoe.numeric import bit_length_value, register, saturate_value, short_product_halves, unreset
from edgemoe.units.attention import ReorderSpec, set_bits, tag_layout
from edgemoe.units.gelu import Gelu, GeluSpec
from edgemoe.units.requantise import ChannelParameter, Mode, Requantise, RequantiseSpec
from edgemoe.units.residual import Residual
from edgemoe.units.softmax import Exponential, SoftmaxSpec

JOBS = 4
"""Products whose settings are kept: those in flight, at most `JOBS` - 1, and the next."""
SCORE_SHIFT = 15
SETTLE = 3


def write_job_layout() -> data.StructLayout:
    """One product, as the writer sees it (fields of `edgemoe.isa`).

    ``completes``: its descriptor is complete with it; ``number``, ``visit``: for the monitor.
    """
    return data.StructLayout(
        {
            "rows": 16, "dest": 3, "mode": 2, "gelu": 1, "frac": 4, "realign": 3, "d_base": 16, "d_stride": 12,
            "head": 6, "completes": 1, "number": 32, "visit": 16,
        }
    )  # fmt: skip


def interval(hardware: HardwareConfig) -> int:
    """Cycles that the results of one step take."""
    return hardware.out_lanes // hardware.post_lanes + (hardware.slot_sets == 1)


def reorder_spec(hardware: HardwareConfig) -> ReorderSpec:
    """The slots of this hardware."""
    return ReorderSpec(
        hardware.in_lanes,
        hardware.out_lanes,
        hardware.b_bits,
        hardware.slot_words,
        hardware.slot_sets,
        hardware.fill_rows,
        interval(hardware),
    )


class Writer(wiring.Component):
    """Post-processing of every product.

    Parameters
    ----------
    hardware : HardwareConfig
    parameters : int
        Channel parameters that the filler writes at a time.

    Members
    -------
    job : In(stream)
        `write_job_layout`, before the product's first result.
    i : In(stream)
        Results of `DotArray`.
    factor : In(stream)
        1/d of the rows of products in mode ROW_CHANNEL.
    parameter_en, parameter_single, parameter_set, parameter_index, parameter : In
        Writes of channel parameters.
    used_set : Out(set_bits)
        Newest parameter set in use.
    residual : Out(ReadPort), memory : Out(WritePort)
    residual_next : Out(1)
        ``residual`` reads in the next cycle.
    key, value : Out
        Updates of the exponent tables; score : Out: updates of the row maxima.
    products, rows : Out
        Products written (modulo 16), and rows of the next one whose last block has been written.
    done, completed : Out(1)
        A product has been written; so has its descriptor.
    saturated : Out(range)
        Scores clipped in this cycle.
    record, record_valid : Out
        Monitor.
    """

    def __init__(self, hardware: HardwareConfig, parameters: int):
        self.hardware, self.parameters = hardware, parameters
        lanes = hardware.post_lanes
        self.softmax = SoftmaxSpec(b_bits=hardware.b_bits)
        self.requantise = RequantiseSpec(acc_bits=hardware.acc_bits)
        self.tag = tag_layout(reorder_spec(hardware), TOKEN_TAG)
        self.slot_bits = max(1, (hardware.out_lanes - 1).bit_length())
        self.set_bits = set_bits(hardware.slot_sets)
        acc = data.ArrayLayout(signed(hardware.acc_bits), hardware.out_lanes)
        exponent = data.StructLayout(
            {"valid": 1, "head": 6, "row": 12, "exponent": 4, "first": 1, "first_row": 1}
        )
        score = data.StructLayout(
            {"valid": 1, "row": 12, "n": data.ArrayLayout(signed(8), lanes), "mask": lanes, "first": 1}
        )
        super().__init__(
            {
                "job": In(stream.Signature(write_job_layout())),
                "i": In(stream.Signature(data.StructLayout({"acc": acc, "tag": self.tag}))),
                "factor": In(stream.Signature(ROW_FACTOR)),
                "parameter_en": In(1),
                "parameter_single": In(1),
                "parameter_set": In(self.set_bits),
                "parameter_index": In(self.slot_bits),
                "parameter": In(data.ArrayLayout(ChannelParameter, parameters)),
                "used_set": Out(self.set_bits, init=-1 % (1 << self.set_bits)),
                "residual": Out(ReadPort(hardware)),
                "residual_next": Out(1),
                "memory": Out(WritePort(hardware, lanes=True)),
                "key": Out(exponent),
                "value": Out(exponent),
                "score": Out(score),
                "products": Out(4),
                "rows": Out(12),
                "done": Out(1),
                "completed": Out(1),
                "saturated": Out(range(lanes + 1)),
                "record": Out(product_record(hardware)),
                "record_valid": Out(1),
            }
        )

    @property
    def note(self) -> data.StructLayout:
        """What travels beside ``post_lanes`` values: where they go."""
        return data.StructLayout(
            {
                "valid": 1, "mask": self.hardware.post_lanes, "job": 2, "end": 1, "row_end": 1,
                "row": 12, "channel": 16, "address": 16, "base": 16,
            }
        )  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes = self.hardware.post_lanes
        jobs = self._jobs(m)
        beat = self._groups(m, jobs)
        requantise = self._requantise(m, jobs, beat)

        # gelu and exponential side by side
        mid, note = requantise.o.payload.mid, requantise.o.payload.tag
        here = jobs[note.job]
        m.submodules.gelu = gelu = Gelu(GeluSpec(), lanes, tag=self.note)
        m.submodules.exponential = exponential = Exponential(self.softmax, lanes, tag=self.note)
        m.d.comb += [
            requantise.o.ready.eq(1),
            gelu.i.valid.eq(requantise.o.valid),
            gelu.i.payload.frac.eq(here.frac),
            gelu.i.payload.active.eq(here.gelu),
            Value.cast(gelu.i.payload.tag).eq(Value.cast(note)),
            gelu.o.ready.eq(1),
            exponential.i.valid.eq(requantise.o.valid),
            Value.cast(exponential.i.payload.mid).eq(Value.cast(mid)),
            Value.cast(exponential.i.payload.tag).eq(Value.cast(note)),
            exponential.o.ready.eq(1),
        ]
        m.d.comb += [gelu.i.payload.x[lane].eq(saturate_value(mid[lane], 16)) for lane in range(lanes)]
        self._row_maxima(m, jobs, exponential)
        later = Gelu.latency - Exponential.latency + Residual.latency
        codes = register(m, 1, exponential.o.payload.code, later)
        addend = register(m, 1, Cat(mid[lane] for lane in range(lanes)), Gelu.latency + Residual.latency)

        # residual: x arrives with gelu's output
        x = self._read_residual(m, requantise.o.valid, note, here)
        m.submodules.accumulate = residual = Residual(lanes, tag=self.note)
        after = gelu.o.payload
        job = jobs[after.tag.job]
        m.d.comb += [
            residual.i.valid.eq(gelu.o.valid),
            Value.cast(residual.i.payload.x).eq(x),
            residual.i.payload.realign.eq(job.realign),
            residual.i.payload.add.eq(job.dest == Dest.RESIDUAL),
            Value.cast(residual.i.payload.tag).eq(Value.cast(after.tag)),
            residual.o.ready.eq(1),
        ]
        m.d.comb += [residual.i.payload.mid[lane].eq(after.x[lane]) for lane in range(lanes)]
        self._write(m, jobs, residual, codes, addend)
        return m

    def _jobs(self, m: Module) -> Array:
        """Settings of the products in flight, in a ring."""
        layout = write_job_layout()
        jobs = Array(Signal(layout, name=f"job{i}") for i in range(JOBS))
        enter, busy = Signal(range(JOBS)), Signal(range(JOBS + 1))
        taken = self.job.valid & self.job.ready
        m.d.comb += self.job.ready.eq(busy != JOBS - 1)
        m.d.sync += busy.eq(busy + taken - self.done)
        with m.If(taken):
            m.d.sync += [Value.cast(jobs[enter]).eq(Value.cast(self.job.payload)), enter.eq(enter + 1)]
        return jobs

    def _groups(self, m: Module, jobs: Array):
        """Hold the results of a step and let them go, group by group; returns the registered beat."""
        hardware, lanes = self.hardware, self.hardware.post_lanes
        groups = hardware.out_lanes // lanes
        staircase = hardware.slot_sets == 1
        held = Signal(self.i.payload.shape(), reset_less=True)
        busy, job = Signal(), Signal(range(JOBS))
        factor = Signal(ROW_FACTOR, reset_less=True)
        group, again = Signal(range(max(2, groups))), Signal()
        tag = held.tag
        lane_bits = (lanes - 1).bit_length()
        edge = tag.boundary >> lane_bits if lanes > 1 else tag.boundary
        meets = (group == edge) if staircase else Const(0, 1)
        last = (group == groups - 1) & (again | ~meets)
        incoming = Signal(range(JOBS))
        mode = jobs[incoming].mode
        take = self.i.valid & self.i.ready
        m.d.comb += [
            self.i.ready.eq(~busy | last),
            self.factor.ready.eq(take & (mode == Mode.ROW_CHANNEL)),
        ]
        with m.If(busy):
            m.d.sync += again.eq(0)
            with m.If(meets & ~again):
                m.d.sync += again.eq(1)
            with m.Else():  # results move up to those that leave: no wire is longer than from slot to slot
                held_acc = Value.cast(held.acc)
                m.d.sync += [group.eq(group + 1), held_acc.eq(held_acc >> (lanes * hardware.acc_bits))]
            with m.If(last):
                m.d.sync += busy.eq(0)
        with m.If(take):
            arriving = self.i.payload.tag
            m.d.sync += [
                Value.cast(held).eq(Value.cast(self.i.payload)),
                busy.eq(1),
                group.eq(0),
                again.eq(0),
                job.eq(incoming),
                self.used_set.eq(arriving.set),
                factor.multiplier.eq(SCORE_ONE),
                factor.shift.eq(SCORE_SHIFT),
            ]
            with m.If(mode == Mode.CHANNEL_ROW):
                m.d.sync += factor.multiplier.eq(arriving.token.score)
            with m.If(mode == Mode.ROW_CHANNEL):
                m.d.sync += Value.cast(factor).eq(Value.cast(self.factor.payload))
            with m.If(arriving.end):
                m.d.sync += incoming.eq(incoming + 1)

        here = jobs[job]
        slot_bits = (hardware.out_lanes - 1).bit_length()
        is_old = (group > edge) | again if staircase else Signal()
        block = tag.block - is_old
        channel = Signal(16)
        inside = tag.boundary[:lane_bits] if lanes > 1 else 0
        mask = []
        for lane in range(lanes):
            mine = Mux(again, lane > inside, lane <= inside) | ~meets if staircase else 1
            exists = Mux(is_old, tag.old, tag.new)
            mask.append(mine & exists & (channel + lane < here.rows))
        m.d.comb += channel.eq((block << slot_bits) + (group << lane_bits))

        beat = Signal(
            data.StructLayout(
                {
                    "acc": data.ArrayLayout(signed(hardware.acc_bits), lanes),
                    "set": self.set_bits,
                    "slot": self.slot_bits,
                    "factor": ROW_FACTOR,
                    "mode": 2,
                    "stride": 12,
                    "row_address": 16,
                    "note": self.note,
                }
            )
        )
        note = beat.note
        m.d.sync += [
            Value.cast(beat.acc).eq(Value.cast(held.acc)[: lanes * hardware.acc_bits]),
            beat.set.eq(tag.set - is_old),
            beat.slot.eq(group << lane_bits),
            Value.cast(beat.factor).eq(Value.cast(factor)),
            beat.mode.eq(here.mode),
            beat.stride.eq(here.d_stride),
            beat.row_address.eq(tag.token.address),
            note.valid.eq(busy),
            note.mask.eq(Cat(mask)),
            note.job.eq(job),
            note.end.eq(busy & last & tag.end),
            note.row_end.eq(busy & last & (tag.block == (here.rows - 1) >> slot_bits)),
            note.row.eq(tag.token.row),
            note.channel.eq(channel),
            note.base.eq(here.d_base),
        ]
        return beat

    def _requantise(self, m: Module, jobs: Array, beat):
        """Give every result its channel's parameter, and its address; then requantise."""
        hardware, lanes = self.hardware, self.hardware.post_lanes
        parameter = self._parameters(m, beat)
        m.submodules.requantise = unit = Requantise(self.requantise, lanes, tag=self.note)
        into, note = unit.i.payload, beat.note
        lane_bits = (hardware.in_lanes - 1).bit_length()
        fields = {
            "acc": Value.cast(beat.acc),
            "row_multiplier": beat.factor.multiplier,
            "row_shift": beat.factor.shift,
            "mode": beat.mode,
        }
        m.d.comb += [Value.cast(getattr(into, k)).eq(register(m, 1, v, 2)) for k, v in fields.items()]
        m.d.comb += Value.cast(into.parameter).eq(register(m, 1, parameter, 1))
        staged = Signal(self.note)
        m.d.sync += Value.cast(staged).eq(Value.cast(note))
        ahead = register(m, 1, (beat.row_address + (note.channel >> lane_bits))[:16])
        # VALUES: a channel is a row
        low, high = (register(m, 1, x[:16]) for x in short_product_halves(note.channel, beat.stride))
        column = register(m, 1, (note.base + (note.row >> lane_bits))[:16])
        final = Signal(self.note)
        m.d.sync += [
            Value.cast(final).eq(Value.cast(staged)),
            final.address.eq(ahead),
            final.base.eq(column + low + high),
        ]
        m.d.comb += [unit.i.valid.eq(final.valid), Value.cast(into.tag).eq(Value.cast(final))]
        return unit

    def _parameters(self, m: Module, beat) -> Value:
        """Parameter memories: written ``parameters`` at a time, read ``post_lanes`` at a time; registered."""
        hardware, lanes, many = self.hardware, self.hardware.post_lanes, self.parameters
        banks = max(lanes, many)
        bank_bits = (banks - 1).bit_length()
        rows = max(1, hardware.out_lanes // banks)
        row_bits = (rows - 1).bit_length()
        outputs = []
        for bank in range(banks):
            memory = Memory(shape=64, depth=rows << self.set_bits, init=[])
            m.submodules[f"parameters{bank}"] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb")
            first = self.parameter_index[:bank_bits]
            source = self.parameter[bank % many]
            mine = (first == (bank - bank % many)) if banks > 1 else 1
            alone = (first == bank) if banks > 1 else 1
            m.d.comb += [
                write.en.eq(self.parameter_en & Mux(self.parameter_single, alone, mine)),
                write.addr.eq(Cat(self.parameter_index[bank_bits:][:row_bits], self.parameter_set)),
                write.data.eq(Mux(self.parameter_single, Value.cast(self.parameter[0]), Value.cast(source))),
                read.addr.eq(Cat(beat.slot[bank_bits:][:row_bits], beat.set)),
            ]
            outputs.append(read.data)
        choices = Array(Cat(outputs[k : k + lanes]) for k in range(0, banks, lanes))
        lane_bits = (lanes - 1).bit_length()
        return register(m, 1, choices[beat.slot[lane_bits:bank_bits]] if banks > lanes else choices[0])

    def _row_maxima(self, m: Module, jobs: Array, exponential: Exponential) -> None:
        lanes, o = self.hardware.post_lanes, exponential.o.payload
        valid = exponential.o.valid & (jobs[o.tag.job].dest == Dest.SCORES)
        score = self.score
        m.d.comb += [
            score.valid.eq(valid),
            score.row.eq(o.tag.row),
            score.mask.eq(o.tag.mask),
            score.first.eq((o.tag.channel == 0) & o.tag.mask[0]),
        ]
        fraction = self.softmax.mantissa_frac
        m.d.comb += [score.n[lane].eq(o.code[lane][fraction:].as_signed()) for lane in range(lanes)]
        clipped = Mux(valid, o.saturated & o.tag.mask, 0)
        m.d.comb += self.saturated.eq(sum(clipped[lane] for lane in range(lanes)))

    def _read_residual(self, m: Module, valid: Value, note, job) -> Value:
        """Read x so that its lanes arrive with the output of gelu."""
        hardware, lanes = self.hardware, self.hardware.post_lanes
        wait = Gelu.latency - READ_LATENCY - 2
        wanted = valid & note.valid & note.mask.any() & (job.dest == Dest.RESIDUAL)
        en = register(m, 1, wanted, wait)
        address = register(m, 1, note.address, wait)
        m.d.sync += [self.residual.en.eq(en), self.residual.address.eq(address)]
        m.d.comb += self.residual_next.eq(en)
        lane_bits, post_bits = (hardware.in_lanes - 1).bit_length(), (lanes - 1).bit_length()
        place = register(m, 1, note.channel[post_bits:lane_bits], Gelu.latency - 1)
        word = self.residual.data
        parts = [
            Cat(word[k + lane][:16] for lane in range(lanes)) for k in range(0, hardware.in_lanes, lanes)
        ]
        return register(m, 1, Array(parts)[place] if len(parts) > 1 else parts[0])

    def _write(self, m: Module, jobs: Array, residual: Residual, codes: Value, addend: Value) -> None:
        """Choose values, note exponents, find the lanes, write; two registers."""
        hardware, lanes = self.hardware, self.hardware.post_lanes
        n = hardware.in_lanes
        lane_bits, post_bits = (n - 1).bit_length(), (lanes - 1).bit_length()
        o = residual.o.payload
        note = Signal(self.note, reset_less=True)
        values = Signal(data.ArrayLayout(signed(22), lanes), reset_less=True)
        job = jobs[o.tag.job]
        m.d.sync += [Value.cast(note).eq(Value.cast(o.tag)), note.valid.eq(residual.o.valid & o.tag.valid)]
        for lane in range(lanes):
            code = codes.word_select(lane, 22).as_signed()
            m.d.sync += values[lane].eq(Mux(job.dest == Dest.SCORES, code, o.x[lane]))
        stride = register(m, 1, job.d_stride)
        here = jobs[note.job]
        turn = register(m, 1, (o.tag.row + o.tag.channel)[:lane_bits])

        # exponents
        magnitudes = 0
        for lane in range(lanes):
            x = values[lane][:16]
            magnitudes = magnitudes | Mux(note.mask[lane], x ^ x[-1].replicate(16), 0)
        length = register(m, 1, bit_length_value(Value.cast(magnitudes)[:15]))
        spare = hardware.b_bits - 1
        exponent = Mux(length > spare, length - spare, 0)
        for name, dest in (("key", Dest.KEYS), ("value", Dest.VALUES)):
            update = getattr(self, name)
            first = (note.channel == 0) & note.mask[0]
            m.d.sync += [
                update.valid.eq(note.valid & note.mask.any() & (here.dest == dest)),
                update.head.eq(here.head),
                update.row.eq(note.row),
                update.first.eq(first),
                update.first_row.eq(first & (note.row == 0)),
            ]
            m.d.comb += update.exponent.eq(exponent)

        # lanes: straight, or each channel rotated to its own lane and word
        transposed = here.dest == Dest.VALUES
        write = self.memory
        value, mask = unreset(m, write.value), unreset(m, write.mask)
        address, lane_address = unreset(m, write.address), unreset(m, write.lane_address)
        m.d.sync += [
            write.en.eq(note.valid & note.mask.any()),
            address.eq(note.address),
            write.transposed.eq(transposed),
        ]
        rows = [(note.base + stride * lane)[:16] for lane in range(lanes)]
        for lane in range(n):
            straight = note.channel[post_bits:lane_bits] == lane >> post_bits if n > lanes else 1
            source = (lane - turn)[:lane_bits]
            inside = source < lanes
            index = Mux(transposed, source[:post_bits], lane % lanes) if lanes > 1 else 0
            pick = Array(values[k] for k in range(lanes))[index]
            bit = Array(note.mask[k] for k in range(lanes))[index]
            m.d.sync += [
                value[lane].eq(pick),
                mask[lane].eq(bit & Mux(transposed, inside, straight)),
                lane_address[lane].eq(Array(rows)[index]),
            ]

        # progress: a row is written when the last group of its last block is
        with m.If(note.valid & note.row_end):
            m.d.sync += self.rows.eq(self.rows + 1)
        with m.If(note.valid & note.end):
            m.d.sync += [self.rows.eq(0), self.products.eq(self.products + 1)]

        # completion: when the last update of tables and memory has settled
        end = register(m, 1, note.valid & note.end)
        m.d.comb += [
            self.done.eq(register(m, 1, end, SETTLE)),
            self.completed.eq(self.done & register(m, 1, here.completes, 1 + SETTLE)),
        ]
        record = self.record
        delayed = register(m, 1, addend)
        m.d.sync += [
            self.record_valid.eq(note.valid & note.mask.any()),
            record.number.eq(here.number),
            record.visit.eq(here.visit),
            record.row.eq(note.row),
            record.channel.eq(note.channel),
            record.mask.eq(note.mask),
            record.address.eq(Mux(transposed, note.base, note.address)),
            Value.cast(record.value).eq(Value.cast(values)),
            Value.cast(record.addend).eq(delayed),
        ]
