"""Registers of block RAMs and multipliers: flip-flops behind a DP16KD or MULT18X18D of an ECP5 move into it.

yosys packs no flip-flop into either cell. A pass over its netlist does, before place and route::

    DP16KD, MULT18X18D --> TRELLIS_FF --> logic        becomes        DP16KD, MULT18X18D [register] --> logic

A port of a block RAM has one register for all its bits, with the clock of the port and an enable of its own, OCE; CE enables the latch
in front of it. So a port loses all its flip-flops or none. Nothing else may hang on its outputs, and the flip-flops must
be what the register is: of the port's clock and edge, with one enable, without a reset, 0 at first. ``Signal(attrs={"keep": 1})`` keeps
them outside, where a flip-flop halfway between memory and logic makes the longer of two wires.

The same holds for the outputs of a multiplier, with one rule more: the register must always be enabled, and all registered multipliers of
the design have to agree in clock, enable and reset. Multipliers of a DSP block share these pins, nextpnr renames them where they differ,
and it does not write into the bitstream which enable an output register obeys.

Source: Lattice FPGA-TN-02204 (memory) and FPGA-TN-02205 (sysDSP); nextpnr, ecp5/pack.cc, arch_place.cc and bitstream.cc.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Bit = int | str
"""A net, or a constant: "0", "1", "x"."""
Cell = dict[str, Any]
RAM, MULTIPLIER, REGISTER = "DP16KD", "MULT18X18D", "TRELLIS_FF"
LANES, PRODUCT = 18, 36
"""Outputs of each port of a block RAM; of a multiplier."""
WIDE = 36
"""Width of port A that makes it the writing port and B the reading one, which then has the outputs of both."""
PINNED = ("keep", "syn_useioff", "BEL", "LOC")
"""Attributes of flip-flops that have to stay what and where they are."""
MULTIPLIER_REGISTER = {
    "REG_OUTPUT_CLK": "CLK0", "REG_OUTPUT_CE": "CE0", "REG_OUTPUT_RST": "RST0", "CLK0_DIV": "ENABLED",
    "RESETMODE": "SYNC", "GSR": "DISABLED",
}  # fmt: skip


@dataclass
class Absorbed:
    """What became of the ports that have a load, by the kind of cell.

    Attributes:
        ports: number of ports with a register now.
        registers: number of flip-flops that are gone.
        refused: number of ports by kind of cell and reason.
    """

    ports: Counter[str] = field(default_factory=Counter)
    registers: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.registers[k]} flip-flops into {n} ports of {k}" for k, n in sorted(self.ports.items())
        ]
        lines += [f"{n} ports of {k} not: {why}" for (k, why), n in sorted(self.refused.items())]
        return "\n".join(lines)


class Refused(Exception):
    """A port keeps its flip-flops; the message has the reason."""


def top_module(netlist: dict[str, Any]) -> dict[str, Any]:
    """The top module of a netlist (JSON of yosys)."""
    return next(m for m in netlist["modules"].values() if int(m.get("attributes", {}).get("top", "0"), 2))


def absorb_file(path: Path, keep: str) -> tuple[dict[str, Any], Absorbed]:
    """`absorb` in a file; returns the netlist too."""
    netlist = json.loads(path.read_text())
    found = absorb(netlist, keep)
    path.write_text(json.dumps(netlist))
    return netlist, found


def absorb(netlist: dict[str, Any], keep: str) -> Absorbed:
    """Move flip-flops of the top module into its block RAMs and multipliers, in place.

    Args:
        netlist: JSON of yosys after ``synth_ecp5``, flat.
        keep: flip-flops whose output has a name that begins so stay, as do those whose output has the attribute ``keep``.
    """
    return _Pass(top_module(netlist), keep).run()


@dataclass
class _Group:
    """The registers behind the outputs of one port; ``registers`` has their names by output."""

    registers: dict[str, list[str]]
    clock: Bit
    enable: Bit


class _Pass:
    """One run over a module."""

    def __init__(self, module: dict[str, Any], keep: str):
        self.cells: dict[str, Cell] = module["cells"]
        self.ports = module.get("ports", {})
        self.names = module["netnames"]
        self.kept = {
            bit
            for name, net in self.names.items()
            if name.lstrip("\\").startswith(keep) or "keep" in net.get("attributes", {})
            for bit in net["bits"]
        }
        self.loads: dict[Bit, list[tuple[str, str]]] = {}
        """Cells and their pins by the net that drives them; a port of the module has no cell."""
        for name, cell in self.cells.items():
            for pin, bits in cell["connections"].items():
                if cell.get("port_directions", {}).get(pin) != "output":
                    for bit in bits:
                        self.loads.setdefault(bit, []).append((name, pin))
        for name, port in self.ports.items():
            if port["direction"] != "input":
                for bit in port["bits"]:
                    self.loads.setdefault(bit, []).append(("", name))
        self.found = Absorbed()
        self.dead: set[Bit] = set()
        """Nets between a cell and the registers that it has now."""
        self.same: dict[Bit, Bit] = {}
        """Outputs of registers that had their input in common with another, and that one's output."""

        self.multipliers = self._agree()

    def run(self) -> Absorbed:
        for cell in list(self.cells.values()):
            if cell["type"] == RAM:
                wide = int(cell["parameters"]["DATA_WIDTH_A"], 2) == WIDE
                for sides in ("AB",) if wide else ("A", "B"):
                    self._try(cell, self._ram, sides)
            elif cell["type"] == MULTIPLIER:
                self._try(cell, self._multiplier)
        self._rename()
        return self.found

    def _try(self, cell: Cell, move, *what) -> None:
        try:
            move(cell, *what)
        except Refused as reason:
            self.found.refused[cell["type"], str(reason)] += 1

    def _ram(self, cell: Cell, sides: str) -> None:
        """Port A or B, or both in one ("AB") where B reads what A writes."""
        pins, settings = cell["connections"], cell["parameters"]
        if any(settings.get(f"REGMODE_{side}", "NOREG") != "NOREG" for side in sides):
            return
        group = self._group(cell, [f"DO{side}{lane}" for side in sides for lane in range(LANES)])
        if group is None:
            return
        if settings.get("GSR") != "DISABLED":
            raise Refused("the reset of the device reaches the port")
        if any(_wired(cell, f"RST{side}") != "0" for side in sides):
            raise Refused("a reset of the port")  # which resets the register with the latch
        # Clock and enable of both sides are made equal: which of them the lower half of a wide word obeys is not documented.
        clocks = {side: _clock(cell, f"CLK{side}") for side in sides}
        if sides == "AB" and _wired(cell, "CEA") == "0":  # nothing is ever written
            clocks["A"] = clocks["B"]
        if set(clocks.values()) != {group.clock}:
            raise Refused("another clock")
        for side in sides:
            settings |= {f"REGMODE_{side}": "OUTREG", f"CLK{side}MUX": f"CLK{side}"}
            pins |= {f"OCE{side}": [group.enable], f"CLK{side}": [group.clock]}
        self._move(cell, group)

    def _multiplier(self, cell: Cell) -> None:
        if any(cell["parameters"].get(f"REG_{r}_CLK", "NONE") != "NONE" for r in ("PIPELINE", "OUTPUT")):
            return  # made so, and what is behind it may be an ALU54B
        group = self._group(cell, [f"P{lane}" for lane in range(PRODUCT)])
        if group is None:
            return
        if group.enable != "1":
            raise Refused("an enable")
        if self.multipliers not in (None, group.clock):
            raise Refused("another multiplier's clock, enable or reset")
        self.multipliers = group.clock
        for pin, bit in (("CLK0", group.clock), ("CE0", "1"), ("RST0", "0")):
            cell["connections"][pin] = [bit]
            cell["port_directions"][pin] = "input"
        cell["parameters"] |= MULTIPLIER_REGISTER
        self._move(cell, group)

    def _agree(self) -> Bit | None:
        """The clock of all registered multipliers, None if there are none, "" if they have no common clock, enable or reset."""
        found = set()
        for cell in self.cells.values():
            if cell["type"] in (MULTIPLIER, "ALU54B") and any(_wired(cell, f"CLK{i}") for i in range(4)):
                shared = {pin: _wired(cell, pin) for pin in ("CLK0", "CE0", "RST0")}
                others = (f"{pin}{i}" for pin in ("CLK", "CE", "RST") for i in range(1, 4))
                plain = (
                    shared["CE0"] == "1"
                    and shared["RST0"] == "0"
                    and not any(_wired(cell, p) for p in others)
                )
                found.add(shared["CLK0"] if plain else "")
        return None if not found else found.pop() if len(found) == 1 else ""

    def _group(self, cell: Cell, outputs: list[str]) -> _Group | None:
        """The registers behind these outputs, None if nothing is behind them.

        Raises:
            Refused: there is something else, or the cell's register would not do the same.
        """
        used = {pin: self.loads.get(bits[0], []) for pin in outputs if (bits := cell["connections"].get(pin))}
        used = {pin: loads for pin, loads in used.items() if loads}
        if not used:
            return None
        loads = [load for at in used.values() for load in at]
        if any(name == "" or self.cells[name]["type"] != REGISTER or pin != "DI" for name, pin in loads):
            raise Refused("a load that is no register")
        registers = [self.cells[name] for name, _ in loads]
        if any(self._stays(r) for r in registers):
            raise Refused("a register that must stay")
        if any(r["parameters"].get("GSR") != "DISABLED" for r in registers):
            raise Refused("a register that the reset of the device reaches")
        if not all(map(_never_resets, registers)):
            raise Refused("a register with a reset")
        if any(r["parameters"].get("REGSET", "RESET") != "RESET" for r in registers):
            raise Refused("a register that begins as 1")
        clocks = {_clock(r, "CLK") for r in registers}
        enables = {_enable(r) for r in registers}
        if len(clocks) > 1 or None in clocks:
            raise Refused("registers of several clocks, or of a falling one")
        if len(enables) > 1 or None in enables:
            raise Refused("registers of several enables, or of an inverted one")
        names = {pin: [name for name, _ in at] for pin, at in used.items()}
        return _Group(names, clocks.pop() or "", enables.pop() or "")

    def _stays(self, register: Cell) -> bool:
        pinned = any(a in register.get("attributes", {}) for a in PINNED)
        return pinned or register["connections"]["Q"][0] in self.kept

    def _move(self, cell: Cell, group: _Group) -> None:
        pins = cell["connections"]
        for pin, names in group.registers.items():
            first, *others = (self.cells.pop(name)["connections"]["Q"][0] for name in names)
            self.dead.add(pins[pin][0])
            self.same |= dict.fromkeys(others, first)
            pins[pin] = [first]
            self.found.registers[cell["type"]] += len(names)
        self.found.ports[cell["type"]] += 1

    def _rename(self) -> None:
        """Leave no pin, port or name on a net that is gone."""

        def now(bits: list[Bit]) -> list[Bit]:
            return [self.same.get(bit, bit) for bit in bits]

        for cell in self.cells.values():
            cell["connections"] = {pin: now(bits) for pin, bits in cell["connections"].items()}
        for port in self.ports.values():
            port["bits"] = now(port["bits"])
        for name, net in list(self.names.items()):
            if self.dead.issuperset(net["bits"]):
                del self.names[name]
            net["bits"] = ["x" if bit in self.dead else bit for bit in now(net["bits"])]


def _wired(cell: Cell, pin: str) -> Bit | None:
    """What a pin is connected to."""
    bits = cell["connections"].get(pin)
    return bits[0] if bits else None


def _clock(cell: Cell, pin: str) -> Bit | None:
    """The net of a clock, None if there is none or its falling edge counts."""
    bit = _wired(cell, pin)
    return bit if isinstance(bit, int) and cell["parameters"].get(f"{pin}MUX", pin) == pin else None


def _never_resets(register: Cell) -> bool:
    idle = {"LSR": ("0", None), "INV": ("1",)}.get(register["parameters"].get("LSRMUX", "LSR"), ())
    return _wired(register, "LSR") in idle


def _enable(register: Cell) -> Bit | None:
    """The net that enables a register, "1" if it always is; None if there is no such net."""
    source = (
        register["parameters"].get("CEMUX", "CE").strip()
    )  # "1 ": yosys marks text that looks like a number
    bit = {"CE": _wired(register, "CE"), "1": "1"}.get(source)
    return bit if isinstance(bit, int) or bit == "1" else None
