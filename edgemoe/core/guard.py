"""The last stage before the memory port: no request leaves that names a word which is not there.

    core --> address compared --> buffer --> port

A run that ends, well or badly, first awaits what it has asked for; that is counted here.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import MemoryPort
from edgemoe.stream import Buffer

OUTSTANDING_BITS = 16


class Guard(wiring.Component):
    """Passes requests whose addresses are good, and holds the others for ever.

    Parameters
    ----------
    hardware : HardwareConfig
        Its ``memory_words`` end the memory.

    Members
    -------
    core : In(MemoryPort), port : Out(MemoryPort)
    running : In(1)
        While it is low nothing is accepted, and data that still come are dropped.
    outside : Out(1)
        A request or a write with a bad address waits.
    idle : Out(1)
        All requests and writes have left, and all words that were asked for have come.
    asked, answered, written : Out(1)
        In this cycle a request, a word, a write passes the port.

    Throughput 1 per cycle; latency of requests and writes 1 cycle, of data 0. That of data passes ``ready`` through.
    """

    LATENCY = 1

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "core": In(MemoryPort(hardware.port_bytes)),
                "port": Out(MemoryPort(hardware.port_bytes)),
                "running": In(1),
                **{name: Out(1) for name in ("outside", "idle", "asked", "answered", "written")},
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        core, port, words = self.core, self.port, self.hardware.memory_words

        read = core.read_request.payload
        read_outside = self._stage(
            m, "reads", core.read_request, port.read_request, (read.address + read.length) >= words
        )
        write_outside = self._stage(m, "writes", core.write, port.write, core.write.payload.address >= words)
        m.d.comb += [
            core.read_data.valid.eq(port.read_data.valid),
            core.read_data.payload.eq(port.read_data.payload),
            port.read_data.ready.eq(core.read_data.ready | ~self.running),
            self.outside.eq(read_outside | write_outside),
            self.asked.eq(port.read_request.valid & port.read_request.ready),
            self.answered.eq(port.read_data.valid & port.read_data.ready),
            self.written.eq(port.write.valid & port.write.ready),
        ]

        outstanding = Signal(OUTSTANDING_BITS)
        m.d.sync += outstanding.eq(
            outstanding + Mux(self.asked, port.read_request.payload.length + 1, 0) - self.answered
        )
        m.d.comb += self.idle.eq((outstanding == 0) & ~port.read_request.valid & ~port.write.valid)
        return m

    def _stage(self, m: Module, name: str, source, sink, bad: Value) -> Value:
        """A buffer of payloads and whether they are bad; returns that a bad one waits."""
        m.submodules[name] = buffer = Buffer(data.StructLayout({"payload": source.payload.shape(), "bad": 1}))
        here = buffer.o.payload
        m.d.comb += [
            buffer.i.valid.eq(source.valid & self.running),
            Value.cast(buffer.i.payload.payload).eq(Value.cast(source.payload)),
            buffer.i.payload.bad.eq(bad),
            source.ready.eq(buffer.i.ready & self.running),
            sink.valid.eq(buffer.o.valid & ~here.bad),
            Value.cast(sink.payload).eq(Value.cast(here.payload)),
            buffer.o.ready.eq(sink.ready & ~here.bad),
        ]
        return buffer.o.valid & here.bad
