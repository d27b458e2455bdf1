"""The SDRAM controller with a behavioural memory behind it, as one design with the memory port outside."""

from __future__ import annotations

from importlib import resources

from amaranth.hdl import ClockSignal, DomainRenamer, Instance, Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.core.interface import READ_REQUEST, write_layout
from edgemoe.periph.crossing import Crossing
from edgemoe.periph.sdram import SdramController, SdramSpec
from edgemoe.stream import connect

MODEL = "sdram_model"


def model_source() -> str:
    """Verilog of the behavioural memory (its header says what it checks and how it is loaded and dumped)."""
    return resources.files("edgemoe.simulation").joinpath(f"{MODEL}.v").read_text()


def model_parameters(spec: SdramSpec) -> dict[str, int]:
    """Parameters of the behavioural memory for a chip and clock: times in ps."""
    d = spec.device

    def ps(ns: float) -> int:
        return round(1000 * ns)

    return {
        "ROW_BITS": d.row_bits,
        "COLUMN_BITS": d.column_bits,
        # Rounded up as the controller's `SdramSpec.clocks` forgives a thousandth of a cycle.
        "CLOCK_PS": -int(-1_000_000 // spec.clock_mhz),
        "T_CK2": ps(1000 / d.cas2_mhz),
        "T_CK3": ps(1000 / d.cas3_mhz),
        "T_RCD": ps(d.t_rcd),
        "T_RP": ps(d.t_rp),
        "T_RAS": ps(d.t_ras),
        "T_RC": ps(d.t_rc),
        "T_RRD": ps(d.t_rrd),
        "T_RFC": ps(d.t_rfc),
        "T_WR": ps(d.t_wr),
        "MRD_CLOCKS": d.mrd_clocks,
        "REFRESH_US": round(1000 * d.refresh_ms),
        "POWER_UP_US": round(d.power_up_us),
    }


class SdramSystem(wiring.Component):
    """`SdramController` with the model of its chip. The text of `model_source` belongs to its Verilog.

    Parameters
    ----------
    spec : SdramSpec
    port_bytes : int
    crossing : bool
        Controller and chip are in the domain ``memory``, behind a `Crossing`.

    Members
    -------
    read_request, read_data, write : streams of the memory port, seen from the memory
    ready : Out(1)
        The initialisation is over (in the memory's domain).
    dump : In(1)
        A rising edge writes the array to a file.
    violations : Out(32)
        Rules of the chip that were broken so far.
    """

    def __init__(self, spec: SdramSpec, port_bytes: int, crossing: bool = False):
        self.spec, self.port_bytes, self.crossing = spec, port_bytes, crossing
        super().__init__(
            {
                "read_request": In(stream.Signature(READ_REQUEST)),
                "read_data": Out(stream.Signature(unsigned(8 * port_bytes))),
                "write": In(stream.Signature(write_layout(port_bytes))),
                "ready": Out(1),
                "dump": In(1),
                "violations": Out(32),
            }
        )

    def elaborate(self, platform) -> Module:
        """Wires, and registers that stand for those of ``round_trip``: all of them on the way out."""
        m = Module()
        controller = SdramController(self.spec, self.port_bytes)
        port, pins, domain = controller.port, controller.pins, "sync"
        if self.crossing:
            domain = "memory"
            crossing = m.submodules.crossing = Crossing(self.port_bytes)
            wiring.connect(m, crossing.memory, port)
            port = crossing.core
        m.submodules.controller = DomainRenamer(domain)(controller)
        connect(m, wiring.flipped(self.read_request), port.read_request)
        connect(m, wiring.flipped(self.write), port.write)
        connect(m, port.read_data, wiring.flipped(self.read_data))
        m.d.comb += self.ready.eq(controller.ready)

        def late(value):
            for _ in range(self.spec.round_trip):
                before, value = value, Signal.like(value)
                m.d[domain] += value.eq(before)
            return value

        names = ("cke", "csn", "rasn", "casn", "wen", "ba", "a", "dqm")
        m.submodules.model = Instance(
            MODEL,
            **{f"p_{name}": value for name, value in model_parameters(self.spec).items()},
            i_clk=ClockSignal(domain),
            **{f"i_{name}": late(getattr(pins, name)) for name in names},
            i_dq_i=late(pins.dq.o),
            i_dq_i_oe=late(pins.dq.oe),
            o_dq_o=pins.dq.i,
            i_dump=self.dump,
            o_violations=self.violations,
        )
        return m
