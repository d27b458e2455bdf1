"""What the host talks over: a serial line, or anything else that takes and gives bytes."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from typing import Protocol

from edgemoe.errors import DeviceError, ToolMissing


class Line(Protocol):
    """Bytes in both directions.

    Attributes:
        name: what the user calls it; errors begin with it.
        baud: bits per second, ten of which are a byte.
    """

    name: str
    baud: int

    def write(self, data: bytes) -> None:
        """Send all of ``data``; may return before it is on the line.

        Raises:
            DeviceError: the device is gone.
        """
        ...

    def read(self, seconds: float) -> bytes:
        """Wait for at least one byte, for at most so long; return what is there.

        Raises:
            DeviceError: the device is gone.
        """
        ...

    def close(self) -> None:
        """Give the line back."""
        ...


class SerialLine:
    """A serial port.

    Args:
        tty: such as /dev/ttyUSB0.
        baud: bits per second.

    Raises:
        DeviceError: there is no such port, it may not be opened, or another program has it.
        ToolMissing: pyserial is not installed.
    """

    def __init__(self, tty: str, baud: int) -> None:
        try:
            import serial
        except ModuleNotFoundError:
            raise ToolMissing("pyserial is missing; get it with: pip install 'edgemoe[hw]'") from None
        self.name, self.baud = tty, baud
        self._gone = (serial.SerialException, OSError, ValueError)
        try:
            self._port = serial.Serial(tty, baud, timeout=0, write_timeout=None, exclusive=True)
        except self._gone as error:
            raise DeviceError(f"{tty}: {_reason(error)}; {_remedy(error)}") from None
        with suppress(AttributeError, *self._gone):  # not every driver can; answers then take up to 16 ms
            self._port.set_low_latency_mode(True)

    def write(self, data: bytes) -> None:
        """See `Line`."""
        try:
            self._port.write(data)
        except self._gone as error:
            raise self._lost(error) from None

    def read(self, seconds: float) -> bytes:
        """See `Line`."""
        try:
            self._port.timeout = seconds
            first = self._port.read(1)
            return first + self._port.read(self._port.in_waiting) if first else b""
        except self._gone as error:
            raise self._lost(error) from None

    def close(self) -> None:
        """See `Line`."""
        with suppress(*self._gone):
            self._port.close()

    def _lost(self, error: Exception) -> DeviceError:
        return DeviceError(
            f"{self.name}: the device is gone ({_reason(error)}); check the cable, then run the command again"
        )


def _reason(error: Exception) -> str:
    """What the system says, without pyserial's words around it."""
    number = getattr(error, "errno", None)
    found = re.search(r"\[Errno (\d+)\]", str(error))
    if found and not number:
        number = int(found[1])
    return os.strerror(number).lower() if number else " ".join(str(error).split())


def _remedy(error: Exception) -> str:
    return {
        errno.ENOENT: "plug the board in, or name its port with --tty",
        errno.EACCES: "join the group that owns it (often dialout or uucp)",
        errno.EAGAIN: "end the program that has it open",
        errno.EBUSY: "end the program that has it open",
    }.get(getattr(error, "errno", 0) or 0, "name the board's port with --tty")
