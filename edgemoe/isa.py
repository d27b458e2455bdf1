"""Descriptors: the instructions of the accelerator, 64 bytes each (docs/architecture.md, "Program").

One table of fields serves the compiler, the golden machine and the gateware: `Descriptor` packs into
512 bits, LSB first, in the order of `FIELDS`; `descriptor_layout()` is the same as an Amaranth struct.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

DESCRIPTOR_BITS = 512
DESCRIPTOR_BYTES = DESCRIPTOR_BITS // 8


class Op(enum.IntEnum):
    """What a descriptor does."""

    END = 0
    LOAD = 1
    IMAGE = 2
    NORM = 3
    PRODUCT = 4
    ROUTE = 5
    EXPERTS = 6
    STORE = 7


class Source(enum.IntEnum):
    """Where the rows of operand B come from, and what the weight stream carries for a descriptor."""

    NONE = 0
    WEIGHTS = 1
    KEYS = 2
    VALUES = 3
    NORM = 4


class Dest(enum.IntEnum):
    """What happens to the results of a product."""

    ROWS = 0
    RESIDUAL = 1
    SCORES = 2
    KEYS = 3
    VALUES = 4


class Wait(enum.IntEnum):
    """What the executor waits for before it starts a descriptor."""

    NONE = 0
    ALL = 1
    """All earlier descriptors are complete."""
    ROWS = 2
    """Row t of operand A is read when the descriptor before has written its row t (more than one slot set)."""


class Mode(enum.IntEnum):
    """Which factors the requantiser applies, in which order (docs/arithmetic.md)."""

    CHANNEL = 0
    CHANNEL_ROW = 1
    ROW_CHANNEL = 2


class Error(enum.IntEnum):
    """Error code of the control port; 0 is none."""

    NONE = 0
    OPCODE = 1
    ADDRESS = 2
    CAPACITY = 3
    TIMEOUT = 4
    CONTROL = 5


FIELDS: dict[str, int] = {
    "op": 4, "check": 8, "wait": 2, "after": 8,
    "address": 28, "length": 24, "stride": 24,
    "count": 12, "words": 12, "rows": 16,
    "a_base": 16, "a_stride": 12, "b_base": 16, "b_stride": 12, "d_base": 16, "d_stride": 12,
    "source": 3, "dest": 3, "mode": 2, "double": 1, "weigh": 1, "gelu": 1, "frac": 4, "realign": 3,
    "head": 6, "keys": 12, "multiplier": 16, "shift": 6,
    "routed": 1, "experts": 8, "top_k": 5, "rows2": 16, "words2": 12, "a2_base": 16, "d2_base": 16, "d2_stride": 12,
    "dim": 12, "eps_term": 40, "mean_reciprocal": 24,
    "channels": 6, "grid_y": 8, "grid_x": 8, "patch_y": 8, "patch_x": 8, "segment": 8, "pixel_bytes": 2,
}  # fmt: skip
"""Width of each field in bits, LSB first; meanings are in docs/architecture.md."""

CHECK = 0xE5
"""Constant in the field ``check``: a fetch from a wrong address ends with `Error.OPCODE`."""

assert sum(FIELDS.values()) <= DESCRIPTOR_BITS


@dataclass
class Descriptor:
    """One instruction as plain integers; fields that an operation does not use are 0."""

    op: int = 0
    check: int = CHECK
    wait: int = 0
    after: int = 0
    address: int = 0
    length: int = 0
    stride: int = 0
    count: int = 0
    words: int = 0
    rows: int = 0
    a_base: int = 0
    a_stride: int = 0
    b_base: int = 0
    b_stride: int = 0
    d_base: int = 0
    d_stride: int = 0
    source: int = 0
    dest: int = 0
    mode: int = 0
    double: int = 0
    weigh: int = 0
    gelu: int = 0
    frac: int = 0
    realign: int = 0
    head: int = 0
    keys: int = 0
    multiplier: int = 0
    shift: int = 0
    routed: int = 0
    experts: int = 0
    top_k: int = 0
    rows2: int = 0
    words2: int = 0
    a2_base: int = 0
    d2_base: int = 0
    d2_stride: int = 0
    dim: int = 0
    eps_term: int = 0
    mean_reciprocal: int = 0
    channels: int = 0
    grid_y: int = 0
    grid_x: int = 0
    patch_y: int = 0
    patch_x: int = 0
    segment: int = 0
    pixel_bytes: int = 0

    def pack(self) -> bytes:
        """The 64 bytes that the accelerator fetches.

        Raises:
            ValueError: a field does not fit its width; the message names it.
        """
        word, position = 0, 0
        for name, bits in FIELDS.items():
            value = int(getattr(self, name))
            if not 0 <= value < 1 << bits:
                raise ValueError(f"descriptor field {name} = {value} does not fit {bits} bits")
            word |= value << position
            position += bits
        return word.to_bytes(DESCRIPTOR_BYTES, "little")

    @classmethod
    def unpack(cls, raw: bytes) -> Descriptor:
        """Inverse of `pack`."""
        word = int.from_bytes(raw[:DESCRIPTOR_BYTES], "little")
        values = {}
        for name, bits in FIELDS.items():
            values[name] = word & ((1 << bits) - 1)
            word >>= bits
        return cls(**values)

    def __str__(self) -> str:
        name = Op(self.op).name if self.op in Op.__members__.values() else f"op {self.op}"
        enums = {"source": Source, "dest": Dest, "mode": Mode, "wait": Wait}
        parts = [
            f"{f.name}={enums[f.name](v).name.lower() if f.name in enums else v}"
            for f in fields(self)
            if f.name not in ("op", "check") and (v := getattr(self, f.name))
        ]
        return " ".join([f"{name:8}", *parts])


assert [f.name for f in fields(Descriptor)] == list(FIELDS)


def descriptor_layout():
    """The same fields as an `amaranth.lib.data.StructLayout` (512 bits with padding)."""
    from amaranth.lib import data

    spare = DESCRIPTOR_BITS - sum(FIELDS.values())
    return data.StructLayout({**FIELDS, "reserved": spare})
