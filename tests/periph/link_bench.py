"""An `Endpoint` with a memory and a stand-in for the accelerator, driven beside its golden twin."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

from core.memory import simulate
from edgemoe.config import HardwareConfig
from edgemoe.host.virtual import Start, VirtualDevice
from edgemoe.periph.link import Endpoint
from edgemoe.protocol import COUNTED, RESPONSE, Command, Decoder, Frame, Identity

HARDWARE = HardwareConfig(
    name="toy", in_lanes=8, out_lanes=8, port_bytes=8, tokens=8, dim=16, row=16, hidden=16, image=64,
    memory_bytes=1 << 14,
)  # fmt: skip
SILENCE, PATIENCE = 200, 2000
"""Cycles that end a frame, and those after which the memory is given up."""
ERROR = 7


def identity(port_bytes=8):
    return Identity.of(replace(HARDWARE, port_bytes=port_bytes), 80_000_000, b"a bit")


class Twin(VirtualDevice):
    """Is busy when the test says so, and tells the error that the control port of the bench has all the time."""

    level = False
    busy = property(lambda self: self.level, lambda self, value: None)
    error = property(lambda self: ERROR, lambda self, value: None)


class Bench:
    """Plays a list of events to gateware and golden twin.

    Args:
        stall: memory and the taker of the answers idle in half of the cycles.
        early: broken frames may come behind a STATUS that is not yet answered, and are then counted in its answer.

    Attributes:
        got, expected: bytes of the answers.
        starts: runs that the gateware asked for.
        resets: how often ``reset_core`` rose.
    """

    def __init__(self, about: Identity, stall=False, seed=0, early=False):
        self.about, self.stall, self.early, self.rng = about, stall, early, random.Random(seed)
        self.dut = Endpoint(about, SILENCE, PATIENCE)
        self.twin = Twin(about)
        self.twin.memory[:] = self.rng.randbytes(len(self.twin.memory))
        self.twin.counters = {name: self.rng.getrandbits(32) for name in COUNTED}
        port = about.port_bytes
        self.words = [
            int.from_bytes(self.twin.memory[at : at + port], "little")
            for at in range(0, len(self.twin.memory), port)
        ]
        self.got, self.expected = bytearray(), bytearray()
        self.starts, self.resets = [], 0
        self.dead, self.take = False, True
        """The memory is silent; the answers are taken."""

    def memory(self):
        """The words as bytes."""
        return b"".join(word.to_bytes(self.about.port_bytes, "little") for word in self.words)

    def play(self, *events):
        """Events: bytes to send, ("busy", v), ("silence",), or an async function of the context."""
        dut, idle = self.dut, lambda: self.stall and self.rng.random() < 0.5

        async def world(ctx):
            """Takes answers, serves the memory and watches the control port."""
            port, control = dut.memory, dut.control
            request, data, store = port.read_request, port.read_data, port.write
            queue, offered, before = [], False, 0
            run = (control.program, control.image, control.output, control.images, control.task)
            while True:
                takes = self.take and not idle()
                asks, stores = not (idle() or self.dead), not (idle() or self.dead)
                offered = offered or bool(queue) and not (idle() or self.dead)
                ctx.set(dut.o.ready, takes)
                ctx.set(request.ready, asks)
                ctx.set(store.ready, stores)
                ctx.set(data.valid, offered)
                if offered:
                    ctx.set(data.payload, queue[0])
                _, _, valid, byte, asked, taken, stored, started, reset, *values = await ctx.tick().sample(
                    dut.o.valid, dut.o.payload, request.valid, data.ready, store.valid, control.start, dut.reset_core,
                    request.payload.address, request.payload.length, store.payload.address, store.payload.data,
                    *run,
                )  # fmt: skip
                if valid and takes:
                    self.got.append(byte)
                if asked and asks:
                    queue += self.words[values[0] : values[0] + values[1] + 1]
                if stored and stores:
                    self.words[values[2]] = values[3]
                if offered and taken:
                    queue.pop(0)
                    offered = False
                if started:
                    self.starts.append(Start(*map(int, values[4:])))
                if reset:
                    queue, offered = [], False
                self.resets += reset and not before
                before = reset

        async def player(ctx):
            ctx.set(dut.control.error, ERROR)
            for name, value in self.twin.counters.items():
                ctx.set(getattr(dut.control, name), value)
            for event in events:
                if isinstance(event, bytes):
                    self.expected += self.twin.feed(event)
                    for byte in event:
                        ctx.set(dut.i.payload, byte)
                        ctx.set(dut.i.valid, 1)
                        await ctx.tick()
                        assert ctx.get(dut.i.ready)
                        ctx.set(dut.i.valid, 0)
                        if self.stall:
                            await ctx.tick().repeat(self.rng.randrange(1, 5))
                elif event == ("silence",):
                    self.twin.silence()
                    await ctx.tick().repeat(SILENCE + 5)
                elif isinstance(event, tuple):
                    ctx.set(dut.control.busy, event[1])
                    self.twin.level = bool(event[1])
                else:
                    await event(ctx)
                if self.take and not self.dead:
                    await self.quiet(ctx)

        simulate(dut, [player], [world])

    async def quiet(self, ctx, limit=15_000):
        """Wait for the answers that are due, and see that no more come."""
        for _ in range(limit):
            if len(self.got) >= len(self.expected):
                break
            await ctx.tick()
        await ctx.tick().repeat(80)
        if self.early:
            assert without_dropped(self.got) == without_dropped(self.expected)
            assert len(self.got) == len(self.expected)
        else:
            assert bytes(self.got) == bytes(self.expected)

    def answered(self, magic):
        """The answers so far."""
        return list(Decoder(magic).feed(bytes(self.got)))


def without_dropped(data):
    """The answers in ``data``, without the number of dropped frames that STATUS tells."""
    return [
        replace(frame, payload=frame.payload[:2] + bytes(2) + frame.payload[4:])
        if frame.command == Command.STATUS and frame.status == 0
        else frame
        for frame in Decoder(RESPONSE).feed(bytes(data))
    ]


def write(sequence, address, data):
    return Frame(sequence, Command.WRITE, struct.pack("<I", address) + data)


def read(sequence, address, count):
    return Frame(sequence, Command.READ, struct.pack("<IH", address, count))


def checksum(sequence, address, count):
    return Frame(sequence, Command.CHECKSUM, struct.pack("<II", address, count))


def start(sequence, program=1, image=2, output=3, images=1, task=0):
    return Frame(sequence, Command.START, struct.pack("<IIIHB", program, image, output, images, task))


def plain(command, sequence):
    return Frame(sequence, command)
