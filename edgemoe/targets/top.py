"""What all boards with a serial line and an SDRAM have in common: everything between those pins and the clocks.

::

    rx, tx -- host link ---+
                 |         +-- share -- crossing -- SDRAM controller -- pins
              control      |
                 |         |
             accelerator --+
                       sync | memory
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from amaranth.hdl import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.accelerator import Accelerator
from edgemoe.core.interface import ControlPort
from edgemoe.errors import DoesNotFit
from edgemoe.periph.crossing import Crossing
from edgemoe.periph.lights import Lights
from edgemoe.periph.link import HostLink
from edgemoe.periph.sdram import SdramController, SdramPins, SdramSpec
from edgemoe.periph.share import MemoryShare
from edgemoe.stream import connect

BAUD = 3_000_000
"""Of the FT231X on many boards, at most."""


@dataclass(frozen=True)
class BoardSpec:
    """A board's design.

    Attributes:
        hardware: the accelerator.
        core_hz: clock of domain ``sync``: accelerator and link.
        sdram: chip, and clock of domain ``memory``.
        baud: of the serial line.
    """

    hardware: HardwareConfig
    core_hz: int
    sdram: SdramSpec
    baud: int = BAUD

    def __post_init__(self) -> None:
        have, want = self.sdram.device.bytes, self.hardware.memory_bytes
        if want > have:
            raise DoesNotFit(
                f"hardware {self.hardware.name} needs memory_bytes {want}, the SDRAM {self.sdram.device.name} has "
                f"{have}; lower memory_bytes in the hardware file"
            )


def identity(hardware: HardwareConfig) -> bytes:
    """What a bitstream says that it is: 8 bytes that follow from the hardware's lanes, ports and capacities."""
    values = {key: value for key, value in asdict(hardware).items() if key != "name"}
    return hashlib.sha256(repr(sorted(values.items())).encode()).digest()[:8]


class Top(wiring.Component):
    """Link, accelerator, crossing and SDRAM controller.

    Domains: ``sync`` and ``memory``, both reset until their clocks are good, together for 4 cycles of the slower.

    Parameters
    ----------
    spec : BoardSpec

    Members
    -------
    rx : In(1), tx : Out(1)
    pins : Out(SdramPins())
    busy, error, activity, alive : Out(1)
        For lights: a run lasts; the last one ended with an error; something came or went on the serial line; blinks.
    """

    def __init__(self, spec: BoardSpec):
        self.spec = spec
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "pins": Out(SdramPins()),
                **{name: Out(1) for name in ("busy", "error", "activity", "alive")},
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        spec, hardware = self.spec, self.spec.hardware
        link = HostLink(hardware, spec.core_hz, spec.baud, identity(hardware))
        accelerator = Accelerator(hardware)
        crossing = Crossing(hardware.port_bytes, core_domain="core", memory_domain="chip_side")
        controller = SdramController(spec.sdram, hardware.port_bytes)
        m.submodules.share = share = MemoryShare(hardware.port_bytes)

        # The link can reset all but itself. One register resets a domain, without gates on its long way; at power-up too.
        memory_reset = Signal()
        m.submodules.memory_reset = FFSynchronizer(link.reset_core, memory_reset, o_domain="memory")
        for name, domain, source in (
            ("host", "sync", 0),
            ("core", "sync", link.reset_core),
            ("chip_side", "memory", memory_reset),
        ):
            reset = Signal(init=1, name=f"{name}_reset")
            m.d[domain] += reset.eq(source)
            m.domains += ClockDomain(name)
            m.d.comb += [ClockSignal(name).eq(ClockSignal(domain)), ResetSignal(name).eq(reset)]
        m.submodules.link = DomainRenamer("host")(link)
        m.submodules.accelerator = DomainRenamer("core")(accelerator)
        m.submodules.crossing = crossing
        m.submodules.controller = DomainRenamer("chip_side")(controller)

        m.d.comb += [link.rx.eq(self.rx), self.tx.eq(link.tx)]
        for name, member in ControlPort().members.items():
            outer, inner = getattr(link, name), getattr(accelerator.control, name)
            if member.flow == In:
                m.d.sync += inner.eq(outer)  # a register: the two lie wide apart
            else:
                m.d.comb += outer.eq(inner)

        connect(m, link.read_request, share.first.read_request)
        connect(m, link.write, share.first.write)
        connect(m, share.first.read_data, link.read_data)
        m.d.sync += share.turn.eq(accelerator.control.busy)  # a cycle late: nobody asks for anything yet
        wiring.connect(m, accelerator.memory, share.second)
        wiring.connect(m, share.memory, crossing.core)
        wiring.connect(m, crossing.memory, controller.port)
        for name in controller.pins.signature.members:
            if name != "dq":
                m.d.comb += getattr(self.pins, name).eq(getattr(controller.pins, name))
        m.d.comb += [
            self.pins.dq.o.eq(controller.pins.dq.o),
            self.pins.dq.oe.eq(controller.pins.dq.oe),
            controller.pins.dq.i.eq(self.pins.dq.i),
        ]

        m.submodules.lights = lights = Lights(spec.core_hz, 2)
        line = Signal(2)
        m.submodules.line = FFSynchronizer(Cat(self.rx, self.tx), line, init=3)
        m.d.comb += [
            lights.i.eq(Cat(accelerator.control.busy, ~line.all())),
            Cat(self.busy, self.activity).eq(lights.o),
            self.alive.eq(lights.alive),
        ]
        m.d.sync += self.error.eq(Value.cast(accelerator.control.error).any())
        return m
