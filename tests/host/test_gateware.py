"""The client and the gateware of the link, with nothing in software between them but a memory."""

import random
import zlib

from amaranth.sim import Simulator

from edgemoe.host.client import Client
from edgemoe.periph.link import Endpoint
from edgemoe.protocol import COUNTED
from periph.link_bench import PATIENCE, SILENCE, identity


class Gateware:
    """A line that ends in a simulated `Endpoint`; time passes while the host reads."""

    name, baud = "gateware", 3_000_000

    def __init__(self, about):
        self.dut, self.port = Endpoint(about, SILENCE, PATIENCE), about.port_bytes
        self.memory = bytearray(random.Random(1).randbytes(about.memory_words * about.port_bytes))
        self.up, self.down, self.starts = bytearray(), bytearray(), []
        self.simulator = Simulator(self.dut)
        self.simulator.add_clock(1e-6)
        self.simulator.add_testbench(self._serve, background=True)

    async def _serve(self, ctx):
        dut, port = self.dut, self.port
        request, data, store, control = (
            dut.memory.read_request, dut.memory.read_data, dut.memory.write, dut.control,
        )  # fmt: skip
        for number, name in enumerate(COUNTED):
            ctx.set(getattr(control, name), number + 100)
        for ready in (dut.o.ready, request.ready, store.ready):
            ctx.set(ready, 1)
        queue = []
        while True:
            sent = bool(self.up)  # what comes now is seen in the next cycle
            ctx.set(dut.i.valid, sent)
            ctx.set(dut.i.payload, self.up[0] if sent else 0)
            ctx.set(data.valid, bool(queue))
            ctx.set(data.payload, queue[0] if queue else 0)
            _, _, valid, byte, asked, at, length, taken, stored, where, word, start, task = await ctx.tick().sample(
                dut.o.valid, dut.o.payload, request.valid, request.payload.address, request.payload.length,
                data.ready, store.valid, store.payload.address, store.payload.data, control.start, control.task,
            )  # fmt: skip
            del self.up[:sent]
            if taken and queue:
                queue.pop(0)
            if valid:
                self.down.append(byte)
            if asked:
                raw = self.memory[at * port : (at + length + 1) * port]
                queue += [int.from_bytes(raw[k : k + port], "little") for k in range(0, len(raw), port)]
            if stored:
                self.memory[where * port : (where + 1) * port] = word.to_bytes(port, "little")
            if start:
                self.starts.append(task)

    def write(self, data):
        self.up += data

    def read(self, seconds):
        for _ in range(10_000):
            if self.down:
                break
            self.simulator.advance()
        data, self.down = bytes(self.down), bytearray()
        return data

    def close(self):
        pass


def test_the_client_talks_to_the_gateware():
    about = identity()
    line = Gateware(about)
    client = Client(line, patience=60)
    assert client.open() == about
    data = random.Random(2).randbytes(1500 // 8 * 8)
    client.write(20, data)
    assert line.memory[160:][: len(data)] == data
    assert client.read(19, 20) == line.memory[152:][:160]
    assert client.checksum(0, 120) == zlib.crc32(line.memory[:960])
    client.start(1, 2, 3, 4, 5)
    state = client.wait()
    assert line.starts == [5] and state.error == 0 and state.dropped == 0
    assert state.counters == {name: number + 100 for number, name in enumerate(COUNTED)}
    assert client.resent == 0
