"""Frames between host and device, as both ends have them (docs/protocol.md).

Pure Python: the gateware (`edgemoe.periph.link`) takes the constants from here, the host the functions.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import IntEnum

from edgemoe.config import HardwareConfig
from edgemoe.errors import BadInput

VERSION = 1
REQUEST, RESPONSE = b"\xe5\x4d", b"\xe5\xb2"
"""First two bytes of a frame; they differ, so that an echo is no answer."""
HEADER = struct.Struct("<HHBB")
"""Length of the payload, sequence number, command, status (0 in a request); behind the first two bytes."""
CHECK_BYTES, CRC_BYTES = 2, 4
DATA_BYTES = 1024
"""Bytes of memory in the longest frame."""
MAX_PAYLOAD = 4 + DATA_BYTES
WINDOW = 16
"""Requests that may be on their way; the device remembers the status of as many."""
SEQUENCES = 1 << 16


class Command(IntEnum):
    """What a request asks for."""

    IDENTIFY = 0
    WRITE = 1
    READ = 2
    CHECKSUM = 3
    START = 4
    STATUS = 5
    RESET = 6


QUERIES = {Command.READ, Command.CHECKSUM, Command.STATUS}
"""Change nothing; a duplicate is carried out again."""


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    COMMAND = 1
    """There is no such command."""
    ARGUMENT = 2
    """The payload is not what the command takes."""
    ADDRESS = 3
    """Beyond the external memory."""
    BUSY = 4
    """The accelerator runs."""
    SEQUENCE = 5
    """Not the request that comes next; the payload is the number that does."""


ARGUMENTS: dict[Command, struct.Struct] = {
    Command.WRITE: struct.Struct("<I"),
    Command.READ: struct.Struct("<IH"),
    Command.CHECKSUM: struct.Struct("<II"),
    Command.START: struct.Struct("<IIIHB"),
}
"""Begin of the payload of each command: address; address, words; the same; program, image, output, images, task."""
COUNTED = (
    "cycles",
    "mac_cycles",
    "weight_stalls",
    "activation_stalls",
    "read_words",
    "write_words",
    "saturated",
)
"""The accelerator's counters in the answer to STATUS, which come behind busy, error and the dropped frames."""
STATE = struct.Struct(f"<BBH{len(COUNTED)}I")


# -- frames -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A request or, with a status, a response."""

    sequence: int
    command: int
    payload: bytes = b""
    status: int = 0

    def encode(self, magic: bytes = REQUEST) -> bytes:
        """The frame as it is on the line."""
        header = HEADER.pack(len(self.payload), self.sequence, self.command, self.status)
        check = zlib.crc32(header)
        crc = zlib.crc32(self.payload, check)
        return (
            magic
            + header
            + (check & 0xFFFF).to_bytes(CHECK_BYTES, "little")
            + self.payload
            + crc.to_bytes(CRC_BYTES, "little")
        )


class Decoder:
    """Bytes of a line -> frames whose checks hold; whatever else there is, is skipped.

    Byte by byte what the gateware does: after a header or a frame that is wrong the search for the first two bytes goes on
    with the byte behind it.

    Attributes:
        dropped: headers and frames that were wrong or cut off.
    """

    def __init__(self, magic: bytes = REQUEST) -> None:
        self.magic, self.dropped = magic, 0
        self._bytes = bytearray()
        self._length: int | None = None

    @property
    def inside(self) -> bool:
        """Whether the line is within a frame."""
        return bool(self._bytes)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that ``data`` complete."""
        at = 0
        while at < len(data):
            wanted = self._wanted()
            part = data[at : at + wanted - len(self._bytes)]
            self._bytes += part
            at += len(part)
            if len(self._bytes) == wanted:
                frame = self._step()
                if frame is not None:
                    yield frame

    def silence(self) -> None:
        """The line was silent for too long: a frame that has begun is dropped."""
        self.dropped += len(self._bytes) > 1
        self._restart()

    def _wanted(self) -> int:
        """Number of bytes at which something is decided next."""
        if len(self._bytes) < 2:
            return len(self._bytes) + 1
        whole = 2 + HEADER.size + CHECK_BYTES
        return whole if self._length is None else whole + self._length + CRC_BYTES

    def _restart(self) -> None:
        self._bytes.clear()
        self._length = None

    def _step(self) -> Frame | None:
        raw = self._bytes
        if len(raw) <= 2:
            if not self.magic.startswith(raw):
                del raw[:-1]
                if raw != self.magic[:1]:
                    raw.clear()
            return None
        header, rest = raw[2 : 2 + HEADER.size], raw[2 + HEADER.size :]
        length, sequence, command, status = HEADER.unpack(header)
        if self._length is None:
            if zlib.crc32(header) & 0xFFFF != int.from_bytes(rest, "little") or length > MAX_PAYLOAD:
                self.dropped += 1
                self._restart()
            else:
                self._length = length
            return None
        payload = bytes(rest[CHECK_BYTES:-CRC_BYTES])
        good = zlib.crc32(payload, zlib.crc32(header)) == int.from_bytes(rest[-CRC_BYTES:], "little")
        self._restart()
        self.dropped += not good
        return Frame(sequence, command, payload, status) if good else None


# -- what a device is ---------------------------------------------------------------------------

CAPACITIES = (
    "in_lanes", "out_lanes", "slot_sets", "norm_lanes", "post_lanes", "gate_lanes", "b_bits", "acc_bits", "prefetch_bytes",
    "tokens", "dim", "row", "hidden", "image", "heads", "experts", "top_k",
)  # fmt: skip
"""Numbers of a `HardwareConfig` that a device tells."""


def hardware_hash(hardware: HardwareConfig) -> bytes:
    """8 bytes that differ if a program for one hardware could not run on the other; name and memory size do not count."""
    values = asdict(replace(hardware, name="", memory_bytes=1 << 20))
    return hashlib.sha256(repr(sorted(values.items())).encode()).digest()[:8]


@dataclass(frozen=True)
class Identity:
    """Answer to IDENTIFY.

    Attributes:
        bitstream: up to 8 bytes that the maker of the bitstream chose.
        capacities: by the names of `CAPACITIES`.
    """

    version: int
    window: int
    data_bytes: int
    port_bytes: int
    memory_words: int
    clock_hz: int
    hardware_hash: bytes
    bitstream: bytes
    name: str
    capacities: dict[str, int]

    LAYOUT = struct.Struct(f"<HHHHII8s8s16s{len(CAPACITIES)}I")

    @classmethod
    def of(cls, hardware: HardwareConfig, clock_hz: int, bitstream: bytes = b"") -> Identity:
        """What a device with this hardware tells.

        Raises:
            BadInput: ``bitstream`` is longer than 8 bytes.
        """
        if len(bitstream) > 8:
            raise BadInput(f"link: identity must be at most 8 bytes, found {len(bitstream)}")
        return cls(
            VERSION, WINDOW, DATA_BYTES, hardware.port_bytes, hardware.memory_words, clock_hz,
            hardware_hash(hardware), bitstream.ljust(8, b"\0"), hardware.name[:16],
            {key: getattr(hardware, key) for key in CAPACITIES},
        )  # fmt: skip

    def pack(self) -> bytes:
        """The payload."""
        return self.LAYOUT.pack(
            self.version, self.window, self.data_bytes, self.port_bytes, self.memory_words, self.clock_hz,
            self.hardware_hash, self.bitstream, self.name.encode("ascii", "replace"), *self.capacities.values(),
        )  # fmt: skip

    @classmethod
    def unpack(cls, payload: bytes) -> Identity:
        """The device that sent this payload.

        Raises:
            ValueError: it is not one of this version.
        """
        if len(payload) != cls.LAYOUT.size:
            raise ValueError(f"identity has {len(payload)} bytes, must be {cls.LAYOUT.size}")
        *numbers, digest, bitstream, name = cls.LAYOUT.unpack(payload)[:9]
        capacities = dict(zip(CAPACITIES, cls.LAYOUT.unpack(payload)[9:]))
        return cls(*numbers, digest, bitstream, name.rstrip(b"\0").decode("ascii", "replace"), capacities)
