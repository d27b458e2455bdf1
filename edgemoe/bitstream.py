"""From hardware to a bitstream of a board, with the open tools (`edgemoe build`): gateware, yosys, nextpnr, ecppack."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemoe import floorplan, output, synthesis
from edgemoe.config import HardwareConfig, load_hardware
from edgemoe.errors import BadInput, EdgemoeError
from edgemoe.manifest import manifest
from edgemoe.place import CLOCKS, PINS, Placed, clock_names, place_and_route
from edgemoe.rate import fits, rate, shape_of
from edgemoe.verilog import collector_paused

if TYPE_CHECKING:
    from edgemoe.checkpoint import Model
    from edgemoe.targets.ulx3s import Board, Ulx3sSpec

REPORT = "report.json"
TOOLS = {"yosys": "YOSYS", "nextpnr-ecp5": "NEXTPNR_ECP5", "ecppack": "ECPPACK"}
"""Programs of the flow, and the environment variable that names another one."""


def board(name: str) -> Board:
    """A board by name.

    Raises:
        BadInput: there is no such board.
    """
    from edgemoe.targets.ulx3s import BOARDS

    if name not in BOARDS:
        raise BadInput(f"--board must be one of {', '.join(BOARDS)}; found {name!r}")
    return BOARDS[name]


# -- the flow -----------------------------------------------------------------------------------


@dataclass
class Stages:
    """Tells which stage begins and notes how long each one took."""

    board: str
    tick: synthesis.Tick
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = 0
    current: str = ""

    def begin(self, name: str) -> None:
        """End the stage before, and begin one; an empty name only ends."""
        now = time.monotonic()
        if self.current:
            self.seconds[self.current] = round(now - self.since, 1)
        self.current, self.since = f"{self.board}: {name}" if name else "", now
        if name:
            self.tick(self.current, None)


@dataclass(frozen=True)
class Job:
    """What a build is asked for, checked.

    Attributes:
        target: the board.
        hardware: lanes and capacities.
        spec: the design, with its clocks.
        shape: the model whose images per second are predicted.
        seeds: runs of place and route, with seeds 1, 2, ...
        tools: programs by name.
    """

    target: Board
    hardware: HardwareConfig
    spec: Ulx3sSpec
    shape: Model
    seeds: int
    tools: dict[str, str]

    @property
    def device(self) -> synthesis.Target:
        """Of the board."""
        return synthesis.TARGETS[self.target.target]

    @property
    def wanted_mhz(self) -> dict[str, float]:
        """What the PLL makes, by the names of `edgemoe.place.CLOCKS`."""
        return {name: float(self.spec.pll.output_hz(index)) / 1e6 for index, name in enumerate(CLOCKS)}


def job(
    name: str, hardware: str | None, seeds: int, target_mhz: float | None, memory_mhz: float | None, model: str | None
) -> Job:  # fmt: skip
    """Check what `build` is asked for, and find the tools.

    Raises:
        BadInput: an argument cannot be.
        ToolMissing: a tool is.
    """
    target = board(name)
    if seeds < 1:
        raise BadInput(f"--seeds must be at least 1, found {seeds}")
    wish = target.core_mhz if target_mhz is None else target_mhz
    config = load_hardware(hardware or target.hardware)
    try:
        spec = target.specification(config, wish, memory_mhz)
    except BadInput as error:
        memory = "" if memory_mhz is None else f", --memory-mhz {memory_mhz:g}"
        raise BadInput(f"--target-mhz {wish:g}{memory}: {error}") from None
    tools = {tool: synthesis.find(variable, tool) for tool, variable in TOOLS.items()}
    return Job(target, config, spec, shape_of(model or target.model), seeds, tools)


def build(
    name: str, hardware: str | None, seeds: int, target_mhz: float | None, memory_mhz: float | None, directory: Path,
    model: str | None, tick: synthesis.Tick,
) -> dict[str, Any]:  # fmt: skip
    """Build a board's bitstream into ``directory``; the object that `edgemoe build --json` writes.

    The bitstream is that of the best seed, whether or not it meets the clocks. Without one (``fits`` is False)
    ``bitstream``, ``fmax_mhz``, ``met`` and ``device_fps`` are None.

    Args:
        name: of the board.
        hardware: a name or file; by default the board's.
        seeds: number of runs of place and route, with seeds 1, 2, ..., as many at a time as there are cores.
        target_mhz: clock of the core, within half a per cent; by default the board's.
        memory_mhz: highest clock of the memory; by default the board's.
        model: whose images per second are predicted, see `edgemoe.rate.shape_of`; by default the board's.
        tick: is told the stage.
    """
    asked = job(name, hardware, seeds, target_mhz, memory_mhz, model)
    stages = Stages(name, tick)
    with output.directory(directory) as folder:
        netlist, log = synthesised(asked, folder, stages)
        resources = synthesis.read_netlist(netlist).resources
        placed: list[Placed] = []
        reason = None
        if all(resources[key] <= have for key, have in asked.device.capacity.items()):
            placed, reason = routed(asked, netlist, folder, stages)
        values: dict[str, Any] = {
            "board": name,
            "hardware": asked.hardware.name,
            "target": asked.target.target,
            "resources": placed[0].used if placed else resources,
            "capacity": asked.device.capacity,
            "fits": bool(placed),
            "reason": None if placed else reason,
            "seeds": [p.seed for p in placed],
            "fmax_mhz": None,
            "met": None,
            "target_mhz": round(asked.wanted_mhz["core"], 2),
            "memory_fmax_mhz": None,
            "memory_target_mhz": round(asked.wanted_mhz["memory"], 2),
            "fmax_by_seed": [p.mhz["core"] for p in placed],
            "memory_fmax_by_seed": [p.mhz["memory"] for p in placed],
            "critical_path": None,
            "bitstream": None,
            "device_fps": None,
            "rate": None,
            "tools": synthesis.versions(log, asked.tools["nextpnr-ecp5"], folder),
        }
        if placed:
            values |= finished(asked, placed, folder, Path(directory), stages)
        stages.begin("")
        values["seconds"] = stages.seconds
        record = manifest(
            "bitstream", {"hardware": asked.hardware, "board": name, "core_hz": asked.spec.board.core_hz}, {}
        )
        record["tools"].update(values["tools"])
        output.write_json(folder / output.MANIFEST, record)
        output.write_json(folder / REPORT, values)
    return values


def synthesised(asked: Job, folder: Path, stages: Stages) -> tuple[dict[str, Any], str]:
    """Gateware and synthesis; the netlist as place and route gets it, and the log of yosys."""
    stages.begin(f"gateware of {asked.hardware.name}")
    elaborate(asked.target, asked.spec, folder)
    stages.begin("synthesis")
    device = asked.device
    script = synthesis.script(device.family, device.tight)
    log = synthesis.run_yosys(asked.tools["yosys"], script, folder)
    return synthesis.netlist_of(device.family, folder), log


def routed(
    asked: Job, netlist: dict[str, Any], folder: Path, stages: Stages
) -> tuple[list[Placed], str | None]:
    """Floorplan, place and route; the seeds that have a routing, and why the last of the others has none."""
    names = clock_names(netlist)
    if asked.device.sites:
        stages.begin("floorplan")
        floorplan.floorplan_file(folder / "top.json", asked.device.sites)
    at_once = min(asked.seeds, os.cpu_count() or 1)
    also = f", {at_once} at a time" if at_once > 1 else ""
    stages.begin(f"place and route, {asked.seeds} seed{'s' * (asked.seeds > 1)}{also}")
    seeds = range(1, asked.seeds + 1)
    done = dict.fromkeys(seeds, 0.0)

    def one(seed: int) -> Placed:
        def tick(part: float) -> None:
            done[seed] = part
            stages.tick(stages.current, statistics.mean(done.values()))

        return place_and_route(asked.tools["nextpnr-ecp5"], asked.device, folder, seed, names, tick)

    placed, reason = [], None
    with ThreadPoolExecutor(at_once) as pool:
        runs = [pool.submit(one, seed) for seed in seeds]
    for run in runs:
        try:
            placed.append(run.result())
        except EdgemoeError as error:
            reason = str(error)
    return placed, reason


def finished(
    asked: Job, placed: list[Placed], folder: Path, directory: Path, stages: Stages
) -> dict[str, Any]:
    """Pack the best seed; what the report says of the clocks, the medians of all, and of the images per second."""
    wanted = asked.wanted_mhz
    best = max(placed, key=lambda p: p.margin(wanted))
    stages.begin(f"bitstream of seed {best.seed}")
    bitstream = f"{asked.target.name}.bit"
    pack(asked.tools["ecppack"], folder, best.seed, bitstream)
    fmax = {c: round(statistics.median(p.mhz[c] for p in placed), 2) for c in CLOCKS}
    values = {
        "fmax_mhz": fmax["core"],
        "memory_fmax_mhz": fmax["memory"],
        "met": all(fmax[c] >= mhz for c, mhz in wanted.items()),
        "bitstream": str(directory / bitstream),
        "seed": best.seed,
        "critical_path": best.path,
    }
    if fits(asked.shape.config, asked.hardware):
        stages.begin(f"images per second of {asked.shape.config.name}")
        runs_at = {c: min(fmax[c], mhz) for c, mhz in wanted.items()}
        found = rate(asked.shape, asked.hardware, asked.spec, runs_at["core"], runs_at["memory"])
        values |= {"device_fps": round(found.fps, 2), "rate": {**vars(found), "formula": found.formula}}
    return values


def elaborate(target: Board, spec: Ulx3sSpec, folder: Path) -> None:
    """Write the RTLIL and the constraints of the pins."""
    platform = target.make_platform()
    with collector_paused():
        plan = platform.prepare(target.design(spec), "top", emit_src=False)
    for name in ("top.il", PINS):
        content = plan.files[name]
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def pack(ecppack: str, folder: Path, seed: int, bitstream: str) -> None:
    """Make the bitstream of one seed."""
    command = [ecppack, "--compress", "--input", f"top{seed}.config", "--bit", bitstream]
    synthesis.run(command, folder, "ecppack.log")
