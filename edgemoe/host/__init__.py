"""A compiled model on an accelerator: the golden machine, the simulated gateware, or a board on a serial line."""

from edgemoe.host.accelerator import (
    Accelerator,
    GoldenAccelerator,
    SerialAccelerator,
    SimulatedAccelerator,
)
from edgemoe.host.line import Line, SerialLine

__all__ = [
    "Accelerator", "GoldenAccelerator", "Line", "SerialAccelerator", "SerialLine", "SimulatedAccelerator",
]  # fmt: skip
