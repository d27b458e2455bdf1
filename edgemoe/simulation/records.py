"""Decodes the monitor's records: packed bit fields into numpy columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from amaranth.hdl import Shape
from amaranth.lib.data import ArrayLayout, Layout
from numpy.typing import NDArray

from edgemoe.config import HardwareConfig
from edgemoe.core import interface
from edgemoe.numeric import ceil_div

CYCLE_BYTES = 8
"""A record in a file starts with its cycle."""

CHUNK = 1 << 14
"""Records decoded at once, so that they stay in the processor's cache."""

Columns = dict[str, NDArray]


@dataclass(frozen=True)
class Records:
    """The records of one run, in the order of the writes; a column per field of the record's layout.

    ``cycle`` counts from the start pulse. A field that is an array (``value``, ``addend``) and ``mask``
    are two-dimensional: record x lane.
    """

    product: Columns
    norm: Columns
    load: Columns
    route: Columns

    def kinds(self) -> dict[str, Columns]:
        """The four tables by name."""
        return {"product": self.product, "norm": self.norm, "load": self.load, "route": self.route}


def layouts(hardware: HardwareConfig) -> dict[str, Layout]:
    """Layout of each kind of record."""
    return {
        "product": interface.product_record(hardware),
        "norm": interface.norm_record(hardware),
        "load": interface.load_record(hardware),
        "route": interface.route_record(),
    }


def read(prefix: Path, hardware: HardwareConfig) -> Records:
    """Decode the files ``<prefix>.<kind>`` that the harness wrote."""
    return Records(**{k: _read(Path(f"{prefix}.{k}"), layout) for k, layout in layouts(hardware).items()})


def _read(path: Path, layout: Layout) -> Columns:
    width = CYCLE_BYTES + ceil_div(layout.size, 8)
    raw = np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)
    return unpack(raw[: raw.size // width * width].reshape(-1, width), layout)


def unpack(raw: NDArray[np.uint8], layout: Layout) -> Columns:
    """Columns of an array of records (record x byte), each a cycle and a packed ``layout``."""
    columns = {"cycle": np.empty(len(raw), np.int64)}
    fields = {name: _elements(name, field.offset, field.shape) for name, field in layout}
    for name, elements in fields.items():
        two = len(elements) > 1 or isinstance(layout[name].shape, ArrayLayout) or name == "mask"
        kind = bool if name == "mask" else np.int64 if elements[0][1] > 31 else np.int32
        columns[name] = np.empty((len(raw), len(elements)) if two else len(raw), kind)
    for first in range(0, len(raw), CHUNK):
        part = slice(first, min(first + CHUNK, len(raw)))
        lanes = np.ascontiguousarray(raw[part].T)
        columns["cycle"][part] = _bits(lanes[:CYCLE_BYTES], 0, 63)
        for name, elements in fields.items():
            out = columns[name]
            for index, (offset, width, signed) in enumerate(elements):
                value = _bits(lanes[CYCLE_BYTES:], offset, width)
                if signed:
                    value = (value ^ (1 << (width - 1))) - (1 << (width - 1))
                if out.ndim == 2:
                    out[part, index] = value
                else:
                    out[part] = value
    return columns


def _elements(name: str, offset: int, shape) -> list[tuple[int, int, bool]]:
    """``(offset, width, signed)`` of each element of a field; the bits of ``mask`` are elements."""
    if isinstance(shape, ArrayLayout):
        element = Shape.cast(shape.elem_shape)
        return [(offset + i * element.width, element.width, element.signed) for i in range(shape.length)]
    shape = Shape.cast(shape)
    if name == "mask":
        return [(offset + i, 1, False) for i in range(shape.width)]
    return [(offset, shape.width, shape.signed)]


def _bits(lanes: NDArray[np.uint8], offset: int, width: int) -> NDArray[np.int64]:
    """Bits ``offset`` .. ``offset + width - 1`` of every record, given as byte x record."""
    first, last = offset // 8, ceil_div(offset + width, 8)
    value = np.zeros(lanes.shape[1], np.int64)
    for index in range(first, last):
        value |= lanes[index].astype(np.int64) << (8 * (index - first))
    return (value >> (offset % 8)) & ((1 << width) - 1)
