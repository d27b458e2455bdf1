"""One whole image per task through the simulated gateware: `make m3vit`, and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import published
from benchmarks.document import count, megabytes, percent, section, table
from benchmarks.workload import BASE, BUILD, ROOT
from edgemoe.errors import EdgemoeError


def measure(weights: Path) -> dict[str, Any]:
    """Run examples/m3vit/run.py and read its report."""
    build, started = BUILD / "m3vit", time.perf_counter()
    script = ROOT / "examples" / "m3vit" / "run.py"
    argv = [str(script), "--weights", str(weights), "--hardware", BASE, "-o", str(build)]
    done = subprocess.run([sys.executable, *argv], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise EdgemoeError(f"examples/m3vit/run.py ended with exit code {done.returncode}")
    seconds = time.perf_counter() - started
    return {**json.loads((build / "m3vit.json").read_text()), "total_seconds": seconds}


def section_text(values: dict[str, Any]) -> str:
    """The figures, a column per task, the published ones beside them."""
    tasks = values["tasks"]

    def row(name: str, form, source: str = "") -> list[str]:
        return [name, *(form(task) for task in tasks), source]

    rows = [
        row("mismatches with the golden machine", lambda t: f"{t['mismatches']} in {t['tensors']} tensors"),
        row("cycles", lambda t: count(t["cycles"]), published.CYCLES),
        row(
            "MAC utilisation, %", lambda t: percent(t["utilisation"]), percent(published.UTILISATION, 0)
        ),
        row(
            "external MB", lambda t: megabytes(t["external_bytes"]), f"{published.EXTERNAL_BYTES / 1e6:.0f}"
        ),
        row("dB, same routes", lambda t: f"{t['db_forced']:.1f}", published.DECIBEL["db_forced"]),
        row("dB, own routes", lambda t: f"{t['db_free']:.1f}", published.DECIBEL["db_free"]),
        row("routes equal to float's, %", lambda t: percent(t["routes_equal"])),
        row("seconds of simulation", lambda t: f"{t['seconds']:.0f}"),
    ]  # fmt: skip
    return section(
        "M3ViT-tiny, whole, through the gateware",
        f"    make m3vit        # hardware {values['hardware']}: 16 x 16 lanes, a port of 32 B/cycle, w8a16, two slot sets",
        "Released weights and image, synthetic experts (the release has none); simulated cycle by cycle in Verilator, every element of "
        "every tensor compared; memory latency 30 cycles; one image per start, cycles from start to done. dB is of the final x against "
        f"float64. All of it, from the weights to these figures, took {values['total_seconds']:.0f} s.",
        table(["", *(task["task"] for task in tasks), "published"], rows),
    )
