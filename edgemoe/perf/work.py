"""Descriptors on their way, the queues in which they wait, and the phases that they become."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from edgemoe.core import sequencer
from edgemoe.core.fifo import Fifo
from edgemoe.isa import Descriptor, Op
from edgemoe.numeric import IntArray
from edgemoe.perf.clock import Clock, Process


@dataclass
class Item:
    """A descriptor of one image, and what is noted about it; ``visits`` are (expert, tokens) of each visit of EXPERTS.

    ``multiples`` is how often its ``stride`` is added to its address: the task or the image.
    """

    image: int
    number: int
    sequence: int
    descriptor: Descriptor
    visits: list[tuple[int, int]]
    multiples: int
    finish: int = 0
    bytes: int = 0
    beats: int = 0
    weights: int = 0
    activations: int = 0
    pace: int = 0

    @property
    def products(self) -> list[tuple[int, int]]:
        """Rows, and words of a row of operand B, of the products of a visit."""
        d = self.descriptor
        first = (d.rows, d.words << d.double)
        return [first, (d.rows2, d.words2)] if d.op == Op.EXPERTS else [first]


class Queue:
    """`edgemoe.core.fifo.Fifo` of descriptors: a memory, and two registers that stand still while the output waits."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.memory: deque[tuple[int, Item]] = deque()
        """What it holds, and the cycles from which it can be read."""
        self.middle: Item | None = None
        self.output: Item | None = None
        self.at = 0
        """The cycle whose state is known."""
        self.left_at = -1
        """The cycle in which one left the memory last: its place is free from the next on."""

    @property
    def room(self) -> bool:
        """Whether it takes another one."""
        self._advance()
        return len(self.memory) + (self.left_at == self.clock.now) < sequencer.QUEUE_DEPTH

    def push(self, item: Item) -> None:
        """Put one in."""
        self._advance()
        self.memory.append((self.clock.now + 1, item))
        self.clock.at(self.clock.now + Fifo.LATENCY, self._advance)

    def head(self) -> Process:
        """Wait for the first one, and return it."""
        yield lambda: self._advance() or self.output
        return self.output

    def pop(self) -> None:
        """Take it out; another one may follow in the next cycle."""
        self._advance()
        self._move()
        for later in (1, 2):
            self.clock.at(self.clock.now + later, self._advance)

    def _advance(self) -> None:
        """Bring the state up to the present cycle."""
        while self.at < self.clock.now:
            if self.output or not (self.middle or self.memory):
                self.at = self.clock.now
            else:
                self._move()

    def _move(self) -> None:
        """Both registers take what is behind them."""
        self.output = self.middle
        self.middle = None
        if self.memory and self.memory[0][0] <= self.at:
            self.middle, self.left_at = self.memory.popleft()[1], self.at
        self.at += 1


@dataclass
class Phase:
    """A product or a layer norm: ``count`` rows of ``words`` words of operand A, ``rows`` of B.

    Attributes:
        issued: cycle in which it was started.
        follows: the phase whose rows it reads as they are written.
        readable: cycles from which its own rows can be read, once they are known.
        reads: cycles in which it reads x of its last block, once they are known.
    """

    item: Item
    issued: int
    follows: Phase | None
    count: int
    words: int
    rows: int
    completes: bool = True
    residual: bool = False
    readable: IntArray | None = None
    reads: IntArray | None = None

    def known(self) -> bool:
        """Whether it is known when its operand A can be read."""
        return self.follows is None or self.follows.readable is not None

    def gates(self) -> IntArray:
        """Cycles from which each row of operand A can be read."""
        if self.follows is None or self.follows.readable is None:
            return np.zeros(self.count, np.int64)
        readable = self.follows.readable
        permission = 1  # a register
        return readable[np.minimum(np.arange(self.count), len(readable) - 1)] + permission


def paced(earliest: ArrayLike, pace: int) -> IntArray:
    """Times that are at least ``earliest``, and ``pace`` after the one before."""
    earliest = np.asarray(earliest, np.int64)
    slope = pace * np.arange(len(earliest))
    return np.maximum.accumulate(earliest - slope) + slope


def visits_of(d: Descriptor, number: int, tokens: Mapping[int, ArrayLike]) -> list[tuple[int, int]]:
    """Expert and tokens of each visit of a descriptor."""
    if d.op != Op.EXPERTS:
        return [(0, d.count)]
    counts = np.asarray(tokens[number]) if d.routed else np.full(d.experts, d.count)
    return [(int(expert), int(counts[expert])) for expert in np.flatnonzero(counts)]


def words_between(phase: Phase, start: int) -> IntArray:
    """Cycles in which layer norm issues the last word of each row: one a cycle, but while the writer reads x."""
    gates = np.maximum(phase.gates(), start)
    reads = phase.follows.reads if phase.follows is not None else None
    if reads is None:
        return paced(gates, phase.words) + phase.words - 1
    free = np.arange(start, int(max(reads[-1], gates[-1])) + phase.count * phase.words + 1)
    free = np.setdiff1d(free, reads, assume_unique=True)
    last = paced(np.searchsorted(free, gates), phase.words) + phase.words - 1
    return free[last]
