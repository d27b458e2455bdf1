"""From hardware to a bitstream of a board, with the open tools (`edgemoe build`): gateware, yosys, nextpnr, ecppack."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemoe import floorplan, output, synthesis
from edgemoe.absorb import top_module
from edgemoe.config import HardwareConfig, ModelConfig, load_hardware
from edgemoe.errors import BadInput, EdgemoeError
from edgemoe.manifest import manifest
from edgemoe.verilog import collector_paused

if TYPE_CHECKING:
    from edgemoe.checkpoint import Model
    from edgemoe.targets.ulx3s import Board, Ulx3sSpec

REPORT = "report.json"
OPTIONS = "AMARANTH_nextpnr_opts"
"""Environment variable with more options of nextpnr, as Amaranth has it."""
CLOCKS = {"core": "CLKOP", "memory": "CLKOS"}
"""Outputs of the PLL by clock."""
PIPELINE = 9
"""Clocks of the memory from a request at the controller to its first command, and from the last register to the port."""
CROSSING = 6
"""Cycles of the slower clock for a crossing there and back."""


def board(name: str) -> Board:
    """A board by name.

    Raises:
        BadInput: there is no such board.
    """
    from edgemoe.targets.ulx3s import BOARDS

    if name not in BOARDS:
        raise BadInput(f"--board must be one of {', '.join(BOARDS)}; found {name!r}")
    return BOARDS[name]


# -- frames per second --------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """Images per second of a model on a board, by the cycle model."""

    model: str
    cycles: int
    core_mhz: float
    memory_mhz: float
    bandwidth: int
    """Port words per 1024 cycles of the core that the SDRAM delivers."""
    fps: float

    @property
    def formula(self) -> str:
        """How ``fps`` follows from the rest."""
        return (
            f"{self.core_mhz:g} MHz / {self.cycles} cycles = {self.fps:.2f} images per second of {self.model}; the "
            f"SDRAM at {self.memory_mhz:g} MHz gives {self.bandwidth} port words per 1024 cycles of the core"
        )


def shape_of(name: str) -> Model:
    """The model whose rate is reported: a model file, ``nano``, or ``m3vit-tiny`` with random weights.

    Cycles do not depend on the weights, and the routing is a balanced one, in which all experts are used.
    """
    from edgemoe import checkpoint, inputs

    if name == checkpoint.EDGE_MOE.name:
        return checkpoint.random_model(checkpoint.EDGE_MOE, 1)
    return inputs.model(name)


def rate(model: Model, hardware: HardwareConfig, spec: Ulx3sSpec, core_mhz: float, memory_mhz: float) -> Rate:
    """Predict a run of one image of ``model`` at these clocks.

    The SDRAM moves 2 bytes per clock except while it refreshes, and a request takes as long as a precharge, an
    activation, the CAS latency and the registers on the way.
    """
    import numpy as np

    from edgemoe import api, perf

    calibration = None
    if model.config.name == "m3vit-tiny":
        c = model.config
        calibration = np.random.default_rng(1).integers(0, 256, (1, c.channels, c.height, c.width), np.uint8)
    program = api.compile(model, hardware, calibration=calibration)
    sdram, ratio = spec.board.sdram, core_mhz / memory_mhz
    share = 1 - sdram.refresh_cycles / sdram.refresh_period
    bandwidth = min(perf.FULL, int(perf.FULL * 2 * share / (hardware.port_bytes * ratio)))
    clocks = sdram.rp + sdram.rcd + sdram.cas + sdram.round_trip + PIPELINE
    latency = CROSSING + int(clocks * ratio)
    found = perf.predict(program, bandwidth=bandwidth, latency=latency)
    fps = core_mhz * 1e6 / found.cycles
    return Rate(model.config.name, found.cycles, round(core_mhz, 2), round(memory_mhz, 2), bandwidth, fps)


def fits(model: ModelConfig, hardware: HardwareConfig) -> bool:
    """Whether the hardware has the capacities that the model needs."""
    from edgemoe.config import needs

    return all(getattr(hardware, key) >= value for key, value in needs(model, hardware).items())


# -- the flow -----------------------------------------------------------------------------------


@dataclass
class Stages:
    """Tells which stage begins and notes how long each one took."""

    tick: synthesis.Tick
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = 0
    current: str = ""

    def begin(self, name: str) -> None:
        """End the stage before, and begin one; an empty name only ends."""
        now = time.monotonic()
        if self.current:
            self.seconds[self.current] = round(now - self.since, 1)
        self.current, self.since = name, now
        if name:
            self.tick(name, None)


@dataclass(frozen=True)
class Placed:
    """One run of place and route of a board.

    Attributes:
        seed: of the run.
        mhz: what each clock reaches, by the names of `CLOCKS`.
        used: resources.
        path: of the core's clock (`edgemoe.synthesis.Route`).
    """

    seed: int
    mhz: dict[str, float]
    used: dict[str, int]
    path: dict[str, Any]

    def margin(self, spec: Ulx3sSpec) -> float:
        """Reached over wanted, of the clock that is worse off."""
        wanted = wanted_mhz(spec)
        return min(self.mhz[name] / wanted[name] for name in CLOCKS)


def wanted_mhz(spec: Ulx3sSpec) -> dict[str, float]:
    """What the PLL makes, by the names of `CLOCKS`."""
    return {name: float(spec.pll.output_hz(index)) / 1e6 for index, name in enumerate(CLOCKS)}


def clock_names(netlist: dict[str, Any]) -> dict[str, set[str]]:
    """All names of the nets that the PLL drives, by the names of `CLOCKS`."""
    module = top_module(netlist)
    (pll,) = [cell for cell in module["cells"].values() if cell["type"] == "EHXPLLL"]
    return {
        clock: {
            name.lstrip("\\")
            for name, net in module["netnames"].items()
            if pll["connections"][output_name][0] in net["bits"]
        }
        for clock, output_name in CLOCKS.items()
    }


def read_clocks(report: dict[str, Any], names: dict[str, set[str]]) -> dict[str, str]:
    """The report's name of each clock of `CLOCKS`.

    Raises:
        EdgemoeError: one of them is not in the report of nextpnr.
    """
    found = {}
    for clock, aliases in names.items():
        for reported in report.get("fmax", {}):
            if reported.removeprefix("$glbnet$") in aliases:
                found[clock] = reported
        if clock not in found:
            raise EdgemoeError(
                f"nextpnr reports no {clock} clock; it has {', '.join(report.get('fmax', {})) or 'none'}"
            )
    return found


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
        model: whose images per second are predicted, see `shape_of`; by default the board's.
        tick: is told the stage.
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
    device = synthesis.TARGETS[target.target]
    tools = {
        key: synthesis.find(variable, tool)
        for key, variable, tool in (
            ("yosys", "YOSYS", "yosys"),
            ("nextpnr", "NEXTPNR_ECP5", "nextpnr-ecp5"),
            ("ecppack", "ECPPACK", "ecppack"),
        )
    }
    shape = shape_of(model or target.model)
    stages = Stages(tick)
    with output.directory(directory) as folder:
        stages.begin(f"{name}: gateware of {config.name}")
        elaborate(target, spec, folder)
        stages.begin(f"{name}: synthesis")
        log = synthesis.run_yosys(
            tools["yosys"], synthesis.script(device.family, device.table_adder_bits), folder
        )
        netlist = synthesis.netlist_of(device.family, folder)
        resources = synthesis.read_netlist(netlist).resources
        excess = [key for key, have in device.capacity.items() if resources[key] > have]
        placed: list[Placed] = []
        reason = None
        if not excess:
            names = clock_names(netlist)
            if device.sites:
                stages.begin(f"{name}: floorplan")
                floorplan.floorplan_file(folder / "top.json", device.sites)
            at_once = min(seeds, os.cpu_count() or 1)
            also = f", {at_once} at a time" if at_once > 1 else ""
            stages.begin(f"{name}: place and route, {seeds} seed{'s' * (seeds > 1)}{also}")
            with ThreadPoolExecutor(at_once) as pool:
                runs = [
                    pool.submit(place_and_route, tools["nextpnr"], device, folder, seed, names)
                    for seed in range(1, seeds + 1)
                ]
            for run in runs:
                try:
                    placed.append(run.result())
                except EdgemoeError as error:
                    reason = str(error)
        values: dict[str, Any] = {
            "board": name,
            "hardware": config.name,
            "target": target.target,
            "resources": placed[0].used if placed else resources,
            "capacity": device.capacity,
            "fits": bool(placed),
            "reason": None if placed else reason,
            "seeds": [p.seed for p in placed],
            "fmax_mhz": None,
            "met": None,
            "target_mhz": round(wanted_mhz(spec)["core"], 2),
            "memory_fmax_mhz": None,
            "memory_target_mhz": round(wanted_mhz(spec)["memory"], 2),
            "fmax_by_seed": [p.mhz["core"] for p in placed],
            "critical_path": None,
            "bitstream": None,
            "device_fps": None,
            "rate": None,
            "tools": synthesis.versions(log, tools["nextpnr"], folder),
        }
        if placed:
            best = max(placed, key=lambda p: p.margin(spec))
            stages.begin(f"{name}: bitstream of seed {best.seed}")
            bitstream = f"{name}.bit"
            pack(tools["ecppack"], folder, best.seed, bitstream)
            fmax = {c: round(statistics.median(p.mhz[c] for p in placed), 2) for c in CLOCKS}
            runs_at = {c: min(fmax[c], mhz) for c, mhz in wanted_mhz(spec).items()}
            values |= {
                "fmax_mhz": fmax["core"],
                "memory_fmax_mhz": fmax["memory"],
                "met": all(fmax[c] >= mhz for c, mhz in wanted_mhz(spec).items()),
                "bitstream": str(Path(directory) / bitstream),
                "seed": best.seed,
                "critical_path": best.path,
            }
            if fits(shape.config, config):
                stages.begin(f"{name}: images per second of {shape.config.name}")
                found = rate(shape, config, spec, runs_at["core"], runs_at["memory"])
                values |= {
                    "device_fps": round(found.fps, 2),
                    "rate": {**vars(found), "formula": found.formula},
                }
        stages.begin("")
        values["seconds"] = stages.seconds
        record = manifest("bitstream", {"hardware": config, "board": name, "core_hz": spec.board.core_hz}, {})
        record["tools"].update(values["tools"])
        output.write_json(folder / output.MANIFEST, record)
        output.write_json(folder / REPORT, values)
    return values


def elaborate(target: Board, spec: Ulx3sSpec, folder: Path) -> None:
    """Write the RTLIL and the constraints of the pins."""
    platform = target.make_platform()
    with collector_paused():
        plan = platform.prepare(target.design(spec), "top", emit_src=False)
    for name in ("top.il", "top.lpf"):
        content = plan.files[name]
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def place_and_route(
    nextpnr: str, device: synthesis.Target, folder: Path, seed: int, names: dict[str, set[str]]
) -> Placed:
    """One run of nextpnr; the clocks that it aims at follow from the PLL."""
    report = f"report{seed}.json"
    command = [
        nextpnr, *device.place, "--json", "top.json", "--lpf", "top.lpf", "--textcfg", f"top{seed}.config",
        "--report", report, "--seed", str(seed), "--timing-allow-fail", *shlex.split(os.environ.get(OPTIONS, "")),
    ]  # fmt: skip
    synthesis.run(command, folder, f"nextpnr{seed}.log")
    values = json.loads((folder / report).read_text())
    clocks = read_clocks(values, names)
    core = synthesis.read_report({**values, "fmax": {clocks["core"]: values["fmax"][clocks["core"]]}})
    mhz = {clock: round(values["fmax"][reported]["achieved"], 2) for clock, reported in clocks.items()}
    return Placed(seed, mhz, core.used, core.path)


def pack(ecppack: str, folder: Path, seed: int, bitstream: str) -> None:
    """Make the bitstream of one seed."""
    command = [ecppack, "--compress", "--input", f"top{seed}.config", "--bit", bitstream]
    synthesis.run(command, folder, "ecppack.log")
