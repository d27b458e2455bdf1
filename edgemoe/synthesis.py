"""Synthesis, place and route of the accelerator or of one unit alone (`edgemoe synth`).

A unit has far more ports than a device has pins. So it sits in a small harness: one long shift register
drives its inputs, a register takes every output, and a tree of exclusive ors, registered level by level, folds
them into one pin. The unit's paths then start and end in registers, and nothing of it can be optimised away::

    pin --> shift register --> unit --> registers --> xor --> xor --> pin

The harness is not counted: its registers and lookup tables are known by name in the netlist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from edgemoe import floorplan, output
from edgemoe.absorb import absorb_file, top_module
from edgemoe.config import HardwareConfig
from edgemoe.errors import BadInput, EdgemoeError, ToolMissing
from edgemoe.manifest import manifest
from edgemoe.verilog import collector_paused

Tick = Callable[[str, float | None], None]

SPARE = {"monitor", "record", "record_valid", "collision", "lost"}
"""Outputs that only simulation looks at; the harness leaves them open."""
HARNESS = "synth_"
"""Beginning of the names of the harness's registers; no unit has such names."""
FOLD = 4
"""Bits that one lookup table of the harness folds."""
PREPARE = (
    "hierarchy -top {top}; flatten; opt_clean; rename -hide w:*]; memory_nordff; "
    "rename -enumerate -pattern read_register_% w:*rdreg*"
)
"""Of yosys, before the mapping. `synth_ecp5` flattens too, but ABC9 of yosys 0.70 then fails on `weigher`; of 0.66 to 0.69 it does not.

A read port that is registered already gets logic around its block RAM that a read sees the old word where it meets a
write, whatever -no-rw-check says: that option is of the pass that finds the registers. So they are taken out
first (memory_nordff). Nothing depends on such a read (tests/core/test_collisions.py). Their wires get other names, since
yosys 0.70 gives the old ones a second time where it takes a register out of a distributed memory, and stops.

Amaranth names the wires of an array o[0], o[1] .. beside o. The names of bits that ABC9 gives are the same, and it stops with a
failed assertion: names that end like that are hidden."""
TABLE_ADDER_BITS = 12
"""Of the longest adder that takes fewer cells as lookup tables alone."""
FEW_GROUPS = (
    "dfflegalize -cell $_DFF_?_ 01 -cell $_DFF_?P?_ r -cell $_SDFF_?P?_ r -cell $_DFFE_??_ 01 -cell $_DFFE_?P??_ r "
    "-cell $_SDFFE_?P??_ r -mince 3 -minsrst 100"
)
"""The flip-flops of the ECP5, as `synth_ecp5` has them, with least numbers for an enable and a synchronous reset."""


# -- units --------------------------------------------------------------------------------------


def units() -> dict[str, Callable[[HardwareConfig], wiring.Component]]:
    """What ``--unit`` accepts: makers of each unit with the lanes and capacities that the accelerator gives it."""
    from edgemoe.core import accelerator as top
    from edgemoe.core.activation import ActivationMemory
    from edgemoe.core.dma import WeightDma
    from edgemoe.core.engines import GateEngine, NormEngine
    from edgemoe.core.executor import Executor
    from edgemoe.core.exponents import ExponentTable
    from edgemoe.core.fetch import Fetch
    from edgemoe.core.filler import PARAMETER_BYTES, Filler
    from edgemoe.core.loader import Loader
    from edgemoe.core.reader import TOKEN_TAG, Reader
    from edgemoe.core.sequencer import Dispatcher, RegionSequencer
    from edgemoe.core.storer import Storer
    from edgemoe.core.writer import Writer, reorder_spec
    from edgemoe.periph.crossing import Crossing
    from edgemoe.periph.link import HostLink
    from edgemoe.periph.sdram import SdramController, SdramSpec
    from edgemoe.periph.uart import Uart, UartSpec
    from edgemoe.units.attention import ReorderUnit
    from edgemoe.units.gelu import Gelu, GeluSpec
    from edgemoe.units.layernorm import LayerNorm, LayerNormSpec
    from edgemoe.units.matmul import DotArray, MatmulSpec
    from edgemoe.units.requantise import Requantise, RequantiseSpec
    from edgemoe.units.residual import Residual
    from edgemoe.units.router import Router, RouterSpec
    from edgemoe.units.softmax import Exponential, Reciprocal, RowMaximum, SoftmaxSpec, Weigher

    def softmax(h: HardwareConfig) -> SoftmaxSpec:
        return SoftmaxSpec(b_bits=h.b_bits)

    def parameters(h: HardwareConfig) -> int:
        return max(1, h.fill_bytes // PARAMETER_BYTES)

    return {
        "array": lambda h: DotArray(MatmulSpec(h.in_lanes, h.out_lanes, h.b_bits, h.acc_bits)),
        "reorder": lambda h: ReorderUnit(reorder_spec(h), tag=TOKEN_TAG),
        "requantise": lambda h: Requantise(RequantiseSpec(acc_bits=h.acc_bits), h.post_lanes),
        "gelu": lambda h: Gelu(GeluSpec(), h.post_lanes),
        "exponential": lambda h: Exponential(softmax(h), h.post_lanes),
        "residual": lambda h: Residual(h.post_lanes),
        "row-maximum": lambda h: RowMaximum(h.tokens, h.post_lanes),
        "weigher": lambda h: Weigher(softmax(h), h.in_lanes),
        "reciprocal": lambda h: Reciprocal(softmax(h)),
        "layernorm": lambda h: LayerNorm(
            LayerNormSpec(h.in_lanes, h.norm_lanes, h.dim), q=parameters(h), tag=16
        ),
        "router": lambda h: Router(RouterSpec(h.gate_lanes, h.tokens, h.experts, min(h.top_k, h.experts))),
        "activation": lambda h: ActivationMemory(
            h, top.READ_PAGES, top.WRITE_PAGES, "product", top.READ_WAYS, top.WRITE_WAYS
        ),
        "exponent-table": lambda h: ExponentTable(h, 2),
        "fetch": Fetch,
        "dispatcher": Dispatcher,
        "regions": lambda h: RegionSequencer(),
        "weight-dma": WeightDma,
        "executor": Executor,
        "loader": Loader,
        "storer": Storer,
        "filler": Filler,
        "reader": Reader,
        "writer": lambda h: Writer(h, parameters(h)),
        "norm-engine": lambda h: NormEngine(h, parameters(h)),
        "gate-engine": GateEngine,
        "sdram": lambda h: SdramController(SdramSpec(), min(h.port_bytes, 64)),
        "crossing": lambda h: Crossing(h.port_bytes),
        "uart": lambda h: Uart(UartSpec(80_000_000, 3_000_000)),
        "link": lambda h: HostLink(h, 80_000_000),
    }


def maker(unit: str | None) -> Callable[[HardwareConfig], wiring.Component]:
    """Makes the unit of that name, or the whole accelerator.

    Raises:
        BadInput: there is no such unit.
    """
    if unit is None:
        from edgemoe.core.accelerator import Accelerator

        return Accelerator
    known = units()
    if unit not in known:
        raise BadInput(f"--unit must be one of {', '.join(known)}; found {unit!r}")
    return known[unit]


class Harness(wiring.Component):
    """A component between one input pin and one output pin.

    Parameters
    ----------
    unit : Component

    Members
    -------
    i : In(1), o : Out(1)
        Ends of the shift register and of the folded outputs.
    """

    def __init__(self, unit: wiring.Component):
        self.unit = unit
        super().__init__({"i": In(1), "o": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = self.unit
        signature = self.unit.signature
        inputs, outputs = [], []
        for path, member, value in signature.flatten(self.unit):
            if path[0] not in SPARE and len(Value.cast(value)):
                (inputs if member.flow == In else outputs).append(Value.cast(value))
        shift = Signal(sum(map(len, inputs)) + 1, name=f"{HARNESS}shift", reset_less=True)
        m.d.sync += shift.eq(Cat(self.i, shift))
        at = 0
        for value in inputs:
            m.d.comb += value.eq(shift[at : at + len(value)])
            at += len(value)
        level = Signal(sum(map(len, outputs)), name=f"{HARNESS}capture", reset_less=True)
        m.d.sync += level.eq(Cat(outputs))
        while len(level) > 1:
            count = -(-len(level) // FOLD)
            folded = Signal(count, name=f"{HARNESS}fold{count}", reset_less=True)
            m.d.sync += [folded[k].eq(level[FOLD * k : FOLD * (k + 1)].xor()) for k in range(count)]
            level = folded
        m.d.comb += self.o.eq(level)
        return m


# -- targets ------------------------------------------------------------------------------------


def map_ecp5(top: str, tight: bool = False) -> str:
    """Commands of yosys that map a design to an ECP5; the last one takes more options.

    For a device that the design nearly fills (``tight``) everything is made smaller, or easier to place, than `synth_ecp5` would:

    - adders and comparators of up to `TABLE_ADDER_BITS` of lookup tables alone: a carry chain takes two cells more than its
      bits, and its cells go nowhere else;
    - no multiplexers between lookup tables, which tie pairs of them together and hide the input of a flip-flop;
    - resets and enables of few flip-flops as logic: the eight of a tile share a reset, and the two of a slice an enable.
    """
    prepare, synth = PREPARE.format(top=top), f"synth_ecp5 -top {top} -no-rw-check"
    if not tight:
        return f"{prepare}; {synth}"
    synth += " -nowidelut"
    return (
        f"{prepare}; {synth} -run begin:map_gates; techmap -map +/techmap.v t:$alu r:Y_WIDTH<={TABLE_ADDER_BITS} %i; opt; "
        f"{synth} -run map_gates:map_ffs; opt_clean; {FEW_GROUPS}; scratchpad -copy abc9.script.flow3 abc9.script; "
        f"{synth} -run map_ffs:"
    )


@dataclass(frozen=True)
class Family:
    """How yosys maps to a family of devices, and which cells its netlists have.

    Attributes:
        script: of yosys, behind ``flatten``.
        cells: by resource; how many of it a cell takes, by a pattern of its name. The first pattern counts.
        table, output: pattern of the lookup tables, and the port that they drive.
        data: input ports of registers.
    """

    script: str
    cells: dict[str, dict[str, int]]
    table: str
    output: str
    data: tuple[str, ...] = ("D",)


FAMILIES = {
    "ecp5": Family(
        map_ecp5("top"),
        # As place and route counts them: a carry cell is two tables, 16 x 4 bits of distributed memory are four.
        {
            "lut": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},
            "ff": {"TRELLIS_FF": 1},
            "dsp": {"MULT18X18D": 1},
            "bram": {"DP16KD": 1},
        },
        "LUT4",
        "Z",
        ("DI", "M"),
    ),
    "ice40": Family(
        # no distributed memory: what asks for it is made of flip-flops
        f"{PREPARE.format(top='top')}; setattr -unset ram_style m:*; synth_ice40 -top top -device u",
        {
            "lut": {"SB_LUT4": 1},
            "ff": {r"SB_DFF\w*": 1},
            "dsp": {"SB_MAC16": 1},
            "bram": {r"SB_RAM40_4K\w*": 1},
        },
        "SB_LUT4",
        "O",
    ),
    "xcup": Family(
        f"{PREPARE.format(top='top')}; synth_xilinx -top top -family xcup -flatten -noiopad",
        {
            "lut": {r"LUT\d": 1, r"RAM32M\w*": 4, r"RAM64M\w*": 4, r"RAM\w*X1D": 2, r"SRL\w*": 1},
            "ff": {r"FD\wE": 1},
            "dsp": {"DSP48E2": 1},
            "bram": {"RAMB18E2": 1, "RAMB36E2": 2},
        },
        r"LUT\d",
        "O",
    ),
}


def script(family: str, tight: bool = False) -> str:
    """Commands of yosys from top.il to the netlist top.json for a family of devices, a ``tight`` one of ECP5 as in `map_ecp5`."""
    commands = map_ecp5("top", tight) if tight else FAMILIES[family].script
    return f"read_rtlil top.il; {commands} -json top.json"


@dataclass(frozen=True)
class Target:
    """A device and how the tools are told about it; without ``place`` it is not placed and routed."""

    platform: str | None
    """What the gateware is elaborated for (`edgemoe.multiplier`)."""
    place: tuple[str, ...]
    capacity: dict[str, int]
    family: str = "ecp5"
    sites: floorplan.Sites | None = None
    """What a floorplan of a whole accelerator needs to know of the device."""
    tight: bool = False
    """A board's design nearly fills it (`map_ecp5`)."""


def _ecp5(size: str, sites: floorplan.Sites, tight: bool, **capacity: int) -> Target:
    place = (f"--{size}", "--package", "CABGA381", "--speed", "6")
    return Target(f"ecp5-{size}", place, capacity, sites=sites, tight=tight)


TARGETS = {
    "ecp5-85k": _ecp5("85k", floorplan.LFE5U_85F, False, lut=83640, ff=83640, dsp=156, bram=208),
    "ecp5-25k": _ecp5("25k", floorplan.LFE5U_25F, True, lut=24288, ff=24288, dsp=28, bram=56),
    "ecp5-12k": _ecp5("12k", floorplan.LFE5U_25F, True, lut=24288, ff=24288, dsp=28, bram=56),
    "ice40up5k": Target(None, (), dict(lut=5280, ff=5280, dsp=8, bram=30), "ice40"),
    "xcup": Target(None, (), dict(lut=230400, ff=460800, dsp=1728, bram=624), "xcup"),
}
"""The LFE5U-12F is the die of the 25F; the open tools use all of it. ``xcup`` has the numbers of a ZU7EV (ZCU106)."""


def find(variable: str, name: str) -> str:
    """A tool: what the environment variable names, else ``name`` or ``yowasp-name`` on PATH or beside Python.

    Raises:
        ToolMissing: there is none.
    """
    remedy = f"install it with: pip install 'edgemoe[flow]', or name it in the variable {variable}"
    if named := os.environ.get(variable):
        path = shutil.which(named)
        if path is None:
            raise ToolMissing(f"variable {variable}: {named!r} is not a program; {remedy}")
        return path
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
    for candidate in (name, f"yowasp-{name}"):
        if path := shutil.which(candidate, path=os.pathsep.join(places)):
            return path
    raise ToolMissing(f"{name} is missing; {remedy}")


def run(command: list[str], folder: Path, log: str, watch: Callable[[str], None] = lambda line: None) -> str:
    """Run a tool in ``folder`` and keep what it prints in the file ``log``; returns that text.

    Args:
        watch: is told each line as it comes.

    Raises:
        EdgemoeError: the tool failed; the message has its first error.
    """
    with (
        (folder / log).open("w", buffering=1) as kept,
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as tool,
    ):
        assert tool.stdout
        try:
            for line in tool.stdout:
                kept.write(line)
                watch(line)
        except BaseException:
            tool.kill()
            raise
    text = (folder / log).read_text()
    if tool.returncode:
        last = (text.strip() or "nothing printed").splitlines()[-1]
        reason = _first_error(text) or last
        raise EdgemoeError(f"{Path(command[0]).name} failed with code {tool.returncode}: {reason}")
    return text


def run_yosys(yosys: str, script: str, folder: Path) -> str:
    """Run a script of yosys in ``folder``; returns what it prints, which is in yosys.log too.

    The build for WebAssembly may stop with an error that it does not print: the log that it writes itself has it.
    """
    try:
        return run([yosys, "-L", "messages.log", "-p", script], folder, "yosys.log")
    except EdgemoeError:
        own = folder / "messages.log"
        if own.is_file() and (reason := _first_error(own.read_text(errors="replace"))):
            raise EdgemoeError(f"{Path(yosys).name} failed: {reason}") from None
        raise


def netlist_of(family: str, folder: Path) -> dict[str, Any]:
    """The netlist that yosys has left in ``folder``, as place and route gets it; counts of `edgemoe.absorb` are in absorb.log."""
    path = folder / "top.json"
    if family != "ecp5":
        return json.loads(path.read_text())
    netlist, absorbed = absorb_file(path, HARNESS)
    (folder / "absorb.log").write_text(f"{absorbed}\n")
    return netlist


def _first_error(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.startswith("ERROR")), None)


# -- reports ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Netlist:
    """What synthesis made: resources of the unit and, apart, those of the harness."""

    resources: dict[str, int]
    harness: dict[str, int]


def read_netlist(values: dict[str, Any], family: Family | None = None) -> Netlist:
    """Count the cells of a netlist (JSON of yosys) for a family of devices, ECP5 if none is given."""
    family = family or FAMILIES["ecp5"]
    module = top_module(values)
    own = {
        bit: name.split("[")[0].lstrip("\\")
        for name, net in module["netnames"].items()
        if name.lstrip("\\").startswith(HARNESS)
        for bit in net["bits"]
    }
    resources = dict.fromkeys(("lut", "ff", "dsp", "bram"), 0)
    folds, registers = set(), 0
    for cell in module["cells"].values():
        for resource, kinds in family.cells.items():
            resources[resource] += next(
                (n for kind, n in kinds.items() if re.fullmatch(kind, cell["type"])), 0
            )
        if any(re.fullmatch(kind, cell["type"]) for kind in family.cells["ff"]):
            name = own.get(cell["connections"]["Q"][0])
            registers += name is not None
            if name is not None and name.startswith(f"{HARNESS}fold"):
                data = (cell["connections"].get(port) for port in family.data)
                folds.add(next((bits[0] for bits in data if bits), None))
    tables = sum(
        re.fullmatch(family.table, cell["type"]) is not None
        and cell["connections"][family.output][0] in folds
        for cell in module["cells"].values()
    )
    resources["lut"] -= tables
    resources["ff"] -= registers
    return Netlist(resources, {"lut": tables, "ff": registers})


@dataclass(frozen=True)
class Route:
    """What place and route found with one seed."""

    fmax_mhz: float
    used: dict[str, int]
    path: dict[str, Any]
    """Critical path: ``from`` and ``to`` (cells), ``logic_ns``, ``routing_ns``, ``levels``."""


CELLS = {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "dsp": "MULT18X18D", "bram": "DP16KD"}
"""Names of the resources in the report of nextpnr."""


def read_report(values: dict[str, Any]) -> Route:
    """Read the report (JSON) of nextpnr; of several clocks the slowest counts."""
    clocks = values.get("fmax", {})
    if not clocks:
        raise EdgemoeError("nextpnr reports no clock: nothing in the design is between two registers")
    clock = min(clocks, key=lambda name: clocks[name]["achieved"])
    found: dict[str, Any] = {}
    for path in values.get("critical_paths", []):
        if path["from"].split(" ")[-1] == clock == path["to"].split(" ")[-1] and path["path"]:
            steps = path["path"]
            found = {
                "from": steps[0]["from"]["cell"],
                "to": steps[-1]["to"]["cell"],
                "logic_ns": round(sum(s["delay"] for s in steps if s["type"] != "routing"), 3),
                "routing_ns": round(sum(s["delay"] for s in steps if s["type"] == "routing"), 3),
                "levels": sum(s["type"] == "logic" for s in steps),
            }
    used = {k: values["utilization"].get(cell, {}).get("used", 0) for k, cell in CELLS.items()}
    return Route(round(clocks[clock]["achieved"], 2), used, found)


# -- the flow -----------------------------------------------------------------------------------


def synthesise(
    hardware: HardwareConfig,
    unit: str | None,
    target: str,
    seeds: int,
    target_mhz: float,
    directory: Path | None,
    route: bool,
    tick: Tick,
) -> dict[str, Any]:
    """Synthesise, place and route; the object that `edgemoe synth --json` writes.

    ``fmax_mhz`` and ``met`` are None without place and route: not asked for, or larger than the device (``fits``).

    Args:
        hardware: lanes and capacities.
        unit: a name of `units`, or None for the accelerator.
        target: a name of `TARGETS`.
        seeds: number of runs of place and route, with seeds 1, 2, ...
        target_mhz: the clock to reach.
        directory: keeps netlist, reports and logs.
        route: False ends after synthesis.
        tick: is told the stage.
    """
    if seeds < 1:
        raise BadInput(f"--seeds must be at least 1, found {seeds}")
    if not 1 <= target_mhz <= 1000:
        raise BadInput(f"--target-mhz must be 1..1000, found {target_mhz:g}")
    device = TARGETS[target]
    family = FAMILIES[device.family]
    route = route and bool(device.place)
    make = maker(unit)
    yosys = find("YOSYS", "yosys")
    nextpnr = find("NEXTPNR_ECP5", "nextpnr-ecp5") if route else ""
    place = output.directory(directory) if directory else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, place as kept:
        folder = kept or Path(scratch)
        name = unit or "accelerator"
        tick(f"{name}: elaborating for {target}", None)
        elaborate(make(hardware), folder / "top.il", device.platform)
        tick(f"{name}: synthesis", None)
        log = run_yosys(yosys, script(device.family, device.tight), folder)
        netlist = read_netlist(netlist_of(device.family, folder), family)
        resources = netlist.resources
        total = {k: v + netlist.harness.get(k, 0) for k, v in resources.items()}
        excess = [k for k, have in device.capacity.items() if total[k] > have]
        routes = []
        if route and not excess:
            if unit is None and device.sites:
                tick(f"{name}: floorplan", None)
                floorplan.floorplan_file(folder / "top.json", device.sites)
            for seed in range(1, seeds + 1):
                tick(f"{name}: place and route, seed {seed} of {seeds}", None)
                routes.append(place_and_route(nextpnr, device, folder, seed, target_mhz))
            used = routes[0].used
            resources = {k: used[k] - netlist.harness.get(k, 0) for k in resources}
        fmax = round(statistics.median(r.fmax_mhz for r in routes), 2) if routes else None
        values = {
            "hardware": hardware.name,
            "unit": unit,
            "target": target,
            "resources": resources,
            "harness": netlist.harness,
            "capacity": device.capacity,
            "fits": not excess,
            "routed": bool(routes),
            "fmax_mhz": fmax,
            "fmax_by_seed": [r.fmax_mhz for r in routes],
            "seeds": list(range(1, len(routes) + 1)),
            "target_mhz": target_mhz,
            "met": None if fmax is None else fmax >= target_mhz,
            "critical_path": min(routes, key=lambda r: r.fmax_mhz).path if routes else None,
            "tools": versions(log, nextpnr, folder),
        }
        if kept:
            record = manifest("synth", {"hardware": hardware, "unit": unit, "target": target}, {})
            record["tools"].update(values["tools"])
            output.write_json(kept / output.MANIFEST, record)
            output.write_json(kept / "synth.json", values)
    return values


def elaborate(top: wiring.Component, path: Path, platform: str | None) -> None:
    """Write the RTLIL of ``top`` in its harness."""
    from amaranth.back import rtlil

    with collector_paused():
        path.write_text(rtlil.convert(Harness(top), name="top", platform=platform, emit_src=False))


def place_and_route(nextpnr: str, device: Target, folder: Path, seed: int, target_mhz: float) -> Route:
    """One run of nextpnr, which aims a quarter above the target."""
    report = f"report{seed}.json"
    aim = max(100.0, 1.25 * target_mhz)
    command = [
        nextpnr, *device.place, "--json", "top.json", "--report", report, "--seed", str(seed), "--freq", f"{aim:g}",
        "--timing-allow-fail", "--lpf-allow-unconstrained",
    ]  # fmt: skip
    run(command, folder, f"nextpnr{seed}.log")
    return read_report(json.loads((folder / report).read_text()))


def versions(log: str, nextpnr: str, folder: Path) -> dict[str, str]:
    """Versions of yosys, from its log, and of nextpnr, if it is used."""
    found = {}
    if match := re.search(r"Yosys (\d[\w.+-]*)", log):
        found["yosys"] = match[1]
    if nextpnr and (
        match := re.search(r"(\d+\.\d[\w.]*)", run([nextpnr, "--version"], folder, "nextpnr.log"))
    ):
        found["nextpnr"] = match[1]
    return found
