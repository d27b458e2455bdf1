"""Floorplan: multipliers, adders and block RAMs of an ECP5 get their sites before nextpnr places the rest.

A device has few of these, in rows far apart, and nextpnr settles them early and moves them little: the multipliers of a slot come to
lie far apart, and its block RAMs elsewhere. Here every slot of the array gets neighbouring sites and block
RAMs beside them; the other cells of these kinds go where their wires pull them::

    slots in a row of multipliers, back and forth  -->  all other cells where the squares of their wires are least  -->  nearest free sites
                                                                          ^______________________________________________|

Where anything else is, is up to nextpnr. Figures: docs/area.md.

Source: quadratic placement as in K. M. Hall, "An r-dimensional quadratic placement algorithm" (1970); nextpnr, attribute ``BEL``.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemoe.absorb import top_module

RAM, MULTIPLIER, ADDER = "DP16KD", "MULT18X18D", "ALU54B"
WIDE_NET = 200
"""Pins from which on a net pulls nothing: it is everywhere."""
ROUNDS = 4
"""How often the other cells are placed and moved to sites."""
POINTS = NDArray[np.float64]
"""Places, (n, 2): column and row."""


@dataclass(frozen=True)
class Sites:
    """Where a device has its multipliers and block RAMs.

    A *block* is 9 columns wide: 4 multipliers and 2 adders, or 4 block RAMs; half of it is an adder with its two multipliers.

    Attributes:
        blocks: first column of each.
        multiplier_rows, ram_rows: rows of the device that consist of blocks of that kind.
    """

    blocks: tuple[int, ...]
    multiplier_rows: tuple[int, ...]
    ram_rows: tuple[int, ...]

    def half(self, row: int, number: int) -> tuple[str, str, str]:
        """Names of the two multipliers and the adder in half block ``number`` of a row."""
        block, upper = divmod(number, 2)
        x, at = self.blocks[block] + 4 * upper, 4 * upper
        return (
            f"X{x}/Y{row}/MULT18_{at}",
            f"X{x + 1}/Y{row}/MULT18_{at + 1}",
            f"X{x + 3}/Y{row}/ALU54_{at + 3}",
        )

    @property
    def halves(self) -> int:
        """Half blocks of a row."""
        return 2 * len(self.blocks)

    def of(self, kind: str) -> list[str]:
        """Names of all sites for a kind of cell."""
        if kind == RAM:
            return [f"X{x + 2 * i}/Y{y}/EBR{i}" for y in self.ram_rows for x in self.blocks for i in range(4)]
        halves = (self.half(y, n) for y in self.multiplier_rows for n in range(self.halves))
        return [name for half in halves for name in half[:2]]


LFE5U_85F = Sites((4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114), (10, 34, 58), (22, 46, 70, 82))
LFE5U_25F = Sites((4, 13, 22, 33, 42, 51, 60), (13,), (25, 37))
"""The 12F is a 25F."""


def points(names: Iterable[str]) -> POINTS:
    """Columns and rows of sites, (n, 2)."""
    found = [re.match(r"X(\d+)/Y(\d+)/", name) for name in names]
    return np.array([(int(m[1]), int(m[2])) for m in found if m], float).reshape(-1, 2)


def floorplan_file(path: Path, sites: Sites) -> int:
    """`floorplan` of a netlist in a file; returns the number of cells that have a site now."""
    netlist = json.loads(path.read_text())
    fixed = floorplan(netlist, sites)
    path.write_text(json.dumps(netlist))
    return len(fixed)


def floorplan(netlist: dict[str, Any], sites: Sites) -> dict[str, str]:
    """Fix multipliers, adders and block RAMs of the top module to sites (attribute ``BEL``), in place.

    Args:
        netlist: JSON of yosys, flat.
        sites: those of the device.

    Returns:
        The site of each cell; nothing, and the netlist unchanged, if the device has too few or a slot does not fit into a row.
    """
    cells = top_module(netlist)["cells"]
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, cell in cells.items():
        kinds[cell["type"]].append(name)
    if any(len(kinds[kind]) > len(sites.of(kind)) for kind in (RAM, MULTIPLIER)):
        return {}
    wires = _Wires(cells)
    fixed = _slots(cells, kinds[ADDER], wires, sites)
    if fixed is None:
        return {}
    others = {kind: [n for n in kinds[kind] if n not in fixed] for kind in (MULTIPLIER, RAM)}
    for _ in range(ROUNDS):
        where = wires.relaxed(fixed, points(sites.of(RAM)).mean(0))
        for kind, names in others.items():
            for name in names:
                fixed.pop(name, None)
            taken = set(fixed.values())
            free = [site for site in sites.of(kind) if site not in taken]
            wanted = wires.pull(names, where)
            fixed |= dict(zip(names, (free[i] for i in assign(wanted, points(free))), strict=True))
    for name, site in fixed.items():
        cells[name].setdefault("attributes", {})["BEL"] = site
    return fixed


def _slots(
    cells: dict[str, Any], adders: Sequence[str], wires: _Wires, sites: Sites
) -> dict[str, str] | None:
    """Sites of the slots: adders with their multipliers in one row, side by side, and their block RAMs in the nearest row.

    Neighbours by number lie beside each other: rows are walked back and forth. None if it does not fit.
    """
    slots: dict[str, list[str]] = defaultdict(list)
    for name in adders:
        slots[name.rpartition(".")[0]].append(name)
    order = sorted(slots, key=lambda path: [int(n) for n in re.findall(r"\d+", path)])
    rows, fixed = sites.multiplier_rows, {}
    share = -(-len(order) // len(rows))
    rams = set(sites.of(RAM))
    for row_number, row in enumerate(rows):
        here = order[row_number * share : (row_number + 1) * share]
        at = (sites.halves - sum(len(slots[path]) for path in here)) // 2
        if at < 0:
            return None
        for path in reversed(here) if row_number % 2 else here:
            used = []
            for adder in sorted(slots[path], key=lambda name: int(re.findall(r"\d+", name)[-1])):
                operands = [wires.driver(cells[adder]["connections"][pin][0]) for pin in ("MA0", "MB0")]
                used += [*operands, adder]
                fixed |= dict(zip((*operands, adder), sites.half(row, at), strict=True))
                at += 1
            (centre,) = points(fixed[n] for n in used).mean(0, keepdims=True)
            for ram in wires.sources(used, RAM):
                if ram not in fixed:
                    free = sorted(rams)
                    nearest = free[int(np.abs(points(free) - centre).sum(1).argmin())]
                    rams.remove(nearest)
                    fixed[ram] = nearest
    return fixed


def assign(wanted: POINTS, places: POINTS) -> NDArray[np.int64]:
    """A place for each of ``wanted``, each at most once, so that the squares of the distances are small; (n,) indices.

    Greedy, then exchanges of two as long as one helps: neighbours stay neighbours even where all want the same place.
    """
    cost = ((wanted[:, None] - places[None]) ** 2).sum(-1)
    chosen = np.zeros(len(wanted), np.int64)
    free = np.ones(len(places), bool)
    for i in np.argsort(-((wanted - wanted.mean(0)) ** 2).sum(1)) if len(wanted) else ():
        chosen[i] = np.where(free, cost[i], np.inf).argmin()
        free[chosen[i]] = False
    better = True
    while better:
        better = False
        for i in range(len(wanted)):
            own = cost[np.arange(len(wanted)), chosen]
            gain = own + own[i] - cost[i, chosen] - cost[:, chosen[i]]
            other = int(gain.argmax())
            if gain[other] > 1e-9:
                chosen[[i, other]] = chosen[[other, i]]
                better = True
            empty = np.where(free, cost[i], np.inf)
            if empty.min() < cost[i, chosen[i]]:
                free[chosen[i]], free[empty.argmin()] = True, False
                chosen[i] = empty.argmin()
                better = True
    return chosen


class _Wires:
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
