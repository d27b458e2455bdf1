"""The host link: requests from a serial line become memory accesses, starts and answers (docs/protocol.md)."""

from __future__ import annotations

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import ControlPort, MemoryPort
from edgemoe.periph.packet import FrameReceiver, FrameSender
from edgemoe.periph.requests import Requests
from edgemoe.periph.uart import Uart, UartSpec
from edgemoe.protocol import REQUEST, RESPONSE, Identity
from edgemoe.stream import Buffer, connect

RESET_CYCLES = 64
FRAME_SILENCE = 0.05
"""Seconds without a byte that end a frame."""
MEMORY_SILENCE = 0.02
"""Seconds in which the memory moves nothing, after which everything is reset."""


class Endpoint(wiring.Component):
    """Bytes of requests in, bytes of answers out; the link without its line.

    Parameters
    ----------
    identity : Identity
    silence, patience : int
        Cycles without a byte that end a frame; cycles in which the memory moves nothing, after which all is reset.

    Members
    -------
    i : In(stream.Signature(8))
        Always ready. Frames for which there is no room, because answers are not taken, are dropped.
    o : Out(stream.Signature(8))
    memory : Out(MemoryPort)
    control : In(ControlPort())
    reset_core : Out(1)
        See `HostLink`.

    Cycles: see `edgemoe.periph.requests.Requests`.
    """

    def __init__(self, identity: Identity, silence: int, patience: int):
        self.identity, self.silence, self.patience = identity, silence, patience
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
                "memory": Out(MemoryPort(identity.port_bytes)),
                "control": In(ControlPort()),
                "reset_core": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """What the memory leaves hanging is reset."""
        m = Module()
        receiver = FrameReceiver(REQUEST, self.silence)
        requests = Requests(self.identity, self.patience)
        sender = FrameSender(RESPONSE)
        stuck = requests.stuck
        for name, part in (("receiver", receiver), ("requests", requests), ("sender", sender)):
            m.submodules[name] = ResetInserter(stuck)(part)
        connect(m, wiring.flipped(self.i), receiver.i)
        connect(m, requests.header, sender.header)
        for name, source, sink in (
            ("incoming", receiver.o, requests.i),
            ("outgoing", requests.payload, sender.payload),
        ):  # bytes wait in buffers, so that no path of ``ready`` passes through two parts
            m.submodules[name] = buffer = ResetInserter(stuck)(Buffer(source.payload.shape()))
            connect(m, source, buffer.i)
            connect(m, buffer.o, sink)
        connect(m, sender.o, wiring.flipped(self.o))
        wiring.connect(m, requests.memory, wiring.flipped(self.memory))
        wiring.connect(m, wiring.flipped(self.control), requests.control)

        dropped, cooling = Signal(16), Signal(range(RESET_CYCLES + 1))
        with m.If(receiver.dropped):
            m.d.sync += dropped.eq(dropped + 1)
        m.d.sync += self.reset_core.eq(cooling != 0)
        with m.If(requests.reset | stuck):
            m.d.sync += cooling.eq(RESET_CYCLES)
        with m.Elif(cooling != 0):
            m.d.sync += cooling.eq(cooling - 1)
        m.d.comb += [requests.dropped.eq(dropped), requests.resetting.eq((cooling != 0) | self.reset_core)]
        return m


class HostLink(wiring.Component):
    """Between the pins of a serial line and the two ports of the accelerator.

    The link and the core share the memory, one after the other: the link touches it only while ``busy`` is low, and
    gives ``start`` only after all of its own accesses are complete (`edgemoe.periph.share.PortSwitch`).

    Parameters
    ----------
    hardware : HardwareConfig
    clock_hz, baud : int
        Clock of this component's domain and bits per second of the line.
    identity : bytes
        Up to 8 bytes that name the bitstream; IDENTIFY answers with them.
    frame_silence, memory_silence : float
        Seconds; see `FRAME_SILENCE` and `MEMORY_SILENCE`.

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
        High for `RESET_CYCLES`: the accelerator, the memory's controller and everything between them start anew.
    """

    def __init__(
        self,
        hardware: HardwareConfig,
        clock_hz: int,
        baud: int = 3_000_000,
        identity: bytes = b"",
        frame_silence: float = FRAME_SILENCE,
        memory_silence: float = MEMORY_SILENCE,
    ):
        self.hardware, self.clock_hz = hardware, clock_hz
        self.uart = UartSpec(clock_hz, baud)
        self.identity = Identity.of(hardware, clock_hz, identity)
        self.silence, self.patience = (max(2, round(s * clock_hz)) for s in (frame_silence, memory_silence))
        self.control = {name: member.flip() for name, member in ControlPort().members.items()}
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                **MemoryPort(hardware.port_bytes).members,
                **self.control,
                "reset_core": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """The line, and the endpoint with its ports by the names of the accelerator's."""
        m = Module()
        m.submodules.uart = uart = Uart(self.uart)
        m.submodules.endpoint = endpoint = Endpoint(self.identity, self.silence, self.patience)
        connect(m, uart.o, endpoint.i)
        connect(m, endpoint.o, uart.i)
        memory = endpoint.memory
        connect(m, memory.read_request, wiring.flipped(self.read_request))
        connect(m, wiring.flipped(self.read_data), memory.read_data)
        connect(m, memory.write, wiring.flipped(self.write))
        for name, member in self.control.items():
            ours, theirs = getattr(self, name), getattr(endpoint.control, name)
            m.d.comb += ours.eq(theirs) if member.flow == Out else theirs.eq(ours)
        m.d.comb += [
            uart.rx.eq(self.rx),
            self.tx.eq(uart.tx),
            self.reset_core.eq(endpoint.reset_core),
        ]
        return m
