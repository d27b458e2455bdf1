"""Carries out the requests of the host link (docs/protocol.md)."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.core.interface import ADDRESS_BITS, MAX_BURST, ControlPort, MemoryPort
from edgemoe.errors import BadInput
from edgemoe.gearbox import Gearbox
from edgemoe.numeric import is_power_of_two
from edgemoe.periph.packet import HEADER_LAYOUT, crc32
from edgemoe.protocol import (
    ARGUMENTS,
    COUNTED,
    DATA_BYTES,
    HEADER,
    STATE,
    WINDOW,
    Command,
    Identity,
    Status,
)
from edgemoe.stream import Buffer, connect

ARGUMENT_BYTES = max(layout.size for layout in ARGUMENTS.values())
STATUS_BITS = max(Status).bit_length()


class Requests(wiring.Component):
    """Requests in, answers out, one after the other.

    Parameters
    ----------
    identity : Identity
        What IDENTIFY answers; also the sizes of the memory.
    patience : int
        Cycles in which the memory moves nothing, after which it is given up.

    Members
    -------
    i : In(stream.Signature(8))
        Frames of `FrameReceiver`.
    header : Out(stream.Signature(HEADER_LAYOUT)), payload : Out(stream.Signature(8))
        To `FrameSender`.
    memory : Out(MemoryPort)
        Used only while ``control.busy`` is low. Of one access everything is done before the next one begins.
    control : In(ControlPort())
        The accelerator's.
    dropped : In(16)
        For STATUS.
    reset : Out(1), resetting : In(1)
        Pulse of RESET; its answer waits while ``resetting`` is high.
    stuck : Out(1)
        The memory was given up: this component and everything around it must be reset.

    Cycles of a request beside those of the memory and the line: the bytes of its frame, and 25; CHECKSUM takes one per byte,
    and the latency of the memory for every `MAX_BURST` words.
    """

    def __init__(self, identity: Identity, patience: int):
        port, words = identity.port_bytes, identity.memory_words
        if port > DATA_BYTES or not is_power_of_two(port) or not is_power_of_two(words):
            raise BadInput(f"link: port_bytes must be a power of two up to {DATA_BYTES}, found {port}")
        self.info, self.patience = identity, patience
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "header": Out(stream.Signature(HEADER_LAYOUT)),
                "payload": Out(stream.Signature(8)),
                "memory": Out(MemoryPort(port)),
                "control": In(ControlPort()),
                "dropped": In(16),
                "reset": Out(1),
                "resetting": In(1),
                "stuck": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        header = Signal(8 * HEADER.size)
        arguments = Signal(8 * ARGUMENT_BYTES)
        self.length, self.sequence, self.command = header[:16], header[16:32], header[32:40]
        self.arguments = arguments
        self.rest = Signal(16)  # bytes of the payload that are still to come
        self.more = Signal()  # one of them may be taken
        self.status, self.execute = Signal(STATUS_BITS), Signal()
        self.words, self.address = Signal(32), Signal(ADDRESS_BITS)
        self.word, self.size, self.left = Signal(32), Signal(16), Signal(16)
        self.busy = Signal()
        self._outside(m)

        count = Signal(range(ARGUMENT_BYTES))
        needed, enough, known_command = Signal(range(ARGUMENT_BYTES + 1)), Signal(), Signal()
        take = Signal()
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += [header.eq(Cat(header[8:], self.i.payload)), count.eq(count + 1)]
                    with m.If(count == HEADER.size - 1):
                        m.next = "SPLIT"
            with m.State("SPLIT"):
                m.d.sync += [known_command.eq(0), needed.eq(0), self.rest.eq(self.length), count.eq(0)]
                with m.Switch(self.command):
                    for command in Command:
                        with m.Case(command):
                            bytes_ = ARGUMENTS[command].size if command in ARGUMENTS else 0
                            m.d.sync += [known_command.eq(1), needed.eq(bytes_)]
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += enough.eq(self.length >= needed)
                m.next = "ARGUMENTS"
            with m.State("ARGUMENTS"):
                m.d.comb += [take.eq(enough & (count < needed)), self.i.ready.eq(take)]
                with m.If(self.i.valid | ~take):
                    m.d.sync += [
                        arguments.eq(Cat(arguments[8:], Mux(take, self.i.payload, 0))),
                        count.eq(count + 1),
                        self.rest.eq(self.rest - take),
                    ]
                    with m.If(count == ARGUMENT_BYTES - 1):
                        m.d.sync += count.eq(0)
                        m.next = "SIZE"
            self._check(m, enough, known_command)
            self._write(m)
            with m.State("DRAIN"):
                m.d.comb += self.i.ready.eq(self.more)
                with m.If(self.rest == 0):
                    m.next = "ACT"
                with m.Elif(self.i.valid & self.more):
                    m.d.sync += self.rest.eq(self.rest - 1)
            self._act(m)
            self._answer(m)
            self._memory(m)
        return m

    def _check(self, m: Module, enough, known_command) -> None:
        """Is it the request that is expected, or a duplicate? Is it well formed, and may it be carried out?"""
        port, bits = self.info.port_bytes, self.info.memory_words.bit_length() - 1
        shift = port.bit_length() - 1
        arguments, command = self.arguments, self.command
        expected, known, open_ = Signal(16), Signal(range(WINDOW + 1)), Signal()
        record = [Signal(STATUS_BITS, name=f"record{k}") for k in range(WINDOW)]
        age, last = Signal(16), Signal(33)
        fresh, duplicate, argument_ok, outside, past = (
            Signal(),
            Signal(),
            Signal(),
            Signal(),
            Signal(STATUS_BITS),
        )
        found = Signal(STATUS_BITS)
        starts = [arguments[32 * k : 32 * k + 32] for k in range(3)]

        with m.State("SIZE"):
            m.d.sync += [age.eq(expected - self.sequence), self.address.eq(arguments)]
            with m.Switch(command):
                with m.Case(Command.WRITE):
                    m.d.sync += self.words.eq(self.rest >> shift)
                with m.Case(Command.READ):
                    m.d.sync += self.words.eq(arguments[32:48])
                with m.Default():
                    m.d.sync += self.words.eq(arguments[32:64])
            m.next = "RANGE"
        with m.State("RANGE"):
            m.d.sync += [
                last.eq(arguments[:32] + self.words - 1),
                fresh.eq(open_ & (age == 0)),
                duplicate.eq(open_ & (age != 0) & (age <= known)),
                past.eq(Array(record)[self.sequence[: WINDOW.bit_length() - 1]]),
                argument_ok.eq(enough & (self.rest == 0)),
            ]
            some = self.words != 0
            with m.Switch(command):
                with m.Case(Command.WRITE):
                    m.d.sync += argument_ok.eq(enough & some & (self.rest[:shift] == 0))
                with m.Case(Command.READ):
                    short = self.words[:16] <= DATA_BYTES // port
                    m.d.sync += argument_ok.eq(enough & some & short & (self.rest == 0))
                with m.Case(Command.CHECKSUM):
                    m.d.sync += argument_ok.eq(enough & some & (self.rest == 0))
                with m.Case(Command.START):
                    images = arguments[96:112]
                    m.d.sync += argument_ok.eq(enough & (images != 0) & (self.rest == 0))
            m.next = "JUDGE"
        with m.State("JUDGE"):
            m.d.sync += [outside.eq(0), found.eq(Status.OK)]
            accesses = Signal()
            with m.Switch(command):
                with m.Case(Command.WRITE, Command.READ, Command.CHECKSUM):
                    m.d.sync += outside.eq(last[bits:] != 0)
                    m.d.comb += accesses.eq(1)
                with m.Case(Command.START):
                    m.d.sync += outside.eq(Cat(start[bits:] for start in starts) != 0)
                    m.d.comb += accesses.eq(1)
            with m.If(~known_command):
                m.d.sync += found.eq(Status.COMMAND)
            with m.Elif(~argument_ok):
                m.d.sync += found.eq(Status.ARGUMENT)
            with m.Elif(accesses & self.busy):
                m.d.sync += found.eq(Status.BUSY)
            m.next = "DECIDE"
        with m.State("DECIDE"):
            status = Mux((found == Status.OK) & outside, Status.ADDRESS, found)
            query = (command == Command.READ) | (command == Command.CHECKSUM) | (command == Command.STATUS)
            m.d.sync += [self.size.eq(0), self.word.eq(expected)]
            m.d.sync += [self.status.eq(status), self.execute.eq((found == Status.OK) & ~outside)]
            with m.If(command == Command.IDENTIFY):
                with m.If(found == Status.OK):
                    m.d.sync += [expected.eq(self.sequence + 1), known.eq(0), open_.eq(1)]
            with m.Elif(fresh):
                m.d.sync += [expected.eq(expected + 1), known.eq(Mux(known == WINDOW, WINDOW, known + 1))]
                m.d.sync += Array(record)[self.sequence[: WINDOW.bit_length() - 1]].eq(status)
            with m.Elif(duplicate):
                with m.If(~query):
                    m.d.sync += [self.status.eq(past), self.execute.eq(0)]
            with m.Else():
                m.d.sync += [self.status.eq(Status.SEQUENCE), self.size.eq(2), self.execute.eq(0)]
            m.next = "BRANCH"
        with m.State("BRANCH"):
            m.next = "DRAIN"
            with m.If(self.execute & (command == Command.WRITE)):
                m.next = "WRITE"

    def _write(self, m: Module) -> None:
        """The rest of the payload goes to the memory."""
        widen = self.widen
        write = self.memory.write
        with m.State("WRITE"):
            m.d.comb += [
                widen.i.valid.eq(self.i.valid & self.more),
                widen.i.payload.eq(self.i.payload),
                self.i.ready.eq(widen.i.ready & self.more),
                write.valid.eq(widen.o.valid & ~self.written),
            ]
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += self.rest.eq(self.rest - 1)
            with m.If(self.written):
                m.d.sync += [self.address.eq(self.address + 1), self.words.eq(self.words - 1)]
                with m.If(self.words == 1):
                    m.next = "REPLY"

    def _act(self, m: Module) -> None:
        """All but WRITE, and the length of the answer."""
        control = self.control
        with m.State("ACT"):
            m.next = "REPLY"
            with m.If(self.execute):
                with m.Switch(self.command):
                    with m.Case(Command.IDENTIFY):
                        m.d.sync += self.size.eq(Identity.LAYOUT.size)
                    with m.Case(Command.READ):
                        m.d.sync += self.size.eq(self.words << (self.info.port_bytes.bit_length() - 1))
                    with m.Case(Command.CHECKSUM):
                        m.d.comb += self.crc.start.eq(1)
                        m.d.sync += self.size.eq(4)
                        m.next = "BURST"
                    with m.Case(Command.START):
                        m.d.comb += control.start.eq(1)
                    with m.Case(Command.STATUS):
                        first = Cat(self.busy, Const(0, 7), control.error, Const(0, 4), self.dropped)
                        m.d.sync += [self.size.eq(STATE.size), self.word.eq(first)]
                    with m.Case(Command.RESET):
                        m.d.comb += self.reset.eq(1)
                        m.next = "RESET"
        with m.State("RESET"):
            with m.If(~self.resetting & ~self.reset):
                m.next = "REPLY"
        with m.State("CHECKSUM"):
            m.d.sync += self.word.eq(self.crc.crc)
            m.next = "REPLY"

    def _answer(self, m: Module) -> None:
        """Header, and the payload from the ROM, the memory, or word by word."""
        header, payload = self.header, self.payload
        place, byte = Signal(range(max(Identity.LAYOUT.size, STATE.size))), Signal(8)
        sent = payload.valid & payload.ready
        with m.State("REPLY"):
            m.d.comb += [
                header.valid.eq(1),
                header.payload.length.eq(self.size),
                header.payload.sequence.eq(self.sequence),
                header.payload.command.eq(self.command),
                header.payload.status.eq(self.status),
            ]
            m.d.sync += [place.eq(0), self.left.eq(self.size)]
            with m.If(header.ready):
                m.next = "WORD"
                with m.If(self.size == 0):
                    m.next = "HEADER"
                with m.Elif(self.execute & (self.command == Command.IDENTIFY)):
                    m.next = "ROM"
                with m.Elif(self.execute & (self.command == Command.READ)):
                    m.next = "BURST"
        with m.State("ROM"):
            with m.Switch(place):
                for at, value in enumerate(self.info.pack()):
                    with m.Case(at):
                        m.d.sync += byte.eq(value)
            m.next = "TELL"
        with m.State("TELL"):
            m.d.comb += [payload.valid.eq(1), payload.payload.eq(byte)]
            with m.If(sent):
                m.d.sync += [place.eq(place + 1), self.left.eq(self.left - 1)]
                m.next = "ROM"
                with m.If(self.left == 1):
                    m.next = "HEADER"
        with m.State("WORD"):
            m.d.comb += [payload.valid.eq(1), payload.payload.eq(self.word[:8])]
            with m.If(sent):
                m.d.sync += [
                    place.eq(place + 1),
                    self.left.eq(self.left - 1),
                    self.word.eq(self.word >> 8),
                ]
                with m.If(place[:2] == 3):
                    m.next = "LOAD"
                with m.If(self.left == 1):
                    m.next = "HEADER"
        with m.State("LOAD"):
            with m.Switch(place[2:]):
                for number, name in enumerate(COUNTED):
                    with m.Case(number + 1):
                        m.d.sync += self.word.eq(getattr(self.control, name))
            m.next = "WORD"

    def _memory(self, m: Module) -> None:
        """Words of READ and CHECKSUM, burst by burst."""
        narrow, bytes_, burst, sums = self.narrow, self.bytes, self.burst, self.sums
        some = self.some  # burst != 0
        request, read, payload = self.memory.read_request, self.memory.read_data, self.payload
        with m.State("BURST"):
            m.d.sync += [burst.eq(Mux(self.words >= MAX_BURST, MAX_BURST, self.words)), some.eq(1)]
            m.next = "REQUEST"
        with m.State("REQUEST"):
            m.d.comb += [request.valid.eq(1), self.waiting.eq(1)]
            with m.If(request.ready):
                m.d.sync += [self.address.eq(self.address + burst), self.words.eq(self.words - burst)]
                m.next = "FLOW"
        with m.State("FLOW"):
            m.d.comb += [
                self.waiting.eq(1),
                narrow.i.valid.eq(read.valid & some & ~read.ready),
                payload.valid.eq(bytes_.valid & ~sums),
                payload.payload.eq(bytes_.payload),
                bytes_.ready.eq(sums | payload.ready),
                self.crc.valid.eq(bytes_.valid & sums),
                self.moved.eq(bytes_.valid & bytes_.ready),
            ]
            m.d.sync += read.ready.eq(narrow.i.valid & narrow.i.ready)
            with m.If(read.ready):
                m.d.sync += [burst.eq(burst - 1), some.eq(burst != 1)]
            with m.If(~some & ~narrow.o.valid & ~bytes_.valid):
                m.next = "HEADER"
                with m.If(self.words != 0):
                    m.next = "BURST"
                with m.Elif(sums):
                    m.next = "CHECKSUM"

    def _outside(self, m: Module) -> None:
        """What does not depend on the state: wires, and the patience with the memory."""
        port = self.info.port_bytes
        m.submodules.crc = self.crc = crc32()
        m.submodules.widen = self.widen = Gearbox(1, port)
        m.submodules.narrow = self.narrow = Gearbox(port, 1)
        m.submodules.bytes = bytes_ = Buffer(8)  # ends the way of ``ready``
        connect(m, self.narrow.o, bytes_.i)
        self.bytes = bytes_.o
        self.burst, self.some, self.sums = Signal(range(MAX_BURST + 1)), Signal(), Signal()
        # A word passes the memory port in one cycle and the gearbox beside it in another: ``ready`` ends, or begins, at a register.
        self.written = Signal()
        self.waiting, self.moved, silence = Signal(), Signal(), Signal(range(self.patience + 1))
        request, read, write = self.memory.read_request, self.memory.read_data, self.memory.write
        m.d.sync += [
            self.sums.eq(self.command == Command.CHECKSUM),
            self.written.eq(write.valid & write.ready),
        ]
        m.d.comb += [
            self.crc.data.eq(self.bytes.payload),
            request.payload.address.eq(self.address),
            request.payload.length.eq(self.burst - 1),
            self.narrow.i.payload.eq(read.payload),
            self.widen.o.ready.eq(self.written),
            write.payload.address.eq(self.address),
            write.payload.data.eq(self.widen.o.payload),
        ]
        at = 0
        for name, width in (("program", 32), ("image", 32), ("output", 32), ("images", 16), ("task", 8)):
            m.d.comb += getattr(self.control, name).eq(self.arguments[at : at + width])
            at += width
        m.d.sync += [
            self.busy.eq(self.control.busy),
            # a register: bytes are taken in every other cycle
            self.more.eq((self.rest != 0) & ~(self.i.valid & self.i.ready)),
            silence.eq(silence + 1),
            self.stuck.eq(silence == self.patience),
        ]
        with m.If(self.moved | (write.valid & write.ready) | ~(self.waiting | write.valid)):
            m.d.sync += silence.eq(0)
