"""Runs a program on the simulated gateware and returns outputs, counters and decoded records."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemoe import verilog
from edgemoe.config import HardwareConfig
from edgemoe.errors import BadInput, DeviceError, EdgemoeError
from edgemoe.isa import Error
from edgemoe.simulation import records as decoder
from edgemoe.simulation.executable import Options
from edgemoe.simulation.job import Job, MemoryModel, Run
from edgemoe.simulation.placement import Placement, pack_images, place, unpack_store
from edgemoe.simulation.records import Records
from edgemoe.simulation.verilator import build

Progress = Callable[[dict], None]
"""Called with ``stage`` (text) while building, and with ``run``, ``cycle`` and ``number`` while running."""


@dataclass(frozen=True)
class SimulationResult:
    """What one start of the accelerator did.

    Attributes:
        outputs: by number of the STORE descriptor, image x row x channel (pad lanes included), int16.
        counters: the control port's counters (`edgemoe.core.interface.COUNTERS`).
        error: the control port's error code.
        ended: ``done``, or why the simulation gave up: ``max_cycles``, ``idle``.
        cycles: from the start pulse to done, both included, as counted by the harness.
        seconds: of wall time in the simulator.
        problems: what the harness found wrong; empty in a good run.
        records: the monitor's records; None if they were not wanted.
    """

    outputs: dict[int, NDArray[np.int16]]
    counters: dict[str, int]
    error: Error | int
    ended: str
    cycles: int
    seconds: float
    placement: Placement
    problems: list[str] = field(default_factory=list)
    records: Records | None = None

    @property
    def external_words(self) -> int:
        """Port words read and written, by the accelerator's own counters."""
        return self.counters["read_words"] + self.counters["write_words"]

    def check(self) -> None:
        """Raise `DeviceError` unless the run ended with done, without an error and without problems."""
        if self.problems:
            raise DeviceError("; ".join(self.problems))


def simulate(program, hardware: HardwareConfig, images: NDArray, task: int | Sequence[int] = 0, *,
             build_dir: Path | str, verilog_dir: Path | str | None = None,
             memory: MemoryModel = MemoryModel(), options: Options = Options(), records: bool = True,
             max_cycles: int = 200_000_000, idle_cycles: int = 100_000, waves: Path | str | None = None,
             waves_cycles: tuple[int, int] = (0, 1 << 62), check: bool = True,
             progress: Progress = lambda _: None) -> list[SimulationResult]:  # fmt: skip
    """Simulate ``program`` over all ``images`` once per task, one start after the other.

    Args:
        program: bytes of memory.bin, or an object with them as ``memory``.
        images: N x C x H x W (or C x H x W), uint8 or int16 as the program wants.
        task: one task, or several; the accelerator is not reset in between.
        build_dir: where generated Verilog and executables are kept.
        verilog_dir: directory of `edgemoe.verilog.generate` (or a Verilog file) to simulate instead.
        memory: timing of the external memory.
        records: decode the monitor's records (about 150 MB for an image of M3ViT-tiny).
        waves: VCD file to write.
        waves_cycles: first cycle (from reset) in the VCD file, and the first no longer in it.
        check: raise `DeviceError` if a run did not end well; otherwise see ``problems``.

    Raises:
        BadInput, DoesNotFit, ToolMissing, DeviceError: see their messages.
    """
    image = bytes(program if isinstance(program, (bytes, bytearray)) else program.memory)
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    placement = place(image, hardware, len(images))
    pixels = pack_images(images, placement, hardware.port_bytes)
    tasks = [task] if isinstance(task, int) else list(task)
    if waves is not None:
        options = Options(waves=True, threads=options.threads, optimise=options.optimise)

    progress({"stage": "generating the Verilog"})
    source = verilog_file(hardware, verilog_dir, build_dir)
    executable = build(source, hardware, Path(build_dir), options, lambda text: progress({"stage": text}))
    progress({"stage": "simulating"})
    with tempfile.TemporaryDirectory(prefix="run-", dir=build_dir) as name:
        work = Path(name)
        (work / "memory.bin").write_bytes(image)
        (work / "images.bin").write_bytes(pixels)
        port = hardware.port_bytes
        runs = tuple(
            Run(f"run{i}", placement.program, placement.image, placement.output, len(images), t,
                placement.output_words, records)
            for i, t in enumerate(tasks)
        )  # fmt: skip
        job = Job(
            hardware.memory_bytes,
            ((placement.program * port, Path("memory.bin")), (placement.image * port, Path("images.bin"))),
            runs, memory, max_cycles, idle_cycles,
            None if waves is None else Path(waves).absolute(), *waves_cycles,
        )  # fmt: skip
        execute(executable, job, work, progress)
        results = [_result(work / run.name, placement, hardware, records) for run in runs]
    if check:
        for result in results:
            result.check()
    return results


def verilog_file(hardware: HardwareConfig, verilog_dir: Path | str | None, build_dir: Path | str) -> Path:
    """The Verilog to simulate; a directory of the user's must have been made for this hardware."""
    if verilog_dir is None:
        return verilog.cached(hardware, build_dir)
    place = Path(verilog_dir)
    if place.is_file():
        return place
    path = place / verilog.FILE
    if not path.is_file():
        raise BadInput(f"{place}: has no {verilog.FILE}; make it with: edgemoe verilog -o {place}")
    manifest = place / "manifest.json"
    if manifest.is_file():
        try:
            made_for = json.loads(manifest.read_text())["configuration"]["hardware"]
        except (ValueError, KeyError, TypeError):
            raise BadInput(
                f"{manifest}: not a manifest of edgemoe verilog; generate the directory again"
            ) from None
        for key, have in made_for.items():
            wanted = getattr(hardware, key, None)
            if key not in ("name", "memory_bytes") and wanted != have:
                raise BadInput(f"{place}: was generated with {key} {have}, this build needs {wanted}")
    return path


def execute(executable: Path, job: Job, directory: Path, progress: Progress = lambda _: None) -> None:
    """Run the simulator over a job in ``directory``; its result files are named after the runs."""
    (directory / "job.txt").write_text(job.text())
    with subprocess.Popen(
        [str(executable.absolute()), "job.txt"], cwd=directory, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        messages = []
        try:
            for line in process.stderr:
                if line.startswith("{"):
                    progress(json.loads(line))
                else:
                    messages.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        what = messages[-1] if messages else f"exit code {process.returncode}"
        raise EdgemoeError(f"the simulator failed: {what}")


def _result(prefix: Path, placement: Placement, hardware: HardwareConfig, records: bool) -> SimulationResult:
    values = json.loads(Path(f"{prefix}.json").read_text())
    raw = Path(f"{prefix}.output").read_bytes()
    code = values["error"]
    return SimulationResult(
        outputs={n: unpack_store(raw, d, placement, hardware) for n, d in placement.stores.items()},
        counters=values["counters"],
        error=Error(code) if code in list(Error) else code,
        ended=values["ended"],
        cycles=values["harness_cycles"],
        seconds=values["seconds"],
        placement=placement,
        problems=_problems(values),
        records=decoder.read(prefix, hardware) if records else None,
    )


def _problems(values: dict) -> list[str]:
    """Everything that a good run does not show, as sentences."""
    found = []
    code = values["error"]
    where = f"in cycle {values['harness_cycles']}, last record from descriptor {values['last_number']}"
    if code:
        name = Error(code).name if code in list(Error) else "unknown"
        found.append(f"the accelerator ended with error {code} ({name}) {where}")
    if values["ended"] == "idle":
        found.append(f"the accelerator hangs: no record and no memory transfer up to the end {where}")
    if values["ended"] == "max_cycles":
        found.append(f"the accelerator was not done {where}; raise max_cycles if it should go on")
    if values["ended"] == "done" and values["done_pulses"] != 1:
        found.append(f"done was high in {values['done_pulses']} cycles, must be 1")
    if values["ended"] == "done" and values["busy"]:
        found.append("busy is high after done")
    if values["pending_reads"] and values["ended"] == "done":
        found.append(f"{values['pending_reads']} read requests have data that were not taken before done")
    for key, what in (
        ("memory_errors", "accesses outside of the rules"),
        ("rule_errors", "broken stream rules"),
    ):
        if values[key]:
            found.append(f"{values[key]} {what}, first: {values['first_error']}")
    return found
