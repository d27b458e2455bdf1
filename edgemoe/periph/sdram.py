"""Burst controller for 16-bit SDR SDRAM with the core's memory port on its inner side.

A memory address is cut, from the lowest bit on, into column, bank and row: a linear stream leaves a row for the
*next bank*, whose row is opened while the data of this one still flow::

    byte address = | row | bank | column | 0 |        e.g. 13 + 2 + 9 + 1 bits: 32 MB

The work of a request is a list of *segments*, the parts that lie in one row. One segment is current and sends
READ or WRITE commands, the one behind it is prepared meanwhile::

                                +--> open rows: compare, PRECHARGE, ACTIVATE --+
    write ------+               |                                              v
                +-> segments -> next ---------------> current --READ/WRITE--> arbiter --> command pins
    request ----+                                        |                     ^
                                                         |   initialisation, refresh
    data <-- queue <-- words <-- columns <-- dq          +--> word --> dq
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, Signature
from numpy.typing import NDArray

from edgemoe.core.interface import MemoryPort
from edgemoe.errors import BadInput
from edgemoe.numeric import is_power_of_two
from edgemoe.periph.segments import Segments
from edgemoe.stream import Buffer, connect

COLUMN_BYTES = 2
"""Bytes of a column: the data bus has 16 bits."""
ALL_BANKS = 1 << 10
"""Address bit of a PRECHARGE that closes all banks."""
INIT_REFRESHES = 8
"""Refreshes of the initialisation; data sheets ask for 2 to 8."""

# -- specification ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SdramDevice:
    """A memory chip: geometry, and minimum times in ns from its data sheet.

    Attributes:
        name: of the chip and speed grade.
        row_bits, column_bits: 2**row_bits rows of 2**column_bits columns of 16 bits in each of 4 banks.
        t_rcd: ACTIVATE to READ or WRITE.
        t_rp: PRECHARGE to ACTIVATE or REFRESH.
        t_ras: ACTIVATE to PRECHARGE.
        t_rc: ACTIVATE to ACTIVATE, same bank.
        t_rrd: ACTIVATE to ACTIVATE, other bank.
        t_rfc: REFRESH to REFRESH or ACTIVATE.
        t_wr: last written column to PRECHARGE.
        mrd_clocks: LOAD MODE REGISTER to any command, in clocks.
        cas2_mhz, cas3_mhz: highest clock with CAS latency 2 and 3.
        refresh_ms: every row must be refreshed once in this time.
        power_up_us: from power to the first command.
    """

    name: str
    t_rcd: float
    t_rp: float
    t_ras: float
    t_rc: float
    t_rrd: float
    t_rfc: float
    t_wr: float
    cas2_mhz: float
    cas3_mhz: float
    mrd_clocks: int = 2
    refresh_ms: float = 64
    power_up_us: float = 200
    row_bits: int = 13
    column_bits: int = 9

    @property
    def bytes(self) -> int:
        """Capacity."""
        return COLUMN_BYTES << self.row_bits + 2 + self.column_bits


DEVICES = {
    device.name: device
    for device in (
        SdramDevice("mt48lc16m16a2-75", 20, 20, 44, 66, 15, 66, 15, 100, 133.4),
        SdramDevice("mt48lc16m16a2-7e", 15, 15, 37, 60, 14, 66, 14, 133.4, 143),
        SdramDevice("is42s16160g-7", 15, 15, 37, 60, 14, 60, 14, 100, 143),
        SdramDevice(
            "as4c16m16sa-7", 21, 21, 42, 63, 14, 63, 14, 100, 143
        ),  # Rev. 3.0, table 16; as4c32m16sb-7 too
        SdramDevice("ulx3s", 21, 21, 44, 66, 15, 70, 15, 100, 143),
    )
}
"""Chips by name. ``ulx3s`` is none: it has the slowest value of each of the 256 Mbit chips that were fitted to
that board over the years, so that one bitstream serves all of them."""


@dataclass(frozen=True)
class SdramSpec:
    """A chip at a clock, and all times in cycles.

    Parameters
    ----------
    device : SdramDevice
    clock_mhz : float
        Clock of the controller and of the memory.
    cas : int
        CAS latency, 2 or 3.
    round_trip : int
        Registers between this controller and the chip, out and back together: 0 if ``pins`` are the chip's
        pins and both see the same clock edge, 2 behind buffers with a register in either direction.
    queue : int
        Port words that are read ahead of ``read_data``; a power of two from 4.
    """

    device: SdramDevice = DEVICES["ulx3s"]
    clock_mhz: float = 133
    cas: int = 3
    round_trip: int = 0
    queue: int = 16

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise BadInput for a chip that cannot run like this, or times that the controller cannot keep."""
        d = self.device

        def rule(holds: bool, message: str) -> None:
            if not holds:
                raise BadInput(f"sdram {d.name}: {message}")

        rule(self.cas in (2, 3), f"cas must be 2 or 3, found {self.cas}")
        fastest = {2: d.cas2_mhz, 3: d.cas3_mhz}[self.cas]
        rule(
            10 <= self.clock_mhz <= fastest,
            f"clock_mhz must be 10..{fastest:g} with cas {self.cas}, found {self.clock_mhz:g}; "
            "lower the clock, or take another cas or a faster chip",
        )
        for name in ("t_rcd", "t_rp", "t_ras", "t_rc", "t_rrd", "t_rfc", "t_wr", "mrd_clocks", "power_up_us"):
            rule(getattr(d, name) > 0, f"{name} must be positive, found {getattr(d, name)}")
        rule(
            d.t_rc >= d.t_ras,
            f"t_rc must be at least t_ras, found {d.t_rc:g} and {d.t_ras:g}; see data sheet",
        )
        rule(0 <= self.round_trip <= 8, f"round_trip must be 0..8, found {self.round_trip}")
        rule(
            is_power_of_two(self.queue) and 4 <= self.queue <= 512,
            f"queue must be a power of two from 4 to 512, found {self.queue}",
        )
        rule(8 <= d.column_bits <= 10, f"column_bits must be 8..10, found {d.column_bits}")
        rule(1 <= d.row_bits <= 13, f"row_bits must be 1..13, found {d.row_bits}")
        rule(
            self.refresh_period >= 4 * self.refresh_cycles,
            f"refresh_ms {d.refresh_ms:g} asks for a refresh every {self.refresh_period} cycles, which last "
            f"{self.refresh_cycles}; at least 4 times that is needed, raise clock_mhz",
        )

    def clocks(self, ns: float) -> int:
        """Cycles that last at least ``ns``; a thousandth of a cycle is forgiven."""
        return max(1, math.ceil(ns * self.clock_mhz / 1000 - 1e-3))

    @property
    def rcd(self) -> int:
        """Cycles from ACTIVATE to READ or WRITE, and to any other ACTIVATE."""
        return max(2, self.clocks(self.device.t_rcd), self.clocks(self.device.t_rrd))

    @property
    def rp(self) -> int:
        """Cycles from PRECHARGE to ACTIVATE or REFRESH."""
        return max(2, self.clocks(self.device.t_rp))

    @property
    def ras(self) -> int:
        """Cycles from ACTIVATE to PRECHARGE; long enough that t_rc follows from it."""
        return max(self.clocks(self.device.t_ras), self.clocks(self.device.t_rc) - self.rp)

    @property
    def rfc(self) -> int:
        """Cycles from REFRESH to REFRESH or ACTIVATE."""
        return max(2, self.clocks(self.device.t_rfc))

    @property
    def wr(self) -> int:
        """Cycles from the last written column to PRECHARGE."""
        return self.clocks(self.device.t_wr)

    @property
    def mrd(self) -> int:
        """Cycles from LOAD MODE REGISTER to any command."""
        return max(2, self.device.mrd_clocks)

    @property
    def refresh_cycles(self) -> int:
        """Cycles that a refresh takes from the data: all rows are closed, and the current one is opened again."""
        return self.rp + self.rfc + self.rcd + 1

    @property
    def refresh_period(self) -> int:
        """Cycles between two refreshes.

        A refresh waits for the burst before it; the period is so much shorter than the average interval of the
        data sheet that nevertheless no row ever waits for longer than ``refresh_ms``.
        """
        rows = 1 << self.device.row_bits
        return (math.floor(self.device.refresh_ms * 1000 * self.clock_mhz) - 64) // rows

    @property
    def power_up_ticks(self) -> int:
        """Power-up time in refresh periods."""
        return math.ceil(self.device.power_up_us * self.clock_mhz / self.refresh_period) + 1

    @property
    def peak_mbytes(self) -> float:
        """Bytes per microsecond of the data bus."""
        return COLUMN_BYTES * self.clock_mhz

    def burst(self, port_bytes: int) -> int:
        """Columns that one READ or WRITE moves."""
        return min(8, port_bytes // COLUMN_BYTES)

    def mode(self, port_bytes: int) -> int:
        """Value of the mode register: sequential bursts, for reads and writes."""
        return self.cas << 4 | self.burst(port_bytes).bit_length() - 1


def check_port(port_bytes: int) -> None:
    """Raise BadInput for a port that the controller does not serve."""
    if not is_power_of_two(port_bytes) or not 2 <= port_bytes <= 64:
        raise BadInput(f"sdram: port_bytes must be a power of two from 2 to 64, found {port_bytes}")


# -- golden -------------------------------------------------------------------------------------


def locate(address: int, port_bytes: int, device: SdramDevice) -> tuple[int, int, int]:
    """Row, bank and first column of the port word ``address``; addresses wrap at the chip's size."""
    column = address * port_bytes // COLUMN_BYTES
    bits = device.column_bits
    return (
        column >> bits + 2 & (1 << device.row_bits) - 1,
        column >> bits & 3,
        column & (1 << bits) - 1,
    )


def serve(memory: NDArray[np.uint16], operations: Iterable[tuple], port_bytes: int) -> list[int]:
    """Golden twin of `SdramController`: the words read by operations in the order in which they are accepted.

    Args:
        memory: the columns in the order of their addresses (row, bank, column); is changed by writes.
        operations: ``("read", address, words)`` and ``("write", address, data)``, addresses in port words.
        port_bytes: bytes of a port word.
    """
    k = port_bytes // COLUMN_BYTES
    answers = []
    for kind, address, value in operations:
        at = address * k % len(memory)
        if kind == "write":
            memory[at : at + k] = np.frombuffer(int(value).to_bytes(port_bytes, "little"), "<u2")
            continue
        for i in range(value):
            at = (address + i) * k % len(memory)
            answers.append(int.from_bytes(memory[at : at + k].astype("<u2").tobytes(), "little"))
    return answers


# -- gateware -----------------------------------------------------------------------------------


class SdramPins(Signature):
    """Pins of the chip, seen from the controller; all but ``dq.i`` leave from registers. The clock is not among
    them: who wires the board drives it, inverted or shifted.
    """

    def __init__(self):
        super().__init__(
            {
                "cke": Out(1),
                "csn": Out(1, init=1),
                "rasn": Out(1, init=1),
                "casn": Out(1, init=1),
                "wen": Out(1, init=1),
                "ba": Out(2),
                "a": Out(13),
                "dqm": Out(2, init=3),
                "dq": Out(Signature({"o": Out(16), "oe": Out(1), "i": In(16)})),
            }
        )


def ones(count: int) -> int:
    """A word with ``count`` ones, none if that is negative."""
    return (1 << max(count, 0)) - 1


class _Shared:
    """Signals between the parts of the controller."""

    def __init__(self, spec: SdramSpec, port_bytes: int):
        self.burst = spec.burst(port_bytes)
        """Columns of a READ or WRITE."""
        self.columns_per_word = port_bytes // COLUMN_BYTES
        self.bursts_per_word = self.columns_per_word // self.burst
        self.position_bits = spec.device.column_bits - (self.burst.bit_length() - 1)

        # The current segment, whose row is open.
        self.valid, self.write = Signal(name="valid"), Signal(name="write")
        self.bank, self.row = Signal(2, name="bank"), Signal(spec.device.row_bits, name="row")
        self.position = Signal(self.position_bits, name="position")
        self.first = Signal(name="first")  # the first burst of a word
        self.final = Signal(name="final")  # the last burst of the segment

        # What happens in this cycle.
        self.go = Signal(name="go")  # READ or WRITE
        self.take = Signal(name="take")  # the next segment becomes current
        self.closes = Signal(name="closes")
        self.opens, self.opens_next, self.reopens = Signal(name="opens"), Signal(), Signal(name="reopens")
        self.open_bank, self.open_row = Signal(2, name="open_bank"), Signal(spec.device.row_bits)
        self.restart = Signal(name="restart")  # all banks are closed
        self.refreshes, self.sets_mode = Signal(name="refreshes"), Signal(name="sets_mode")

        # What is allowed.
        self.may = Signal(name="may")
        """The current segment's next command may go. A register: half of the controller waits for it."""
        self.active, self.active_next = Signal(name="active"), Signal()  # neither initialising nor refreshing
        self.selected = Signal(name="selected")  # after power-up
        self.room = Signal(name="room")  # in the read queue, from the next cycle on
        self.prepared = Signal(name="prepared")  # the next segment's row is open; a register too
        self.want, self.slot = Signal(name="want"), Signal(name="slot")
        """A PRECHARGE or ACTIVATE is ready; the command pins are free for it."""
        self.is_open = Signal(4, name="is_open")
        # the words of `_holds` as they are in the next cycle; bit 0 forbids the command
        self.no_read_next, self.no_write_next = Signal(self.burst), Signal(spec.cas + self.burst)
        length = max(spec.ras, self.burst + spec.wr)
        self.no_precharge = [Signal(length, name=f"no_precharge{b}") for b in range(4)]
        self.quiet = Signal(name="quiet")  # no bank forbids a precharge


class SdramController(wiring.Component):
    """Serves a memory port from an SDR SDRAM.

    Equals `serve` for the operations in the order in which the port accepts them, one per cycle at most. A write
    goes first when both are offered: whoever asks for data after a write was accepted gets what was written.

    Parameters
    ----------
    spec : SdramSpec
    port_bytes : int
        2 to 64, a power of two.

    Members
    -------
    port : In(MemoryPort(port_bytes))
        Addresses wrap at the size of the chip. Words are requested from the chip only when the read queue
        has room for them, so that ``read_data.ready`` may be low at any time for any time.
    pins : Out(SdramPins())
    ready : Out(1)
        The initialisation is over. Requests before wait at the port.

    Throughput: one column, 2 bytes, per cycle in a linear stream of bursts of 64 words, less one refresh
    (`SdramSpec.refresh_cycles`) in each `SdramSpec.refresh_period`: 98 % of the peak at 133 MHz. A write word
    takes 2 cycles at least. Cycles and latency of reads: `cycles`. Cost on an ECP5: docs/area.md.

    Source: JEDEC JESD21-C 3.11.5.1 (SDRAM), Micron MT48LC16M16A2 data sheet.
    """

    def __init__(self, spec: SdramSpec, port_bytes: int):
        check_port(port_bytes)
        self.spec, self.port_bytes = spec, port_bytes
        super().__init__({"port": In(MemoryPort(port_bytes)), "pins": Out(SdramPins()), "ready": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        s = _Shared(self.spec, self.port_bytes)
        segments = m.submodules.segments = Segments(
            word_bits=(s.bursts_per_word - 1).bit_length(),
            position_bits=s.position_bits,
            line_bits=2 + self.spec.device.row_bits,
            port_bytes=self.port_bytes,
        )
        connect(m, wiring.flipped(self.port.read_request), segments.request)
        connect(m, wiring.flipped(self.port.write), segments.write)
        m.submodules.following = following = Buffer(segments.o.payload.shape())  # ends the way of ``ready``
        connect(m, segments.o, following.i)
        self._holds(m, s)
        self._rows(m, s, following.o)
        self._current(m, s, following.o)
        self._refresh(m, s)
        self._commands(m, s, following.o)
        self._write_data(m, s, segments.data)
        self._read_data(m, s)
        return m

    def _holds(self, m: Module, s: _Shared) -> None:
        """Count the cycles for which a command must not follow another.

        A shift register has a one for every such cycle, so that several reasons are combined by OR. Precharges
        see them through a register more and their words are shorter by that.
        """
        spec, burst = self.spec, s.burst
        read, write = s.go & ~s.write, s.go & s.write
        no_read, no_write = Signal.like(s.no_read_next), Signal.like(s.no_write_next)
        m.d.comb += [
            s.no_read_next.eq(no_read >> 1 | Mux(s.go, ones(burst - 1), 0)),
            s.no_write_next.eq(
                no_write >> 1 | Mux(read, ones(spec.cas + burst), 0) | Mux(write, ones(burst - 1), 0)
            ),
        ]
        m.d.sync += [
            no_read.eq(s.no_read_next),
            no_write.eq(s.no_write_next),
            s.quiet.eq(~Cat(word[0] for word in s.no_precharge).any()),
        ]
        for bank, word in enumerate(s.no_precharge):
            accessed, opened = s.bank == bank, s.opens & (s.open_bank == bank)
            m.d.sync += word.eq(
                word >> 1
                | Mux(opened, ones(spec.ras - 2), 0)
                | Mux(read & accessed, ones(burst - 2), 0)
                | Mux(write & accessed, ones(burst + spec.wr - 3), 0)
            )

    def _rows(self, m: Module, s: _Shared, following: stream.Interface) -> None:
        """Bring the row of the segment behind the current one into its bank."""
        spec = self.spec
        bank, row = following.payload.line[:2], following.payload.line[2:]
        rows = Array(Signal(spec.device.row_bits, name=f"row{b}", reset_less=True) for b in range(4))
        found, was_open = Signal(spec.device.row_bits, reset_less=True), Signal()
        closable = Signal()
        timer, timer_next, prepares = Signal(max(spec.rp, spec.rcd)), Signal(max(spec.rp, spec.rcd)), Signal()
        m.d.comb += timer_next.eq(timer >> 1)
        m.d.sync += [
            timer.eq(timer_next),
            s.prepared.eq(prepares & ~timer_next[0] & ~s.restart),
            found.eq(rows[bank]),
            was_open.eq(s.is_open.bit_select(bank, 1)),
            closable.eq(~Array(w[0] for w in s.no_precharge)[bank] & ~(s.valid & (s.bank == bank))),
        ]
        with m.FSM(name="rows"):
            with m.State("LOOK"):
                with m.If(following.valid & s.active):  # a refresh may open the current row again
                    m.next = "COMPARE"
                    with m.If(following.payload.same & s.is_open.bit_select(bank, 1)):
                        m.next = "PREPARED"
                        m.d.comb += prepares.eq(1)
                with m.If(s.restart):
                    m.next = "LOOK"
            with m.State("COMPARE"):
                m.next = "OPEN"
                with m.If(was_open):
                    m.next = "CLOSE"
                    with m.If(found == row):
                        m.next = "PREPARED"
                        m.d.comb += prepares.eq(1)
                with m.If(s.restart):
                    m.next = "LOOK"
            with m.State("CLOSE"):
                m.d.comb += [s.want.eq(closable & s.active), s.closes.eq(s.want & s.slot)]
                with m.If(s.closes):
                    m.d.comb += timer_next.eq(ones(spec.rp - 1))
                    m.next = "OPEN"
                with m.If(s.restart):
                    m.next = "LOOK"
            with m.State("OPEN"):
                m.d.comb += [s.want.eq(~timer[0] & s.active), s.opens_next.eq(s.want & s.slot)]
                with m.If(s.opens_next):
                    m.d.comb += [timer_next.eq(ones(spec.rcd - 2)), prepares.eq(1)]
                    m.next = "PREPARED"
                with m.If(s.restart):
                    m.next = "LOOK"
            with m.State("PREPARED"):
                m.d.comb += prepares.eq(~s.take)
                with m.If(s.take | s.restart):
                    m.next = "LOOK"

        m.d.comb += [
            s.opens.eq(s.opens_next | s.reopens),
            s.open_bank.eq(Mux(s.reopens, s.bank, bank)),
            s.open_row.eq(Mux(s.reopens, s.row, row)),
        ]
        # The table of open rows learns of a command a cycle late; nobody looks before the one after.
        opened, closed, bank_opened, bank_closed = Signal(), Signal(), Signal(2), Signal(2)
        row_opened = Signal(spec.device.row_bits, reset_less=True)
        m.d.sync += [
            opened.eq(s.opens),
            closed.eq(s.closes),
            bank_opened.eq(s.open_bank),
            bank_closed.eq(bank),
            row_opened.eq(s.open_row),
        ]
        for b in range(4):
            with m.If(opened & (bank_opened == b)):
                m.d.sync += [rows[b].eq(row_opened), s.is_open[b].eq(1)]
            with m.If(s.restart | (closed & (bank_closed == b))):
                m.d.sync += s.is_open[b].eq(0)

    def _current(self, m: Module, s: _Shared, following: stream.Interface) -> None:
        """Send the commands of the current segment, and let the next one take its place with the last."""
        f = following.payload
        if s.burst == 1:
            # Reads of single columns would never leave a cycle for a PRECHARGE: it goes first.
            m.d.comb += [s.go.eq(s.may & ~s.want), s.slot.eq(1)]
        else:
            m.d.comb += [s.go.eq(s.may), s.slot.eq(~s.may)]
        done = s.go & s.final
        upcoming = Signal(s.position_bits, reset_less=True)
        end = Signal(s.position_bits, reset_less=True)
        m.d.comb += [
            s.take.eq(s.prepared & s.active & (~s.valid | done)),
            following.ready.eq(s.take),
            s.first.eq(s.position[: (s.bursts_per_word - 1).bit_length()] == 0),
        ]
        m.d.sync += s.may.eq(
            s.active_next
            & (s.take | (s.valid & ~done))
            & ~Mux(Mux(s.take, f.write, s.write), s.no_write_next[0], s.no_read_next[0] | ~s.room)
        )
        with m.If(s.go):
            m.d.sync += [
                s.position.eq(upcoming),
                upcoming.eq(upcoming + 1),
                s.final.eq(upcoming == end),
            ]
        with m.If(done):
            m.d.sync += s.valid.eq(0)
        with m.If(s.take):
            m.d.sync += [
                s.valid.eq(1),
                s.write.eq(f.write),
                s.bank.eq(f.line[:2]),
                s.row.eq(f.line[2:]),
                s.position.eq(f.start),
                upcoming.eq(f.start + 1),
                end.eq(f.end),
                s.final.eq(f.single),
            ]

    def _refresh(self, m: Module, s: _Shared) -> None:
        """Initialise the chip; then interrupt everything for a refresh in every period."""
        spec = self.spec
        period = spec.refresh_period
        count, tick = Signal(range(period), init=period - 1), Signal()
        ticks = Signal(range(spec.power_up_ticks + 1), init=spec.power_up_ticks)
        refreshes = Signal(range(INIT_REFRESHES + 1), init=INIT_REFRESHES)
        due = Signal()
        wait = Signal(max(spec.rp, spec.rfc, spec.mrd, spec.rcd) + 1)
        m.d.comb += s.active_next.eq(s.active)
        m.d.sync += [
            s.active.eq(s.active_next),
            tick.eq(count == 1),
            count.eq(Mux(tick, period - 1, count - 1)),
            wait.eq(wait >> 1),
            due.eq((due | tick) & ~s.refreshes),
            s.restart.eq(0),
            s.reopens.eq(0),
            s.sets_mode.eq(0),
        ]
        with m.FSM(name="refresh"):
            with m.State("POWER_UP"):
                with m.If(tick):
                    m.d.sync += ticks.eq(ticks - 1)
                with m.If(ticks == 0):
                    m.d.sync += [s.selected.eq(1), s.restart.eq(1), wait.eq(ones(spec.rp))]
                    m.next = "REFRESH"
            with m.State("REFRESH"):
                with m.If(~wait[0]):
                    m.d.comb += s.refreshes.eq(1)
                    m.d.sync += [wait.eq(ones(spec.rfc - 2)), refreshes.eq(refreshes - 1)]
                    m.next = "REFRESHED"
            with m.State("REFRESHED"):
                with m.If(~wait[0]):
                    with m.If(self.ready):
                        m.d.sync += [s.reopens.eq(s.valid), wait.eq(ones(spec.rcd - 1))]
                        m.next = "OPEN"
                    with m.Elif(refreshes == 0):
                        m.d.sync += [s.sets_mode.eq(1), wait.eq(ones(spec.mrd))]
                        m.next = "OPEN"
                    with m.Else():
                        m.next = "REFRESH"
            with m.State("OPEN"):
                with m.If(~wait[0]):
                    m.d.comb += s.active_next.eq(1)
                    m.d.sync += self.ready.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(due):
                    m.d.comb += s.active_next.eq(0)
                    m.next = "SETTLE"
            with m.State("SETTLE"):  # `quiet` does not know yet what the last cycle did
                m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(s.quiet):
                    m.d.sync += [s.restart.eq(1), wait.eq(ones(spec.rp))]
                    m.next = "REFRESH"

    def _commands(self, m: Module, s: _Shared, following: stream.Interface) -> None:
        """Two registers from a decision to the pins: choose bank and address, then encode."""
        pins = self.pins
        access, writes, closes, closes_all, opens, refreshes, sets_mode = (
            Signal(name=f"command_{name}")
            for name in ("access", "write", "close", "close_all", "open", "refresh", "mode")
        )
        bank, row = Signal(2, reset_less=True), Signal(self.spec.device.row_bits, reset_less=True)
        column = Signal(self.spec.device.column_bits, reset_less=True)
        m.d.sync += [
            access.eq(s.go),
            writes.eq(s.go & s.write),
            closes.eq(s.closes),
            closes_all.eq(s.restart),
            opens.eq(s.opens),
            refreshes.eq(s.refreshes),
            sets_mode.eq(s.sets_mode),
            bank.eq(Mux(s.go | s.reopens, s.bank, following.payload.line[:2])),
            row.eq(s.open_row),
            column.eq(Cat(Const(0, s.burst.bit_length() - 1), s.position)),
        ]
        m.d.sync += [
            pins.cke.eq(1),
            pins.csn.eq(~s.selected),
            pins.rasn.eq(~(opens | closes | closes_all | refreshes | sets_mode)),
            pins.casn.eq(~(access | refreshes | sets_mode)),
            pins.wen.eq(~(writes | closes | closes_all | sets_mode)),
            pins.ba.eq(Mux(sets_mode, 0, bank)),
            pins.a.eq(
                Mux(opens, row, 0)
                | Mux(access, column, 0)
                | Mux(closes_all, ALL_BANKS, 0)
                | Mux(sets_mode, self.spec.mode(self.port_bytes), 0)
            ),
            pins.dqm.eq((~self.ready).replicate(2)),
        ]

    def _write_data(self, m: Module, s: _Shared, words: stream.Interface) -> None:
        """Shift a word out, column by column, beside the command registers."""
        columns = Signal(s.burst)
        word = Signal(8 * self.port_bytes, reset_less=True)
        starts = s.go & s.write
        m.d.comb += words.ready.eq(starts & s.first)
        m.d.sync += [
            columns.eq(columns >> 1 | Mux(starts, ones(s.burst), 0)),
            self.pins.dq.oe.eq(columns[0]),
            self.pins.dq.o.eq(word),
        ]
        with m.If(columns[0]):
            m.d.sync += word.eq(word >> 8 * COLUMN_BYTES)
        with m.If(starts & s.first):
            m.d.sync += word.eq(words.payload)

    def _read_data(self, m: Module, s: _Shared) -> None:
        """Collect columns into words, and words in a queue whose places are claimed before a READ is sent."""
        spec, port = self.spec, self.port
        queue = m.submodules.queue = SyncFIFOBuffered(width=8 * self.port_bytes, depth=spec.queue + 1)
        places, left = Signal(range(spec.queue + 1), init=spec.queue), Signal()
        claims = s.go & ~s.write & s.first
        m.d.comb += [
            port.read_data.valid.eq(queue.r_rdy),
            port.read_data.payload.eq(queue.r_data),
            queue.r_en.eq(port.read_data.ready),
        ]
        m.d.sync += [
            left.eq(queue.r_rdy & queue.r_en),  # a register: who takes the words lies far away
            places.eq(places + left - claims),
        ]
        m.d.comb += s.room.eq(places >= 2)  # this cycle may claim one more

        columns = Signal(s.burst)
        due = Signal(spec.cas + spec.round_trip + 2)
        dq = Signal(8 * COLUMN_BYTES, reset_less=True)
        word = Signal(8 * self.port_bytes, reset_less=True)
        part = Signal(range(s.columns_per_word))
        full = Signal()
        m.d.sync += [
            columns.eq(columns >> 1 | Mux(s.go & ~s.write, ones(s.burst), 0)),
            due.eq(Cat(columns[0], due)),
            dq.eq(self.pins.dq.i),
            full.eq(due[-1] & (part == s.columns_per_word - 1)),
        ]
        with m.If(due[-1]):
            m.d.sync += [word.eq(Cat(word, dq) >> 8 * COLUMN_BYTES), part.eq(part + 1)]
        m.d.comb += [queue.w_data.eq(word), queue.w_en.eq(full)]


# -- cycles -------------------------------------------------------------------------------------


def cycles(bursts: Iterable[tuple[int, int]], spec: SdramSpec, port_bytes: int) -> int:
    """Cycles from the first accepted request to the last word at the port, both included.

    Requests (address, words) wait at the port, data are taken at once, all banks are closed at first, and no
    refresh comes: one adds `SdramSpec.refresh_cycles`, give or take a cycle where it falls on a change of rows.
    So ``cycles([(address, 1)], ...)`` is the latency of a word from an idle memory.
    """
    device, burst = spec.device, spec.burst(port_bytes)
    per_word = port_bytes // COLUMN_BYTES // burst
    line_words = (1 << device.column_bits) * COLUMN_BYTES // port_bytes
    row_of: dict[int, int] = {}
    opened: dict[int, int] = {}
    read: dict[int, int] = {}
    emit, before, goes = -1, None, range(0)
    taken = [0, 0, 0]  # the last segments: two wait in the buffer, one before it

    def free(cycle: int) -> int:
        """The first cycle from this one on in which the command pins are free for a PRECHARGE or ACTIVATE."""
        nonlocal goes
        if cycle in goes:
            if burst > 1:
                return cycle + 1
            goes = range(goes.start, goes.stop + 1)  # the access waits
        return cycle

    for address, words in bursts:
        gap, index, line = 2, address % line_words, address // line_words
        while words:
            count = min(words, line_words - index)
            bank, row = line & 3, line >> 2
            emit = max(emit + gap, taken[0])
            prepared = max(emit + 1, taken[-1]) + 2
            if line != before:
                prepared += 1
                if row_of.get(bank) != row:
                    at = prepared
                    if bank in row_of:
                        at = max(at, opened[bank] + spec.ras, read[bank] + max(burst, 2))
                        at = free(at) + spec.rp
                    opened[bank] = at = free(at)
                    prepared = at + max(1, spec.rcd - 1)
            take = max(prepared, goes[-1]) if goes else prepared
            taken = [*taken[1:], take]
            start = max(take + 1, goes[-1] + burst) if goes else take + 1
            goes = range(start, start + count * per_word * burst, burst)
            row_of[bank], read[bank], before = row, goes[-1], line
            words, index, line, gap = words - count, 0, line + 1, 1
    return goes[-1] + burst + spec.cas + spec.round_trip + 6 if goes else 0
