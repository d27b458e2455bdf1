"""The host link between its pins, after synthesis, against its golden twin: every command, and frames that are broken, late or sent twice."""

import random
from dataclasses import fields

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, Timer

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import ADDRESS_BITS
from edgemoe.host.virtual import Start, VirtualDevice
from edgemoe.periph.link import HostLink
from edgemoe.protocol import ARGUMENTS, COUNTED, Command, Frame

HARDWARE = HardwareConfig(
    name="toy", in_lanes=8, out_lanes=8, port_bytes=8, tokens=8, dim=16, row=16, hidden=16, image=64,
    memory_bytes=1 << 12,
)  # fmt: skip
PORT, WORDS = HARDWARE.port_bytes, HARDWARE.memory_words
BIT = 8
"""Cycles of a bit on the line."""
BAUD = 3_000_000
SILENCE = 40 * BIT
"""Cycles without a byte that end a frame: four bytes."""
RUN = [field.name for field in fields(Start)]
"""Ports that say what a run is about."""


def component():
    clock_hz = BIT * BAUD
    return HostLink(HARDWARE, clock_hz, BAUD, b"a bit", SILENCE / clock_hz, 100 * SILENCE / clock_hz)


class World:
    """The memory and the accelerator behind the link, cycle by cycle, and a UART at its pins."""

    def __init__(self, dut, twin, drawn):
        self.dut, self.drawn = dut, drawn
        self.words = [
            int.from_bytes(twin.memory[at : at + PORT], "little") for at in range(0, WORDS * PORT, PORT)
        ]
        self.queue, self.offered = [], False
        self.starts, self.resets, self.reset_before = [], 0, 0
        self.got = bytearray()
        self.shift, self.age = [], -1
        """Bits of the byte that comes, and cycles since its start bit began."""

    async def cycle(self):
        """One cycle; the memory idles in half of them."""
        dut, drawn = self.dut, self.drawn
        asks, stores = drawn.getrandbits(1), drawn.getrandbits(1)
        self.offered = self.offered or bool(self.queue) and bool(drawn.getrandbits(1))
        dut.read_request__ready.value, dut.write__ready.value = asks, stores
        dut.read_data__valid.value = self.offered
        if self.offered:
            dut.read_data__payload.value = self.queue[0]
        await Timer(1, "ns")  # what follows from these without a register
        if asks and dut.read_request__valid.value:
            request = int(dut.read_request__payload.value)
            at, length = request % (1 << ADDRESS_BITS), request >> ADDRESS_BITS
            self.queue += self.words[at : at + length + 1]
        if stores and dut.write__valid.value:
            store = int(dut.write__payload.value)
            self.words[store % (1 << ADDRESS_BITS)] = store >> ADDRESS_BITS
        if self.offered and dut.read_data__ready.value:
            self.queue.pop(0)
            self.offered = False
        if dut.start.value:
            self.starts.append(Start(*(int(getattr(dut, name).value) for name in RUN)))
        reset = int(dut.reset_core.value)
        self.resets += reset and not self.reset_before
        self.reset_before = reset
        self._receive(int(dut.tx.value))
        await FallingEdge(dut.clk)

    def _receive(self, level):
        """Sample ``tx`` in the middle of each bit."""
        if self.age < 0:
            if level:
                return
            self.shift, self.age = [], 0
        elif self.age % BIT == BIT // 2:
            self.shift.append(level)
        self.age += 1
        if len(self.shift) == 10:
            assert self.shift[0] == 0 and self.shift[9] == 1, "a byte without start or stop bit"
            self.got.append(sum(bit << k for k, bit in enumerate(self.shift[1:9])))
            self.age = -1

    async def send(self, data):
        """Bytes on ``rx``."""
        for byte in data:
            for bit in (0, *(byte >> k & 1 for k in range(8)), 1):
                self.dut.rx.value = bit
                for _ in range(BIT):
                    await self.cycle()

    async def wait(self, cycles):
        for _ in range(cycles):
            await self.cycle()


def requests(drawn):
    """What is sent, in the groups after which the answers are awaited."""
    pack = {command: layout.pack for command, layout in ARGUMENTS.items()}

    def write(number, address, words):
        return Frame(number, Command.WRITE, pack[Command.WRITE](address) + drawn.randbytes(words * PORT))

    def read(number, address, words):
        return Frame(number, Command.READ, pack[Command.READ](address, words))

    run = Frame(505, Command.START, pack[Command.START](7, 8, WORDS - 1, 300, 200))
    damaged = bytearray(read(506, 0, 1).encode())
    damaged[-5] ^= 0x10
    yield Frame(500, Command.IDENTIFY).encode()
    yield write(501, 3, 6).encode() + read(502, 2, 8).encode() + Frame(503, Command.STATUS).encode()
    yield Frame(504, Command.CHECKSUM, pack[Command.CHECKSUM](0, 40)).encode() + run.encode()
    yield run.encode()  # twice, but carried out once
    yield read(507, 0, 1).encode()  # not the one that comes next
    yield bytes(damaged)
    yield write(506, 0, 4).encode()[:-9]  # its end is missing
    yield write(506, WORDS - 20, 20).encode() + read(507, WORDS - 21, 21).encode()
    yield read(508, WORDS - 1, 2).encode() + Frame(509, Command.STATUS).encode() + Frame(510, 77).encode()
    yield drawn.randbytes(30)
    yield Frame(511, Command.RESET).encode() + Frame(512, Command.STATUS).encode()


@cocotb.test()
async def answers_equal_those_of_the_golden_twin(dut):
    drawn = random.Random(3)
    twin = VirtualDevice(component().identity)
    twin.memory[:] = drawn.randbytes(len(twin.memory))
    twin.counters = {name: drawn.getrandbits(32) for name in COUNTED}
    world = World(dut, twin, drawn)
    dut.rx.value, dut.busy.value, dut.done.value, dut.error.value = 1, 0, 0, 0
    for name, value in twin.counters.items():
        getattr(dut, name).value = value
    dut.read_data__valid.value = dut.read_request__ready.value = dut.write__ready.value = 0
    dut.rst.value = 1
    await Timer(1, "ns")  # before the first edge
    Clock(dut.clk, 10, "ns").start()
    for _ in range(4):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    await world.wait(20 * BIT)

    expected = bytearray()
    for data in requests(drawn):
        expected += twin.feed(data)
        await world.send(data)
        for _ in range(400):
            if len(world.got) >= len(expected):
                break
            await world.wait(10 * BIT)
        twin.silence()
        await world.wait(SILENCE + 20 * BIT)
        assert world.got == expected, f"after {data.hex()}"
    assert b"".join(word.to_bytes(PORT, "little") for word in world.words) == twin.memory
    assert world.starts == twin.starts and len(world.starts) == 1
    assert world.resets == twin.resets == 1
    assert len(expected) > 300
