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
from benchmarks.workload import BASE, BUILD, RELEASED, ROOT, Workload
from edgemoe import perf
from edgemoe.config import NAMED
from edgemoe.errors import EdgemoeError


def measure(weights: Path, work: Workload) -> dict[str, Any]:
    """Run examples/m3vit/run.py and read its report; what the cycle model says of the same routes."""
    build, started = BUILD / "m3vit", time.perf_counter()
    script = ROOT / "examples" / "m3vit" / "run.py"
    argv = [str(script), "--weights", str(weights), "--hardware", BASE, "-o", str(build)]
    done = subprocess.run([sys.executable, *argv], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise EdgemoeError(f"examples/m3vit/run.py ended with exit code {done.returncode}")
    seconds = time.perf_counter() - started
    found = json.loads((build / "m3vit.json").read_text())
    return {**found, "total_seconds": seconds, "slot_sets": NAMED[BASE].slot_sets, **predicted(work)}


def predicted(work: Workload) -> dict[str, Any]:
    """Cycles of the same routes by the cycle model."""
    program = work.program(BASE)
    routes = [routes for name, routes in work.routes.items() if name.startswith(RELEASED)]
    return {"predicted_cycles": [perf.predict(program, each).cycles for each in routes]}


def section_text(values: dict[str, Any]) -> str:
    """The figures, a column per task, the published ones beside them."""
    tasks = values["tasks"]
    for task, cycles in zip(tasks, values["predicted_cycles"], strict=True):
        task["predicted_cycles"] = cycles

    def row(name: str, form, source: str = "") -> list[str]:
        return [name, *(form(task) for task in tasks), source]

    rows = [
        row("mismatches with the golden machine", lambda t: f"{t['mismatches']} in {t['tensors']} tensors"),
        row("cycles", lambda t: count(t["cycles"]), published.CYCLES),
        row("cycles by the cycle model", lambda t: count(t["predicted_cycles"])),
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
        f"    make m3vit        # hardware {values['hardware']}: 16 x 16 lanes, a port of 32 B/cycle, w8a16, {values['slot_sets']} slot sets",
        "Released weights and image, synthetic experts (the release has none); simulated cycle by cycle in Verilator, every element of "
        "every tensor compared; memory latency 30 cycles; one image per start, cycles from start to done. dB is of the final x against "
        f"float64. All of it, from the weights to these figures, took {values['total_seconds']:.0f} s.",
        table(["", *(task["task"] for task in tasks), "published"], rows),
    )
