"""The demo: real images through the generated Verilog for every task, each tensor compared with the golden machine."""

from __future__ import annotations

import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import edgemoe
from edgemoe import api, inputs, output
from edgemoe.api import Tick, quiet
from edgemoe.errors import BadInput
from edgemoe.isa import Op
from edgemoe.manifest import manifest

if TYPE_CHECKING:
    from edgemoe.checkpoint import Model
    from edgemoe.program import Program
    from edgemoe.simulation.runner import SimulationResult

Array = NDArray[Any]

VERSION = 1
"""Of demo.json."""

HARDWARE = "nano"

WORKERS = 2
"""Simulators that run at the same time; each has half of the images."""


def run(path: Path | str, images: int = 32, waves: bool = False, tick: Tick = quiet) -> dict[str, Any]:
    """Run the demo and write its directory: demo.json, report.html, manifest.json, build/ and verilog/.

    Args:
        images: how many test images are simulated, 1..256; each for every task, all of a task in one start.
        waves: also write waves.vcd: the first cycles of the first image (`api.WAVES`).
        tick: progress.

    Returns:
        The object of demo.json; ``mismatches`` is 0 if every tensor is equal.

    Raises:
        BadInput, ToolMissing: before any work.
        DeviceError: the accelerator ended with an error code, or hangs.
    """
    from edgemoe import report
    from edgemoe.simulation import tools

    started = time.monotonic()
    pictures, labels = inputs.test_images()
    if not 1 <= images <= len(pictures):
        raise BadInput(
            f"--images must be 1..{len(pictures)}, the number of packaged test images; found {images}"
        )
    output.check_directory(path)
    tools.find_verilator()

    tick("compiling the model", None)
    model = api.load_model(inputs.NANO)
    program = api.compile(model, HARDWARE)
    files = {"model": inputs.model_path(inputs.NANO), "test images": inputs.packaged("multimnist-test.npz")}
    with output.directory(path) as folder, Answers(model, program, pictures) as answers:
        api.save_build(program, folder / "build", inputs=files, extra={"model_file": inputs.NANO})
        shown = pictures[:images]
        batches = simulate(program, shown, folder / "waves.vcd" if waves else None, tick)
        shutil.copytree(api.verilog_folder(program.hardware), folder / "verilog")
        tick("comparing every tensor with the golden machine", None)
        for batch in batches:
            batch.checked = api.check(program, batch.images, batch.tasks, batch.runs, first_image=batch.first)
        tick("float and golden model on all test images", None)
        floats, exact = answers.wait()
        values = {
            "edgemoe": edgemoe.__version__,
            "report": "demo",
            "version": VERSION,
            "images": images,
            "tasks": len(model.config.tasks),
            "task_names": list(model.config.tasks),
            "mismatches": sum(b.checked.mismatches for b in batches),
            "tensors_compared": sum(b.checked.tensors for b in batches),
            "first_difference": next((b.checked.first for b in batches if b.checked.first), None),
            **performance(
                program, [run for b in batches for run in b.runs], images * len(model.config.tasks)
            ),
            "accuracy_images": len(pictures),
            "accuracy_float": accuracies(floats, labels),
            "accuracy_golden": accuracies(exact, labels),
            "calibration": f"the last {inputs.CALIBRATION} of the {len(pictures)} test images",
            "model": asdict(program.model),
            "hardware": asdict(program.hardware),
            "macs": program.model.macs(),
            "results": results(program, batches, truth=labels, float=floats, golden=exact),
            "experts": experts(program, [sum(r, []) for r in zip(*(b.checked.routes for b in batches))]),
            "descriptors": descriptors(program, batches[0].runs[0], batches[0].checked.routes[0][0]),
            "seconds": round(time.monotonic() - started, 1),
        }
        output.write_json(folder / "demo.json", values)
        (folder / "report.html").write_text(report.render(values, shown))
        about = {"model": program.model, "hardware": program.hardware, "images": images}
        output.write_json(folder / output.MANIFEST, manifest("demo", about, files))
    return values


@dataclass
class Batch:
    """Images that one process simulates: for each task one start over all of them, with no reset in between."""

    first: int
    images: Array
    tasks: range
    runs: list[SimulationResult] = field(default_factory=list)
    checked: api.Checked = field(init=False)


def simulate(program: Program, images: Array, waves: Path | None, tick: Tick) -> list[Batch]:
    """Simulate all images for all tasks, in `WORKERS` processes; ``waves`` is of the first one."""
    tasks, size = range(len(program.model.tasks)), -(-len(images) // WORKERS)
    batches = [Batch(first, images[first : first + size], tasks) for first in range(0, len(images), size)]
    done = [0.0] * len(batches)

    def start(index: int) -> list[SimulationResult]:
        def told(what: str, part: float | None) -> None:
            if part is not None:
                done[index] = part
                tick("gateware: simulating", sum(done) / len(done))

        return api.simulate(
            program, batches[index].images, tasks, waves=None if index else waves, tick=told
        )  # fmt: skip

    api.prepare(program.hardware, tick=tick)
    if waves is not None:
        api.prepare(program.hardware, waves=True, tick=tick)
    with ThreadPoolExecutor(len(batches)) as pool:
        for batch, runs in zip(batches, pool.map(start, range(len(batches)))):
            batch.runs = runs
    return batches


class Answers:
    """Classes (images, tasks) by the float model and the golden machine, computed beside the simulation."""

    def __init__(self, model: Model, program: Program, images: Array) -> None:
        self.model, self.program, self.images = model, program, images
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Answers:
        self.future = self.pool.submit(self._work)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.pool.shutdown()

    def _work(self) -> tuple[Array, Array]:
        from edgemoe.golden import Golden

        machine = Golden(self.program)
        exact = np.full((len(self.images), len(self.program.model.tasks)), -1)
        for task in range(exact.shape[1]):
            for i, image in enumerate(self.images):
                if self.stop.is_set():
                    return exact, exact
                exact[i, task] = machine.run(image, task)["logits"].argmax()
        floats = api.reference_batch(self.model, self.images)
        return np.stack([logits.argmax(axis=1) for logits in floats], axis=1), exact

    def wait(self) -> tuple[Array, Array]:
        """The answers of both: float, golden."""
        return self.future.result()


def accuracies(answers: Array, labels: Array) -> list[float]:
    """Fraction of right answers, by task."""
    return [float(np.mean(answers[:, t] == labels[:, t])) for t in range(answers.shape[1])]


def performance(program: Program, runs: list[SimulationResult], answers: int) -> dict[str, float]:
    """Means per image and task, of which there are ``answers``, by the accelerator's own counters."""
    cycles = sum(run.counters["cycles"] for run in runs)
    words = sum(run.external_words for run in runs)
    return {
        "cycles_per_image": cycles / answers,
        "mac_utilisation": program.useful_macs * answers / (cycles * program.hardware.macs),
        "external_bytes_per_image": words * program.hardware.port_bytes / answers,
    }


def results(program: Program, batches: list[Batch], **sources: Array) -> list[dict[str, Any]]:
    """The answers to every simulated image, by task and source."""
    found = []
    for batch in batches:
        for i in range(len(batch.images)):
            number, answers = batch.first + i, []
            for task, run in zip(batch.tasks, batch.runs):
                by_source = {source: int(classes[number, task]) for source, classes in sources.items()}
                by_source["gateware"] = int(api.outputs(program, run, i, task)["logits"].argmax())
                answers.append(by_source)
            found.append({"image": number, "answers": answers})
    return found


def experts(program: Program, routes: list[list[dict[str, Array]]]) -> list[dict[str, Any]]:
    """Tokens that each expert received over all images: a matrix (tasks, experts) for every mixture block.

    Args:
        routes: by task and image, the arrays ``l{L}_topk``.
    """
    c = program.model
    return [
        {
            "block": block,
            "tokens": [
                np.bincount(
                    np.concatenate([r[f"l{block}_topk"].ravel() for r in of_task]), minlength=c.experts
                )
                for of_task in routes
            ],
        }
        for block in c.moe_blocks
    ]


# -- cycles by descriptor -----------------------------------------------------------------------

KINDS = {
    "pos_embed": "input", "image": "input", "embed": "patch embedding",
    "norm": "norm", "norm1": "norm", "norm2": "norm",
    "q": "q, k, v, proj", "k": "q, k, v, proj", "v": "q, k, v, proj", "post_attn": "q, k, v, proj",
    "scores": "QK", "attention": "AV", "gate": "gates", "topk": "gates", "hidden": "experts",
    "head": "head", "logits": "head",
}  # fmt: skip
"""Kind of work (`ModelConfig.macs`, `edgemoe.report.COLOURS`) by the tensor that a descriptor writes first."""


def descriptors(program: Program, run: SimulationResult, routes: dict[str, Array]) -> list[dict[str, Any]]:
    """Cycles and bytes of every descriptor for the first image of a run, as simulated.

    A descriptor's cycles are those from the last write of the descriptors before it to its own last write.

    Args:
        routes: the arrays ``l{L}_topk`` of that image.
    """
    last, end = last_writes(run)
    before, steps = 0, []
    for symbol, descriptor in zip(program.symbols, program.descriptors()):
        number = symbol.number
        until = end if number == len(program.symbols) - 1 else max(before, last.get(number, before))
        operation = Op(descriptor.op).name
        name = symbol.tensors[0].name if symbol.tensors else operation
        block = re.match(r"l(\d+)_", name)
        words = descriptor.length
        if descriptor.experts and not descriptor.routed:
            words *= descriptor.experts
        elif descriptor.routed and block:
            words *= len(np.unique(routes[f"l{block[1]}_topk"]))
        steps.append(
            {
                "number": number,
                "name": " ".join(t.name.replace("{e}", "*") for t in symbol.tensors) or operation,
                "kind": kind(name, program),
                "group": group(block[1] if block else None, name),
                "cycles": until - before,
                "bytes": words * program.hardware.port_bytes,
                "text": str(descriptor),
            }
        )
        before = until
    return steps


def group(block: str | None, name: str) -> str:
    """Row of the report's chart in which a descriptor is drawn."""
    if block is not None:
        return f"block {block}"
    return "input" if name in ("pos_embed", "image", "embed") else "output"


def kind(tensor: str, program: Program) -> str:
    """Kind of work of the descriptor that writes ``tensor`` (`KINDS`)."""
    match = re.fullmatch(r"(?:l(\d+)_)?(.+?)(?:_h\d+|_e\{e\})?", tensor)
    assert match is not None
    found = KINDS.get(match[2], "other")
    if found == "experts" and int(match[1]) not in program.model.moe_blocks:
        return "dense MLP"
    return found


def last_writes(run: SimulationResult) -> tuple[dict[int, int], int]:
    """Cycle of the last write of each descriptor for the first image, and the cycle in which that image ends."""
    assert run.records is not None
    tables = run.records.kinds().values()
    cycles = np.concatenate([t["cycle"] for t in tables])
    numbers = np.concatenate([t["number"] for t in tables])
    order = np.argsort(cycles, kind="stable")
    cycles, numbers = cycles[order], numbers[order]
    first = int(numbers.min()) if len(numbers) else 0
    begins = np.flatnonzero((numbers == first) & (np.roll(numbers, 1) != first))
    end = int(cycles[begins[1]]) if len(begins) > 1 else run.cycles
    inside = cycles < end
    return {int(n): int(cycles[inside & (numbers == n)].max()) for n in np.unique(numbers[inside])}, end
