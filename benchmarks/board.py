"""The board's design of M3ViT-tiny, built with the open tools: area, clocks of three seeds, images per second."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.document import section, table
from edgemoe import bitstream

BOARD, SEEDS = "ulx3s-85f", 3
CORE_MHZ, FPS = (80, 100), (6, 10)
"""Must and stretch."""


def measure() -> dict[str, Any]:
    """The report of `edgemoe build`; by far the longest of all measurements."""
    with tempfile.TemporaryDirectory() as folder:
        values = bitstream.build(
            BOARD, None, SEEDS, None, None, Path(folder) / BOARD, None, lambda name, seconds: None
        )
    return {key: value for key, value in values.items() if key != "bitstream"}


def section_text(values: dict[str, Any]) -> str:
    """Area and clocks beside what is wanted."""
    used, capacity = values["resources"], values["capacity"]
    rows: list[list[Any]] = [
        [name.upper(), f"{used[name]:,} of {capacity[name]:,}", ""] for name in ("lut", "ff", "dsp", "bram")
    ]
    if values["fits"]:
        rows += [
            ["core, MHz, by seed", ", ".join(f"{f:.1f}" for f in values["fmax_by_seed"]), ""],
            ["core, MHz, median", f"{values['fmax_mhz']:.1f}", f"{CORE_MHZ[0]} / {CORE_MHZ[1]}"],
            ["memory, MHz, median", f"{values['memory_fmax_mhz']:.1f}", f"{values['memory_target_mhz']:g}"],
            ["images per second", f"{values['device_fps']:.2f}", f"{FPS[0]} / {FPS[1]}"],
        ]
    else:
        rows.append(["routed", f"no: {values['reason']}", ""])
    tools = ", ".join(f"{name} {version}" for name, version in values["tools"].items())
    formula = f" Images per second: {values['rate']['formula']}." if values["rate"] else ""
    return section(
        "M3ViT-tiny on a ULX3S-85F, placed and routed",
        f"    edgemoe build --board {BOARD} --seeds {SEEDS}",
        f"Hardware `{values['hardware']}`, the whole board design, speed grade 6; {tools}.{formula} Nothing has run on a board yet.",
        table(["", "found", "must / stretch"], rows),
    )
