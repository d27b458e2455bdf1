"""A port that moves fewer bytes per cycle than its width, as an SDRAM does."""

from __future__ import annotations

from typing import Any

from benchmarks.document import count, percent, section, table
from benchmarks.workload import Workload, nano
from edgemoe import api, inputs, perf
from edgemoe.program import Program
from edgemoe.simulation.job import MemoryModel

HARDWARE = "m3vit-128"
RATES = (2.0, 2.5, 3.1)
LIMIT = 0.02
SIMULATED_RATE = 1.0
"""Bytes per cycle of the simulated case, on a port of 8."""


def measure(work: Workload) -> dict[str, Any]:
    """Predicted cycles beside the bound, and one simulated case."""
    program = work.program(HARDWARE)
    rows = [row(program, routing, routes, rate) for routing, routes in work.routes.items() for rate in RATES]
    return {"hardware": HARDWARE, "rows": rows, "simulated": simulated()}


def row(program: Program, routing: str, routes: perf.Routes, rate: float) -> dict[str, Any]:
    """Cycles, and the sum over descriptors of the larger of computing and memory."""
    port = program.hardware.port_bytes
    bandwidth = MemoryModel.from_bytes_per_cycle(rate, port).bandwidth
    exact = bandwidth * port / perf.FULL
    ideal = perf.predict(program, routes)
    found = perf.predict(program, routes, bandwidth=bandwidth)
    return {
        "routing": routing, "bytes_per_cycle": exact, "cycles": found.cycles,
        "bound": sum(max(cost.cycles, cost.bytes / exact) for cost in ideal.descriptors),
        "mac_utilisation": found.mac_utilisation, "external_bytes": found.external_bytes,
    }  # fmt: skip


def simulated() -> dict[str, Any]:
    """The nano model on a slow memory: simulated and predicted cycles."""
    program = nano()
    images, _ = inputs.test_images()
    memory = MemoryModel.from_bytes_per_cycle(SIMULATED_RATE, program.hardware.port_bytes)
    (run,) = api.simulate(program, images[:1], memory=memory)
    found = perf.predict(
        program,
        api.golden(program, images[0], trace=True),
        bandwidth=memory.bandwidth,
        latency=memory.latency,
    )
    return {
        "bytes_per_cycle": SIMULATED_RATE, "cycles": run.counters["cycles"], "predicted": found.cycles,
        "external_bytes": run.external_words * program.hardware.port_bytes,
        "predicted_bytes": found.external_bytes,
    }  # fmt: skip


def section_text(values: dict[str, Any]) -> str:
    """The table and the simulated case."""
    lines = [
        [
            row["routing"], f"{row['bytes_per_cycle']:.2f}", count(row["cycles"]), count(row["bound"]),
            f"{100 * (row['cycles'] / row['bound'] - 1):+.2f}", percent(row["mac_utilisation"]),
        ]
        for row in values["rows"]
    ]  # fmt: skip
    case = values["simulated"]
    off = case["predicted"] / case["cycles"] - 1
    return section(
        "Slow memories, by the cycle model",
        f"`{values['hardware']}` with a memory that moves fewer bytes per cycle than the port is wide. The bound is the sum over "
        "descriptors of max(cycles with a fast memory, bytes / rate): what a machine reaches that overlaps memory and computing within "
        f"every descriptor. Must: within {LIMIT:.0%}.",
        table(("routing", ">B/cycle", ">cycles", ">bound", ">off, %", ">MAC utilisation, %"), lines),
        f"Simulated check: the nano model at {case['bytes_per_cycle']:g} B/cycle on a port of 8 takes {count(case['cycles'])} cycles in the "
        f"simulated gateware, {count(case['predicted'])} by the model ({100 * off:+.2f} %), and "
        f"{count(case['external_bytes'])} and {count(case['predicted_bytes'])} bytes.",
    )
