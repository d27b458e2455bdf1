"""Writes area.md and area.json: every unit synthesised, placed and routed (`make synth`, about an hour on one core).

A unit whose netlist has not changed since area.json was written is not run again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from edgemoe import absorb, synthesis
from edgemoe.cli import show
from edgemoe.config import load_hardware
from edgemoe.errors import EdgemoeError, ToolMissing
from edgemoe.output import write_json

HERE = Path(__file__).parent
HARDWARE, TARGET, MHZ = "ulx3s-85f", "ecp5-85k", 80.0
RESULTS, PAGE = HERE / "area.json", HERE / "area.md"
BEGIN, END = "<!-- begin of the table, written by area.py -->", "<!-- end of the table -->"


def netlist_hash(hardware, unit: str) -> str:
    """Hash of the netlist before synthesis, and of how it is synthesised."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "top.il"
        synthesis.elaborate(synthesis.maker(unit)(hardware), path, synthesis.TARGETS[TARGET].platform)
        flow = synthesis.script("ecp5").encode() + Path(absorb.__file__).read_bytes()
        return hashlib.sha256(path.read_bytes() + flow).hexdigest()


def measure(units: list[str]) -> dict[str, dict]:
    """Results by unit; those of ``units`` are brought up to date and saved one by one.

    A unit whose tools fail is named, has no result, and does not keep the others from being measured.
    """
    hardware = load_hardware(HARDWARE)
    found = json.loads(RESULTS.read_text())["units"] if RESULTS.exists() else {}
    with show.progress() as tick:
        for unit in units:
            key = netlist_hash(hardware, unit)
            if found.get(unit, {}).get("netlist") == key:
                continue
            found.pop(unit, None)
            try:
                values = synthesis.synthesise(hardware, unit, TARGET, 1, MHZ, None, True, tick)
            except ToolMissing:
                raise
            except EdgemoeError as error:
                print(f"{unit}: {error}", file=sys.stderr)
                continue
            if not values["routed"]:
                print(f"{unit}: larger than the device", file=sys.stderr)
                continue
            found[unit] = {"netlist": key, **values}
            write_json(RESULTS, {"version": 1, "units": found})
    return found


def table(found: dict[str, dict]) -> str:
    """The table of the page."""
    lines = [
        "| unit | LUT | FF | DSP | BRAM | MHz | slowest path, ns of logic + routing |",
        "|---|---|---|---|---|---|---|",
    ]
    for unit in synthesis.units():
        if unit not in found:
            continue
        v, path = found[unit], found[unit]["critical_path"]
        r = v["resources"]
        lines.append(
            f"| {unit} | {r['lut']:,} | {r['ff']:,} | {r['dsp']} | {r['bram']} | {v['fmax_mhz']:.1f} "
            f"| {path['logic_ns']:.1f} + {path['routing_ns']:.1f} |"
        )
    return "\n".join(lines)


def main(units: list[str]) -> int:
    """Measure ``units`` (all if empty) and write the page; 1 if a unit misses the clock or has none."""
    units = units or list(synthesis.units())
    found = measure(units)
    page = PAGE.read_text()
    head, tail = page[: page.index(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(found)}\n\n{tail}")
    slow = [f"{unit} {v['fmax_mhz']} MHz" for unit, v in found.items() if not v["met"]]
    if slow:
        print(f"below {MHZ:g} MHz: {', '.join(slow)}", file=sys.stderr)
    return int(bool(slow) or any(unit not in found for unit in units))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
