"""M3ViT-tiny with the released weights: import, quantise, compile, and one whole image through the gateware per task.

The release has no expert matrices, so `make_experts.py` beside it completes the directory with seeded synthetic ones.
Every element of every tensor is compared with the golden machine; the golden machine is compared with float.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edgemoe import api, checkpoint, reference
from edgemoe.errors import BadInput, EdgemoeError
from edgemoe.golden import Golden
from edgemoe.output import write_json

ROOT = Path(__file__).parents[2]
PUBLISHED = {
    "cycles": "5.83 M as coded and ideal; 10.4 M as published (34.64 ms at 300 MHz)",
    "MAC utilisation": "29 %",
    "external bytes": "155 MB, 16-bit weights, 32-bit activations",
    "dB, same routes": "45",
}
"""Sarkar et al., ICCAD 2023 (arXiv 2305.18691), and what follows from its public code; 256 linear lanes."""


@dataclass
class Outcome:
    """One task's figures."""

    task: str
    mismatches: int
    tensors: int
    first: str | None
    cycles: int
    utilisation: float
    external_bytes: int
    db_forced: float
    db_free: float
    routes_equal: float
    seconds: float


def released(where: Path, build: Path) -> Path:
    """A complete directory of released weights and synthetic experts below ``build``."""
    script = where / "make_experts.py"
    if not script.is_file():
        raise BadInput(
            f"{where}: has no make_experts.py; set EDGEMOE_M3VIT to the folder of the released weights"
        )
    complete = build / "weights"
    subprocess.run([sys.executable, str(script), str(complete)], check=True)
    return complete


def forced_routes(floats: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The experts that the float model chose."""
    return {name: value for name, value in floats.items() if name.endswith("_topk")}


def run(where: Path, build: Path, hardware: str, profile: str | None, say,
        tasks: Sequence[int] | None = None) -> list[Outcome]:  # fmt: skip
    """Import, compile, simulate all tasks, or some, and compare everything."""
    say("importing the released weights")
    model = checkpoint.import_edge_moe(released(where, build))
    image = np.fromfile(where / "image.float32.bin", "<f4").reshape(3, 128, 256)
    say("calibrating and compiling")
    program = api.compile(model, hardware, calibration=image[None], profile=profile)
    tasks = range(len(model.config.tasks)) if tasks is None else tasks
    runs = api.simulate(program, [image], tasks, tick=lambda what, part: say(what), watch=say)
    machine = Golden(program)
    outcomes = []
    for task, result in zip(tasks, runs, strict=True):
        say(f"comparing task {task}")
        checked = api.check(program, [image], [task], [result])
        floats = api.reference(model, image, task, trace=True)
        routes = forced_routes(floats)
        forced, free = machine.run(image, task, routes=routes), machine.run(image, task)
        same = [np.mean((np.sort(free[n], -1) == np.sort(r, -1)).all(-1)) for n, r in routes.items()]
        cycles = result.counters["cycles"]
        outcomes.append(
            Outcome(
                task=model.config.tasks[task], mismatches=checked.mismatches, tensors=checked.tensors,
                first=checked.first, cycles=cycles,
                utilisation=program.useful_macs / (cycles * program.hardware.macs),
                external_bytes=result.external_words * program.hardware.port_bytes,
                db_forced=reference.decibel(floats["x"], forced["x"]),
                db_free=reference.decibel(floats["x"], free["x"]),
                routes_equal=float(np.mean(same)), seconds=result.seconds,
            )
        )  # fmt: skip
    return outcomes


def table(outcomes: list[Outcome]) -> Table:
    """The figures, one column per task, the published ones beside them."""
    out = Table(title="M3ViT-tiny, released weights, synthetic experts")
    for column in ("", *(o.task for o in outcomes), "published"):
        out.add_column(column)
    rows = {
        "mismatches": [f"{o.mismatches} in {o.tensors} tensors" for o in outcomes],
        "cycles": [f"{o.cycles:,}" for o in outcomes],
        "MAC utilisation": [f"{o.utilisation:.1%}" for o in outcomes],
        "external bytes": [f"{o.external_bytes / 1e6:.2f} MB" for o in outcomes],
        "dB, same routes": [f"{o.db_forced:.1f}" for o in outcomes],
        "dB, own routes": [f"{o.db_free:.1f}" for o in outcomes],
        "routes as float's": [f"{o.routes_equal:.1%}" for o in outcomes],
        "simulation": [f"{o.seconds:.0f} s" for o in outcomes],
    }
    for name, cells in rows.items():
        out.add_row(name, *cells, PUBLISHED.get(name, ""))
    return out


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every example of this folder is told: where the weights are, and where to write."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("EDGEMOE_M3VIT", ROOT.parent / "shared" / "m3vit"))
    parser.add_argument("--weights", type=Path, default=default, help="folder of the released weights")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/m3vit"), help="default %(default)s")
    return parser


def main() -> int:
    """Command line; exit codes as those of edgemoe."""
    parser = arguments(__doc__)
    parser.add_argument("--hardware", default="m3vit-256", help="name or TOML file (default %(default)s)")
    parser.add_argument("--profile", help="w8a16 or w16a16 (default: the hardware's)")
    options = parser.parse_args()
    console = Console(stderr=True)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with console.status("starting") as status:
            outcomes = run(options.weights, options.output, options.hardware, options.profile, status.update)
    except EdgemoeError as error:
        print(f"m3vit: {error}", file=sys.stderr)
        return error.exit_code
    write_json(
        options.output / "m3vit.json", {"hardware": options.hardware, "tasks": [vars(o) for o in outcomes]}
    )
    Console().print(table(outcomes))
    for outcome in outcomes:
        if outcome.first:
            print(f"m3vit: {outcome.first}", file=sys.stderr)
    return int(any(o.mismatches for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
