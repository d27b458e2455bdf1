"""What the test benches of the core share: streams in and out, and an external memory.

Nothing here waits inside ``until``, so that a bench may end while it runs.
"""

import random
import warnings

import pytest
from amaranth.sim import Simulator


def simulate(dut, testbenches=(), background=(), processes=()):
    """Run until all of ``testbenches`` return."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for process in processes:
        simulator.add_process(process)
    for testbench in background:
        simulator.add_testbench(testbench, background=True)
    for testbench in testbenches:
        simulator.add_testbench(testbench)
    simulator.run()


def refuses(message, component, *arguments, **options):
    """The constructor of ``component`` raises ValueError with ``message``."""
    component._MustUse__silence = True  # Amaranth would warn of the object that never came to be
    with pytest.raises(ValueError, match=message):
        component(*arguments, **options)


def send(port, payloads, rng=None):
    """Test bench that sends ``payloads``; with ``rng`` it idles in half of the cycles."""

    async def testbench(ctx):
        for payload in payloads:
            while rng and rng.random() < 0.5:
                await ctx.tick()
            ctx.set(port.payload, payload)
            ctx.set(port.valid, 1)
            ready = False
            while not ready:
                _, _, ready = await ctx.tick().sample(port.ready)
            ctx.set(port.valid, 0)

    return testbench


def receive(port, amount, into, rng=None, limit=100_000):
    """Test bench that takes ``amount`` payloads (None: for ever); with ``rng`` it idles in half of the cycles."""

    async def testbench(ctx):
        for _ in range(limit):
            if len(into) == amount:
                return
            ready = not (rng and rng.random() < 0.5)
            ctx.set(port.ready, ready)
            _, _, valid, payload = await ctx.tick().sample(port.valid, port.payload)
            if ready and valid:
                into.append(payload)
        raise AssertionError(f"{len(into)} of {amount} after {limit} cycles")

    return testbench


class MemoryModel:
    """Serves one pair of request and data streams of a device from ``words`` (a list, or address -> int)."""

    def __init__(self, request, data, words, latency=5, stall=False, seed=0):
        self.request, self.data, self.words = request, data, words
        self.latency, self.stall, self.rng = latency, stall, random.Random(seed)
        self.requests = []
        """(address, words) of every request so far."""
        self.sent = []
        """Cycle in which each word was taken."""
        self.cycle = 0
        self.waiting = 0
        """Cycles in which a word was offered and not taken."""

    def read(self, address):
        """The word at ``address``; a list repeats."""
        return self.words[address % len(self.words)] if isinstance(self.words, list) else self.words(address)

    async def run(self, ctx):
        """Background test bench."""
        queue = []  # (cycle from which it may be sent, word)
        offered = False
        while True:
            ready = not (self.stall and self.rng.random() < 0.5)
            ctx.set(self.request.ready, ready)
            if (
                queue
                and queue[0][0] <= self.cycle
                and (offered or not (self.stall and self.rng.random() < 0.3))
            ):
                offered = True
                ctx.set(self.data.payload, queue[0][1])
            ctx.set(self.data.valid, offered)
            _, _, asked, payload, taken = await ctx.tick().sample(
                self.request.valid, self.request.payload, self.data.ready
            )
            if offered and taken:
                queue.pop(0)
                self.sent.append(self.cycle)
                offered = False
            else:
                self.waiting += offered
            if asked and ready:
                address, length = int(payload.address), int(payload.length) + 1
                self.requests.append((address, length))
                due = self.cycle + self.latency + (self.rng.randrange(self.latency) if self.stall else 0)
                queue += [(due, self.read(address + i)) for i in range(length)]
            self.cycle += 1
