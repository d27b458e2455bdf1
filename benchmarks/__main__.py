"""`make bench`: measure everything and write results.md and results.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import edgemoe
from benchmarks import ablation, board, breakdown, lanes, published, simulated, slow_memory, speed, workload
from edgemoe.errors import EdgemoeError
from edgemoe.output import file, write_json

REPORT = 1
"""Version of results.json."""
INTRODUCTION = """# Results

Written by `make bench`; results.json beside this file has the same figures unrounded. Every figure says how it was measured.
Published figures: {source}

Measured on {machine}. Seconds depend on it and on what else ran; cycles, bytes and utilisation do not.
"""
ABSENT = (
    "**The released weights of M3ViT-tiny were not there** (folder {weights}, variable EDGEMOE_M3VIT): nothing was simulated at full "
    "size, and the routes of the released image are missing; a model of zeros of the same shape stands in for the cycle model."
)


def machine() -> str:
    """What the figures in seconds were measured on."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, edgemoe {edgemoe.__version__}"


def measure(
    weights: Path, simulate: bool, build: bool, before: dict[str, Any], tick: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """All figures, and the sections of the document; ``before`` are the last figures, for what is not done again."""
    tick("the model")
    work = workload.load(weights)
    values: dict[str, Any] = {
        "report": "bench", "version": REPORT, "edgemoe": edgemoe.__version__, "machine": machine(), "released": work.released
    }  # fmt: skip
    parts = [INTRODUCTION.format(source=published.SOURCE, machine=machine())]
    if not work.released:
        parts.append(ABSENT.format(weights=weights.name))
    if work.released and simulate:
        tick("a whole image per task through the gateware")
        values["m3vit"] = simulated.measure(weights, work)
    elif work.released and "m3vit" in before:
        values["m3vit"] = {**before["m3vit"], **simulated.predicted(work)}
    if "m3vit" in values:
        parts.append(simulated.section_text(values["m3vit"]))
    for name, module in (
        ("lanes", lanes), ("slow_memory", slow_memory), ("breakdown", breakdown), ("ablation", ablation),
        ("speed", speed),
    ):  # fmt: skip
        tick(name.replace("_", " "))
        values[name] = module.measure(work)
        parts.append(module.section_text(values[name]))
    if build:
        tick(f"the board, {board.SEEDS} seeds of place and route")
        values["board"] = board.measure()
    elif "board" in before:
        values["board"] = before["board"]
    if "board" in values:
        parts.append(board.section_text(values["board"]))
    return values, parts


def main() -> int:
    """Command line; exit codes as those of edgemoe."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--weights", type=Path, default=workload.WEIGHTS, help="folder of the released weights"
    )
    parser.add_argument(
        "--no-simulation",
        action="store_true",
        help="keep the last figures of the whole image through the gateware",
    )
    parser.add_argument(
        "--no-board",
        action="store_true",
        help="keep the last figures of the routed board, which takes longest",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=workload.ROOT / "docs", help="folder to write to"
    )
    options = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    try:
        last = options.output / "results.json"
        before = json.loads(last.read_text()) if last.is_file() else {}
        values, parts = measure(
            options.weights, not options.no_simulation, not options.no_board, before,
            lambda what: console.print(f"{what} ..."),
        )  # fmt: skip
        write_json(options.output / "results.json", values)
        with file(options.output / "results.md") as temporary:
            temporary.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n")
    except EdgemoeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    console.print(f"{options.output / 'results.md'} and results.json are written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
