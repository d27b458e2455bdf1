"""The demo: real images through the generated Verilog for every task, each tensor compared with the golden machine."""

from __future__ import annotations

import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
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
    from edgemoe.program import Program
    from edgemoe.simulation.runner import SimulationResult

Array = NDArray[Any]

VERSION = 1
"""Of demo.json."""

HARDWARE = "nano"

KINDS = {
    "embed": "patch embedding",
    "norm": "norm", "norm1": "norm", "norm2": "norm",
    "q": "q, k, v, proj", "k": "q, k, v, proj", "v": "q, k, v, proj", "post_attn": "q, k, v, proj",
    "scores": "QK", "attention": "AV", "gate": "gates",
    "hidden": "experts",
    "pos_embed": "input", "image": "input",
    "head": "head", "logits": "head",
}  # fmt: skip
"""Kind of work (`ModelConfig.macs`, `edgemoe.report.COLOURS`) by the name of the tensor that is written."""


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
    with output.directory(path) as folder, GoldenAnswers(program, pictures) as golden:
        api.save_build(program, folder / "build", inputs=files, extra={"model_file": inputs.NANO})
        tick("float model on all test images", None)
        floats = np.stack([a.argmax(axis=1) for a in api.reference_batch(model, pictures)], axis=1)
        shown, tasks = pictures[:images], range(len(model.config.tasks))
        runs = api.simulate(
            program, shown, tasks=tasks, waves=folder / "waves.vcd" if waves else None, tick=tick
        )
        shutil.copytree(api.verilog_folder(program.hardware), folder / "verilog")
        checked = api.check(program, shown, tasks, runs, tick)
        tick("golden machine on all test images", None)
        exact = golden.answers()
        values = {
            "edgemoe": edgemoe.__version__,
            "report": "demo",
            "version": VERSION,
            "images": images,
            "tasks": len(tasks),
            "task_names": list(model.config.tasks),
            "mismatches": checked.mismatches,
            "tensors_compared": checked.tensors,
            "first_difference": checked.first,
            **performance(program, runs, images),
            "accuracy_images": len(pictures),
            "accuracy_float": accuracies(floats, labels),
            "accuracy_golden": accuracies(exact, labels),
            "calibration": f"the last {inputs.CALIBRATION} of the {len(pictures)} test images",
            "model": asdict(program.model),
            "hardware": asdict(program.hardware),
            "macs": program.model.macs(),
            "results": results(program, runs, images, truth=labels, float=floats, golden=exact),
            "experts": experts(program, checked.routes),
            "descriptors": descriptors(program, runs[0], checked.routes[0][0]),
            "seconds": round(time.monotonic() - started, 1),
        }
        output.write_json(folder / "demo.json", values)
        (folder / "report.html").write_text(report.render(values, shown))
        about = {"model": program.model, "hardware": program.hardware, "images": images}
        output.write_json(folder / output.MANIFEST, manifest("demo", about, files))
    return values


class GoldenAnswers:
    """Classes (images, tasks) by the golden machine, computed beside the simulation, which is another process."""

    def __init__(self, program: Program, images: Array) -> None:
        self.program, self.images = program, images
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> GoldenAnswers:
        self.future = self.pool.submit(self._work)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.pool.shutdown()

    def _work(self) -> Array:
        from edgemoe.golden import Golden

        machine = Golden(self.program)
        found = np.full((len(self.images), len(self.program.model.tasks)), -1)
        for task in range(found.shape[1]):
            for i, image in enumerate(self.images):
                if self.stop.is_set():
                    return found
                found[i, task] = machine.run(image, task)["logits"].argmax()
        return found

    def answers(self) -> Array:
        """Wait for the result."""
        return self.future.result()


def accuracies(answers: Array, labels: Array) -> list[float]:
    """Fraction of right answers, by task."""
    return [float(np.mean(answers[:, t] == labels[:, t])) for t in range(answers.shape[1])]


def performance(program: Program, runs: list[SimulationResult], images: int) -> dict[str, float]:
    """Means per image and task, by the accelerator's own counters."""
    starts = images * len(runs)
    cycles = sum(run.counters["cycles"] for run in runs)
    words = sum(run.external_words for run in runs)
    return {
        "cycles_per_image": cycles / starts,
        "mac_utilisation": program.useful_macs * starts / (cycles * program.hardware.macs),
        "external_bytes_per_image": words * program.hardware.port_bytes / starts,
    }


def results(
    program: Program, runs: list[SimulationResult], images: int, **sources: Array
) -> list[dict[str, Any]]:
    """The answers to every simulated image, by task and source."""
    gateware = np.stack(
        [
            [api.outputs(program, run, i, t)["logits"].argmax() for i in range(images)]
            for t, run in enumerate(runs)
        ],
        axis=1,
    )
    sources["gateware"] = gateware
    return [
        {
            "image": i,
            "answers": [{k: int(v[i, t]) for k, v in sources.items()} for t in range(len(runs))],
        }
        for i in range(images)
    ]


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
