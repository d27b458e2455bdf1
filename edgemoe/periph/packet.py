"""Frames of the host link in gateware: from the bytes of a line, and to them (docs/protocol.md)."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.crc import Processor, catalog
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from edgemoe.errors import BadInput
from edgemoe.numeric import is_power_of_two
from edgemoe.protocol import CHECK_BYTES, CRC_BYTES, HEADER, MAX_PAYLOAD
from edgemoe.stream import Buffer, connect, pipeline

HEADER_LAYOUT = data.StructLayout({"length": 16, "sequence": 16, "command": 8, "status": 8})
"""`edgemoe.protocol.HEADER`, the first byte lowest."""
MARGIN = 8
"""Places of the queue that stay empty: whether it is full is known some cycles late."""


def crc32() -> Processor:
    """CRC-32 of a byte a cycle; known one cycle later."""
    return Processor(catalog.CRC32_ISO_HDLC(data_width=8))


class FrameReceiver(wiring.Component):
    """Bytes -> the frames whose checks hold, whole, one after the other.

    Parameters
    ----------
    magic : bytes
        First two bytes of a frame.
    silence : int
        Cycles without a byte after which a frame that has begun is dropped.
    depth : int
        Bytes of the queue, a power of two. A frame for which it has no room is dropped.

    Members
    -------
    i : In(stream.Signature(8))
        Always ready.
    o : Out(stream.Signature(8))
        The header (6 bytes, `HEADER_LAYOUT`), then the payload.
    dropped : Out(1)
        Pulse: a header or frame was wrong, cut off, or had no room.

    Throughput: one byte per cycle, both ends. Latency: 3 cycles from the last byte of a frame. Cost: one block RAM on an
    ECP5 with the default depth.
    """

    class State(enum.Enum, shape=3):
        """What the next byte is."""

        FIRST = 0
        SECOND = 1
        HEADER = 2
        CHECK = 3
        PAYLOAD = 4
        CRC = 5

    def __init__(self, magic: bytes, silence: int, depth: int = 2048):
        if not is_power_of_two(depth) or depth < MAX_PAYLOAD + HEADER.size + MARGIN:
            raise BadInput(f"link: depth must be a power of two that holds a frame, found {depth}")
        self.magic, self.silence, self.depth = magic, silence, depth
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8)), "dropped": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        state = Signal(self.State)
        byte, came = self.i.payload, self.i.valid
        m.submodules.crc = crc = crc32()
        push, commit, revoke = Signal(), Signal(), Signal()
        overflow = self._queue(m, byte, push, commit, revoke)
        m.d.comb += [self.i.ready.eq(1), crc.data.eq(byte), crc.valid.eq(push)]
        m.d.sync += self.dropped.eq(revoke)

        length, left, place = Signal(16), Signal(16), Signal(3)
        wrong, good = Signal(), Signal()
        with m.Switch(place):
            for k in range(CRC_BYTES):
                with m.Case(k):
                    m.d.comb += good.eq(~wrong & (byte == crc.crc[8 * k : 8 * k + 8]))
        with m.If(came):
            m.d.sync += place.eq(place + 1)
            with m.Switch(state):
                with m.Case(self.State.FIRST):
                    with m.If(byte == self.magic[0]):
                        m.d.sync += state.eq(self.State.SECOND)
                with m.Case(self.State.SECOND):
                    m.d.comb += crc.start.eq(1)
                    m.d.sync += [place.eq(0), wrong.eq(0)]
                    with m.If(byte == self.magic[1]):
                        m.d.sync += state.eq(self.State.HEADER)
                    with m.Elif(byte != self.magic[0]):
                        m.d.sync += state.eq(self.State.FIRST)
                with m.Case(self.State.HEADER):
                    m.d.comb += push.eq(1)
                    with m.If(place < 2):
                        m.d.sync += length.eq(Cat(length[8:], byte))
                    with m.If(place == HEADER.size - 1):
                        m.d.sync += [place.eq(0), state.eq(self.State.CHECK)]
                with m.Case(self.State.CHECK):
                    m.d.sync += [wrong.eq(~good | (length > MAX_PAYLOAD)), left.eq(length)]
                    with m.If(place == CHECK_BYTES - 1):
                        m.d.sync += [place.eq(0), state.eq(self.State.PAYLOAD)]
                        with m.If(left == 0):
                            m.d.sync += state.eq(self.State.CRC)
                        with m.If(wrong | ~good):
                            m.d.comb += revoke.eq(1)
                with m.Case(self.State.PAYLOAD):
                    m.d.comb += push.eq(1)
                    m.d.sync += [left.eq(left - 1), place.eq(0)]
                    with m.If(left == 1):
                        m.d.sync += state.eq(self.State.CRC)
                with m.Case(self.State.CRC):
                    m.d.sync += wrong.eq(~good)
                    with m.If(place == CRC_BYTES - 1):
                        m.d.sync += state.eq(self.State.FIRST)
                        m.d.comb += [commit.eq(good & ~overflow), revoke.eq(~good | overflow)]

        waited, expired = Signal(range(self.silence + 1)), Signal()
        m.d.sync += [waited.eq(waited + 1), expired.eq(waited == self.silence - 1)]
        with m.If(came | (state == self.State.FIRST)):
            m.d.sync += [waited.eq(0), expired.eq(0)]
        with m.If(expired & ~came):
            m.d.sync += state.eq(self.State.FIRST)
            m.d.comb += revoke.eq(state != self.State.SECOND)
        with m.If(revoke):
            m.d.sync += state.eq(self.State.FIRST)
        return m

    def _queue(self, m: Module, byte: Value, push: Value, commit: Value, revoke: Value) -> Value:
        """Bytes behind the last commit do not come out, and are forgotten if they are revoked.

        Returns:
            Whether one of them found no room.
        """
        memory = m.submodules.memory = Memory(shape=8, depth=self.depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        head, committed, tail = (Signal(range(2 * self.depth), name=n) for n in ("head", "committed", "tail"))
        level, full, overflow, some = Signal.like(head), Signal(), Signal(), Signal()
        m.d.sync += [level.eq(head - tail), full.eq(level >= self.depth - MARGIN)]
        m.d.comb += [
            write.addr.eq(head),
            write.data.eq(byte),
            write.en.eq(push & ~full),
        ]
        with m.If(push):
            m.d.sync += [head.eq(head + 1), overflow.eq(overflow | full)]
            with m.If(full):
                m.d.sync += head.eq(head)
        with m.If(commit):
            m.d.sync += committed.eq(head)
        with m.If(revoke):
            m.d.sync += head.eq(committed)
        with m.If(commit | revoke):
            m.d.sync += overflow.eq(0)

        enable, valid = pipeline(m, some, self.o.ready, 2)
        m.d.comb += [
            some.eq(tail != committed),
            read.addr.eq(tail),
            read.en.eq(enable),
            self.o.valid.eq(valid),
        ]
        with m.If(enable):
            m.d.sync += self.o.payload.eq(read.data)
            with m.If(some):
                m.d.sync += tail.eq(tail + 1)
        return overflow


class FrameSender(wiring.Component):
    """A header and its payload -> bytes.

    Parameters
    ----------
    magic : bytes

    Members
    -------
    header : In(stream.Signature(HEADER_LAYOUT))
        Taken when the frame before has left.
    payload : In(stream.Signature(8))
        ``length`` bytes.
    o : Out(stream.Signature(8))

    Throughput: one byte per cycle, and one cycle between frames. Latency: 2 cycles.
    """

    def __init__(self, magic: bytes):
        self.magic = magic
        super().__init__(
            {
                "header": In(stream.Signature(HEADER_LAYOUT)),
                "payload": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform) -> Module:
        """One register holds what is sent next: first bytes, header, check; then the payload; then the CRC."""
        m = Module()
        m.submodules.buffer = buffer = Buffer(8)
        connect(m, buffer.o, wiring.flipped(self.o))
        out = buffer.i
        m.submodules.crc = crc = crc32()
        header = Signal(8 * HEADER.size)
        length, place = Signal(16), Signal(3)
        sent = Signal()
        m.d.comb += [sent.eq(out.valid & out.ready), crc.data.eq(out.payload)]
        with m.If(sent):
            m.d.sync += place.eq(place + 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.header.ready.eq(1), crc.start.eq(1)]
                m.d.sync += [
                    header.eq(Value.cast(self.header.payload)),
                    length.eq(self.header.payload.length),
                    place.eq(0),
                ]
                with m.If(self.header.valid):
                    m.next = "MAGIC"
            with m.State("MAGIC"):
                m.d.comb += [out.valid.eq(1), out.payload.eq(Const(self.magic[0], 8))]
                with m.If(place[0]):
                    m.d.comb += out.payload.eq(Const(self.magic[1], 8))
                    with m.If(sent):
                        m.d.sync += place.eq(0)
                        m.next = "HEADER"
            with m.State("HEADER"):
                m.d.comb += [out.valid.eq(1), out.payload.eq(header[:8]), crc.valid.eq(sent)]
                with m.If(sent):
                    m.d.sync += header.eq(header >> 8)
                    with m.If(place == HEADER.size - 1):
                        m.d.sync += place.eq(0)
                        m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += [out.valid.eq(1), out.payload.eq(crc.crc.word_select(place[0], 8))]
                with m.If(sent & place[0]):
                    m.d.sync += place.eq(0)
                    m.next = "PAYLOAD"
                    with m.If(length == 0):
                        m.next = "CRC"
            with m.State("PAYLOAD"):
                m.d.comb += [
                    out.valid.eq(self.payload.valid),
                    out.payload.eq(self.payload.payload),
                    self.payload.ready.eq(out.ready),
                    crc.valid.eq(sent),
                ]
                with m.If(sent):
                    m.d.sync += [length.eq(length - 1), place.eq(0)]
                    with m.If(length == 1):
                        m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += [out.valid.eq(1), out.payload.eq(crc.crc.word_select(place[:2], 8))]
                with m.If(sent & (place == CRC_BYTES - 1)):
                    m.next = "IDLE"
        return m
