"""Images per second of a model on a board, from the cycle model and the clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgemoe.config import HardwareConfig, ModelConfig

if TYPE_CHECKING:
    from edgemoe.checkpoint import Model
    from edgemoe.targets.ulx3s import Ulx3sSpec

PIPELINE = 9
"""Clocks of the memory from a request at the controller to its first command, and from the last register to the port."""
CROSSING = 6
"""Cycles of the slower clock for a crossing there and back."""


@dataclass(frozen=True)
class Rate:
    """Images per second of a model on a board, by the cycle model."""

    model: str
    cycles: int
    core_mhz: float
    memory_mhz: float
    bandwidth: int
    """Port words per 1024 cycles of the core that the SDRAM delivers."""
    fps: float

    @property
    def formula(self) -> str:
        """How ``fps`` follows from the rest."""
        return (
            f"{self.core_mhz:g} MHz / {self.cycles} cycles = {self.fps:.2f} images per second of {self.model}; the "
            f"SDRAM at {self.memory_mhz:g} MHz gives {self.bandwidth} port words per 1024 cycles of the core"
        )


def shape_of(name: str) -> Model:
    """The model whose rate is reported: a model file, ``nano``, or ``m3vit-tiny`` with random weights.

    Cycles do not depend on the weights, and the routing is a balanced one, in which all experts are used.
    """
    from edgemoe import checkpoint, inputs

    if name == checkpoint.EDGE_MOE.name:
        return checkpoint.random_model(checkpoint.EDGE_MOE, 1)
    return inputs.model(name)


def rate(model: Model, hardware: HardwareConfig, spec: Ulx3sSpec, core_mhz: float, memory_mhz: float) -> Rate:
    """Predict a run of one image of ``model`` at these clocks.

    The SDRAM moves 2 bytes per clock except while it refreshes, and a request takes as long as a precharge, an
    activation, the CAS latency and the registers on the way.
    """
    import numpy as np

    from edgemoe import api, perf

    calibration = None
    if model.config.name == "m3vit-tiny":
        c = model.config
        calibration = np.random.default_rng(1).integers(0, 256, (1, c.channels, c.height, c.width), np.uint8)
    program = api.compile(model, hardware, calibration=calibration)
    sdram, ratio = spec.board.sdram, core_mhz / memory_mhz
    share = 1 - sdram.refresh_cycles / sdram.refresh_period
    bandwidth = min(perf.FULL, int(perf.FULL * 2 * share / (hardware.port_bytes * ratio)))
    clocks = sdram.rp + sdram.rcd + sdram.cas + sdram.round_trip + PIPELINE
    latency = CROSSING + int(clocks * ratio)
    found = perf.predict(program, bandwidth=bandwidth, latency=latency)
    fps = core_mhz * 1e6 / found.cycles
    return Rate(model.config.name, found.cycles, round(core_mhz, 2), round(memory_mhz, 2), bandwidth, fps)


def fits(model: ModelConfig, hardware: HardwareConfig) -> bool:
    """Whether the hardware has the capacities that the model needs."""
    from edgemoe.config import needs

    return all(getattr(hardware, key) >= value for key, value in needs(model, hardware).items())
