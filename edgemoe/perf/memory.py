"""The external memory behind its port, and the stream of weights that comes from it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edgemoe.config import HardwareConfig
from edgemoe.core.guard import Guard
from edgemoe.core.interface import MAX_BURST
from edgemoe.numeric import ceil_div
from edgemoe.perf.clock import Clock, Process

CLIENTS = 3
"""Readers of the memory port: fetch, weight DMA, loader."""
READY = 3
"""Fill words behind the gearbox: its own, and two in a buffer."""
WRITTEN = 8
"""Port words that the model writes at a time."""
FULL = 1024
"""Port words per 1024 cycles of a memory that is never the bottleneck."""
REQUESTS = 16
"""Read requests that the memory, and the arbiter, have under way at most."""


@dataclass
class Burst:
    """Words of the memory; once data come, the first and the last cycle in which they do, evenly in between."""

    words: int
    accepted: int
    first: int = 0
    last: int = 0

    def known(self) -> bool:
        """Whether data come."""
        return self.last > 0

    def word(self, index: int) -> int:
        """Cycle of a word."""
        return self.first + (self.last - self.first) * index // max(self.words - 1, 1)


class Port:
    """The memory port: clients in rotation, data in the order of the requests.

    ``bandwidth`` words per 1024 cycles may pass, in either direction. Where both want to, they take turns.
    """

    def __init__(self, clock: Clock, bandwidth: int, latency: int) -> None:
        self.clock, self.bandwidth, self.latency = clock, bandwidth, latency
        self.wanted: dict[int, int] = {}
        """Words that each client asks for."""
        self.given: dict[int, Burst] = {}
        self.coming: deque[Burst] = deque()
        self.free = 0
        """Cycle from which the read data are free."""
        self.credit, self.credit_at = 2 * FULL, 0
        clock.start(self._arbitrate())
        clock.start(self._deliver())

    def read(self, client: int, words: int) -> Process:
        """Ask for ``words`` words from the next cycle on; returns the burst, in the cycle that grants it."""
        yield self.clock.now + 1
        self.wanted[client] = words
        yield lambda: client in self.given
        return self.given.pop(client)

    def write(self, words: int) -> Process:
        """Write ``words`` words from now on; ends in the cycle after the last one."""
        while words and self.bandwidth < FULL:
            part = min(words, WRITTEN)
            share = 2 if self.free > self.clock.now else 1
            self.credit -= FULL * part
            yield self.clock.now + max(part, ceil_div(FULL * part * share, self.bandwidth))
            words -= part
        yield self.clock.now + words

    def _arbitrate(self) -> Process:
        turn = 0
        while True:
            yield lambda: self.wanted
            yield self.clock.now  # all that ask in this cycle have done so
            client = min(self.wanted, key=lambda c: (c - turn) % CLIENTS)
            words, turn = self.wanted.pop(client), client + 1
            self.given[client] = burst = Burst(words, self.clock.now + 1)
            yield burst.accepted
            yield lambda: len(self.coming) < REQUESTS
            burst.accepted = self.clock.now
            self.coming.append(burst)

    def _deliver(self) -> Process:
        while True:
            yield lambda: self.coming
            burst = self.coming[0]
            yield max(burst.accepted + Guard.LATENCY + self.latency, self.free)
            burst.first, burst.last = self._move(burst.words)
            self.free = burst.last + 1
            yield self.free
            self.coming.popleft()

    def _move(self, words: int) -> tuple[int, int]:
        """First and last cycle of read data that could begin now."""
        now = self.clock.now
        if self.bandwidth == FULL:
            return now, now + words - 1
        credit = min(2 * FULL, self.credit + (now - self.credit_at) * self.bandwidth)
        begin, end = (
            now + max(word - 1, ceil_div(FULL * word - credit, self.bandwidth)) for word in (1, words)
        )
        self.credit, self.credit_at = credit + (end - now) * self.bandwidth - FULL * words, end
        return begin, end


class Stream:
    """The weight stream: bursts under way or in the queue, taken as fill words."""

    def __init__(self, hardware: HardwareConfig, latency: int) -> None:
        self.latency, self.places = latency, hardware.prefetch_bytes // hardware.port_bytes
        self.burst = min(MAX_BURST, self.places // 4)
        self.per_word = max(1, hardware.fill_bytes // hardware.port_bytes)
        self.per_port = max(1, hardware.port_bytes // hardware.fill_bytes)
        self.bursts: deque[Burst] = deque()
        self.taken = 0
        """Fill words of the first burst that have been taken."""
        self.assembled = 0
        """Cycle in which the next fill word can be put together at the earliest."""

    @property
    def left(self) -> int:
        """Fill words that the first burst still has."""
        return self.bursts[0].words * self.per_port // self.per_word - self.taken

    def arrival(self, ahead: int) -> int:
        """Cycle of the fill word that is ``ahead`` behind the next one, within the first burst."""
        index = self.taken + ahead
        word = self.bursts[0].word(((index + 1) * self.per_word - 1) // self.per_port)
        return word + self.latency + index % self.per_port

    def take(self, now: int, words: int) -> int:
        """Take fill words of the first burst from cycle ``now`` on; the cycle of the last one.

        Where a fill word is several port words, `READY` of them are put together while nobody takes any.
        """
        last = words - 1
        begin = max(now, self.arrival(0))
        self.assembled = max(self.assembled, begin - (READY - 1) * self.per_word)
        end = max(begin + last, self.arrival(last), self.assembled + last * self.per_word)
        self.assembled = max(self.assembled + words * self.per_word, self.arrival(last) + self.per_word)
        return end

    def remove(self, words: int) -> None:
        """Free the places of fill words that have been taken."""
        before, self.taken = self.taken, self.taken + words
        self.places += (self.taken * self.per_word) // self.per_port - (
            before * self.per_word
        ) // self.per_port
        if not self.left:
            self.bursts.popleft()
            self.taken = 0
