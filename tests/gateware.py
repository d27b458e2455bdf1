"""Runs programs on the simulated gateware for the tests, and compares every tensor with the golden machine."""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgemoe import api
from edgemoe.compare import compare_run
from edgemoe.golden import Golden
from edgemoe.program import Program
from edgemoe.simulation.executable import Options
from edgemoe.simulation.job import MemoryModel
from edgemoe.simulation.runner import SimulationResult, simulate, verilog_file
from edgemoe.simulation.verilator import build

FAST_BUILD = Options(optimise="0")
"""Small designs: what the compiler saves, a short simulation does not spend."""


def run(program: Program, images: Sequence[np.ndarray], tasks: Iterable[int] = (0,), *,
        options: Options = FAST_BUILD, verilog_dir: Path | None = None, **others) -> list[SimulationResult]:  # fmt: skip
    """Simulate; the executable is built once, whichever process comes first, and kept in the user's cache."""
    place = api.cache()
    place.mkdir(parents=True, exist_ok=True)
    hardware = program.hardware
    with open(place / f"lock-{zlib.crc32(repr(hardware).encode()):08x}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(verilog_file(hardware, verilog_dir, place), hardware, place, options)
    return simulate(
        program, program.hardware, np.stack(images), list(tasks), build_dir=place, verilog_dir=verilog_dir,
        options=options, **others,
    )  # fmt: skip


def check(program: Program, images: Sequence[np.ndarray], tasks: Iterable[int] = (0,), *,
          options: Options = FAST_BUILD, **others) -> list[SimulationResult]:  # fmt: skip
    """Simulate, and assert that every element of every tensor equals the golden machine's."""
    tasks = list(tasks)
    results = run(program, images, tasks, options=options, **others)
    machine = Golden(program)
    for task, result in zip(tasks, results, strict=True):
        comparison = compare_run(program, machine.execute(list(images), task, trace=True), result)
        assert comparison.mismatches == 0, str(comparison.first)
        assert comparison.tensors_compared > 0
    return results


def stalled(seed: int) -> MemoryModel:
    """A memory with random gaps on all streams."""
    return replace(MemoryModel(), stalls=seed)
