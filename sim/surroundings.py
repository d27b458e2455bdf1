"""The accelerator's surroundings in a cocotb simulation: external memory, control port and the monitor's records.

Same model and same files as ``harness.cpp``, written a second time on another simulator interface, so that the two
can be held against each other: data in the order of the requests, random gaps on all three streams, records as
bytes. Memory is one array that is loaded and compared as a whole; ports are touched only where something happens.
"""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import ADDRESS_BITS, COUNTERS, LENGTH_BITS, MAX_BURST
from edgemoe.numeric import ceil_div
from edgemoe.simulation.records import CYCLE_BYTES, layouts

LATENCY = 30
"""Cycles from a request to its first word."""
QUEUE = 16
"""Requests that the memory accepts before it has answered the first."""
ADDRESSES, LENGTHS = (1 << ADDRESS_BITS) - 1, (1 << LENGTH_BITS) - 1


class Surroundings:
    """Drives all ports of the accelerator; ``contents`` are the bytes of the external memory."""

    def __init__(self, handle, hardware: HardwareConfig, contents: dict[int, bytes]):
        self.handle, self.port, self.now = handle, hardware.port_bytes, 0
        self.memory = bytearray(b"\xa5" * hardware.memory_bytes)
        for address, raw in contents.items():
            self.memory[address : address + len(raw)] = raw
        self.bursts: deque[list[int]] = deque()
        self.offered = False
        self.records: dict[str, bytearray] = {kind: bytearray() for kind in layouts(hardware)}
        self.monitor = [
            (getattr(handle, f"monitor__{kind}_valid"), getattr(handle, f"monitor__{kind}"), self.records[kind],
             ceil_div(layout.size, 8))
            for kind, layout in layouts(hardware).items()
        ]  # fmt: skip
        self.request, self.data, self.write = (
            [getattr(handle, f"memory__{stream}__{part}") for part in ("valid", "payload", "ready")]
            for stream in ("read_request", "read_data", "write")
        )

    async def reset(self) -> None:
        """Start the clock; four cycles of reset."""
        handle = self.handle
        for port in (handle.clk, handle.control__start, self.data[0], self.request[2], self.write[2]):
            port.value = 0
        handle.rst.value = 1
        Clock(handle.clk, 10, unit="ns").start()
        for _ in range(4):
            await FallingEdge(handle.clk)
        handle.rst.value = 0

    async def start(self, limit: int = 200_000, stalls: int = 0, **control: int) -> int:
        """Give the start pulse, and return the cycles up to and with ``done``; ``stalls`` is a seed of gaps."""
        handle, rng, begin = self.handle, random.Random(stalls), self.now
        for records in self.records.values():
            records.clear()
        for name, value in control.items():
            getattr(handle, f"control__{name}").value = value
        handle.control__start.value = 1
        ends = []
        while not ends or self.now < ends[0] + 9:  # a second pulse of done would be noticed
            assert self.now - begin < limit, (
                f"not done after {limit} cycles, error {int(handle.control__error.value)}"
            )
            await self.cycle(self.now - begin, *(stalls and rng.random() < 0.25 for _ in range(3)))
            if handle.control__done.value == 1:
                ends.append(self.now)
            self.now += 1
            await FallingEdge(handle.clk)
            handle.control__start.value = 0
        assert len(ends) == 1 and not self.bursts and handle.control__busy.value == 0
        return ends[0] - begin + 1

    async def cycle(self, number: int, no_data: bool, no_request: bool, no_write: bool) -> None:
        """Offer inputs, and note what is transferred at the next rising edge."""
        if not self.offered and self.bursts and self.bursts[0][0] <= self.now and not no_data:
            self.offered = True
            at = self.bursts[0][1] * self.port
            self.data[1].value = int.from_bytes(self.memory[at : at + self.port], "little")
        self.data[0].value = int(self.offered)
        accepts = len(self.bursts) < QUEUE and not no_request
        self.request[2].value = int(accepts)
        self.write[2].value = int(not no_write)
        await ReadOnly()
        if self.offered and self.data[2].value == 1:
            self.offered = False
            self.bursts[0][1] += 1
            self.bursts[0][2] -= 1
            if not self.bursts[0][2]:
                self.bursts.popleft()
        if accepts and self.request[0].value == 1:
            raw = int(self.request[1].value)
            address, words = raw & ADDRESSES, (raw >> ADDRESS_BITS & LENGTHS) + 1
            assert words <= MAX_BURST and (address + words) * self.port <= len(self.memory)
            self.bursts.append([self.now + LATENCY, address, words])
        if not no_write and self.write[0].value == 1:
            raw = int(self.write[1].value)
            at = (raw & ADDRESSES) * self.port
            assert at < len(self.memory)
            self.memory[at : at + self.port] = (raw >> ADDRESS_BITS).to_bytes(self.port, "little")
        for valid, payload, records, size in self.monitor:
            if valid.value == 1:
                records += number.to_bytes(CYCLE_BYTES, "little") + int(payload.value).to_bytes(
                    size, "little"
                )

    def counters(self) -> dict[str, int]:
        """The control port's counters."""
        return {name: int(getattr(self.handle, f"control__{name}").value) for name in COUNTERS}

    def save(self, prefix: Path) -> None:
        """Write the records as `edgemoe.simulation.records` reads them."""
        for kind, records in self.records.items():
            Path(f"{prefix}.{kind}").write_bytes(records)
