"""Where program, images and outputs of a simulation lie in the external memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemoe.config import HardwareConfig
from edgemoe.errors import BadInput, DoesNotFit
from edgemoe.isa import CHECK, DESCRIPTOR_BYTES, Descriptor, Op
from edgemoe.numeric import ceil_div, round_up

ALIGNMENT = 4096
"""Bytes to which the images' and the outputs' regions are aligned."""


@dataclass(frozen=True)
class Placement:
    """Addresses in port words, and the sizes that the descriptors imply.

    Attributes:
        descriptors: the program, END included.
        image_stride, output_stride: port words from one image or output to the next.
        images: number of images.
    """

    descriptors: tuple[Descriptor, ...]
    program: int
    image: int
    output: int
    image_stride: int
    output_stride: int
    images: int

    @property
    def output_words(self) -> int:
        """Port words that the outputs of all images take."""
        return self.output_stride * self.images

    @property
    def stores(self) -> dict[int, Descriptor]:
        """The STORE descriptors by number."""
        return {n: d for n, d in enumerate(self.descriptors) if d.op == Op.STORE}


def disassemble(memory: bytes) -> tuple[Descriptor, ...]:
    """The program at the start of a memory image, up to and with END.

    A program that ends otherwise (no END, a wrong check field) is returned as far as it goes.
    """
    program = []
    for start in range(0, len(memory) - DESCRIPTOR_BYTES + 1, DESCRIPTOR_BYTES):
        descriptor = Descriptor.unpack(memory[start : start + DESCRIPTOR_BYTES])
        if descriptor.check != CHECK:
            break
        program.append(descriptor)
        if descriptor.op == Op.END:
            break
    return tuple(program)


def place(memory: bytes, hardware: HardwareConfig, images: int) -> Placement:
    """Program at 0, then the images, then the outputs.

    Raises:
        DoesNotFit: the external memory is too small.
    """
    program = disassemble(memory)
    port = hardware.port_bytes
    align = max(ALIGNMENT, port)
    image_stride = max([d.stride for d in program if d.op == Op.IMAGE], default=0)
    stores = [d for d in program if d.op == Op.STORE]
    needed = [d.address + ceil_div(d.count * d.words * hardware.in_lanes * 2, port) for d in stores]
    output_stride = max([d.stride for d in stores] + needed, default=0)
    image = round_up(len(memory), align)
    output = round_up(image + image_stride * images * port, align)
    total = output + output_stride * images * port
    if total > hardware.memory_bytes:
        raise DoesNotFit(
            f"program, {images} images and outputs take {total} B, hardware {hardware.name} has "
            f"memory_bytes {hardware.memory_bytes}; raise memory_bytes or run fewer images at once"
        )
    return Placement(program, 0, image // port, output // port, image_stride, output_stride, images)


def pack_images(images: NDArray, placement: Placement, port_bytes: int) -> bytes:
    """The images' region: each image's pixels, padded to the stride.

    Args:
        images: N x C x H x W, uint8 or int16 as the program's IMAGE descriptor wants.

    Raises:
        BadInput: pixels of the wrong type, or images larger than the program's.
    """
    wanted = {d.pixel_bytes for d in placement.descriptors if d.op == Op.IMAGE}
    size = images.dtype.itemsize
    if images.dtype.kind not in "iu" or (wanted and size not in wanted):
        raise BadInput(
            f"images must be {' or '.join({1: 'uint8', 2: 'int16'}[w] for w in sorted(wanted))} "
            f"for this program, found {images.dtype}"
        )
    stride = placement.image_stride * port_bytes
    raw = np.ascontiguousarray(images).astype(images.dtype.newbyteorder("<"), copy=False)
    raw = raw.reshape(len(images), -1).view(np.uint8)
    if raw.shape[1] > stride:
        raise BadInput(
            f"an image has {raw.shape[1]} B, the program reads {stride} B; check its shape and type"
        )
    padded = np.zeros((len(images), stride), np.uint8)
    padded[:, : raw.shape[1]] = raw
    return padded.tobytes()


def unpack_store(
    raw: bytes, descriptor: Descriptor, placement: Placement, hardware: HardwareConfig
) -> NDArray:
    """What one STORE wrote for every image: image x row x channel (pad lanes included), int16."""
    port = hardware.port_bytes
    channels = descriptor.words * hardware.in_lanes
    size = descriptor.count * channels * 2
    stride = placement.output_stride * port
    first = descriptor.address * port
    parts = [raw[i * stride + first : i * stride + first + size] for i in range(placement.images)]
    return np.frombuffer(b"".join(parts), "<i2").reshape(placement.images, descriptor.count, channels)
