"""Place and route of a board's netlist with nextpnr-ecp5, and the clocks that it reaches.

The router is nextpnr's default one. It takes most of the time of a build. Router2 is done sooner, but joins each pin of a net to the wire nearest to it:
chains of 18 ns where the way is 3 ns long. Figures: docs/area.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemoe import synthesis
from edgemoe.absorb import top_module
from edgemoe.errors import EdgemoeError

OPTIONS = "AMARANTH_nextpnr_opts"
"""Environment variable with more options of nextpnr, as Amaranth has it."""
CLOCKS = {"core": "CLKOP", "memory": "CLKOS"}
"""Outputs of the PLL by clock."""
PINS = "top.lpf"
"""Constraints of the board: pins, and the clock that its PLL starts from."""


@dataclass(frozen=True)
class Placed:
    """One run of place and route of a board.

    Attributes:
        seed: of the run.
        mhz: what each clock reaches, by the names of `CLOCKS`.
        used: resources.
        path: of the core's clock (`edgemoe.synthesis.Route`).
    """

    seed: int
    mhz: dict[str, float]
    used: dict[str, int]
    path: dict[str, Any]

    def margin(self, wanted: dict[str, float]) -> float:
        """Reached over ``wanted`` MHz, of the clock that is worse off."""
        return min(self.mhz[name] / wanted[name] for name in CLOCKS)


def clock_names(netlist: dict[str, Any]) -> dict[str, set[str]]:
    """All names of the nets that the PLL drives, by the names of `CLOCKS`."""
    module = top_module(netlist)
    (pll,) = [cell for cell in module["cells"].values() if cell["type"] == "EHXPLLL"]
    return {
        clock: {
            name.lstrip("\\")
            for name, net in module["netnames"].items()
            if pll["connections"][output_name][0] in net["bits"]
        }
        for clock, output_name in CLOCKS.items()
    }


def read_clocks(report: dict[str, Any], names: dict[str, set[str]]) -> dict[str, str]:
    """The report's name of each clock of `CLOCKS`.

    Raises:
        EdgemoeError: one of them is not in the report of nextpnr.
    """
    found = {}
    for clock, aliases in names.items():
        for reported in report.get("fmax", {}):
            if reported.removeprefix("$glbnet$") in aliases:
                found[clock] = reported
        if clock not in found:
            raise EdgemoeError(
                f"nextpnr reports no {clock} clock; it has {', '.join(report.get('fmax', {})) or 'none'}"
            )
    return found


def part_routed() -> Callable[[str], float | None]:
    """Reads nextpnr's lines, one by one: which part of the wires is routed, by a line of the router's table."""
    most = 0

    def read(line: str) -> float | None:
        nonlocal most
        columns = line.removeprefix("Info:").split("|")
        if len(columns) < 5 or not re.fullmatch(r"\s*\d+\s*", columns[3]):
            return None
        left = int(columns[3])
        most = max(most, left)
        return 1 - left / most if most else 1.0

    return read


def place_and_route(
    nextpnr: str, device: synthesis.Target, folder: Path, seed: int, names: dict[str, set[str]],
    tick: Callable[[float], None] = lambda part: None,
) -> Placed:  # fmt: skip
    """One run of nextpnr.

    Args:
        tick: is told which part of the wires is routed.

    Raises:
        EdgemoeError: there is no legal placement, or no routing.
    """
    report = f"report{seed}.json"
    command = [
        nextpnr, *device.place, "--json", "top.json", "--lpf", PINS, "--textcfg", f"top{seed}.config", "--report", report,
        "--seed", str(seed), "--timing-allow-fail", *shlex.split(os.environ.get(OPTIONS, "")),
    ]  # fmt: skip
    part = part_routed()

    def watch(line: str) -> None:
        if (done := part(line)) is not None:
            tick(done)

    synthesis.run(command, folder, f"nextpnr{seed}.log", watch)
    values = json.loads((folder / report).read_text())
    clocks = read_clocks(values, names)
    core = synthesis.read_report({**values, "fmax": {clocks["core"]: values["fmax"][clocks["core"]]}})
    mhz = {clock: round(values["fmax"][reported]["achieved"], 2) for clock, reported in clocks.items()}
    return Placed(seed, mhz, core.used, core.path)
