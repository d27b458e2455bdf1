"""The same things as the command line, as functions: from a model file to a result.

    from edgemoe import api

    model = api.load_model("nano")                          # or a model file
    build = api.compile(model, "nano")                      # formats, program, memory image
    image = api.load_image("nano:0", model)                 # or a .npy or .png file
    exact = api.golden(build, image, task=0)                # the integers, as values
    run = api.simulate(build, [image], tasks=[0, 1])        # the generated Verilog in Verilator

Every function raises a subclass of `edgemoe.errors.EdgemoeError` for what the caller can get wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemoe import config as configuration
from edgemoe import inputs, output
from edgemoe.checkpoint import Model
from edgemoe.config import PROFILES, HardwareConfig, ModelConfig, load_hardware
from edgemoe.errors import BadInput

if TYPE_CHECKING:
    from edgemoe.compare import Comparison
    from edgemoe.perf import Prediction
    from edgemoe.program import Program
    from edgemoe.quantize import QuantizedModel
    from edgemoe.simulation.job import MemoryModel
    from edgemoe.simulation.runner import SimulationResult
    from edgemoe.simulation.testbench import Vectors

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

Tick = Callable[[str, float | None], None]
"""Told what a long step is doing, and which part of it is done (None: unknown)."""

Watch = Callable[[str], None]
"""Told where a simulation is: descriptor, cycles and cycles per second, a few times a second."""

WAVES = 4000
"""Cycles of a waveform, unless more are wanted."""

load_model = inputs.model
cache = output.cache


def quiet(what: str, part: float | None) -> None:
    """A `Tick` that tells nobody."""


def unwatched(where: str) -> None:
    """A `Watch` that tells nobody."""


def load_image(text: PathLike, model: Model | ModelConfig) -> Array:
    """The image that ``text`` names for ``model``: .npy, .png, ``FILE.npz:N`` or ``nano:N``."""
    return inputs.image(text, _config(model))


def save_tensors(path: PathLike, tensors: Mapping[str, Array]) -> None:
    """Write OUT.npz atomically, whatever its suffix."""
    with output.file(Path(path)) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **tensors)  # type: ignore[arg-type]


# -- float --------------------------------------------------------------------------------------


def reference(
    model: Model, image: Array, task: int | str = 0, *, routes: Mapping[str, Array] | None = None,
    trace: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """Run the float model on one image: ``x``, ``logits`` if there is a head; with ``trace`` every tensor.

    Args:
        routes: arrays ``l{L}_topk`` that force the experts.
    """
    from edgemoe import reference as machine

    return machine.run(model, image, inputs.task(task, model.config), routes, trace)


def reference_batch(model: Model, images: Array) -> list[Array]:
    """Logits (images, classes) of many images by the float model, for every task."""
    from edgemoe import reference as machine

    return [machine.run_batch(model, images, task) for task in range(len(model.config.tasks))]


# -- compiling ----------------------------------------------------------------------------------


def compile(
    model: Model, hardware: HardwareConfig | str, *, calibration: Array | None = None, profile: str | None = None,
    fit: bool = False, pixel_bytes: int | None = None,
) -> Program:  # fmt: skip
    """Choose formats from the calibration images, quantise, and make the program and the memory image.

    Args:
        hardware: a configuration, the name of one, or a TOML file.
        calibration: images (n, channels, height, width); for the packaged model there is a default.
        profile: ``w8a16`` or ``w16a16`` in place of the hardware's.
        fit: raise the hardware's capacities to what the model needs.
        pixel_bytes: 1 for uint8 images, 2 for any; by default what the calibration images are.
    """
    return _compile(model, fitted(model, hardware, profile=profile, fit=fit), calibration, pixel_bytes)[0]


def compile_reported(
    model: Model, hardware: HardwareConfig | str, *, calibration: Array | None = None, profile: str | None = None,
    fit: bool = False, pixel_bytes: int | None = None,
) -> tuple[Program, list[dict[str, Any]]]:  # fmt: skip
    """`compile`, and by tensor the range, format, clipping and error on the calibration images.

    Returns:
        The program, and `edgemoe.compare.format_report` on the first calibration image, task 0.
    """
    from edgemoe.compare import format_report

    target = fitted(model, hardware, profile=profile, fit=fit)
    program, quantised, images = _compile(model, target, calibration, pixel_bytes)
    return program, format_report(program, model, quantised.report(), images[0])


def _compile(
    model: Model, target: HardwareConfig, calibration: Array | None, pixel_bytes: int | None
) -> tuple[Program, QuantizedModel, Array]:
    from edgemoe.compile import compile_model
    from edgemoe.quantize import quantize

    images = inputs.calibration(None, model.config) if calibration is None else np.asarray(calibration)
    if pixel_bytes is None:
        pixel_bytes = 1 if images.dtype == np.uint8 else 2
    quantised = quantize(model, target.profile, images)
    return compile_model(quantised, target, pixel_bytes), quantised, images


def fitted(
    model: Model | ModelConfig,
    hardware: HardwareConfig | str,
    *,
    profile: str | None = None,
    fit: bool = False,
) -> HardwareConfig:
    """The hardware with the wanted profile, checked against the model or, with ``fit``, raised to it."""
    target = load_hardware(hardware) if isinstance(hardware, str) else hardware
    if profile is not None:
        if profile not in PROFILES:
            raise BadInput(f"--profile must be one of {', '.join(PROFILES)}, found {profile!r}")
        if profile != target.profile:
            target = replace(target, profile=profile, acc_bits=0)
    if fit:
        target = configuration.fit(target, _config(model))
    configuration.check(_config(model), target)
    return target


def save_build(program: Program, path: PathLike, **about: Any) -> None:
    """Write a BUILD directory; ``about`` goes to its manifest (`edgemoe.program.save`)."""
    from edgemoe import program as builds

    builds.save(program, Path(path), **about)


def load_build(path: PathLike) -> Program:
    """Read a BUILD directory."""
    from edgemoe import program as builds

    return builds.load(Path(path))


def model_of_build(path: PathLike) -> Model:
    """The float model that a BUILD directory was compiled from.

    Raises:
        BadInput: the file has moved or changed.
    """
    import json

    from edgemoe.manifest import sha256

    about = json.loads((Path(path) / output.MANIFEST).read_text())
    name = about["configuration"].get("model_file")
    if name is None:
        raise BadInput(f"{path}: does not say which model file it is from; give it with --model")
    file = inputs.model_path(name)
    if not file.is_file():
        raise BadInput(f"{path}: was compiled from {file}, which is not there; give the model with --model")
    if sha256(file) != about["inputs"].get("model"):
        raise BadInput(f"{path}: {file} has changed since it was compiled; compile again")
    return inputs.model(name)


def pixels(program: Program, images: Sequence[Array] | Array) -> Array:
    """Images as they lie in external memory, (n, channels, height, width): uint8 or int16 as compiled."""
    from edgemoe.memmap import PIXEL_FRAC, pixel_codes

    codes = np.stack([pixel_codes(image, program.model) for image in images])
    if program.pixel_bytes == 2:
        return codes.astype(np.int16)
    if (codes & ((1 << (PIXEL_FRAC - 8)) - 1)).any():
        raise BadInput(
            "the program was compiled for uint8 images, this one is finer; compile with --pixel-bytes 2"
        )
    return (codes >> (PIXEL_FRAC - 8)).astype(np.uint8)


# -- integers -----------------------------------------------------------------------------------


def golden(
    program: Program, image: Array, task: int | str = 0, *, routes: Mapping[str, Array] | None = None,
    trace: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """Run the bit-exact machine on one image: its integers as values, by the names of `reference`."""
    from edgemoe.golden import Golden

    return Golden(program).run(image, inputs.task(task, program.model), trace, routes)


def perf(
    program: Program, *, image: Array | None = None, task: int | str = 0, routing: str = "balanced"
) -> Prediction:  # fmt: skip
    """Predict cycles, external bytes and utilisation without running the gateware.

    Args:
        image: use the routes that the golden machine chooses for this image and ``task``.
        routing: without an image: ``balanced``, ``skewed`` or ``one``.
    """
    from edgemoe import perf as model

    number = inputs.task(task, program.model)
    routes = golden(program, image, number) if image is not None else model.routing(routing, program.model)
    return model.predict(program, routes, number)


# -- gateware -----------------------------------------------------------------------------------


def verilog_folder(hardware: HardwareConfig) -> Path:
    """The folder with the generated Verilog of ``hardware``, from the cache if it is there."""
    from edgemoe import verilog

    return verilog.cached(hardware, writable_cache()).parent


def prepare(
    hardware: HardwareConfig, *, verilog: PathLike | None = None, waves: bool = False, tick: Tick = quiet
) -> None:  # fmt: skip
    """Build the simulator of ``hardware`` unless it is in the cache; of several processes only one builds."""
    import fcntl
    import zlib

    from edgemoe.simulation.executable import Options
    from edgemoe.simulation.runner import verilog_file
    from edgemoe.simulation.verilator import build

    place = writable_cache()

    def told(stage: str) -> None:
        if stage != "cached":
            tick(f"gateware: {stage}", None)

    with open(place / f"lock-{zlib.crc32(repr(hardware).encode()):08x}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tick("gateware: Verilog", None)
        build(verilog_file(hardware, verilog, place), hardware, place, Options(waves=waves), told)


def simulate(
    program: Program, images: Sequence[Array] | Array, tasks: Iterable[int | str] = (0,), *,
    verilog: PathLike | None = None, waves: PathLike | None = None, waves_cycles: tuple[int, int] = (0, WAVES),
    records: bool = True, memory: MemoryModel | None = None, tick: Tick = quiet, watch: Watch = unwatched,
) -> list[SimulationResult]:  # fmt: skip
    """Run the Verilog in Verilator: for each task one start over all images, with no reset in between.

    Args:
        verilog: a folder that `edgemoe verilog` made, to simulate in place of the generated one.
        waves: write a waveform (VCD) of every signal.
        waves_cycles: from which cycle to which, counted from reset; a cycle of the nano core takes about 40 kB.
        records: keep the monitor's records, which `check` needs.
        memory: timing of the external memory (default: a word per cycle, 30 cycles after its request).
        tick, watch: progress.
    """
    from edgemoe.simulation.job import MemoryModel
    from edgemoe.simulation.runner import simulate as start

    numbers = [inputs.task(task, program.model) for task in tasks]
    likely = len(images) * perf(program).cycles

    where = _Where(program, numbers)

    def told(event: dict[str, Any]) -> None:
        if "cycle" in event:
            part = (int(event.get("run", 0)) + min(event["cycle"] / likely, 0.99)) / len(numbers)
            tick("gateware: simulating", part)
            watch(where.text(event, time.monotonic()))

    prepare(program.hardware, verilog=verilog, waves=waves is not None, tick=tick)
    tick("gateware: simulating", 0.0)
    return start(
        program, program.hardware, pixels(program, images), numbers, build_dir=writable_cache(),
        verilog_dir=verilog, records=records, waves=waves, progress=told,
        waves_cycles=waves_cycles, memory=memory or MemoryModel(),
    )  # fmt: skip


class _Where:
    """Says where a simulation is."""

    def __init__(self, program: Program, tasks: Sequence[int]) -> None:
        self.program, self.tasks = program, tasks
        self.run, self.cycle, self.time = -1, 0, 0.0
        """The run that is going on, and its first event."""

    def text(self, event: Mapping[str, Any], now: float) -> str:
        """One line for an event of the harness that comes ``now``."""
        run, cycle, number = (int(event[key]) for key in ("run", "cycle", "number"))
        if run != self.run:
            self.run, self.cycle, self.time = run, cycle, now
        tensors = " ".join(
            tensor.name.replace("_e{e}", "") for tensor in self.program.symbols[number].tensors
        )
        parts = [
            f"task {self.program.model.tasks[self.tasks[run]]}",
            f"descriptor {number} of {len(self.program.symbols)} ({tensors})",
            f"{cycle:,} cycles",
        ]
        if now > self.time:
            parts.append(f"{(cycle - self.cycle) / (now - self.time):,.0f} cycles/s")
        return ", ".join(parts)


def vectors(program: Program, image: Array, task: int | str = 0) -> Vectors:
    """What a testbench in plain Verilog loads, and the output that the golden machine expects of it."""
    from edgemoe.golden import Golden
    from edgemoe.simulation.placement import pack_images, place
    from edgemoe.simulation.testbench import Vectors

    hardware, number = program.hardware, inputs.task(task, program.model)
    placement = place(program.memory, hardware, 1)
    expected = Golden(program).execute([image], number).output
    return Vectors(
        program.memory,
        pack_images(pixels(program, [image]), placement, hardware.port_bytes),
        expected.ljust(placement.output_words * hardware.port_bytes, b"\0"),
        placement,
        number,
    )


def outputs(program: Program, run: SimulationResult, image: int = 0, task: int = 0) -> dict[str, Array]:
    """``x``, and ``logits`` if the task has a head, of one image of a simulated start, as values."""
    found = {}
    for stored in program.outputs:
        address = stored.offset // program.hardware.port_bytes
        number = next(n for n, d in run.placement.stores.items() if d.address == address)
        channels = stored.channels
        if stored.name == "logits":
            channels = program.model.classes[task] if program.model.classes else 0
        codes = run.outputs[number][image][: stored.rows, :channels].astype(np.int64)
        if not channels:
            continue
        values = codes * 2.0 ** -stored.fracs[task]
        found[stored.name] = values[0] if stored.name == "logits" else values
    return found


@dataclass(frozen=True)
class Checked:
    """Gateware against golden machine, over all images and tasks.

    Attributes:
        mismatches: elements that differ, are missing or are surplus.
        tensors: tensors that were compared, each with all its elements.
        first: the first difference (descriptor, tensor, row, channel, both codes), or None.
        routes: the golden machine's ``l{L}_topk`` by task and image.
        comparisons: `edgemoe.compare.Comparison` of each task.
    """

    program: Program
    tasks: list[int]
    mismatches: int
    tensors: int
    first: str | None
    routes: list[list[dict[str, Array]]]
    comparisons: list[Comparison]

    def gateware(self, task: int = 0, image: int = 0) -> dict[str, Array]:
        """Every tensor that the gateware wrote, as values, by the names of `golden`; ``task`` is an index of ``tasks``."""
        from edgemoe.golden import Tensors

        found = self.comparisons[task]
        return Tensors(self.program, self.tasks[task]).collect(found.gateware[image], found.routes[image])


def check(
    program: Program,
    images: Sequence[Array] | Array,
    tasks: Iterable[int | str],
    runs: Sequence[SimulationResult],
    tick: Tick = quiet,
    first_image: int = 0,
) -> Checked:
    """Compare every element of every tensor that `simulate` recorded with the golden machine's.

    Args:
        first_image: number of the first image, for the message of a difference.
    """
    from edgemoe.compare import compare_run
    from edgemoe.golden import Golden

    machine = Golden(program)
    names, numbers = machine.names(), [inputs.task(task, program.model) for task in tasks]
    comparisons, routes = [], []
    for done, (task, run) in enumerate(zip(numbers, runs)):
        tick("comparing every tensor with the golden machine", done / len(numbers))
        expected = machine.execute(list(images), task, trace=True)
        comparisons.append(compare_run(program, expected, run))
        routes.append([{names[n]: r.experts for n, r in of_image.items()} for of_image in expected.routes])
    differences = [
        f"task {program.model.tasks[task]}, {replace(found.first, image=found.first.image + first_image)}"
        for task, found in zip(numbers, comparisons)
        if found.first
    ]
    return Checked(
        program,
        numbers,
        sum(found.mismatches for found in comparisons),
        sum(found.tensors_compared for found in comparisons),
        differences[0] if differences else None,
        routes,
        comparisons,
    )


def writable_cache() -> Path:
    """The cache folder, made if need be."""
    place = cache()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{place}: cannot be made ({error.strerror}); name another folder in the variable EDGEMOE_CACHE"
        ) from None
    return place


def _config(model: Model | ModelConfig) -> ModelConfig:
    return model.config if isinstance(model, Model) else model
