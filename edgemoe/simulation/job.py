"""What the harness is told: memory contents, runs and the model of the external memory.

The job file is text, one ``key value`` a line; a line ``run NAME`` starts the settings of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgemoe.errors import BadInput


@dataclass(frozen=True)
class MemoryModel:
    """Timing of the external memory; data come in the order of the requests.

    Attributes:
        latency: cycles from a request to its first word.
        bandwidth: port words per 1024 cycles, reads and writes together; 1024 means one read *and* one
            write in every cycle.
        queue: read requests that the memory accepts before it has answered the first.
        stalls: seed of random gaps on all three streams; 0 means none.
    """

    latency: int = 30
    bandwidth: int = 1024
    queue: int = 16
    stalls: int = 0

    def __post_init__(self) -> None:
        for key, low, high in (
            ("latency", 1, 1 << 20), ("bandwidth", 1, 1024), ("queue", 1, 1 << 20), ("stalls", 0, 1 << 32),
        ):  # fmt: skip
            value = getattr(self, key)
            if not low <= value <= high:
                raise BadInput(f"memory model: {key} must be {low}..{high}, found {value}")

    @classmethod
    def from_bytes_per_cycle(cls, rate: float, port_bytes: int, **others: int) -> MemoryModel:
        """The model of a memory that moves ``rate`` bytes per cycle through this port."""
        return cls(bandwidth=max(1, min(1024, round(rate * 1024 / port_bytes))), **others)


@dataclass(frozen=True)
class Run:
    """One start of the accelerator; addresses are in port words.

    Attributes:
        name: prefix of the files that the run writes.
        output_words: port words from ``output`` on that are saved when the run is over.
        records: whether the monitor's records are written.
    """

    name: str
    program: int
    image: int
    output: int
    images: int
    task: int
    output_words: int
    records: bool = True


@dataclass(frozen=True)
class Job:
    """A reset, memory contents, and runs one after the other.

    Attributes:
        load: ``(byte address, file)`` of what is in memory at first; all other bytes are 0xA5.
        max_cycles: cycles after which a run is given up.
        idle_cycles: the same, without any memory transfer or record in between.
        waves: VCD file, or None; needs an executable built for it.
        waves_from, waves_to: cycles (from reset) of the VCD file.
    """

    memory_bytes: int
    load: tuple[tuple[int, Path], ...]
    runs: tuple[Run, ...]
    memory: MemoryModel = field(default_factory=MemoryModel)
    max_cycles: int = 200_000_000
    idle_cycles: int = 100_000
    waves: Path | None = None
    waves_from: int = 0
    waves_to: int = 1 << 62

    def text(self) -> str:
        """The job file."""
        lines = [f"memory_bytes {self.memory_bytes}"]
        lines += [f"{key} {getattr(self.memory, key)}" for key in ("latency", "bandwidth", "queue", "stalls")]
        lines += [f"{key} {getattr(self, key)}" for key in ("max_cycles", "idle_cycles")]
        if self.waves is not None:
            lines += [f"waves_from {self.waves_from}", f"waves_to {self.waves_to}", f"waves {self.waves}"]
        lines += [f"load {address} {path}" for address, path in self.load]
        for run in self.runs:
            lines.append(f"run {run.name}")
            keys = ("program", "image", "output", "images", "task", "output_words")
            lines += [f"{key} {getattr(run, key)}" for key in keys]
            lines.append(f"records {int(run.records)}")
        return "\n".join(lines) + "\n"
