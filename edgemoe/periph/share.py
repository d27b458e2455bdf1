"""Two masters of one memory, one after the other."""

from __future__ import annotations

from amaranth.hdl import Module, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from edgemoe.core.interface import MemoryPort


class MemoryShare(wiring.Component):
    """Gives a memory port to one of two masters; gates only.

    A master that does not have the turn sees a memory that is never ready. The turn may change only while neither
    master waits for data that it has asked for.

    Parameters
    ----------
    port_bytes : int

    Members
    -------
    first, second : In(MemoryPort(port_bytes))
    memory : Out(MemoryPort(port_bytes))
    turn : In(1)
        0: ``first``, 1: ``second``.
    """

    def __init__(self, port_bytes: int):
        port = MemoryPort(port_bytes)
        super().__init__({"first": In(port), "second": In(port), "memory": Out(port), "turn": In(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        memory = self.memory
        with m.If(self.turn):
            self._lead(m, self.second, memory)
        with m.Else():
            self._lead(m, self.first, memory)
        for master in (self.first, self.second):
            m.d.comb += master.read_data.payload.eq(memory.read_data.payload)
        return m

    def _lead(self, m: Module, master, memory) -> None:
        m.d.comb += [
            memory.read_request.valid.eq(master.read_request.valid),
            Value.cast(memory.read_request.payload).eq(Value.cast(master.read_request.payload)),
            master.read_request.ready.eq(memory.read_request.ready),
            memory.write.valid.eq(master.write.valid),
            Value.cast(memory.write.payload).eq(Value.cast(master.write.payload)),
            master.write.ready.eq(memory.write.ready),
            master.read_data.valid.eq(memory.read_data.valid),
            memory.read_data.ready.eq(master.read_data.ready),
        ]
