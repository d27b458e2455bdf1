"""Cycles, utilisation and bytes of a whole image for every number of multipliers, by the cycle model."""

from __future__ import annotations

from typing import Any

from benchmarks import published
from benchmarks.document import count, megabytes, percent, section, table
from benchmarks.workload import Workload
from edgemoe import perf
from edgemoe.config import NAMED

HARDWARE = ("m3vit-64", "m3vit-128", "m3vit-256", "m3vit-512", "m3vit-1024")


def measure(work: Workload) -> list[dict[str, Any]]:
    """One row per hardware, slot sets (those of the named hardware first) and routing."""
    rows = []
    for name in HARDWARE:
        for sets in dict.fromkeys((NAMED[name].slot_sets, 2, 1)):
            program = work.program(name, slot_sets=sets)
            for routing, routes in work.routes.items():
                found = perf.predict(program, routes)
                rows.append(
                    {
                        "hardware": name, "multipliers": program.hardware.macs, "slot_sets": sets, "routing": routing,
                        "port_bytes": program.hardware.port_bytes, "cycles": found.cycles,
                        "mac_utilisation": found.mac_utilisation, "external_bytes": found.external_bytes,
                    }
                )  # fmt: skip
    return rows


def section_text(rows: list[dict[str, Any]]) -> str:
    """The table, a row per hardware and routing."""
    lines = []
    for name in HARDWARE:
        mine = [r for r in rows if r["hardware"] == name]
        named = [r for r in mine if r["slot_sets"] == NAMED[name].slot_sets]
        for row in named:
            two, one = (
                next(r for r in mine if r["slot_sets"] == sets and r["routing"] == row["routing"])
                for sets in (2, 1)
            )
            first, macs = row is named[0], row["multipliers"]
            limit = (
                f"{percent(published.MUST[macs], 0)} / {percent(published.STRETCH[macs])}" if first else ""
            )
            lines.append(
                [
                    f"**{macs}**, {row['port_bytes']} B, {row['slot_sets']} sets" if first else "",
                    row["routing"], count(row["cycles"]), percent(row["mac_utilisation"], 2), limit,
                    megabytes(row["external_bytes"]), count(two["cycles"]), percent(two["mac_utilisation"], 2),
                    count(one["cycles"]), percent(one["mac_utilisation"], 2),
                ]
            )  # fmt: skip
    head = (
        "multipliers, port, slots", "routing", ">cycles", ">MAC utilisation, %", ">must / stretch", ">external MB",
        ">two slot sets: cycles", ">utilisation, %", ">one slot set: cycles", ">utilisation, %",
    )  # fmt: skip
    return section(
        "All numbers of lanes, by the cycle model",
        "`edgemoe.perf` on the named hardware `m3vit-64` to `m3vit-1024` (8x8 to 32x32 lanes), w8a16, one image per start, memory "
        "latency 30 cycles. Useful multiply-accumulates only; cycles from start to done. Only 256 multipliers are simulated "
        "(above); `tests/test_perf.py` holds the model to 1 % of simulated small hardware. Routing: *balanced* gives every expert "
        "as many tokens, *skewed* gives expert i about 1/(i+1) of the largest share, *one* sends all tokens to the same two.",
        table(head, lines),
        f"Limits: at most {published.MUST_BYTES['any'] / 1e6} MB for any routing, with images of 8 bits a pixel "
        "(those of the table have 16: 0.10 MB more), "
        f"{published.MUST_BYTES['released'] / 1e6} MB for the released image; {published.MUST_CYCLES / 1e6:.2f} M cycles "
        f"(stretch {published.STRETCH_CYCLES / 1e6:.2f} M) at 256. Published, at 256 + 64 lanes: {published.CYCLES}; utilisation "
        f"{percent(published.UTILISATION, 0)} %; {published.EXTERNAL_BYTES / 1e6:.0f} MB. {published.FOLLOWERS}.",
    )
