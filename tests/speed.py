"""Speed and size, as `make bench` prints them; the limits are those that the project promises."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgemoe import api, inputs, verilog
from edgemoe.cli import show
from edgemoe.golden import Golden
from edgemoe.output import write_json

OUT = Path(__file__).parents[1] / "build" / "bench.json"


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def help_seconds():
    argv = [sys.executable, "-m", "edgemoe", "--help"]
    return min(seconds(lambda: subprocess.run(argv, capture_output=True, check=True)) for _ in range(5))


def measure():
    """``name -> (value, limit, whether more is better, unit)``."""
    model = api.load_model("nano")
    images, _ = inputs.test_images()
    start = time.perf_counter()
    program = api.compile(model, "nano")
    compiled = time.perf_counter() - start
    machine = Golden(program)
    machine.run(images[0])
    golden = 20 / seconds(lambda: [machine.run(image) for image in images[:20]])
    with tempfile.TemporaryDirectory() as folder:
        generated = seconds(verilog.generate, program.hardware, Path(folder) / "verilog")
    api.simulate(program, images[:1])  # builds, unless it was built before
    (run,) = api.simulate(program, images[:20])
    return {
        "edgemoe --help": (help_seconds(), 0.3, False, "s"),
        "compile nano": (compiled, 5.0, False, "s"),
        "Verilog of nano": (generated, 10.0, False, "s"),
        "golden machine": (golden, 20.0, True, "images/s"),
        "simulation of nano": (run.cycles / run.seconds, 50_000, True, "cycles/s"),
    }


def main():
    found = measure()
    table = show.table("", ">measured", ">promised", "", "")
    for name, (value, limit, more, unit) in found.items():
        met = value >= limit if more else value <= limit
        sign = ">=" if more else "<="
        table.add_row(
            name, f"{value:,.2f}", f"{sign} {limit:,g}", unit, "[green]met[/]" if met else "[red]missed[/]"
        )
    show.console().print(table)
    write_json(
        OUT, {name: {"value": v, "limit": limit, "unit": unit} for name, (v, limit, _, unit) in found.items()}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
