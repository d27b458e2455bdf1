"""Simulated time: processes that sleep until a cycle or wait for a condition."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Process = Iterator[Any]
"""Yields the cycle until which it sleeps, or the condition that it waits for."""


class Clock:
    """Runs processes; conditions are looked at after every event."""

    def __init__(self) -> None:
        self.now = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._waiting: list[tuple[Callable[[], bool], Process]] = []
        self._count = 0

    def at(self, cycle: int, action: Callable[[], None]) -> None:
        """Let something happen."""
        self._count += 1
        heapq.heappush(self._due, (max(cycle, self.now), self._count, action))

    def start(self, process: Process) -> None:
        """Begin a process now."""
        self.at(self.now, partial(self._step, process))

    def _step(self, process: Process) -> None:
        wanted = next(process, None)
        if callable(wanted):
            self._waiting.append((wanted, process))
        elif wanted is not None:
            self.at(wanted, partial(self._step, process))

    def run(self) -> None:
        """Until nothing happens any more."""
        while self._due:
            self.now, _, action = heapq.heappop(self._due)
            action()
            still = []
            for condition, process in self._waiting:
                if condition():
                    self.start(process)
                else:
                    still.append((condition, process))
            self._waiting = still
