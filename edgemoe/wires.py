"""Wires of a netlist as arrays, and where they pull its cells: quadratic placement.

Source: K. M. Hall, "An r-dimensional quadratic placement algorithm" (1970).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDE_NET = 200
"""Pins from which on a net pulls nothing: it is everywhere."""
POINTS = NDArray[np.float64]
"""Places, (n, 2): column and row."""


def points(names: Iterable[str]) -> POINTS:
    """Columns and rows of sites, (n, 2)."""
    found = [re.match(r"X(\d+)/Y(\d+)/", name) for name in names]
    return np.array([(int(m[1]), int(m[2])) for m in found if m], float).reshape(-1, 2)


class Wires:
    """Cells and nets as arrays: pin k joins cell ``cell[k]`` and net ``net[k]``."""

    def __init__(self, cells: dict[str, Any]):
        self.names = list(cells)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.kinds = [cells[name]["type"] for name in self.names]
        drivers: dict[int, int] = {}
        pins: dict[int, set[int]] = defaultdict(set)
        for i, cell in enumerate(cells.values()):
            for pin, bits in cell["connections"].items():
                for bit in bits:
                    if isinstance(bit, int):
                        pins[bit].add(i)
                        if cell.get("port_directions", {}).get(pin) == "output":
                            drivers[bit] = i
        self._drivers = drivers
        nets = [(bit, sorted(at)) for bit, at in pins.items() if 1 < len(at) < WIDE_NET]
        self._inputs: dict[int, set[int]] = defaultdict(set)
        for bit, at in nets:
            for i in at:
                if drivers.get(bit, i) != i:
                    self._inputs[i].add(drivers[bit])
        sizes = np.array([len(at) for _, at in nets], int)
        self.cell = np.array([i for _, at in nets for i in at], int)
        self.net = np.repeat(np.arange(len(nets)), sizes)
        self.weight = 1 / (sizes - 1)
        """Of each pin of a net, so that a net of many pins pulls each as a wire of its own would pull two, weaker the more they are."""
        self.sizes = sizes

    def driver(self, bit: int) -> str:
        """The cell that drives a net."""
        return self.names[self._drivers[bit]]

    def sources(self, names: Iterable[str], kind: str) -> list[str]:
        """Cells of a kind that drive one of these."""
        found = {source for name in names for source in self._inputs[self.index[name]]}
        return [self.names[i] for i in sorted(found) if self.kinds[i] == kind]

    def _sum(self, pins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Over the pins of each cell."""
        return np.bincount(self.cell, pins, len(self.names)).astype(np.float64)

    def _towards(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """For every cell the sum over its pins of weight times the centre of the net."""
        centre = np.bincount(self.net, x[self.cell], len(self.sizes)) / self.sizes
        return self._sum((self.weight * centre)[self.net])

    def relaxed(self, fixed: dict[str, str], middle: POINTS) -> POINTS:
        """Where all cells lie when the weighted squares of their distances to the centres of their nets are least.

        Conjugate gradients, (number of cells, 2); nothing but the fixed cells holds the others apart, and what is not joined to
        them lies in the ``middle``.
        """
        held = np.array([self.index[name] for name in fixed], int)
        at, free = points(fixed.values()), np.ones(len(self.names))
        free[held] = 0
        diagonal = self._sum(self.weight[self.net]) + 1e-4
        result = np.tile(middle, (len(self.names), 1))
        result[held] = at
        for axis in range(2):
            x = result[:, axis].copy()
            residual = free * (1e-4 * middle[axis] + self._towards(x) - diagonal * x)
            step = residual / diagonal
            direction, size = step.copy(), residual @ step
            for _ in range(300):
                if size < 1e-6:
                    break
                image = free * (diagonal * direction - self._towards(direction))
                length = size / (direction @ image)
                x += length * direction
                residual -= length * image
                step = residual / diagonal
                size, before = residual @ step, size
                direction = step + size / before * direction
            result[:, axis] = x
        return result

    def pull(self, names: Sequence[str], where: POINTS) -> POINTS:
        """The point to which its wires pull each cell, the cell itself not counted."""
        rows = np.array([self.index[name] for name in names], int)
        total = self._sum(self.weight[self.net])
        others = np.bincount(self.net, minlength=len(self.sizes)) - 1.0
        out = np.zeros((len(rows), 2))
        for axis in range(2):
            sums = np.bincount(self.net, where[self.cell, axis], len(self.sizes))
            without = (sums[self.net] - where[self.cell, axis]) / others[self.net]
            out[:, axis] = (self._sum(self.weight[self.net] * without) / np.maximum(total, 1e-9))[rows]
        return out
