"""The host link: requests from a serial line become memory accesses, starts and answers (docs/protocol.md)."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import COUNTERS, ControlPort, MemoryPort


class HostLink(wiring.Component):
    """Between the pins of a serial line and the two ports of the accelerator.

    The link and the core share the memory, one after the other: the link touches it only while ``busy`` is low, and
    gives ``start`` only after all of its own accesses are complete.

    Parameters
    ----------
    hardware : HardwareConfig
    clock_hz, baud : int
        Clock of this component's domain and bits per second of the line.
    identity : bytes
        Up to 8 bytes that name the bitstream; `identify` answers with them.

    Members
    -------
    rx : In(1)
        Asynchronous; 8 bits, no parity, one stop bit.
    tx : Out(1)
    read_request, write : Out(stream), read_data : In(stream)
        A memory port as its master (`edgemoe.core.interface.MemoryPort`).
    start, program, image, output, images, task : Out
    busy, done, error, and the counters : In
        The accelerator's control port, by its names.
    reset_core : Out(1)
        High for `RESET_CYCLES`: the accelerator and everything between it and the memory start anew.
    """

    def __init__(self, hardware: HardwareConfig, clock_hz: int, baud: int = 3_000_000, identity: bytes = b""):
        self.hardware, self.clock_hz, self.baud, self.identity = hardware, clock_hz, baud, identity
        control = {name: member.flip() for name, member in ControlPort().members.items()}
        assert set(COUNTERS) < set(control)
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                **MemoryPort(hardware.port_bytes).members,
                **control,
                "reset_core": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """A silent line; what the requests do comes next."""
        return Module()
