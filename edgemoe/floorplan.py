"""Floorplan: multipliers, adders and block RAMs of an ECP5 get their sites before nextpnr places the rest.

A device has few of these, in rows far apart, and nextpnr settles them early and moves them little: the multipliers of a slot come to
lie far apart, and its block RAMs elsewhere. Here every slot of the array gets neighbouring sites and block
RAMs beside them; the other cells of these kinds go where their wires pull them, the multipliers of an engine side by side::

    slots in a row of multipliers, back and forth  -->  all other cells where the squares of their wires are least  -->  nearest free sites
                                                                          ^______________________________________________|

Where anything else is, is up to nextpnr. Figures: docs/area.md.

Source: quadratic placement (`edgemoe.wires`); nextpnr, attribute ``BEL``.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemoe.absorb import top_module
from edgemoe.wires import POINTS, Wires, points

RAM, MULTIPLIER, ADDER = "DP16KD", "MULT18X18D", "ALU54B"
ROUNDS = 4
"""How often the other cells are placed and moved to sites."""


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

    @property
    def middle(self) -> POINTS:
        """Of the device, (2,)."""
        return points(self.of(RAM)).mean(0)


LFE5U_85F = Sites((4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114), (10, 34, 58), (22, 46, 70, 82))
LFE5U_25F = Sites((4, 13, 22, 33, 42, 51, 60), (13,), (25, 37))
"""The 12F is a 25F."""


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
    wires = Wires(cells)
    fixed = _slots(cells, kinds[ADDER], wires, sites)
    if fixed is None:
        return {}
    others = {kind: [n for n in kinds[kind] if n not in fixed] for kind in (MULTIPLIER, RAM)}
    for _ in range(ROUNDS):
        where = wires.relaxed(fixed, sites.middle)
        for kind, names in others.items():
            for name in names:
                fixed.pop(name, None)
            taken = set(fixed.values())
            free = [site for site in sites.of(kind) if site not in taken]
            fixed |= (_nearest if kind == RAM else _side_by_side)(names, free, wires, where)
    for name, site in fixed.items():
        cells[name].setdefault("attributes", {})["BEL"] = site
    return fixed


def _slots(cells: dict[str, Any], adders: Sequence[str], wires: Wires, sites: Sites) -> dict[str, str] | None:
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


def _nearest(names: Sequence[str], free: Sequence[str], wires: Wires, where: POINTS) -> dict[str, str]:
    """A free site for each cell, where its wires pull it."""
    chosen = assign(wires.pull(names, where), points(free))
    return dict(zip(names, (free[int(i)] for i in chosen), strict=True))


def _side_by_side(
    names: Sequence[str], free: Sequence[str], wires: Wires, where: POINTS, levels: int = 2
) -> dict[str, str]:
    """The same, but what is part of the same engine lies together, and therein what is part of the same unit."""
    if not levels:
        return _nearest(names, free, wires, where)
    parts: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts[".".join(name.split(".")[:-levels])].append(name)
    fixed: dict[str, str] = {}
    for part in sorted(parts.values(), key=len, reverse=True):
        rest = [site for site in free if site not in set(fixed.values())]
        room = [rest[int(i)] for i in together(wires.pull(part, where), points(rest))]
        fixed |= _side_by_side(part, room, wires, where, levels - 1)
    return fixed


def together(wanted: POINTS, places: POINTS) -> NDArray[np.int64]:
    """As many places as ``wanted`` has, near each other and near what is wanted; indices.

    The parts of one product all want the middle between the free ends of a row; one by one, some would go to either end.
    """
    nearest = np.argsort(((places[:, None] - places[None]) ** 2).sum(-1), axis=1, kind="stable")[
        :, : len(wanted)
    ]
    spread = ((places[nearest] - places[nearest].mean(1, keepdims=True)) ** 2).sum((1, 2))
    way = ((places[nearest] - wanted.mean(0)) ** 2).sum((1, 2))
    return nearest[(spread + way).argmin()]


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
