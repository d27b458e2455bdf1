"""Runs operations on a simulated memory system: Verilator with a C++ driver, built once per design."""

from __future__ import annotations

import fcntl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgemoe import api, verilog
from edgemoe.simulation.executable import Options, executable
from edgemoe.simulation.sdram import model_source

HERE = Path(__file__).parent
REQUEST, WRITE, DATA, END = range(4)


@dataclass
class Result:
    """Transfers in the order of their cycles, and the words that came."""

    cycle: np.ndarray
    kind: np.ndarray
    violations: int
    words: list[int]
    messages: list[str] = field(default_factory=list)

    def cycles(self, kind: int) -> np.ndarray:
        return self.cycle[self.kind == kind]


def compile_verilog(text: str, main: Path, **defines: int) -> Path:
    """Path of the executable; built by whoever comes first."""
    sources = {"top.v": text, "main.cpp": main.read_text()}
    place = api.cache()
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock-memory", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return executable("memory", "top", sources, place, Options(optimise="1"), defines)


def build(system, core_mhz: float = 0) -> Path:
    """Executable of a Component with the members of `edgemoe.simulation.sdram.SdramSystem`."""
    text = verilog.convert(system, "top") + model_source()
    defines = {"PORT_BYTES": system.port_bytes}
    if system.crossing:
        defines["CORE_PS"] = round(500_000 / core_mhz)
        defines["MEMORY_PS"] = round(500_000 / system.spec.clock_mhz)
    return compile_verilog(text, HERE / "harness.cpp", **defines)


def run(executable: Path, port_bytes: int, directory: Path, requests=(), writes=(), gaps=(0,),
        limit: int = 2_000_000, **plusargs) -> Result:  # fmt: skip
    """Send (gap, address, words) and (gap, address, data); ``gaps`` are those of ``read_data``, repeated."""
    operations, events = directory / "operations", directory / "events"
    with operations.open("wb") as file:
        file.write(np.array([len(requests), len(writes), len(gaps)], "<u4").tobytes())
        file.write(np.array(list(requests), "<u4").tobytes())
        for gap, address, value in writes:
            file.write(np.array([gap, address], "<u4").tobytes() + int(value).to_bytes(port_bytes, "little"))
        file.write(np.array(list(gaps), "<u4").tobytes())
    command = [executable, operations, events, limit, *(f"+sdram_{k}={v}" for k, v in plusargs.items())]
    done = subprocess.run([str(c) for c in command], cwd=directory, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr + done.stdout[-500:]
    table = np.fromfile(events, "<u4").reshape(-1, 4).astype(np.int64)
    raw = (directory / "events.data").read_bytes()
    words = [int.from_bytes(raw[i : i + port_bytes], "little") for i in range(0, len(raw), port_bytes)]
    messages = [line for line in done.stdout.splitlines() if line.startswith("sdram:")]
    return Result(table[:, 0], table[:, 1], int(table[-1, 2]), words, messages)
