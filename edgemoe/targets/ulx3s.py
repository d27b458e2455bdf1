"""ULX3S: an ECP5 with a 25 MHz clock, 32 MB of 16-bit SDRAM and an FT231X UART (boards/ulx3s).

The chip's clock leaves through an output register like the commands do, later by `chip_phase`, so that the chip
samples in the middle of what is steady and its data arrive in the middle of the window of our input registers::

    our clock     _/~~\\__/~~\\__/~~\\__/~~\\__/~~\\__
    command        X READ X
    chip's clock  ___/~~\\__/~~\\__/~~\\__/~~\\__/~~\\
                    ^ sampled                 ^ data may be taken CAS cycles later
    data                                 X data  X
    our input register takes them             ^
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Instance, Module, ResetSignal
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer

from edgemoe.config import HardwareConfig
from edgemoe.errors import BadInput
from edgemoe.periph.sdram import DEVICES, SdramSpec
from edgemoe.targets.pll import MHZ, Pll, PllSpec, Wish, search, within
from edgemoe.targets.top import BoardSpec, Top

REFERENCE_HZ = 25 * MHZ
ROUND_TRIP = 2
"""A register in every output and every input."""
MEMORY_MHZ = 90, 133
"""Lowest and highest clock of the memory. Below it data would come so early that one register less would have to be counted."""

PAD_NS = 4.5
"""From our clock through an output register to a pad, and from a pad to an input register, together; an estimate
from FPGA-DS-02012 (speed grade 6), not measured."""
ACCESS_NS, HOLD_NS = 5.4, 2.5
"""The worst of the chips at CAS latency 3 (AS4C16M16SA-7: tAC, tOH): data are good from ACCESS after an edge to HOLD after the next one."""


def chip_phase(memory_hz: float) -> float:
    """Degrees by which the chip's clock is later than ours.

    Data are good from ``PAD + phase + ACCESS`` to ``PAD + phase + period + HOLD`` after the edge before the last of the
    CAS latency; our register takes them two periods after that edge: in the middle, if phase is what this returns. It
    is kept within 90 to 270 degrees, a quarter of a period of setup and hold for the commands.
    """
    period = 1e9 / memory_hz
    middle = PAD_NS + (ACCESS_NS + period + HOLD_NS) / 2
    return min(270.0, max(90.0, 360 * (2 * period - middle) / period))


@dataclass(frozen=True)
class Ulx3sSpec:
    """Clocks and design of a ULX3S.

    Attributes:
        pll: output 0 is ``sync``, 1 is ``memory``, 2 the chip's clock.
        board: the common top with these clocks.
    """

    pll: PllSpec
    board: BoardSpec

    @property
    def memory_hz(self) -> float:
        """Clock of the memory."""
        return float(self.pll.output_hz(1))


def specification(hardware: HardwareConfig, core_mhz: float, memory_mhz: float | None = None) -> Ulx3sSpec:
    """The design for a core clock within half a per cent of ``core_mhz``.

    The memory runs as fast as the PLL then can, up to about ``memory_mhz`` (by default the highest of `MEMORY_MHZ`).

    Raises:
        BadInput: the PLL does not reach that clock, or the memory's is out of range.
        DoesNotFit: the hardware needs more memory than there is.
    """
    low, high = MEMORY_MHZ
    best = high if memory_mhz is None else memory_mhz
    if not low <= best <= high:
        raise BadInput(f"the memory must run at {low}..{high} MHz, found {best:g} MHz")
    core = within("core", round(core_mhz * MHZ))
    memory = Wish("memory", round(best * MHZ), low * MHZ, round((best + 1) * MHZ))
    pll = search(REFERENCE_HZ, (core, memory))
    pll = PllSpec(
        pll.reference_hz,
        pll.input_divider,
        pll.feedback,
        pll.feedback_divider,
        (*pll.dividers, pll.dividers[1]),
    )
    sdram = SdramSpec(DEVICES["ulx3s"], float(pll.output_hz(1)) / MHZ, cas=3, round_trip=ROUND_TRIP)
    return Ulx3sSpec(pll, BoardSpec(hardware, round(pll.output_hz(0)), sdram))


class Ulx3s(Elaboratable):
    """The design with its PLL, pin buffers and lights.

    Lights (D0 to D7): busy, error, link activity, alive, SDRAM clock is good (lock of the PLL), the rest dark.
    """

    def __init__(self, spec: Ulx3sSpec):
        self.spec = spec

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.top = top = Top(self.spec.board)
        locked = self._clocks(m, platform)
        self._sdram(m, platform, top.pins)

        uart = platform.request("uart", 0, dir={"rx": "-", "tx": "-", "rts": "-", "dtr": "-"})
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.d.comb += [top.rx.eq(rx.i), tx.o.eq(top.tx)]

        for index, level in enumerate((top.busy, top.error, top.activity, top.alive, locked, 0, 0, 0)):
            led = m.submodules[f"led{index}"] = io.Buffer("o", platform.request("led", index, dir="-"))
            m.d.comb += led.o.eq(level)

        # The microcontroller beside the FPGA must not take the board over: its boot pin is held high.
        names = ("en", "tx", "rx", "gpio0", "gpio5", "gpio16", "gpio17")
        esp32 = platform.request("esp32", 0, dir=dict.fromkeys(names, "-"))
        m.submodules.gpio0 = gpio0 = io.Buffer("o", esp32.gpio0)
        m.d.comb += gpio0.o.eq(1)
        return m

    def _clocks(self, m: Module, platform):
        pll = m.submodules.pll = Pll(self.spec.pll, (0, 0, chip_phase(self.spec.memory_hz)))
        clk25 = m.submodules.clk25 = io.Buffer("i", platform.request("clk25", 0, dir="-"))
        m.d.comb += pll.reference.eq(clk25.i)
        m.domains.sync = ClockDomain()
        m.domains.memory = ClockDomain()
        m.domains.chip = ClockDomain(reset_less=True)
        for domain, clock in zip(("sync", "memory", "chip"), pll.clocks):
            m.d.comb += ClockSignal(domain).eq(clock)
        for domain in ("sync", "memory"):
            # Set by the configuration and by a clock, never without one: no register needs an asynchronous reset, which
            # nextpnr gives a whole tile of eight.
            m.submodules[f"reset_{domain}"] = FFSynchronizer(
                ~pll.locked, ResetSignal(domain), o_domain=domain, init=1
            )
        return pll.locked

    def _sdram(self, m: Module, platform, pins) -> None:
        names = {"clk_en": pins.cke, "cs": ~pins.csn, "ras": ~pins.rasn, "cas": ~pins.casn, "we": ~pins.wen,
                 "ba": pins.ba, "a": pins.a, "dqm": pins.dqm}  # fmt: skip
        ports = platform.request("sdram", 0, dir=dict.fromkeys((*names, "clk", "dq"), "-"))
        for name, value in names.items():
            buffer = m.submodules[name] = io.FFBuffer("o", getattr(ports, name), o_domain="memory")
            m.d.comb += buffer.o.eq(value)
        dq = m.submodules.dq = io.FFBuffer("io", ports.dq, i_domain="memory", o_domain="memory")
        m.d.comb += [dq.o.eq(pins.dq.o), dq.oe.eq(pins.dq.oe), pins.dq.i.eq(dq.i)]
        # The bare register: io.DDRBuffer has an output enable beside it, three flip-flops that would be the only ones of their clock.
        clock = m.submodules.chip_clock = io.Buffer("o", ports.clk)
        m.submodules.chip_register = Instance(
            "ODDRX1F", i_SCLK=ClockSignal("chip"), i_RST=0, i_D0=1, i_D1=0, o_Q=clock.o
        )


# -- boards -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Board:
    """What `edgemoe build --board` knows of a board.

    Attributes:
        name: of the board.
        target: its device, a name of `edgemoe.synthesis.TARGETS`.
        hardware: what is built if nothing else is said, a name of `edgemoe.config.NAMED`.
        core_mhz: clock of that.
        memory_mhz: highest clock of the memory beside it, if nothing else is said.
        model: whose images per second are reported (`edgemoe.rate.shape_of`).
        platform: class of amaranth_boards.
    """

    name: str
    target: str
    hardware: str
    core_mhz: float
    memory_mhz: float
    model: str
    platform: str

    def specification(
        self, hardware: HardwareConfig, core_mhz: float, memory_mhz: float | None = None
    ) -> Ulx3sSpec:
        """The board's design for this hardware and these clocks (`specification`)."""
        return specification(hardware, core_mhz, self.memory_mhz if memory_mhz is None else memory_mhz)

    def design(self, spec: Ulx3sSpec) -> Elaboratable:
        """The gateware, for the board's platform."""
        return Ulx3s(spec)

    def make_platform(self):
        """Pins of the board; needs the package amaranth-boards."""
        from amaranth_boards import ulx3s

        make: Callable = getattr(ulx3s, self.platform)
        return make()


BOARDS = {
    board.name: board
    for board in (
        Board("ulx3s-85f", "ecp5-85k", "ulx3s-85f", 80, 115, "m3vit-tiny", "ULX3S_85F_Platform"),
        Board("ulx3s-25f", "ecp5-25k", "ulx3s-25f", 80, 100, "nano", "ULX3S_25F_Platform"),
        Board("ulx3s-12f", "ecp5-12k", "ulx3s-25f", 80, 100, "nano", "ULX3S_12F_Platform"),
    )
}
