"""Builds an executable from the accelerator's Verilog and the C++ harness, cached by content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from amaranth.lib.data import Layout
from amaranth.lib.wiring import Member, Signature

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import (
    ADDRESS_BITS,
    LENGTH_BITS,
    MAX_BURST,
    ControlPort,
    MemoryPort,
    MonitorPort,
)
from edgemoe.errors import BadInput, EdgemoeError
from edgemoe.numeric import ceil_div
from edgemoe.simulation import tools
from edgemoe.simulation.records import layouts

TOP = "accelerator"
"""Name of the top module."""

EXECUTABLE = "simulator"

FLAGS = (
    "--cc", "--exe", "--build", "-j", "2", "-O3", "--output-split", "20000", "--output-split-cfuncs", "2000",
    "--x-assign", "fast", "--x-initial", "fast", "--noassert",
    "-Wno-fatal", "-Wno-lint", "-Wno-style", "--top-module", TOP, "--prefix", "Vaccelerator",
    "-CFLAGS", "-std=c++17", "-LDFLAGS", "-pthread",
)  # fmt: skip
"""Options of every build. Splitting functions at 2000 halves the time of the build (nano: 33 + 7 CPU seconds
in place of 56 + 25) and makes the result a little faster."""

Progress = Callable[[str], None]


class BuildFailed(EdgemoeError):
    """Verilator or the C++ compiler rejected the Verilog; the message has the first error."""


@dataclass(frozen=True)
class Options:
    """What changes the executable besides the Verilog.

    Attributes:
        waves: the executable can write a VCD file (about four times slower while it does).
        threads: threads of the simulation itself.
        optimise: level of the C++ compiler for the design, as in ``-O2``.
    """

    waves: bool = False
    threads: int = 1
    optimise: str = "2"


def build(verilog: Path, hardware: HardwareConfig, directory: Path, options: Options = Options(),
          progress: Progress = lambda _: None) -> Path:  # fmt: skip
    """Path of the executable for ``verilog``, built below ``directory`` unless it is there already.

    Raises:
        ToolMissing: Verilator or a helper is not installed.
        BadInput: the file does not exist or is not the accelerator.
        BuildFailed: the Verilog does not compile.
    """
    if not verilog.is_file():
        raise BadInput(f"{verilog}: no such Verilog file; make it with: edgemoe verilog")
    text = verilog.read_bytes()
    if f"module {TOP}(".encode() not in text.replace(b" (", b"("):
        raise BadInput(f"{verilog}: has no module named {TOP}; make it with: edgemoe verilog")
    harness = resources.files("edgemoe.simulation").joinpath("harness.cpp").read_bytes()
    constants = harness_constants(hardware).encode()
    tool = tools.find_verilator()
    flags = [*FLAGS, *_flags(options)]
    key = hashlib.sha256()
    for part in (text, harness, constants, repr((flags, tool.version, tools.compiler())).encode()):
        key.update(hashlib.sha256(part).digest())
    final = directory / f"verilator-{key.hexdigest()[:16]}"
    if (final / EXECUTABLE).is_file():
        progress("cached")
        return final / EXECUTABLE

    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verilator-", dir=directory) as name:
        work = Path(name).absolute()
        (work / "harness.cpp").write_bytes(harness)
        (work / "constants.h").write_bytes(constants)
        (work / "accelerator.v").write_bytes(text)
        progress("compiling the Verilog")
        run_verilator(tool, [*flags, "--Mdir", str(work / "obj"), "accelerator.v", "harness.cpp"], work)
        out = work / "out"
        out.mkdir()
        shutil.copy2(work / "obj" / EXECUTABLE, out / EXECUTABLE)
        try:
            os.replace(out, final)
        except OSError:
            if not (final / EXECUTABLE).is_file():  # another process may have been first
                raise
    return final / EXECUTABLE


def harness_constants(hardware: HardwareConfig) -> str:
    """The header ``constants.h``: widths of ports and records, and Verilator's names of the ports."""
    values = {
        "PORT_BYTES": hardware.port_bytes,
        "ADDRESS_BITS": ADDRESS_BITS,
        "LENGTH_BITS": LENGTH_BITS,
        "MAX_BURST": MAX_BURST,
        **{f"{kind.upper()}_BYTES": record_bytes(layout) for kind, layout in layouts(hardware).items()},
    }
    lines = [f"constexpr unsigned {name} = {value};\n" for name, value in values.items()]
    lines += [f"#define {name} {name.replace('__', '___05F')}\n" for name in port_names(hardware)]
    return "".join(lines)


def port_names(hardware: HardwareConfig) -> list[str]:
    """Names of the accelerator's ports in Verilog, clock and reset excepted.

    Verilator spells the ``__`` in them ``___05F``; the header maps one to the other.
    """
    ports = {
        "control": ControlPort(),
        "memory": MemoryPort(hardware.port_bytes),
        "monitor": MonitorPort(hardware),
    }
    return ["__".join((name, *map(str, path))) for name, port in ports.items() for path, _ in _leaves(port)]


def _leaves(signature: Signature, path: tuple = ()) -> Iterator[tuple[tuple, Member]]:
    for name, member in signature.members.items():
        if member.is_signature:
            yield from _leaves(member.signature, (*path, name))
        else:
            yield (*path, name), member


def record_bytes(layout: Layout) -> int:
    """Bytes of one record in a file, without its cycle."""
    return ceil_div(layout.size, 8)


def _flags(options: Options) -> list[str]:
    level = f"-O{options.optimise}"
    flags = ["-o", EXECUTABLE]
    flags += [
        "-MAKEFLAGS",
        f"OPT_FAST={level}",
        "-MAKEFLAGS",
        "OPT_SLOW=-O0",
        "-MAKEFLAGS",
        f"OPT_GLOBAL={level}",
    ]
    if options.waves:
        flags += ["--trace-vcd", "-CFLAGS", "-DWAVES"]
    if options.threads > 1:
        flags += ["--threads", str(options.threads)]
    return flags


def run_verilator(tool: tools.Verilator, arguments: list[str], directory: Path) -> None:
    """Run Verilator in ``directory``; raises `BuildFailed` with its first error."""
    answer = subprocess.run(
        [*tool.command, *arguments], cwd=directory, env=tool.environ(), text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if answer.returncode:
        lines = [line for line in answer.stdout.splitlines() if "rror" in line] or answer.stdout.splitlines()
        raise BuildFailed(f"verilator failed: {lines[0] if lines else f'exit code {answer.returncode}'}")
