"""M3ViT-tiny on the simulated ULX3S-85F: the board's design from the pins of its serial line to those of its memory chip.

The model and the image lie in the memory at first, since 18 MB over the line would take longer than everything else. A task is started
over the line; its answer, every value of x, has the checksum of the golden machine's. The cycles are those with the real
controller and the chip's refreshes, from START to the last word, and give the images per second at the board's clocks.
"""

from __future__ import annotations

import binascii
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from run import arguments, released

from edgemoe import api, bitstream, checkpoint, rate
from edgemoe.config import load_hardware
from edgemoe.errors import EdgemoeError
from edgemoe.golden import Golden
from edgemoe.host.client import Client
from edgemoe.output import write_json
from edgemoe.simulation import board as simulated
from edgemoe.simulation.placement import pack_images, place

BOARD = "ulx3s-85f"
BAUD = 20_000_000
"""Of the simulated line: nobody waits for it."""
PATIENCE = 3600.0


def run(where: Path, build: Path, task: int, say) -> dict:
    """Everything; the report."""
    board = bitstream.board(BOARD)
    hardware = load_hardware(board.hardware)
    spec = board.specification(hardware, board.core_mhz)
    say("importing the released weights")
    model = checkpoint.import_edge_moe(released(where, build))
    image = np.fromfile(where / "image.float32.bin", "<f4").reshape(3, 128, 256)
    say("calibrating and compiling")
    program = api.compile(model, hardware, calibration=image[None])
    placement = place(program.memory, hardware, 1)
    content = bytearray(program.memory).ljust(placement.image * hardware.port_bytes, b"\0")
    content += pack_images(api.pixels(program, [image]), placement, hardware.port_bytes)
    (build / "memory.hex").write_text("\n".join(f"{value:04x}" for value in np.frombuffer(content, "<u2")))
    say("the golden machine")
    expected = Golden(program).execute([image], task).output
    words = len(expected) // hardware.port_bytes
    say("building the simulation")
    executable = simulated.build(replace(spec.board, baud=BAUD), api.cache())
    started = time.monotonic()
    with simulated.SimulatedLine(executable, BAUD, f"+sdram_load={build / 'memory.hex'}") as line:
        client = Client(line, patience=PATIENCE)
        client.open()
        client.start(placement.program, placement.image, placement.output, 1, task)
        state = client.wait(lambda state: say(f"cycle {line.state().cycles:,}"))
        equal = not state.error and client.checksum(placement.output, words) == binascii.crc32(
            expected[: words * hardware.port_bytes]
        )
        seen = line.state()
    cycles = state.counters["cycles"]
    predicted = rate.rate(model, hardware, spec, board.core_mhz, spec.memory_hz / 1e6)
    return {
        "board": BOARD, "task": model.config.tasks[task], "equal": bool(equal), "violations": seen.violations,
        "counters": state.counters, "core_mhz": board.core_mhz, "memory_mhz": round(spec.memory_hz / 1e6, 2),
        "images_per_second": board.core_mhz * 1e6 / cycles, "predicted_cycles": predicted.cycles,
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def main() -> int:
    """Command line; exit codes as those of edgemoe."""
    parser = arguments(__doc__)
    parser.add_argument("--task", type=int, default=0, help="number of the task (default %(default)s)")
    options = parser.parse_args()
    console = Console(stderr=True)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with console.status("starting") as status:
            found = run(options.weights, options.output.resolve(), options.task, status.update)
    except EdgemoeError as error:
        print(f"m3vit on the board: {error}", file=sys.stderr)
        return error.exit_code
    write_json(options.output / "board.json", found)
    print(json.dumps(found, indent=1))
    print(
        f"{found['core_mhz']:g} MHz / {found['counters']['cycles']:,} cycles = {found['images_per_second']:.2f} images per second; "
        f"x is {'equal to' if found['equal'] else 'NOT'} the golden machine's, {found['violations']} rules of the memory broken"
    )
    return int(not found["equal"] or found["violations"] > 0)


if __name__ == "__main__":
    sys.exit(main())
