"""One way to run a compiled model, whatever it runs on: the golden machine, the simulated gateware, or a board."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgemoe import api, inputs
from edgemoe.config import HardwareConfig
from edgemoe.errors import BadInput, DeviceError, DoesNotFit
from edgemoe.host.client import Client
from edgemoe.host.line import Line
from edgemoe.isa import Error
from edgemoe.memmap import Stored
from edgemoe.numeric import ceil_div
from edgemoe.program import Program
from edgemoe.protocol import CAPACITIES, hardware_hash

Array = NDArray[Any]
Tick = Callable[[str, float | None], None]
"""Told what is being done, and which part of it is done (None: unknown)."""

CHUNK = 1 << 16
"""Bytes of the memory image that are compared by checksum, and sent only if they differ."""
BATCH = 16
"""Images of one start."""


class Accelerator(ABC):
    """Runs compiled models.

    All kinds give the same results, to the last bit: for each image ``logits`` where the task has a head, else ``x``
    (tokens x dim), as values::

        with GoldenAccelerator() as accelerator:
            accelerator.load(build)
            answers = accelerator.run(images, task=0)

    Attributes:
        counters: of the last run, where the kind has any (`edgemoe.core.interface.COUNTERS`), summed over its starts.
    """

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """What is loaded.

        Raises:
            BadInput: nothing is.
        """
        if self._program is None:
            raise BadInput("no model is loaded; call load() before run()")
        return self._program

    def load(self, program: Program, tick: Tick = api.quiet) -> None:
        """Make ``program`` the one that runs."""
        self._program = None
        self._load(program, tick)
        self._program = program

    def run(
        self, images: Sequence[Array] | Array, task: int | str = 0, tick: Tick = api.quiet
    ) -> list[dict[str, Array]]:
        """Run one task over images (channels x height x width, uint8 or float in [0, 1)).

        Raises:
            BadInput: no such task, or images that the model does not take.
            DeviceError: the accelerator ended with an error code, or does not answer.
        """
        program = self.program
        number, stored = inputs.task(task, program.model), answer(program, inputs.task(task, program.model))
        pixels = api.pixels(program, images) if len(images) else []
        self.counters = {}
        found: list[dict[str, Array]] = []
        while len(found) < len(pixels):
            part = pixels[len(found) : len(found) + self._most(program)]
            codes = self._run(program, part, number, stored, tick)
            found += [{stored.name: values(program, stored, c, number)} for c in codes]
            tick("running", len(found) / len(pixels))
        return found

    def close(self) -> None:  # noqa: B027 - most kinds hold nothing
        """Give back what the accelerator holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, counters: dict[str, int]) -> None:
        self.counters = {name: self.counters.get(name, 0) + value for name, value in counters.items()}

    def _most(self, program: Program) -> int:
        """Images of one start."""
        return BATCH

    @abstractmethod
    def _load(self, program: Program, tick: Tick) -> None: ...

    @abstractmethod
    def _run(self, program: Program, pixels: Array, task: int, stored: Stored, tick: Tick) -> Sequence[Array]:
        """Codes of the output tensor ``stored`` (rows x channels) of every image (n x c x h x w as in memory)."""


def answer(program: Program, task: int) -> Stored:
    """The tensor that a run returns: logits where the task has a head, else x."""
    return program.stored("logits" if program.model.classes and program.model.classes[task] else "x")


def values(program: Program, stored: Stored, codes: Array, task: int) -> Array:
    """Codes (rows x channels) as values, without what pads them."""
    scaled = codes.astype(np.int64) * 2.0 ** -stored.fracs[task]
    return scaled[0, : program.model.classes[task]] if stored.name == "logits" else scaled


class GoldenAccelerator(Accelerator):
    """The bit-exact machine in numpy."""

    def _load(self, program: Program, tick: Tick) -> None:
        from edgemoe.golden import Machine

        self._machine = Machine(program.hardware, program.memory)

    def _run(self, program: Program, pixels: Array, task: int, stored: Stored, tick: Tick) -> Sequence[Array]:
        size = program.image_words * program.hardware.port_bytes
        raw = b"".join(
            image.astype(image.dtype.newbyteorder("<")).tobytes().ljust(size, b"\0") for image in pixels
        )
        self._machine.reset()
        output = self._machine.run(raw, task, len(pixels)).output
        step = program.output_words * program.hardware.port_bytes
        return [stored.unpack(program.hardware, output[at * step :]) for at in range(len(pixels))]


class SimulatedAccelerator(Accelerator):
    """The generated Verilog in Verilator.

    Args:
        verilog: a folder that `edgemoe verilog` made, in place of the generated one.
    """

    def __init__(self, verilog: Path | str | None = None) -> None:
        super().__init__()
        self.verilog = verilog

    def _load(self, program: Program, tick: Tick) -> None:
        api.prepare(program.hardware, verilog=self.verilog, tick=tick)

    def _run(self, program: Program, pixels: Array, task: int, stored: Stored, tick: Tick) -> Sequence[Array]:
        from edgemoe.simulation.runner import simulate

        folder = api.writable_cache()
        (run,) = simulate(
            program,
            program.hardware,
            pixels,
            [task],
            build_dir=folder,
            verilog_dir=self.verilog,
            records=False,
        )
        self._count(run.counters)
        address = stored.offset // program.hardware.port_bytes
        number = next(n for n, d in run.placement.stores.items() if d.address == address)
        return [codes[:, : stored.channels] for codes in run.outputs[number]]


class SerialAccelerator(Accelerator):
    """A board on a serial line.

    Only what differs is uploaded, and the whole memory image is checked: loading the model that a board already holds
    takes a moment.

    Args:
        line: see `edgemoe.host.line.SerialLine`.
        client: options of `Client`.

    Raises:
        DeviceError: nobody answers there; of `load`: the board holds another accelerator; of all methods: the device is
            gone, or its answers stay wrong after some tries. The next call begins a session anew.
    """

    def __init__(self, line: Line, **client: Any) -> None:
        super().__init__()
        self.line, self.client = line, Client(line, **client)
        try:
            self.client.open()
            self.client.wait()
        except BaseException:
            line.close()
            raise

    def close(self) -> None:
        """Close the line."""
        self.line.close()

    def reset(self) -> None:
        """Reset the board's accelerator; the model must be loaded again."""
        self._program = None
        self.client.reset()

    def _load(self, program: Program, tick: Tick) -> None:
        self._check_hardware(program.hardware)
        self._most(program)
        port = program.hardware.port_bytes
        memory = program.memory.ljust(ceil_div(len(program.memory), port) * port, b"\0")
        size = max(CHUNK, port)
        differ = []
        for at in range(0, len(memory), size):
            tick("comparing the model with the board's memory", at / len(memory))
            part = memory[at : at + size]
            if self.client.checksum(at // port, len(part) // port) != zlib.crc32(part):
                differ.append(at)
        total, sent = sum(len(memory[at : at + size]) for at in differ), 0
        for at in differ:
            part = memory[at : at + size]
            self.client.write(
                at // port, part, lambda done, sent=sent: tick("uploading the model", (sent + done) / total)
            )
            sent += len(part)
        if differ:
            tick("checking the model in the board's memory", None)
            found, expected = self.client.checksum(0, len(memory) // port), zlib.crc32(memory)
            if found != expected:
                raise DeviceError(
                    f"{self.line.name}: the board's memory has checksum {found:08x} after the upload, must have "
                    f"{expected:08x}; load again, and test the memory if that happens again"
                )

    def _check_hardware(self, hardware: HardwareConfig) -> None:
        device = self.client.identity
        if device.hardware_hash == hardware_hash(hardware):
            return
        wanted = {**{key: getattr(hardware, key) for key in CAPACITIES}, "port_bytes": hardware.port_bytes}
        have = {**device.capacities, "port_bytes": device.port_bytes}
        other = [key for key in wanted if have[key] != wanted[key]]
        found = ", ".join(f"{key} {have[key]}, not {wanted[key]}" for key in other[:3]) or "other units"
        raise DeviceError(
            f"{self.line.name}: the board's bitstream is hardware {device.name} ({found}), the model was compiled for "
            f"{hardware.name}; compile it for {device.name}, or write the other bitstream (edgemoe program)"
        )

    def _placed(self, program: Program, images: int) -> Any:
        from edgemoe.simulation.placement import place

        device = self.client.identity
        hardware = replace(program.hardware, memory_bytes=device.memory_words * device.port_bytes)
        return place(program.memory, hardware, images)

    def _most(self, program: Program) -> int:
        """As many images as the memory has room for; without room for one `DoesNotFit`."""
        for images in range(BATCH, 1, -1):
            try:
                self._placed(program, images)
                return images
            except DoesNotFit:
                continue
        self._placed(program, 1)
        return 1

    def _run(self, program: Program, pixels: Array, task: int, stored: Stored, tick: Tick) -> Sequence[Array]:
        from edgemoe.simulation.placement import pack_images

        hardware, client = program.hardware, self.client
        port, placement = hardware.port_bytes, self._placed(program, len(pixels))
        raw = pack_images(pixels, placement, port)
        client.write(placement.image, raw, lambda done: tick("sending images", done / len(raw)))
        tick("running", None)
        client.start(placement.program, placement.image, placement.output, len(pixels), task)
        state = client.wait()
        if state.error:
            name = state.error.name if isinstance(state.error, Error) else "unknown"
            raise DeviceError(
                f"{self.line.name}: the run ended with error {int(state.error)} ({name}); load the model again"
            )
        self._count(state.counters)
        codes = []
        size = stored.rows * stored.words * hardware.in_lanes * 2
        first, end = stored.offset // port, ceil_div(stored.offset + size, port)
        for number in range(len(pixels)):
            tick("receiving answers", number / len(pixels))
            answer = client.read(placement.output + number * placement.output_stride + first, end - first)
            codes.append(replace(stored, offset=stored.offset - first * port).unpack(hardware, answer))
        return codes
