"""How fast the tools are, beside what the project promises."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.document import section, table
from benchmarks.workload import BASE, Workload, nano
from edgemoe import api, inputs, perf, verilog
from edgemoe.config import NAMED
from edgemoe.golden import Golden


def seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Wall time of a call, and processor time of this process and its children."""
    start, before = time.perf_counter(), os.times()
    function(*arguments)
    return time.perf_counter() - start, sum(os.times()[:4]) - sum(before[:4])


def generated(hardware: str) -> tuple[float, float]:
    """Seconds for the Verilog of a named hardware."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds(verilog.generate, NAMED[hardware], Path(folder) / "verilog")


def helped() -> tuple[float, float]:
    """Seconds of the quickest of a few `edgemoe --help`."""
    argv = [sys.executable, "-m", "edgemoe", "--help"]
    return min(seconds(lambda: subprocess.run(argv, capture_output=True, check=True)) for _ in range(5))


def measure(work: Workload) -> list[dict[str, Any]]:
    """Rows of name, value, unit, limit (or None), whether more is better, and how it was measured."""
    model = api.load_model("nano")
    images, _ = inputs.test_images()
    program = nano()
    machine = Golden(program)
    machine.run(images[0])
    api.simulate(program, images[:1])  # builds, unless it was built before
    cycles = 0

    def simulated() -> None:
        nonlocal cycles
        (run,) = api.simulate(program, images[:20])
        cycles = run.cycles

    simulation = seconds(simulated)
    whole = work.program(BASE)
    rows = [
        _time("edgemoe --help", helped(), 0.3, "quickest of 5"),
        _time("compile nano", seconds(api.compile, model, "nano"), 5, "calibration, quantisation, program"),
        _time("Verilog of nano", generated("nano"), 10, "once"),
        _time(f"Verilog of {BASE}", generated(BASE), None, "once"),
        _rate(
            "golden machine, nano", seconds(lambda: [machine.run(i) for i in images[:20]]), 20, "images/s", 20,
            "20 images, one at a time",
        ),
        _rate(
            "golden machine, nano, batch", seconds(machine.execute, list(images[:64]), 0), 64, "images/s", None,
            "64 images together",
        ),
        _rate("simulation of nano", simulation, cycles, "cycles/s", 50_000, "20 images, with records"),
        _time(
            f"cycle model, M3ViT-tiny on {BASE}", seconds(perf.predict, whole, work.routes[work.first]), None, "once"
        ),
    ]  # fmt: skip
    if work.machine is not None:
        took = min(seconds(work.machine.run, work.image) for _ in range(3))
        rows.append(_time("golden machine, M3ViT-tiny", took, 5, "one image, quickest of 3"))
    return rows


def _time(name: str, took: tuple[float, float], limit: float | None, how: str) -> dict[str, Any]:
    """A row in seconds, the fewer the better."""
    return {
        "name": name, "unit": "s", "wall": took[0], "processor": took[1], "limit": limit, "how": how,
        "met": limit is None or min(took) <= limit,
    }  # fmt: skip


def _rate(
    name: str, took: tuple[float, float], done: float, unit: str, limit: float | None, how: str
) -> dict[str, Any]:
    """A row in things per second, the more the better."""
    return {
        "name": name, "unit": unit, "wall": done / took[0], "processor": done / took[1], "limit": limit, "how": how,
        "met": limit is None or done / min(took) >= limit,
    }  # fmt: skip


def section_text(rows: list[dict[str, Any]]) -> str:
    """The table; a missed promise is marked."""
    lines = []
    for row in rows:
        promised = ""
        if row["limit"] is not None:
            sign = "<=" if row["unit"] == "s" else ">="
            promised = f"{sign} {row['limit']:,g}{'' if row['met'] else ' (missed)'}"
        digits = 0 if row["wall"] >= 100 else 2
        lines.append([row["name"], *(f"{row[k]:,.{digits}f}" for k in ("wall", "processor")), row["unit"],
                      promised, row["how"]])  # fmt: skip
    return section(
        "Speed of the tools",
        "By wall time, and by the processor time of all processes together. The load of the machine while it was measured was "
        f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} cores; the promises are for a machine with nothing else to do, so the better of "
        "the two counts.",
        table(("", ">by wall time", ">by processor time", "", ">promised", "how"), lines),
    )
