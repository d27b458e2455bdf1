"""A compiled model: descriptors, the memory image, and the symbols that give both their meaning.

`edgemoe.compile` makes a `Program`; the golden machine, the simulation and the host take one. On disk it is
a BUILD directory: ``memory.bin`` (what the accelerator reads), ``program.txt`` (disassembled),
``symbols.json`` and ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from edgemoe import output
from edgemoe.config import HardwareConfig, ModelConfig
from edgemoe.errors import BadInput, DeviceError
from edgemoe.isa import CHECK, DESCRIPTOR_BYTES, Descriptor, Error, Op
from edgemoe.manifest import manifest
from edgemoe.memmap import Stored

FORMAT = 1
"""Version of the BUILD directory."""
MEMORY, PROGRAM, SYMBOLS = "memory.bin", "program.txt", "symbols.json"


class MachineError(DeviceError):
    """The machine stopped with an error code, as the hardware does on its control port."""

    def __init__(self, code: Error, message: str) -> None:
        super().__init__(f"error {int(code)} ({code.name}): {message}")
        self.code = code


@dataclass(frozen=True)
class Tensor:
    """What a descriptor writes: a name and a format, ``value = code * 2**-frac / factor[channel]``.

    Attributes:
        name: such as ``l3_q``; ``{e}`` stands for the expert or slice that is visited.
        frac: fraction bits.
        factor: one per real channel, or empty where all are 1.
        channels: positions of the real channels, or empty if they are the first ones.
    """

    name: str
    frac: int
    factor: tuple[float, ...] = ()
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Symbol:
    """Meaning of one descriptor: the tensors that it writes (two for EXPERTS: hidden, then residual)."""

    number: int
    tensors: tuple[Tensor, ...]

    def name(self, expert: int = 0, part: int = 0) -> str:
        """Name of the tensor that visit part ``part`` (0 or 1) of ``expert`` writes."""
        return self.tensors[part].name.format(e=expert)


@dataclass(frozen=True)
class Region:
    """A named range of the memory image, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Program:
    """A model compiled for one hardware.

    Attributes:
        model, hardware: what it was compiled from and for.
        memory: bytes at the ``program`` address: descriptors, constants, weights.
        symbols: one entry per descriptor.
        regions: ranges of ``memory``.
        outputs: tensors in the output of an image. ``logits`` means something only for tasks with a head.
        image_words, output_words: port words from one image, or output, to the next.
        pixel_bytes: 1 (uint8 u is u/256) or 2 (int16 with 15 fraction bits).
        useful_macs: multiply-accumulates of an image, without padding.
    """

    model: ModelConfig
    hardware: HardwareConfig
    memory: bytes
    symbols: tuple[Symbol, ...]
    regions: tuple[Region, ...]
    outputs: tuple[Stored, ...]
    image_words: int
    output_words: int
    pixel_bytes: int

    @property
    def useful_macs(self) -> int:
        """Multiply-accumulates of one image and task, padding not counted."""
        return sum(self.model.macs().values())

    def descriptors(self) -> list[Descriptor]:
        """The instructions, read from the memory image."""
        return read_program(self.memory)

    def stored(self, name: str) -> Stored:
        """The output tensor ``name``."""
        return next(s for s in self.outputs if s.name == name)

    def disassembly(self) -> str:
        """One line per descriptor: number, tensors, fields."""
        lines = []
        for symbol, descriptor in zip(self.symbols, self.descriptors()):
            names = " ".join(t.name for t in symbol.tensors)
            lines.append(f"{symbol.number:4}  {names:32}  {descriptor}")
        return "\n".join(lines) + "\n"


def read_program(memory: bytes) -> list[Descriptor]:
    """Descriptors to the first END; see `scan_program`."""
    return list(scan_program(memory))


def scan_program(memory: bytes) -> Iterator[Descriptor]:
    """Descriptors to the first END, one after the other.

    Raises:
        MachineError: a descriptor has no check byte or an unknown operation, or the program does not end.
    """
    for number, start in enumerate(count(step=DESCRIPTOR_BYTES)):
        raw = memory[start : start + DESCRIPTOR_BYTES]
        descriptor = Descriptor.unpack(raw.ljust(DESCRIPTOR_BYTES, b"\0"))
        if descriptor.check != CHECK or descriptor.op not in Op.__members__.values():
            raise MachineError(
                Error.OPCODE,
                f"descriptor {number} at byte {start} has check {descriptor.check:#x}, op {descriptor.op}; "
                f"check must be {CHECK:#x} and op 0..{max(Op)}",
            )
        yield descriptor
        if descriptor.op == Op.END:
            return


# -- BUILD directory ----------------------------------------------------------------------------


def save(
    program: Program, path: Path | str, inputs: dict[str, Path | str] | None = None, seed: int | None = None,
    extra: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write BUILD, atomically; an older one is replaced.

    Args:
        inputs: files that the program was made from, by name, for their hashes in the manifest.
        seed: of whatever was drawn at random on the way.
        extra: further entries of the manifest's configuration, such as the formats.
    """
    symbols = {
        "format": FORMAT,
        "symbols": [asdict(s) for s in program.symbols],
        "regions": [asdict(r) for r in program.regions],
        "outputs": [asdict(s) for s in program.outputs],
        "image_words": program.image_words,
        "output_words": program.output_words,
        "pixel_bytes": program.pixel_bytes,
    }
    about = manifest(
        "build",
        {
            "model": program.model,
            "hardware": program.hardware,
            "profile": program.hardware.profile,
            **(extra or {}),
        },
        inputs or {},
        seed,
    )
    with output.directory(path) as folder:
        files = {
            MEMORY: program.memory,
            PROGRAM: program.disassembly().encode(),
            SYMBOLS: (json.dumps(symbols, indent=1) + "\n").encode(),
        }
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
        about["files"] = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
        output.write_json(folder / output.MANIFEST, about)


def load(path: Path | str) -> Program:
    """Read BUILD. The memory image is taken as it is, whatever its hash: it is what the accelerator would read.

    Raises:
        BadInput: ``path`` is no BUILD directory, or one of another version.
    """
    folder = Path(path)
    for name in (output.MANIFEST, SYMBOLS, MEMORY):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: no {name}; make the directory with `edgemoe compile`")
    try:
        about = json.loads((folder / output.MANIFEST).read_text())
        symbols = json.loads((folder / SYMBOLS).read_text())
        if symbols["format"] != FORMAT:
            raise BadInput(
                f"{folder / SYMBOLS}: format {symbols['format']}, this version reads {FORMAT}; compile again"
            )
        return Program(
            model=ModelConfig.from_dict(about["configuration"]["model"], str(folder / output.MANIFEST)),
            hardware=HardwareConfig.from_dict(
                about["configuration"]["hardware"], str(folder / output.MANIFEST)
            ),
            memory=(folder / MEMORY).read_bytes(),
            symbols=tuple(_symbol(s) for s in symbols["symbols"]),
            regions=tuple(Region(**r) for r in symbols["regions"]),
            outputs=tuple(Stored(**{**s, "fracs": tuple(s["fracs"])}) for s in symbols["outputs"]),
            **{key: symbols[key] for key in ("image_words", "output_words", "pixel_bytes")},
        )
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{folder}: not a build directory of this version ({error}); compile again") from None


def _symbol(values: dict[str, Any]) -> Symbol:
    tensors = [{k: tuple(v) if isinstance(v, list) else v for k, v in t.items()} for t in values["tensors"]]
    return Symbol(values["number"], tuple(Tensor(**t) for t in tensors))
