"""Executables that Verilator makes of Verilog and a C++ main, cached by content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemoe.errors import EdgemoeError
from edgemoe.simulation import tools

EXECUTABLE = "simulator"
HOUR = 3600

FLAGS = (
    "--cc", "--exe", "--build", "-j", "2", "-O3", "--output-split-cfuncs", "2000", "--x-assign", "fast",
    "--x-initial", "fast", "--noassert", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-o", EXECUTABLE,
)  # fmt: skip
"""Options of every build. Splitting functions at 2000 halves the time of the build (nano: 33 + 7 CPU seconds
in place of 56 + 25) and makes the result a little faster."""

Progress = Callable[[str], None]


class BuildFailed(EdgemoeError):
    """A compiler rejected the Verilog; the message has the first error."""


@dataclass(frozen=True)
class Options:
    """What changes an executable besides its sources.

    Attributes:
        waves: the executable can write a VCD file (about four times slower while it does).
        threads: threads of the simulation itself.
        optimise: level of the C++ compiler for the design, as in ``-O2``. Without optimisation the design is one file,
            which takes half the processor time that several take; with it both cores have something to do.
    """

    waves: bool = False
    threads: int = 1
    optimise: str = "2"

    @property
    def flags(self) -> list[str]:
        """For Verilator and its Makefile."""
        level = f"-O{self.optimise}"
        flags = ["--output-split", "0" if self.optimise == "0" else "20000"]
        for name, value in (("OPT_FAST", level), ("OPT_GLOBAL", level), ("OPT_SLOW", "-O0")):
            flags += ["-MAKEFLAGS", f"{name}={value}"]
        if self.waves:
            flags += ["--trace-vcd", "-CFLAGS", "-DWAVES"]
        if self.threads > 1:
            flags += ["--threads", str(self.threads)]
        return flags


def executable(kind: str, top: str, sources: Mapping[str, str | bytes], directory: Path, options: Options = Options(),
               defines: Mapping[str, int] | None = None, progress: Progress = lambda _: None) -> Path:  # fmt: skip
    """Path of the executable, built below ``directory`` unless it is there already.

    Several processes may ask for the same one: each that finds none builds it, the first to end keeps its own.

    Args:
        kind: how the folder's name starts.
        top: module; its class in C++ has the name V and this.
        sources: contents by file name; Verilator is given those that end in ``.v`` and ``.cpp``.
        defines: macros of the C++ main.

    Raises:
        ToolMissing: Verilator or a helper is not installed.
        BuildFailed: the Verilog does not compile.
    """
    tool = tools.find_verilator()
    flags = [*FLAGS, *options.flags, "-LDFLAGS", "-pthread"]
    runtime = _hash(repr((flags, tool.version, tools.compiler())))
    main = " ".join(["-std=c++17", *(f"-D{name}={value}" for name, value in (defines or {}).items())])
    design = ["--top-module", top, "--prefix", f"V{top}", "-CFLAGS", main]
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in sources.items()}
    final = directory / f"{kind}-{_hash(repr((runtime, design, contents)))}"
    if (final / EXECUTABLE).is_file():
        progress("cached")
        return final / EXECUTABLE

    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{kind}-", dir=directory) as name:
        work = Path(name).absolute()
        for file, content in contents.items():
            (work / file).write_bytes(content)
        files = [file for file in contents if file.endswith((".v", ".cpp"))]
        obj, out, library = work / "obj", work / "out", directory / f"runtime-{runtime}"
        if library.is_dir():
            shutil.copytree(library, obj)
            for path in obj.iterdir():  # later than the Makefile to come, or they would be compiled again
                os.utime(path, (time.time() + HOUR,) * 2)
        progress("compiling the Verilog")
        compile_in(
            work, "verilator", [*tool.command, *flags, *design, "--Mdir", "obj", *files], tool.environ()
        )
        out.mkdir()
        shutil.copy2(obj / EXECUTABLE, out / EXECUTABLE)
        keep(out, final)
        if not library.is_dir():
            _keep_runtime(obj, work / "runtime", library)
    return final / EXECUTABLE


def _keep_runtime(obj: Path, folder: Path, library: Path) -> None:
    """Keep what Verilator's own library was compiled to: 6 to 10 of the seconds of every build with the same options."""
    folder.mkdir()
    for path in obj.glob("verilated*.o"):
        shutil.copyfile(path, folder / path.name)
    keep(folder, library)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(folder: Path, final: Path) -> None:
    """Give ``folder`` its lasting name, unless another process was first."""
    try:
        os.replace(folder, final)
    except OSError:
        if not final.is_dir():
            raise


def compile_in(directory: Path, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run the compiler ``name`` in ``directory``; raises `BuildFailed` with its first error."""
    answer = subprocess.run(
        list(command), cwd=directory, env=dict(environment), text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if answer.returncode:
        lines = [line for line in answer.stdout.splitlines() if "rror" in line] or answer.stdout.splitlines()
        raise BuildFailed(f"{name} failed: {lines[0] if lines else f'exit code {answer.returncode}'}")
