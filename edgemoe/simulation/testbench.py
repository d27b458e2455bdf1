"""A self-checking testbench in plain Verilog, with the memory contents as hex files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import ADDRESS_BITS, LENGTH_BITS
from edgemoe.errors import ToolMissing
from edgemoe.numeric import ceil_div
from edgemoe.simulation.placement import Placement

TEMPLATE = "accelerator_tb.v.j2"


@dataclass(frozen=True)
class Vectors:
    """What the testbench loads and what it expects.

    Attributes:
        memory: bytes of memory.bin.
        images: the images' region (`edgemoe.simulation.placement.pack_images`).
        expected: the outputs' region as the golden machine leaves it.
        placement: where they lie.
        task: the task that is run.
        max_cycles: cycles after which the testbench gives up.
    """

    memory: bytes
    images: bytes
    expected: bytes
    placement: Placement
    task: int = 0
    max_cycles: int = 100_000_000


def write(vectors: Vectors, hardware: HardwareConfig, directory: Path) -> None:
    """Write ``accelerator_tb.v``, ``memory.hex``, ``images.hex`` and ``expected.hex`` into ``directory``."""
    port = hardware.port_bytes
    contents = {"memory": vectors.memory, "images": vectors.images, "expected": vectors.expected}
    for name, raw in contents.items():
        (directory / f"{name}.hex").write_text(hex_words(raw, port))
    place = vectors.placement
    (directory / "accelerator_tb.v").write_text(
        _render(
            port_bits=8 * port,
            program=place.program,
            image=place.image,
            output=place.output,
            memory_words=ceil_div(len(vectors.memory), port),
            image_words=ceil_div(len(vectors.images), port),
            output_words=ceil_div(len(vectors.expected), port),
            words=place.output + max(place.output_words, 1),
            images=place.images,
            task=vectors.task,
            max_cycles=vectors.max_cycles,
            address_bits=ADDRESS_BITS,
            length_bits=LENGTH_BITS,
        )
    )


def hex_words(raw: bytes, port_bytes: int) -> str:
    """One port word a line, as ``$readmemh`` reads it (most significant byte first)."""
    words = [raw[i : i + port_bytes].ljust(port_bytes, b"\0") for i in range(0, len(raw), port_bytes)]
    return "".join(word[::-1].hex() + "\n" for word in words)


def _render(**values) -> str:
    try:
        import jinja2
    except ModuleNotFoundError:
        raise ToolMissing("jinja2 is not installed; install it with: pip install 'edgemoe[report]'") from None
    text = resources.files("edgemoe.simulation").joinpath(TEMPLATE).read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(text).render(**values)
