"""The accelerator in cocotb: a random model, both tasks without a reset between, with and without stalls."""

from pathlib import Path

import cocotb
import numpy as np
from harness import note
from surroundings import Surroundings

from edgemoe.compare import compare_run
from edgemoe.compile import compile_model
from edgemoe.golden import Golden
from edgemoe.isa import Error
from edgemoe.simulation.placement import pack_images, place, unpack_store
from edgemoe.simulation.records import read
from edgemoe.simulation.runner import SimulationResult
from models import CONFIG, hardware, random_image, random_model

HARDWARE = hardware(in_lanes=8, out_lanes=4, port_bytes=8)


@cocotb.test()
@cocotb.parametrize(stalls=[0, 7])
async def equals_golden(dut, stalls):
    """Every element of every tensor, and what is stored, for one image."""
    program = compile_model(random_model(CONFIG, HARDWARE.profile), HARDWARE, pixel_bytes=1)
    image = random_image(CONFIG, 1)
    where, port = place(program.memory, HARDWARE, 1), HARDWARE.port_bytes
    contents = {where.program * port: program.memory,
                where.image * port: pack_images(np.stack([image]), where, port)}  # fmt: skip
    around, golden = Surroundings(dut, HARDWARE, contents), Golden(program)
    await around.reset()
    for task in range(len(CONFIG.tasks)):
        cycles = await around.start(
            stalls=stalls, program=where.program, image=where.image, output=where.output, images=1, task=task
        )
        around.save(Path(f"task{task}"))
        stored = bytes(around.memory[where.output * port : (where.output + where.output_words) * port])
        result = SimulationResult(
            outputs={n: unpack_store(stored, d, where, HARDWARE) for n, d in where.stores.items()},
            counters=around.counters(), error=Error(int(dut.control__error.value)), ended="done", cycles=cycles,
            seconds=0.0, placement=where, records=read(Path(f"task{task}"), HARDWARE),
        )  # fmt: skip
        assert result.error == Error.NONE
        comparison = compare_run(program, golden.execute([image], task, trace=True), result)
        assert comparison.elements > 0 and comparison.mismatches == 0, str(comparison.first)
        note(stalls=stalls, task=task, cases=comparison.elements, cycles=cycles)
