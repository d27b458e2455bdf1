"""A device in software: answers requests byte for byte as the gateware does (docs/protocol.md)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from edgemoe.config import HardwareConfig
from edgemoe.protocol import (
    ARGUMENTS,
    COUNTED,
    DATA_BYTES,
    QUERIES,
    RESPONSE,
    SEQUENCES,
    STATE,
    WINDOW,
    Command,
    Decoder,
    Frame,
    Identity,
    Status,
)


@dataclass(frozen=True)
class Start:
    """A run that was asked for; addresses in port words."""

    program: int
    image: int
    output: int
    images: int
    task: int


class VirtualDevice:
    """The golden twin of `edgemoe.periph.link.Endpoint`.

    Args:
        identity: sizes, and what IDENTIFY answers.
        run: carries out a start: changes `memory`, `counters` and `error`. By default nothing happens.

    Attributes:
        memory: the external memory.
        busy: whether a run lasts; STATUS ends it after ``polls`` more times.
        error, counters: of the last run.
        starts: all runs that were asked for.
        resets: number of RESETs.
    """

    def __init__(
        self, identity: Identity, run: Callable[[VirtualDevice, Start], None] = lambda device, start: None
    ) -> None:
        self.identity, self.run = identity, run
        self.memory = bytearray(identity.memory_words * identity.port_bytes)
        self.busy, self.polls, self.error = False, 0, 0
        self.counters = dict.fromkeys(COUNTED, 0)
        self.starts: list[Start] = []
        self.resets = 0
        self.decoder = Decoder()
        self._expected: int | None = None
        self._known = 0
        self._record = [0] * WINDOW

    def feed(self, data: bytes) -> bytes:
        """The answers to what comes on the line."""
        return b"".join(self.answer(frame).encode(RESPONSE) for frame in self.decoder.feed(data))

    def silence(self) -> None:
        """Nothing comes for as long as ends a frame."""
        self.decoder.silence()

    def answer(self, frame: Frame) -> Frame:
        """Carry out a request, unless it is a duplicate or not the one that is expected."""
        sequence, slot = frame.sequence, frame.sequence % WINDOW
        if frame.command == Command.IDENTIFY:
            status, payload = self._carry_out(frame)
            if status == Status.OK:
                self._expected, self._known = (sequence + 1) % SEQUENCES, 0
        elif sequence == self._expected:
            status, payload = self._carry_out(frame)
            self._record[slot] = status
            self._expected = (sequence + 1) % SEQUENCES
            self._known = min(self._known + 1, WINDOW)
        elif self._expected is not None and (self._expected - sequence) % SEQUENCES <= self._known:
            if frame.command in QUERIES:
                status, payload = self._carry_out(frame)
            else:
                status, payload = self._record[slot], b""
        else:
            status, payload = Status.SEQUENCE, (self._expected or 0).to_bytes(2, "little")
        return Frame(sequence, frame.command, payload, status)

    def _carry_out(self, frame: Frame) -> tuple[int, bytes]:
        if frame.command not in Command.__members__.values():
            return Status.COMMAND, b""
        command = Command(frame.command)
        layout = ARGUMENTS.get(command, struct.Struct(""))
        if len(frame.payload) < layout.size:
            return Status.ARGUMENT, b""
        arguments = layout.unpack(frame.payload[: layout.size])
        rest = frame.payload[layout.size :]
        port, words = self.identity.port_bytes, self.identity.memory_words
        if command == Command.WRITE:
            well = rest and len(rest) % port == 0
        else:
            well = not rest
        address, count = 0, 0
        if command in (Command.WRITE, Command.READ, Command.CHECKSUM):
            address = arguments[0]
            count = len(rest) // port if command == Command.WRITE else arguments[1]
            well = well and count and (command != Command.READ or count * port <= DATA_BYTES)
        if command == Command.START:
            well = well and arguments[3]
        if not well:
            return Status.ARGUMENT, b""
        if self.busy and command in (Command.WRITE, Command.READ, Command.CHECKSUM, Command.START):
            return Status.BUSY, b""
        beyond = address + count > words
        if command == Command.START:
            beyond = max(arguments[:3]) >= words
        if beyond:
            return Status.ADDRESS, b""
        place = slice(address * port, (address + count) * port)
        match command:
            case Command.WRITE:
                self.memory[place] = rest
            case Command.READ:
                return Status.OK, bytes(self.memory[place])
            case Command.CHECKSUM:
                return Status.OK, zlib.crc32(self.memory[place]).to_bytes(4, "little")
            case Command.START:
                self._start(Start(*arguments))
            case Command.STATUS:
                return Status.OK, self._state()
            case Command.RESET:
                self.busy, self.resets = False, self.resets + 1
            case Command.IDENTIFY:
                return Status.OK, self.identity.pack()
        return Status.OK, b""

    def _start(self, start: Start) -> None:
        self.starts.append(start)
        self.error = 0
        self.run(self, start)
        self.busy = self.polls > 0

    def _state(self) -> bytes:
        state = STATE.pack(
            self.busy, self.error, self.decoder.dropped & 0xFFFF, *(self.counters[k] for k in COUNTED)
        )
        if self.busy:
            self.polls -= 1
            self.busy = self.polls > 0
        return state


def golden_run(hardware: HardwareConfig) -> Callable[[VirtualDevice, Start], None]:
    """What a device with this hardware does at a start: the golden machine's outputs go to the memory."""

    def run(device: VirtualDevice, start: Start) -> None:
        from edgemoe.golden import Machine
        from edgemoe.program import MachineError

        port = hardware.port_bytes
        machine = Machine(hardware, bytes(device.memory[start.program * port :]))
        try:
            result = machine.run(bytes(device.memory[start.image * port :]), start.task, start.images)
        except MachineError as error:
            device.error = int(error.code)
            return
        at = start.output * port
        device.memory[at : at + len(result.output)] = result.output
        device.counters["saturated"] = result.saturated

    return run
