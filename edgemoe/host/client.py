"""Requests over a line, with a window, retries and patience (docs/protocol.md)."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edgemoe.errors import DeviceError
from edgemoe.host.line import Line
from edgemoe.isa import Error
from edgemoe.protocol import (
    ARGUMENTS,
    COUNTED,
    RESPONSE,
    SEQUENCES,
    STATE,
    VERSION,
    WINDOW,
    Command,
    Decoder,
    Frame,
    Identity,
    Status,
)

PATIENCE = 1.0
"""Seconds without a byte from the device after which requests are sent again."""
GREETING = 0.25
"""The same for IDENTIFY, which a device answers at once."""
TRIES = 5
"""How often a request is sent before the device is given up."""
CHECKSUM_RATE = 0.5
"""Bytes per cycle of the device's clock that CHECKSUM reads at least."""

Request = tuple[Command, bytes]


@dataclass(frozen=True)
class State:
    """Answer to STATUS.

    Attributes:
        error: of the last run (`edgemoe.isa.Error`).
        dropped: frames that arrived broken, since power-up, mod 65536.
        counters: of the last run (`edgemoe.protocol.COUNTED`).
    """

    busy: bool
    error: Error | int
    dropped: int
    counters: dict[str, int]


@dataclass
class _Pending:
    """A request on its way, and its answer when it is there."""

    frame: Frame
    raw: bytes
    answer: Frame | None = None


class Client:
    """One session with a device.

    Time-outs count from the last byte that came, or from when the last request can have left: a long transfer is never too long.

    Args:
        line: is not closed here.
        patience: seconds; see `PATIENCE`.
        tries: see `TRIES`.

    Attributes:
        identity: what the device is; `open` fills it in.
        resent: requests that were sent again so far.

    Raises:
        DeviceError: of every method: the device is gone, does not answer, refuses, or was reset meanwhile.
    """

    def __init__(self, line: Line, patience: float = PATIENCE, tries: int = TRIES) -> None:
        self.line, self.patience, self.tries = line, patience, tries
        self.resent = 0
        self._decoder = Decoder(RESPONSE)
        self._next = 0
        self._identity: Identity | None = None

    # -- commands ---------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """What the device is."""
        if self._identity is None:
            return self.open()
        return self._identity

    def open(self) -> Identity:
        """Begin a session: what another program left on its way is forgotten.

        Raises:
            DeviceError: nobody answers, or a device of another version.
        """
        self._next = random.randrange(SEQUENCES)
        (answer,) = self.exchange([(Command.IDENTIFY, b"")], patience=min(GREETING, self.patience))
        version = int.from_bytes(answer.payload[:2], "little")
        try:
            identity = Identity.unpack(answer.payload)
        except ValueError:
            identity = None
        if identity is None or version != VERSION:
            spoken = "a variant" if version == VERSION else f"version {version}"
            raise DeviceError(
                f"{self.line.name}: the bitstream speaks {spoken} of the protocol, this edgemoe version {VERSION}; "
                "write one that this edgemoe built (edgemoe program)"
            )
        self._identity = identity
        return self._identity

    def _ask(self, command: Command, arguments: bytes = b"", patience: float | None = None) -> Frame:
        """One request of a session, and its answer."""
        assert self.identity
        (answer,) = self.exchange([(command, arguments)], patience)
        return answer

    def write(self, address: int, data: bytes, progress: Callable[[int], None] = lambda done: None) -> None:
        """Write whole port words from ``address`` on; ``progress`` is told the bytes that the memory has."""
        identity = self.identity
        size, port = identity.data_bytes, identity.port_bytes
        if len(data) % port:
            raise ValueError(f"{len(data)} bytes are not whole port words of {port}")
        pack = ARGUMENTS[Command.WRITE].pack
        requests = (
            (Command.WRITE, pack(address + at // port) + data[at : at + size])
            for at in range(0, len(data), size)
        )
        for number, _ in enumerate(self.exchange(requests)):
            progress(min((number + 1) * size, len(data)))

    def read(self, address: int, words: int, progress: Callable[[int], None] = lambda done: None) -> bytes:
        """Read ``words`` port words."""
        most = self.identity.data_bytes // self.identity.port_bytes
        pack = ARGUMENTS[Command.READ].pack
        requests = ((Command.READ, pack(address + at, min(most, words - at))) for at in range(0, words, most))
        found = bytearray()
        for answer in self.exchange(requests):
            found += answer.payload
            progress(len(found))
        return bytes(found)

    def checksum(self, address: int, words: int) -> int:
        """CRC-32 of ``words`` port words."""
        identity = self.identity
        seconds = words * identity.port_bytes / (CHECKSUM_RATE * identity.clock_hz)
        arguments = ARGUMENTS[Command.CHECKSUM].pack(address, words)
        answer = self._ask(Command.CHECKSUM, arguments, self.patience + seconds)
        return int.from_bytes(answer.payload, "little")

    def start(self, program: int, image: int, output: int, images: int, task: int) -> None:
        """Start a run; addresses in port words."""
        self._ask(Command.START, ARGUMENTS[Command.START].pack(program, image, output, images, task))

    def status(self) -> State:
        """Is a run going on, and what did the last one count?"""
        busy, error, dropped, *counters = STATE.unpack(self._ask(Command.STATUS).payload)
        known = Error(error) if error in list(Error) else error
        return State(bool(busy & 1), known, dropped, dict(zip(COUNTED, counters)))

    def wait(self, told: Callable[[State], None] = lambda state: None) -> State:
        """Poll until no run goes on; the accelerator ends every run by itself."""
        while True:
            state = self.status()
            told(state)
            if not state.busy:
                return state
            time.sleep(0.001)

    def reset(self) -> None:
        """Reset accelerator and memory controller; the memory's contents may be lost."""
        self._ask(Command.RESET)

    # -- exchange ---------------------------------------------------------------------------

    def exchange(self, requests: Iterable[Request], patience: float | None = None) -> Iterator[Frame]:
        """Send requests, up to a window of them at once, and yield their answers in order.

        What is not answered is sent again, with everything behind it: the device carries nothing out twice.

        Args:
            patience: seconds, in place of the client's.

        Raises:
            DeviceError: see `Client`; or an answer has a status other than OK.
        """
        try:
            yield from self._exchange(iter(requests), self.patience if patience is None else patience)
        except BaseException:
            self._identity = None  # the next command begins a session
            raise

    def _exchange(self, source: Iterator[Request], patience: float) -> Iterator[Frame]:
        window = self._identity.window if self._identity else 1
        pending = deque[_Pending]()
        tries, went_back, more = 1, -1, True
        deadline = 0.0

        def send(items: Iterable[_Pending]) -> float:
            raw = b"".join(item.raw for item in items)
            self.line.write(raw)
            on_line = sum(len(item.raw) for item in pending) * 10 / self.line.baud
            return time.monotonic() + patience + on_line

        while True:
            fresh = []
            while more and len(pending) < window:
                request = next(source, None)
                if request is None:
                    more = False
                    break
                frame = Frame(self._next, *request)
                self._next = (self._next + 1) % SEQUENCES
                fresh.append(_Pending(frame, frame.encode()))
                pending.append(fresh[-1])
            if fresh:
                deadline = send(fresh)
            if not pending:
                return
            data = self.line.read(max(0.0, min(deadline - time.monotonic(), patience)))
            again = False
            if data:
                deadline = max(deadline, time.monotonic() + patience)
                for answer in self._decoder.feed(data):
                    again |= self._match(answer, pending)
            elif time.monotonic() >= deadline:
                self._decoder.silence()
                again, went_back = True, -1
            while pending and pending[0].answer is not None:
                answer = pending.popleft().answer
                assert answer is not None
                tries = 1
                self._check(answer)
                yield answer
            if again and pending and pending[0].frame.sequence != went_back:
                tries += 1
                if tries > self.tries:
                    raise self._silent(pending[0].frame)
                went_back = pending[0].frame.sequence
                left = [item for item in pending if item.answer is None]
                self.resent += len(left)
                deadline = send(left)

    def _match(self, answer: Frame, pending: deque[_Pending]) -> bool:
        """Put an answer to its request; true if one before it was lost."""
        first = pending[0].frame.sequence
        index = (answer.sequence - first) % SEQUENCES
        if index >= len(pending) or answer.command != pending[index].frame.command:
            return False  # of a request that was sent twice, or of an earlier program
        if answer.status == Status.SEQUENCE:
            expected = (int.from_bytes(answer.payload, "little") - first) % SEQUENCES
            if expected >= SEQUENCES - WINDOW:
                return False  # late: what the device asked for then has been answered since
            if expected > len(pending):
                raise DeviceError(
                    f"{self.line.name}: the device began anew in the middle of a transfer, and its memory may have changed; "
                    "check its supply and run the command again"
                )
            return True
        pending[index].answer = answer
        return any(item.answer is None for item in list(pending)[:index])

    def _check(self, answer: Frame) -> None:
        """Raise what the device refused."""
        if answer.status == Status.OK:
            return
        status = answer.status
        name = Status(status).name if status in list(Status) else str(status)
        command = Command(answer.command).name
        raise DeviceError(
            f"{self.line.name}: the device refused {command} with status {name}; reset the board"
        )

    def _silent(self, frame: Frame) -> DeviceError:
        if frame.command == Command.IDENTIFY:
            return DeviceError(
                f"{self.line.name}: no edgemoe device answers at {self.line.baud} baud after {self.tries} tries; "
                "write a bitstream to the board (edgemoe program), or name another port with --tty"
            )
        return DeviceError(
            f"{self.line.name}: no good answer to {Command(frame.command).name} after {self.tries} tries; "
            "check the cable and run the command again"
        )
