"""A board in Verilator: the design behind the pins, with the memory chip's model and a serial line to talk to it.

`SimulatedLine` is an `edgemoe.host.line.Line`; its time-outs are in the simulation's time, so that nothing depends on how fast
the computer is.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from amaranth.hdl import ClockSignal, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from edgemoe.errors import DeviceError
from edgemoe.simulation.executable import Options, executable
from edgemoe.simulation.sdram import MODEL, model_parameters, model_source
from edgemoe.targets.top import BoardSpec, Top
from edgemoe.verilog import convert

TOP = "board"
PICOSECONDS = 1_000_000_000_000
STATE = struct.Struct("<QII")


class BoardSystem(wiring.Component):
    """`edgemoe.targets.top.Top` with its memory chip.

    The registers of the pins are all on the way out, where `SdramSpec.round_trip` counts them together.

    Members
    -------
    rx : In(1), tx : Out(1)
    busy, error, activity, alive : Out(1)
    violations : Out(32)
        Rules of the chip that were broken so far.
    """

    def __init__(self, spec: BoardSpec):
        self.spec = spec
        lights = {name: Out(1) for name in ("busy", "error", "activity", "alive")}
        super().__init__({"rx": In(1), "tx": Out(1), **lights, "violations": Out(32)})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.top = top = Top(self.spec)
        m.d.comb += [top.rx.eq(self.rx), self.tx.eq(top.tx)]
        for name in ("busy", "error", "activity", "alive"):
            m.d.comb += getattr(self, name).eq(getattr(top, name))

        def late(value):
            for _ in range(self.spec.sdram.round_trip):
                before, value = value, Signal.like(value)
                m.d.memory += value.eq(before)
            return value

        pins = top.pins
        m.submodules.model = Instance(
            MODEL,
            **{f"p_{name}": value for name, value in model_parameters(self.spec.sdram).items()},
            i_clk=ClockSignal("memory"),
            **{f"i_{name}": late(getattr(pins, name)) for name in pins.signature.members if name != "dq"},
            i_dq_i=late(pins.dq.o),
            i_dq_i_oe=late(pins.dq.oe),
            o_dq_o=pins.dq.i,
            i_dump=0,
            o_violations=self.violations,
        )
        return m


def build(spec: BoardSpec, directory: Path) -> Path:
    """Path of the executable for a board, built below ``directory`` unless it is there already.

    Raises:
        ToolMissing: Verilator or a helper is not installed.
        BuildFailed: the Verilog does not compile.
    """
    sources = {
        "board.v": convert(BoardSystem(spec), TOP) + model_source(),
        "board.cpp": resources.files("edgemoe.simulation").joinpath("board.cpp").read_text(),
    }
    numbers = {
        "CORE_PS": round(PICOSECONDS / 2 / spec.core_hz),
        "MEMORY_PS": round(PICOSECONDS / 2e6 / spec.sdram.clock_mhz),
        "BIT_PS": round(PICOSECONDS / spec.baud),
    }
    return executable("board", TOP, sources, directory, Options(optimise="1"), numbers)


@dataclass(frozen=True)
class BoardState:
    """What is seen from outside."""

    cycles: int
    violations: int
    busy: bool
    error: bool
    activity: bool
    alive: bool


class SimulatedLine:
    """The host's end of a simulated board's serial line.

    Args:
        executable: of `build`.
        baud: of the board.
        arguments: plusargs, for example ``+sdram_load=FILE`` for what is in the memory at first.
    """

    name = "simulated board"

    def __init__(self, executable: Path, baud: int, *arguments: str):
        self.baud = baud
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the simulation
        self._process = subprocess.Popen(
            [str(executable), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )

    def __enter__(self) -> SimulatedLine:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the simulation."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()  # type: ignore[union-attr]
            self._log.close()

    @property
    def log(self) -> list[str]:
        """What the design has printed so far: broken rules of the memory."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()

    def write(self, data: bytes) -> None:
        """Queue bytes for the line; they are sent while `read` waits."""
        self._command(b"W" + struct.pack("<I", len(data)) + bytes(data))

    def read(self, seconds: float) -> bytes:
        """Let the board run until it has sent a byte, for at most so long; returns what came."""
        self._command(b"R" + struct.pack("<I", round(seconds * 1e6)))
        return self._answer(struct.unpack("<I", self._answer(4))[0])

    def state(self) -> BoardState:
        """Cycles of the core, broken rules and lights."""
        self._command(b"S")
        cycles, violations, lights = STATE.unpack(self._answer(STATE.size))
        return BoardState(cycles, violations, *(bool(lights >> k & 1) for k in range(4)))

    def _command(self, data: bytes) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise DeviceError(self._ended()) from None

    def _answer(self, count: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(count) or b""
        if len(data) < count:
            raise DeviceError(self._ended())
        return data

    def _ended(self) -> str:
        lines = [] if self._log.closed else self.log
        return f"the simulated board has ended: {lines[-1] if lines else 'nothing printed'}"
