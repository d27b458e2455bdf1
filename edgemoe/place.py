"""Place and route of a board's netlist with nextpnr-ecp5: what it aims at, which router, and the clocks that it reaches.

The router of a board is nextpnr's second one with timing-driven rip-up: it reroutes what is slower than its clock allows until nothing
is, minutes where the first one takes half an hour. It ends as soon as the clocks are met, and the final timing comes out
up to 2 % below what it counted, so that it aims a little higher (`HEADROOM`). If the clocks are out of reach it gives up after a
thousand rounds; the same router without rip-up, which always ends, then shows where the design stands. A device that is nearly full gets
the first router, which is quick there: the second one lets wires overlap first, and then does not find the room to part them. Figures: docs/area.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemoe import synthesis
from edgemoe.absorb import top_module
from edgemoe.errors import EdgemoeError

OPTIONS = "AMARANTH_nextpnr_opts"
"""Environment variable with more options of nextpnr, as Amaranth has it; may name another router."""
CLOCKS = {"core": "CLKOP", "memory": "CLKOS"}
"""Outputs of the PLL by clock."""
HEADROOM = 1.03
"""Clocks that the tools aim at, over those that are wanted."""
ROUTER = "--router", "router2"
RIPUP = "--tmg-ripup"
GIVEN_UP = "giving up"
"""What nextpnr says when rip-up does not meet the clocks."""
PINS, AIM = "top.lpf", "aim.lpf"
"""Constraints of the board, and the same with the clocks that the tools aim at."""


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


def aimed(constraints: str) -> str:
    """Constraints whose clocks are higher by `HEADROOM`; those of the PLL follow from its reference."""
    return re.sub(
        r"^(FREQUENCY\b.*\s)(\d+(?:\.\d+)?)(?=\s+HZ\s*;)",
        lambda found: f"{found[1]}{float(found[2]) * HEADROOM}",
        constraints,
        flags=re.MULTILINE,
    )


def place_and_route(
    nextpnr: str, device: synthesis.Target, folder: Path, seed: int, names: dict[str, set[str]]
) -> Placed:
    """One run of nextpnr, and a second one without rip-up if it gives up; `AIM` lies in ``folder``.

    Raises:
        EdgemoeError: there is no legal placement, or no routing.
    """
    report, log = f"report{seed}.json", f"nextpnr{seed}.log"
    more = shlex.split(os.environ.get(OPTIONS, ""))
    command = [
        nextpnr, *device.place, "--json", "top.json", "--lpf", AIM, "--textcfg", f"top{seed}.config", "--report", report,
        "--seed", str(seed), "--timing-allow-fail", *more,
    ]  # fmt: skip
    routers = ((),) if device.tight or "--router" in more else ((*ROUTER, RIPUP), ROUTER)
    for router in routers:
        try:
            synthesis.run([*command, *router], folder, log)
            break
        except EdgemoeError as error:
            if router is routers[-1] or GIVEN_UP not in str(error):
                raise
    values = json.loads((folder / report).read_text())
    clocks = read_clocks(values, names)
    core = synthesis.read_report({**values, "fmax": {clocks["core"]: values["fmax"][clocks["core"]]}})
    mhz = {clock: round(values["fmax"][reported]["achieved"], 2) for clock, reported in clocks.items()}
    return Placed(seed, mhz, core.used, core.path)
