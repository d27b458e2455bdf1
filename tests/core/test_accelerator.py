"""The whole accelerator, in Verilator: every element of every tensor equals the golden machine's."""

import re
from dataclasses import replace

import numpy as np
import pytest
from amaranth.back import rtlil

from edgemoe import api
from edgemoe.compile import compile_model
from edgemoe.config import NAMED, ModelConfig
from edgemoe.golden import Golden
from edgemoe.isa import DESCRIPTOR_BYTES, Descriptor, Error, Op
from edgemoe.program import Program
from edgemoe.quantize import QuantizedModel
from edgemoe.simulation.executable import Options
from edgemoe.simulation.job import MemoryModel
from edgemoe.units.matmul import DotArray, MatmulSpec
from gateware import check, run, stalled
from models import CONFIG, HARDWARE, random_image, random_model


def compiled(
    config: ModelConfig = CONFIG, hw=HARDWARE["two sets"], seed: int = 0, change=lambda q: q
) -> Program:
    """A random model on ``hw``; ``change`` edits it first."""
    return compile_model(change(random_model(config, hw.profile, seed)), hw, pixel_bytes=1)


@pytest.mark.long
@pytest.mark.parametrize("name", HARDWARE)
def test_every_tensor_on_every_hardware(name):
    """Two images, both tasks with no reset between, then again with random stalls of the memory."""
    program = compiled(hw=HARDWARE[name])
    images = [random_image(CONFIG, s) for s in (1, 2)]
    free = check(program, images, (0, 1))
    slow = check(program, images, (1, 0), memory=stalled(7))
    for quick, other in zip(free, reversed(slow), strict=True):
        assert other.counters["cycles"] > quick.counters["cycles"]
        assert other.counters["read_words"] == quick.counters["read_words"]


def test_a_slow_and_distant_memory():
    check(compiled(), [random_image(CONFIG)], memory=MemoryModel(latency=300, bandwidth=150))


# -- many models, one bitstream ------------------------------------------------------------------

SHAPES = {
    "dense": replace(CONFIG, name="dense", moe_blocks=(), experts=0, expert_dim=0, top_k=0),
    "deeper": replace(CONFIG, name="deeper", depth=5, moe_blocks=(0, 2, 3), tasks=("a", "b", "c"), classes=(2, 9, 4)),
    "shallower": replace(CONFIG, name="shallower", depth=1, moe_blocks=(0,)),
    "fewer tokens": replace(CONFIG, name="few", height=4, width=6, classes=(), final_norm=False),
    "more tokens": replace(CONFIG, name="more", height=28, width=21, channels=1, patch=(4, 3)),
    "odd": replace(
        CONFIG, name="odd", height=10, width=21, patch=(5, 7), channels=3, dim=42, heads=3, mlp_dim=51,
        experts=7, expert_dim=29, top_k=3, classes=(11, 1),
    ),
    "one of each": replace(
        CONFIG, name="one", channels=1, height=1, width=1, patch=(1, 1), dim=1, heads=1, mlp_dim=1,
        experts=1, expert_dim=1, top_k=1, classes=(1, 1),
    ),
    "nine experts": replace(CONFIG, name="nine", experts=9, expert_dim=33, top_k=4, moe_blocks=(0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_one_bitstream_runs_many_models(name):
    """All of these run on the Verilog of the named hardware ``nano``."""
    config = SHAPES[name]
    program = compiled(config, NAMED["nano"], seed=len(name))
    check(program, [random_image(config, s) for s in (3, 4)], range(len(config.tasks)), options=Options())


# -- routing -------------------------------------------------------------------------------------


def gate_bias(bias):
    """Replace all gates by a constant one: the scores of the experts are ``bias`` (in units of 2**-13)."""

    def change(model: QuantizedModel) -> QuantizedModel:
        def constant(gate):
            ones = np.ones(len(gate.bias), np.int64)
            return replace(
                gate, weight=np.zeros_like(gate.weight), bias=np.asarray(bias, np.int64) << 4,
                multiplier=ones << 15, shift=ones * 19,
            )  # fmt: skip

        blocks = tuple(
            replace(b, gates=tuple(constant(g) for g in b.gates)) if b.gates else b for b in model.blocks
        )
        return replace(model, blocks=blocks)

    return change


@pytest.mark.parametrize(
    ("top_k", "bias", "used"),
    [
        (1, [0, 0, 9000, 0, 0], {2}),  # all tokens to one expert
        (1, [0, 0, 0, 0, 0], {0}),  # ties go to the lower index
        (2, [-9000, 5000, -9000, -9000, 70000], {1, 4}),  # experts that nobody uses
        (5, [1, 2, 3, 4, 5], {0, 1, 2, 3, 4}),  # all tokens to all experts
        (2, [-1 << 19, 1 << 19, -1 << 19, -1 << 19, -1 << 19], {0, 1}),  # scores at their limits
    ],
)
def test_extreme_routing(top_k, bias, used):
    config = replace(CONFIG, top_k=top_k)
    program = compiled(config, change=gate_bias(bias))
    image = random_image(config)
    routes = Golden(program).execute([image]).routes[0]
    assert {int(e) for r in routes.values() for e in r.experts.ravel()} == used
    check(program, [image])


def test_one_token_for_each_expert():
    """As many tokens as experts, and a gate that sends every token to another one."""
    config = replace(CONFIG, height=4, width=12, top_k=1, experts=5)
    image = random_image(config)
    for seed in range(400):
        program = compiled(config, hw=HARDWARE["two sets"], seed=seed)
        (routes,) = Golden(program).execute([image]).routes[0].values()
        if len(set(routes.experts.ravel().tolist())) == 5:
            break
    else:
        raise AssertionError("no seed gives a permutation")
    check(program, [image])


def test_an_empty_expert_costs_nothing():
    """Fewer experts with tokens: less traffic, by exactly the weights that are not loaded."""
    config = replace(CONFIG, top_k=1)
    image = random_image(config)
    program = compiled(config, change=gate_bias([0, 0, 9000, 0, 0]))
    (alone,) = check(program, [image])
    experts = next(d for d in program.descriptors() if d.op == Op.EXPERTS and d.routed)
    everyone = compiled(replace(config, top_k=5), change=gate_bias([0, 0, 9000, 0, 0]))
    (all_five,) = check(everyone, [image])
    assert all_five.counters["read_words"] - alone.counters["read_words"] == 4 * experts.length


# -- errors --------------------------------------------------------------------------------------


def patched(program: Program, number: int, **fields) -> Program:
    """The program with fields of one descriptor overwritten."""
    at = number * DESCRIPTOR_BYTES
    descriptor = replace(Descriptor.unpack(program.memory[at : at + DESCRIPTOR_BYTES]), **fields)
    memory = program.memory[:at] + descriptor.pack() + program.memory[at + DESCRIPTOR_BYTES :]
    return replace(program, memory=memory)


def first(program: Program, op: Op) -> int:
    """Number of the first descriptor with this operation."""
    return next(n for n, d in enumerate(program.descriptors()) if d.op == op)


@pytest.mark.parametrize(
    ("op", "fields", "error"),
    [
        (Op.NORM, {"check": 0x12}, Error.OPCODE),
        (Op.PRODUCT, {"op": 13}, Error.OPCODE),
        (Op.PRODUCT, {"address": (1 << 28) - 1}, Error.ADDRESS),
        (Op.LOAD, {"address": (1 << 20) // 8 - 3}, Error.ADDRESS),
        (Op.PRODUCT, {"words": 200}, Error.CAPACITY),
        (Op.PRODUCT, {"count": 0}, Error.CAPACITY),
        (Op.ROUTE, {"top_k": 9}, Error.CAPACITY),
        (Op.PRODUCT, {"length": 1}, Error.TIMEOUT),
    ],
)
def test_a_bad_program_ends_with_its_error(op, fields, error):
    """Never a hang; and the next start, of the same accelerator, is good."""
    program = compiled()
    bad = patched(program, first(program, op), **fields)
    (result,) = run(bad, [random_image(CONFIG)], check=False, idle_cycles=1 << 19)
    assert Error(result.error) == error


def test_after_an_error_the_next_run_is_good():
    """Task 1 reads its gate beyond the memory, task 0 does not."""
    program = compiled()
    gate = next(n for n, d in enumerate(program.descriptors()) if d.op == Op.PRODUCT and d.double)
    bad = patched(program, gate, stride=(1 << 17) - 1)
    image = random_image(CONFIG)
    broken, good = run(bad, [image], (1, 0), check=False)
    assert Error(broken.error) == Error.ADDRESS
    expected = Golden(program).execute([image], 0)
    stored = b"".join(v.tobytes() for v in good.outputs.values())
    assert good.error == Error.NONE and stored[: len(expected.output)] == expected.output[: len(stored)]


# -- the shared array ----------------------------------------------------------------------------


def test_one_array_of_multipliers():
    """The netlist of the array has in_lanes * out_lanes multipliers, and the accelerator has one array."""
    text = rtlil.convert(DotArray(MatmulSpec(8, 4, 8, 40)))
    assert text.count("cell $mul ") == 32
    hw = HARDWARE["two sets"]
    verilog = (api.verilog_folder(hw) / "accelerator.v").read_text()
    arrays = re.findall(r"^module \S+\.array ", verilog, re.MULTILINE)
    slots = re.findall(r"^module \S+\.array\.slot\d+.*?^endmodule", verilog, re.MULTILINE | re.DOTALL)
    assert len(arrays) == 1
    assert sum(len(re.findall(r"\) \* \$signed\(", slot)) for slot in slots) == hw.macs
