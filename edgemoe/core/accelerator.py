"""The accelerator: everything between the control port and the memory port."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.activation import ActivationMemory
from edgemoe.core.dma import ReadArbiter, WeightDma
from edgemoe.core.engines import GateEngine, NormEngine
from edgemoe.core.executor import Executor
from edgemoe.core.exponents import ExponentTable
from edgemoe.core.fetch import Fetch
from edgemoe.core.filler import Filler
from edgemoe.core.guard import Guard
from edgemoe.core.interface import ADDRESS_BITS, COUNTERS, ControlPort, MemoryPort, MonitorPort
from edgemoe.core.loader import Loader
from edgemoe.core.reader import ROW_FACTOR, TOKEN_TAG, Reader
from edgemoe.core.sequencer import Dispatcher, RegionSequencer
from edgemoe.core.storer import Storer
from edgemoe.core.writer import Writer, reorder_spec
from edgemoe.isa import Error
from edgemoe.numeric import register
from edgemoe.stream import Buffer, connect
from edgemoe.units.attention import ReorderUnit
from edgemoe.units.matmul import DotArray, MatmulSpec
from edgemoe.units.softmax import RowMaximum

TIMEOUT_BITS = 17
"""A run without any progress for 2**17 cycles ends with `Error.TIMEOUT`."""
RESET_CYCLES = 64
"""Of an aborted run: longer than any pipeline, so that nothing survives."""

READ_PAGES = {"a": range(5), "b": (3, 4), "residual": (0,), "norm": (0,), "gate": (3,), "store": (0, 2)}
WRITE_PAGES = {"product": range(5), "norm": (1,), "load": range(5)}
"""Pages that each client touches; see the table of hazards in compile.py."""
READ_WAYS = (("a", "gate", "store"), ("residual", "norm"))
WRITE_WAYS = (("product", "load"),)
"""Clients that share wires: ROUTE, LOAD, IMAGE and STORE run alone; of the two that read x, layer norm steps aside."""


class Core(wiring.Component):
    """All engines; reset between runs.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    start, program, image, output, images, task : In
        As in the control port; held while the run lasts.
    memory : Out(MemoryPort)
    monitor : Out(MonitorPort)
    finished : Out(1)
        Pulse at the end of the program's last image.
    idle : Out(1)
        Nothing is being fetched.
    error : Out(4)
    beat, rows_wait, tokens_wait : Out(1)
        The array works; it waits for operand B; for operand A.
    saturated : Out(8)
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "start": In(1),
                "program": In(ADDRESS_BITS),
                "image": In(ADDRESS_BITS),
                "output": In(ADDRESS_BITS),
                "images": In(16),
                "task": In(8),
                "memory": Out(MemoryPort(hardware.port_bytes)),
                "monitor": Out(MonitorPort(hardware)),
                "finished": Out(1),
                "idle": Out(1),
                "error": Out(4),
                "beat": Out(1),
                "rows_wait": Out(1),
                "tokens_wait": Out(1),
                "saturated": Out(8),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        hardware = self.hardware
        m.submodules.fetch = fetch = Fetch(hardware)
        m.submodules.dispatcher = dispatcher = Dispatcher(hardware)
        m.submodules.regions = regions = RegionSequencer()
        m.submodules.weights = weights = WeightDma(hardware)
        m.submodules.executor = executor = Executor(hardware)
        m.submodules.loader = loader = Loader(hardware)
        m.submodules.storer = storer = Storer(hardware)
        m.submodules.filler = filler = Filler(hardware)
        m.submodules.reader = reader = Reader(hardware)
        m.submodules.reorder = reorder = ReorderUnit(reorder_spec(hardware), tag=TOKEN_TAG)
        matmul = MatmulSpec(hardware.in_lanes, hardware.out_lanes, hardware.b_bits, hardware.acc_bits)
        m.submodules.array = array = DotArray(matmul, tag=reorder.tag)
        m.submodules.writer = writer = Writer(hardware, filler.parameters)
        m.submodules.norm = norm = NormEngine(hardware, filler.parameters)
        m.submodules.gate = gate = GateEngine(hardware)
        m.submodules.activation = activation = ActivationMemory(
            hardware, READ_PAGES, WRITE_PAGES, "product", READ_WAYS, WRITE_WAYS
        )
        m.submodules.arbiter = arbiter = ReadArbiter(hardware.port_bytes, 3)

        # external memory
        for number, client in enumerate((fetch, weights, loader)):
            connect(m, client.request, arbiter.request[number])
            connect(m, arbiter.data[number], client.data)
        connect(m, arbiter.port_request, wiring.flipped(self.memory.read_request))
        connect(m, wiring.flipped(self.memory.read_data), arbiter.port_data)
        connect(m, storer.write, wiring.flipped(self.memory.write))

        # program
        m.d.comb += [
            fetch.start.eq(self.start),
            fetch.program.eq(self.program),
            fetch.images.eq(self.images),
            dispatcher.program.eq(self.program),
            dispatcher.image.eq(self.image),
            dispatcher.output.eq(self.output),
            dispatcher.task.eq(self.task),
            regions.completed.eq(executor.completed),
            filler.completed.eq(executor.completed),
            self.finished.eq(executor.finished),
            self.idle.eq(~fetch.busy),
            self.error.eq(Mux(fetch.error != 0, fetch.error, dispatcher.error)),
        ]
        connect(m, fetch.o, dispatcher.i)
        connect(m, dispatcher.region, regions.i)
        connect(m, dispatcher.fill, filler.command)
        connect(m, dispatcher.execute, executor.i)
        connect(m, regions.command, weights.command)

        # products
        connect(m, weights.o, filler.weights)
        connect(m, filler.fill_job, reorder.fill_job)
        connect(m, filler.fill, reorder.fill)
        connect(m, executor.read, reader.job)
        connect(m, executor.reorder, reorder.job)
        connect(m, executor.write, writer.job)
        connect(m, reader.o, reorder.a)
        connect(m, reorder.o, array.i)
        m.d.comb += [  # the reorder unit spaces the steps as the writer needs it, so that nothing ever waits in the array
            writer.i.valid.eq(array.o.valid),
            Value.cast(writer.i.payload).eq(Value.cast(array.o.payload)),
            array.o.ready.eq(1),
        ]
        m.submodules.factor = factor = Buffer(ROW_FACTOR)  # ends the way of ``ready``
        connect(m, reader.factor, factor.i)
        connect(m, factor.o, writer.factor)
        m.d.comb += [
            Value.cast(getattr(writer, name)).eq(register(m, 1, Value.cast(getattr(filler, name))))
            for name in ("parameter_single", "parameter_set", "parameter_index", "parameter")
        ]
        parameter_en = Signal()
        m.d.sync += parameter_en.eq(filler.parameter_en)
        m.d.comb += [
            writer.parameter_en.eq(parameter_en),
            filler.used_set.eq(writer.used_set),
            norm.yield_read.eq(writer.residual_next),
            executor.written.eq(writer.done),
            executor.descriptor_written.eq(writer.completed),
            self.beat.eq(reorder.o.valid & reorder.o.ready),
            self.rows_wait.eq(reorder.waiting_rows),
            self.tokens_wait.eq(reorder.waiting_tokens),
            self.saturated.eq(writer.saturated),
        ]

        for unit in (reader, norm):
            m.d.comb += [
                unit.progress.products.eq(writer.products),
                unit.progress.rows.eq(writer.rows),
                unit.progress.norm_runs.eq(norm.runs),
                unit.progress.norm_rows.eq(norm.rows),
            ]

        # everything else
        connect(m, executor.norm, norm.job)
        connect(m, filler.norm_parameter, norm.parameter)
        connect(m, executor.route, gate.job)
        connect(m, executor.load, loader.job)
        connect(m, executor.store, storer.job)
        m.d.sync += [  # registers: an end is counted far from where it comes from
            executor.route_done.eq(gate.done),
            executor.load_done.eq(loader.done),
            executor.store_done.eq(storer.done),
        ]
        m.d.comb += [
            executor.norm_done.eq(norm.done),
            executor.visits.eq(gate.visits),
            regions.visits.eq(gate.visits),
            filler.visits.eq(gate.visits),
            gate.visit_index_0.eq(executor.visit_index),
            Value.cast(executor.visit).eq(Value.cast(gate.visit_0)),
            gate.visit_index_1.eq(regions.visit_index),
            regions.expert.eq(gate.visit_1.expert),
            gate.entry_index.eq(reader.entry_index),
            gate.entry_en.eq(reader.entry_en),
            Value.cast(reader.entry).eq(Value.cast(gate.entry)),
        ]
        self._tables(m, reader, filler, writer)
        self._activation(m, activation, reader, filler, writer, norm, gate, storer, loader)
        self._monitor(m, activation, reader, arbiter, writer, norm, gate, loader, executor)
        return m

    def _tables(self, m: Module, reader: Reader, filler: Filler, writer: Writer) -> None:
        """Row maxima, and exponents of K (one reader) and V (two)."""
        hardware = self.hardware
        m.submodules.maxima = maxima = RowMaximum(hardware.tokens, hardware.post_lanes)
        m.d.comb += [
            maxima.valid.eq(writer.score.valid),
            maxima.row.eq(writer.score.row),
            Value.cast(maxima.n).eq(Value.cast(writer.score.n)),
            maxima.mask.eq(writer.score.mask),
            maxima.first.eq(writer.score.first),
            maxima.row_read.eq(reader.row_read),
            reader.maximum.eq(maxima.maximum),
        ]
        m.submodules.keys = keys = ExponentTable(hardware, 1)
        m.submodules.values = values = ExponentTable(hardware, 2)
        for table, update in ((keys, writer.key), (values, writer.value)):
            m.d.comb += [getattr(table, k).eq(getattr(update, k)) for k in update.shape().members]
        m.d.comb += [
            keys.head_0.eq(filler.key_head),
            keys.word_0.eq(filler.key_word),
            Value.cast(filler.key_exponents).eq(Value.cast(keys.exponents_0)),
            values.head_0.eq(filler.value_head),
            values.word_0.eq(filler.value_word),
            Value.cast(filler.value_exponents).eq(Value.cast(values.exponents_0)),
            filler.value_maximum.eq(values.maximum_0),
            values.head_1.eq(reader.head),
            values.word_1.eq(reader.word),
            Value.cast(reader.exponents).eq(Value.cast(values.exponents_1)),
            reader.exponent_maximum.eq(values.maximum_1),
        ]

    def _activation(self, m, activation, reader, filler, writer, norm, gate, storer, loader) -> None:
        reads = {"a": reader.memory, "b": filler.memory, "residual": writer.residual, "norm": norm.read,
                 "gate": gate.read, "store": storer.read}  # fmt: skip
        for name, port in reads.items():
            target = getattr(activation, f"read_{name}")
            m.d.comb += [
                target.en.eq(port.en),
                target.address.eq(port.address),
                Value.cast(port.data).eq(Value.cast(target.data)),
            ]
        for name, port in (("product", writer.memory), ("norm", norm.write), ("load", loader.write)):
            target = getattr(activation, f"write_{name}")
            keys = ["en", "address", "mask"] + (["transposed", "lane_address"] if name == "product" else [])
            m.d.comb += [Value.cast(getattr(target, k)).eq(Value.cast(getattr(port, k))) for k in keys]
            m.d.comb += [target.value[lane].eq(port.value[lane]) for lane in range(self.hardware.in_lanes)]

    def _monitor(self, m, activation, reader, arbiter, writer, norm, gate, loader, executor) -> None:
        for name, unit in (("product", writer), ("norm", norm), ("route", gate)):
            m.d.comb += [
                getattr(self.monitor, f"{name}_valid").eq(unit.record_valid),
                Value.cast(getattr(self.monitor, name)).eq(Value.cast(unit.record)),
            ]
        load = self.monitor.load
        m.d.comb += [
            self.monitor.conflict.eq(
                activation.collision | reader.lost | arbiter.lost | (writer.i.valid & ~writer.i.ready)
            ),
            self.monitor.load_valid.eq(loader.write.en),
            load.number.eq(executor.number),
            load.address.eq(loader.write.address),
            load.mask.eq(loader.write.mask),
            Value.cast(load.value).eq(Value.cast(loader.write.value)),
        ]


class Accelerator(wiring.Component):
    """The top: runs a program over a number of images, counts, and ends every run, good or bad.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    control : Out(ControlPort())
        ``start`` is ignored while ``busy``. ``done`` is high for one cycle; ``error`` (`edgemoe.isa.Error`) and the
        counters stay until the next start.
    memory : Out(MemoryPort(hardware.port_bytes))
    monitor : Out(MonitorPort(hardware))
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "control": Out(ControlPort()),
                "memory": Out(MemoryPort(hardware.port_bytes)),
                "monitor": Out(MonitorPort(hardware)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        control, port = self.control, self.memory
        core, guard = Core(self.hardware), Guard(self.hardware)
        # What is reset between runs has a domain of its own: one register resets it, without gates on its way to everything.
        cool, reset = Signal(), Signal(init=1)
        m.d.sync += reset.eq(cool)
        m.domains.run = ClockDomain(local=True)
        m.d.comb += [ClockSignal("run").eq(ClockSignal()), ResetSignal("run").eq(reset)]
        m.submodules.core = DomainRenamer("run")(core)
        m.submodules.guard = DomainRenamer("run")(guard)
        held = {k: Signal.like(getattr(control, k)) for k in ("program", "image", "output", "images", "task")}
        m.d.comb += [getattr(core, k).eq(v) for k, v in held.items()]
        for name in self.monitor.signature.members:
            m.d.comb += Value.cast(getattr(self.monitor, name)).eq(Value.cast(getattr(core.monitor, name)))

        running, error = Signal(), Signal(4)
        wiring.connect(m, core.memory, guard.core)
        wiring.connect(m, guard.port, wiring.flipped(port))
        m.d.comb += guard.running.eq(running)

        silence, progress = Signal(TIMEOUT_BITS + 1), Signal()
        m.d.sync += [
            progress.eq(Cat(guard.asked, guard.answered, guard.written, core.beat, *(
                getattr(core.monitor, f"{k}_valid") for k in ("product", "norm", "load", "route")
            )).any()),
            silence.eq(Mux(progress | ~running, 0, silence + 1)),
        ]  # fmt: skip

        cooling = Signal(range(RESET_CYCLES + 1))
        m.d.comb += [control.error.eq(error), control.busy.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(control.start):
                    m.d.sync += [v.eq(getattr(control, k)) for k, v in held.items()]
                    m.d.sync += [running.eq(1), error.eq(0)]
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [core.start.eq(1), control.busy.eq(1)]
                m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += control.busy.eq(1)
                failure = Mux(core.error != 0, core.error, Mux(guard.outside, Error.ADDRESS, Error.TIMEOUT))
                with m.If((core.error != 0) | guard.outside | silence[-1]):
                    m.d.sync += [error.eq(failure), running.eq(0)]
                    m.next = "DRAIN"
                with m.Elif(core.finished):
                    m.next = "FINISH"
            with m.State("FINISH"):
                # what the fetch has read beyond the END is on its way
                m.d.comb += control.busy.eq(1)
                with m.If(core.idle):
                    m.d.sync += running.eq(0)
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += control.busy.eq(1)
                with m.If(guard.idle):
                    m.d.sync += cooling.eq(Mux(error != 0, RESET_CYCLES, 0))
                    m.next = "COOL"
            with m.State("COOL"):
                m.d.comb += [cool.eq(1), control.busy.eq(1)]
                m.d.sync += cooling.eq(cooling - 1)
                with m.If(cooling == 0):
                    m.d.comb += control.done.eq(1)
                    m.next = "IDLE"

        counting = {
            "mac_cycles": core.beat, "weight_stalls": core.rows_wait, "activation_stalls": core.tokens_wait,
            "read_words": guard.answered, "write_words": guard.written, "saturated": core.saturated,
        }  # fmt: skip
        counting = {name: register(m, 1, value) for name, value in counting.items()} | {
            "cycles": control.busy
        }
        for name in COUNTERS:
            counter = getattr(control, name)
            m.d.sync += counter.eq(counter + counting[name])
            with m.If(control.start & ~control.busy):
                m.d.sync += counter.eq(0)
        return m
