"""Signatures of the accelerator's ports and of the records on its monitor (docs/architecture.md)."""

from __future__ import annotations

from amaranth.hdl import signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, Signature

from edgemoe.config import HardwareConfig

ADDRESS_BITS = 28
LENGTH_BITS = 8
MAX_BURST = 64
"""Port words of the longest read request."""


READ_REQUEST = data.StructLayout({"address": ADDRESS_BITS, "length": LENGTH_BITS})
"""Read ``length + 1`` port words from ``address`` (in port words)."""


def write_layout(port_bytes: int) -> data.StructLayout:
    """One port word to write."""
    return data.StructLayout({"address": ADDRESS_BITS, "data": port_bytes * 8})


class MemoryPort(Signature):
    """The one memory port, seen from the core. Data come back in the order of the requests."""

    def __init__(self, port_bytes: int):
        self.port_bytes = port_bytes
        super().__init__(
            {
                "read_request": Out(stream.Signature(READ_REQUEST)),
                "read_data": In(stream.Signature(unsigned(port_bytes * 8))),
                "write": Out(stream.Signature(write_layout(port_bytes))),
            }
        )


COUNTERS = (
    "cycles",
    "mac_cycles",
    "weight_stalls",
    "activation_stalls",
    "read_words",
    "write_words",
    "saturated",
)


class ControlPort(Signature):
    """Start, addresses, task and status, seen from the core."""

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "program": In(ADDRESS_BITS),
                "image": In(ADDRESS_BITS),
                "output": In(ADDRESS_BITS),
                "images": In(16),
                "task": In(8),
                "busy": Out(1),
                "done": Out(1),
                "error": Out(4),
                **{name: Out(32) for name in COUNTERS},
            }
        )


def product_record(hardware: HardwareConfig) -> data.StructLayout:
    """Monitor record of one write of up to ``post_lanes`` results of a product."""
    n = hardware.post_lanes
    return data.StructLayout(
        {
            "number": 32,
            "visit": 16,
            "row": 16,
            "channel": 16,
            "mask": n,
            "address": 16,
            "value": data.ArrayLayout(signed(22), n),
            "addend": data.ArrayLayout(signed(22), n),
        }
    )


def norm_record(hardware: HardwareConfig) -> data.StructLayout:
    """Monitor record of one word that layer norm writes."""
    lanes = data.ArrayLayout(signed(16), hardware.in_lanes)
    return data.StructLayout({"number": 32, "address": 16, "spare": 16, "value": lanes})


def load_record(hardware: HardwareConfig) -> data.StructLayout:
    """Monitor record of one word that LOAD or IMAGE writes."""
    n = hardware.in_lanes
    return data.StructLayout(
        {"number": 32, "address": 16, "mask": n, "spare": 32, "value": data.ArrayLayout(signed(16), n)}
    )


def route_record() -> data.StructLayout:
    """Monitor record of one decision of the router."""
    return data.StructLayout({"number": 32, "token": 16, "rank": 8, "expert": 16, "score": 16, "spare": 16})


class MonitorPort(Signature):
    """Records of all activation writes, for simulation; a record counts in a cycle with ``valid``.

    ``conflict`` is high where two clients of the activation memory have met, or the reader, the writer or a reader of
    external memory got something for which it had no room.
    """

    def __init__(self, hardware: HardwareConfig):
        members = {"conflict": Out(1)}
        for name, layout in (
            ("product", product_record(hardware)),
            ("norm", norm_record(hardware)),
            ("load", load_record(hardware)),
            ("route", route_record()),
        ):
            members[f"{name}_valid"] = Out(1)
            members[name] = Out(layout)
        super().__init__(members)
