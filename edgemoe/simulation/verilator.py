"""The executable of the accelerator's Verilog and the C++ harness."""

from __future__ import annotations

from collections.abc import Iterator
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
from edgemoe.errors import BadInput
from edgemoe.numeric import ceil_div
from edgemoe.simulation.executable import Options, Progress, executable
from edgemoe.simulation.records import layouts

TOP = "accelerator"
"""Name of the top module."""


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
    sources = {
        "accelerator.v": text,
        "harness.cpp": resources.files("edgemoe.simulation").joinpath("harness.cpp").read_bytes(),
        "constants.h": harness_constants(hardware),
    }
    return executable("verilator", TOP, sources, directory, options, progress=progress)


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
