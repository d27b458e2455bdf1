"""Lines that end in a device in software: in memory, with faults, or behind a pseudo terminal."""

from __future__ import annotations

import os
import pty
import select
import threading
import time
import tty
from collections.abc import Callable

from edgemoe.host.virtual import VirtualDevice

Fault = Callable[[bytes], bytes]


class Pipe:
    """A line without delay.

    Args:
        up, down: what becomes of the bytes of one write and of the answers to them.
        most: bytes that a read returns at most.
    """

    def __init__(
        self, device: VirtualDevice, up: Fault = bytes, down: Fault = bytes, name="pipe", most=1 << 30
    ):
        self.device, self.up, self.down, self.most = device, up, down, most
        self.name, self.baud = name, 3_000_000
        self.sent, self.waiting, self.closed = 0, b"", False

    def write(self, data):
        self.sent += len(data)
        self.waiting += self.down(self.device.feed(self.up(data)))

    def read(self, seconds):
        if not self.waiting:
            self.device.silence()
            time.sleep(seconds)
        data, self.waiting = self.waiting[: self.most], self.waiting[self.most :]
        return data

    def close(self):
        self.closed = True


class Terminal:
    """A device behind a pseudo terminal, served by a thread; as a context, `path` is its port.

    Args:
        unplug: bytes of requests after which the device vanishes.
    """

    def __init__(self, device: VirtualDevice, unplug: int | None = None):
        self.device, self.left = device, unplug
        self._end = threading.Event()

    def __enter__(self):
        self._host, port = pty.openpty()
        tty.setraw(port)
        self.path = os.ttyname(port)
        self._port = port  # held, so that the host may close and open it again
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(5)
        for end in (self._host, self._port):
            if end is not None:
                os.close(end)

    def _serve(self):
        while not self._end.is_set():
            if not select.select([self._host], [], [], 0.02)[0]:
                self.device.silence()
                continue
            data = os.read(self._host, 4096)
            if self.left is not None:
                self.left -= len(data)
                if self.left <= 0:
                    os.close(self._port)
                    os.close(self._host)
                    self._host = self._port = None
                    return
            answer = self.device.feed(data)
            while answer:
                answer = answer[os.write(self._host, answer) :]
