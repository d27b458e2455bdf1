"""The cycle model: against the simulated gateware, and against what must hold for any program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgemoe import perf
from edgemoe.compile import compile_model
from edgemoe.config import NAMED, ModelConfig, fit
from edgemoe.errors import BadInput
from edgemoe.golden import Golden
from edgemoe.isa import DESCRIPTOR_BYTES, Op, Source
from edgemoe.program import Program
from edgemoe.quantize import QuantizedModel
from edgemoe.simulation.executable import Options
from edgemoe.simulation.job import MemoryModel
from edgemoe.simulation.runner import SimulationResult
from gateware import run
from models import CONFIG, HARDWARE, hardware, random_image, random_model

TOTAL, PART, FEW = 0.01, 0.05, 50
"""How far a prediction may be off: all cycles; those of a descriptor, relative or in cycles."""


# -- against simulation ---------------------------------------------------------------------------


def compare(
    program: Program, result: SimulationResult, memory: MemoryModel = MemoryModel(), task: int = 0
) -> perf.Prediction:
    """Assert that the prediction for the routes of a simulated start, with records, is near enough."""
    images = result.placement.images
    found = perf.predict(
        program,
        routes(program, result),
        task,
        images=images,
        bandwidth=memory.bandwidth,
        latency=memory.latency,
    )
    port = program.hardware.port_bytes
    assert found.external_bytes == result.external_words * port
    assert found.mac_cycles == result.counters["mac_cycles"]
    assert found.cycles == pytest.approx(result.counters["cycles"], rel=TOTAL)
    ends = last_writes(program, result)
    expected = predicted = 0
    for cost in found.descriptors:
        end = ends.get((cost.image, cost.number))
        if end is not None:
            assert cost.finish - predicted == pytest.approx(end - expected, rel=PART, abs=FEW), (cost, end)
            expected, predicted = end, cost.finish
    return found


def routes(program: Program, result: SimulationResult) -> list[dict[str, np.ndarray]]:
    """What the routers of a simulated start chose, image by image."""
    record, model = result.records.route, program.model
    out: list[dict[str, np.ndarray]] = [{} for _ in range(result.placement.images)]
    for symbol in program.symbols:
        mine = record["number"] == symbol.number
        if mine.any():
            chosen = np.zeros((len(out), model.tokens, model.top_k), np.int64)
            image = np.arange(mine.sum()) // (model.tokens * model.top_k)
            chosen[image, record["token"][mine], record["rank"][mine]] = record["expert"][mine]
            for i, experts in enumerate(chosen):
                out[i][symbol.tensors[0].name] = experts
    return out


def last_writes(program: Program, result: SimulationResult) -> dict[tuple[int, int], int]:
    """Cycle of the last write by image and descriptor; an image begins with the LOAD, descriptor 0."""
    tables = result.records.kinds().values()
    cycle, number = (np.concatenate([table[key] for table in tables]) for key in ("cycle", "number"))
    order = np.argsort(cycle, kind="stable")
    cycle, number = cycle[order], number[order]
    image = np.cumsum((np.diff(number, prepend=0) < 0) & (number == 0))
    return {(int(i), int(n)): int(c) for i, n, c in zip(image, number, cycle, strict=True)}


def to_experts(model: QuantizedModel, experts: tuple[int, ...]) -> QuantizedModel:
    """The model with gates that send every token to the same experts."""

    def biased(gate):
        bias = np.full_like(gate.bias, -(1 << 20))
        bias[list(experts)] = (1 << 22) - (np.arange(len(experts)) << 18)
        return replace(gate, weight=np.zeros_like(gate.weight), bias=bias)

    blocks = [replace(b, gates=tuple(map(biased, b.gates))) if b.gates else b for b in model.blocks]
    return replace(model, blocks=tuple(blocks))


def less_likely(model: QuantizedModel, by_block: dict[int, np.ndarray]) -> QuantizedModel:
    """The model with lower biases of its gates."""
    blocks = list(model.blocks)
    for number, less in by_block.items():
        gates = tuple(replace(g, bias=g.bias - less) for g in blocks[number].gates)
        blocks[number] = replace(blocks[number], gates=gates)
    return replace(model, blocks=tuple(blocks))


def skewed(model: QuantizedModel) -> QuantizedModel:
    """The model with gates that prefer experts of low numbers."""
    c = model.config
    return less_likely(model, dict.fromkeys(c.moe_blocks, np.arange(c.experts) << 28))


def balanced(model: QuantizedModel, image: np.ndarray) -> QuantizedModel:
    """The model with biases, found step by step, that send about as many tokens of ``image`` to every expert."""
    step = 1 << 28
    for _ in range(16):
        counts = tokens_by_expert(model, image)
        model = less_likely(
            model, {b: np.rint((n / n.mean() - 1) * step).astype(np.int64) for b, n in counts.items()}
        )
        step = step * 7 // 8
    return model


def tokens_by_expert(model: QuantizedModel, image: np.ndarray) -> dict[int, np.ndarray]:
    """How many tokens visit each expert of every mixture block, by the golden machine."""
    c = model.config
    found = Golden(compile_model(model, NAMED["nano"], pixel_bytes=1)).run(image, trace=True)
    return {b: np.bincount(found[f"l{b}_topk"].ravel(), minlength=c.experts) for b in c.moe_blocks}


MEMORIES = {
    "fast": MemoryModel(),
    "slow": MemoryModel(bandwidth=128),
    "distant": MemoryModel(latency=200, bandwidth=600),
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", ["two sets", "staircase", "wide port", "16 bits", "many sets"])
def test_simulation_of_many_hardwares(name, memory):
    hw, memory = HARDWARE[name], MEMORIES[memory]
    program = compile_model(random_model(CONFIG, hw.profile), hw, pixel_bytes=1)
    images = [random_image(CONFIG, seed) for seed in range(2)]
    task = len(CONFIG.tasks) - 1
    (result,) = run(program, images, [task], memory=memory)
    compare(program, result, memory, task)


MIXTURES = ModelConfig(
    name="mixtures", channels=2, height=24, width=18, patch=(4, 3), dim=48, depth=3, heads=4, mlp_dim=150,
    tasks=("t",), experts=12, expert_dim=70, top_k=3, moe_blocks=(0, 2),
)  # fmt: skip
DENSE = ModelConfig(
    name="dense",
    channels=1,
    height=36,
    width=48,
    patch=(6, 6),
    dim=64,
    depth=2,
    heads=1,
    mlp_dim=256,
    tasks=("t",),
)


ROUTINGS = {
    "free": lambda: random_model(MIXTURES),
    "balanced": lambda: balanced(random_model(MIXTURES), random_image(MIXTURES)),
    "skewed": lambda: skewed(random_model(MIXTURES)),
    "one": lambda: to_experts(random_model(MIXTURES), (3, 1, 7)),
    "dense": lambda: random_model(DENSE),
}
"""What tokens do: go where random gates send them, to all experts alike, mostly to a few, all to the same three."""
SPREAD = {"balanced": (1, 1.25), "skewed": (3, 3.9), "one": (4, 4)}
"""Tokens of the most used expert: from and to, in means."""
BUILT = {
    "nano": NAMED["nano"],
    "wide": fit(hardware(MIXTURES, in_lanes=16, out_lanes=8, port_bytes=32, hidden=80, slot_sets=6), DENSE),
}
"""64 and 128 multipliers, ports of 8 and 32 bytes."""


@pytest.mark.parametrize("name", ["nano", pytest.param("wide", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ROUTINGS)
def test_simulation_of_many_models(kind, name):
    """With a fast and with a slow memory."""
    model, hw = ROUTINGS[kind](), BUILT[name]
    program = compile_model(model, hw, pixel_bytes=1)
    options = Options(optimise="2" if name == "nano" else "1")  # the command line builds nano like that too
    for memory in (MemoryModel(), MemoryModel(bandwidth=256, latency=60)):
        (result,) = run(program, [random_image(model.config)], options=options, memory=memory)
        found = compare(program, result, memory)
        assert found.cycles == pytest.approx(result.counters["cycles"], rel=1e-3)
        if kind in SPREAD:
            for chosen in routes(program, result)[0].values():
                counts = (
                    np.bincount(chosen.ravel(), minlength=MIXTURES.experts) / chosen.size * MIXTURES.experts
                )
                assert SPREAD[kind][0] <= counts.max() <= SPREAD[kind][1], counts


# -- by itself ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program():
    return compile_model(random_model(MIXTURES), NAMED["nano"], pixel_bytes=1)


def test_bytes_are_those_of_the_regions(program):
    """Every weight once per image, those of experts without tokens never."""
    port = program.hardware.port_bytes
    chosen = perf.routing("one", MIXTURES, seed=4)
    costs = perf.predict(program, chosen).descriptors
    for cost, d in zip(costs, program.descriptors(), strict=True):
        regions = 3 if d.routed else d.experts if d.op == Op.EXPERTS else 1
        stored = d.count * d.words * program.hardware.in_lanes * 2 if d.op == Op.STORE else 0
        beyond = cost.bytes - DESCRIPTOR_BYTES - d.length * port * regions - stored
        assert beyond == (3 * DESCRIPTOR_BYTES if d.op == Op.END else 0), cost
    assert sum(c.bytes for c in costs) == perf.predict(program, chosen).external_bytes


def test_parts_add_up(program):
    found = perf.predict(program, images=2)
    costs = found.descriptors
    assert len(costs) == 2 * len(program.descriptors())
    assert sum(c.cycles for c in costs) == costs[-1].finish == found.cycles
    for c in costs:
        assert c.cycles == pytest.approx(c.busy + c.padding + c.weights + c.activations + c.drain)
        assert min(c.cycles, c.busy, c.padding, c.weights, c.activations) >= 0
    busy = sum(c.busy for c in costs)
    assert busy * program.hardware.macs == pytest.approx(2 * program.useful_macs)
    assert found.mac_utilisation == pytest.approx(busy / found.cycles)


def test_useful_macs_of_every_kind_of_program():
    for config in (CONFIG, MIXTURES, DENSE):
        program = compile_model(random_model(config), hardware(config), pixel_bytes=1)
        assert sum(perf.useful_macs(program)) == program.useful_macs


def test_a_slower_memory_and_more_experts_take_longer(program):
    balanced = perf.routing("balanced", MIXTURES)
    by_bandwidth = [perf.predict(program, balanced, bandwidth=b).cycles for b in (1024, 512, 128, 32)]
    assert by_bandwidth == sorted(by_bandwidth)
    port = program.hardware.port_bytes
    words = perf.predict(program, balanced).external_bytes / port
    assert words * 32 <= by_bandwidth[-1] <= 1.05 * words * 32 + by_bandwidth[0]
    kinds = {
        kind: perf.predict(program, perf.routing(kind, MIXTURES)) for kind in ("balanced", "skewed", "one")
    }
    assert kinds["one"].external_bytes < kinds["balanced"].external_bytes
    assert kinds["one"].cycles < kinds["balanced"].cycles <= kinds["skewed"].cycles


@pytest.mark.parametrize("lanes,slots,port", [(8, 2, 64), (16, 16, 128), (32, 4, 2)])
def test_ports_wider_and_narrower_than_a_fill_word(lanes, slots, port):
    """Models of hardware that the tests do not build: they end, and their sums hold."""
    for sets in (1, 2):
        hw = hardware(in_lanes=lanes, out_lanes=slots, port_bytes=port, slot_sets=sets)
        found = perf.predict(compile_model(random_model(), hw, pixel_bytes=1))
        assert found.mac_cycles < found.cycles < 3e5


# -- routings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["balanced", "skewed", "one"])
def test_routing_names_different_experts(kind):
    chosen = perf.routing(kind, MIXTURES, seed=1)
    assert list(chosen) == ["l0_topk", "l2_topk"]
    for experts in chosen.values():
        assert experts.shape == (MIXTURES.tokens, MIXTURES.top_k)
        assert (np.diff(np.sort(experts, axis=1), axis=1) > 0).all()
        counts = np.bincount(experts.ravel(), minlength=MIXTURES.experts)
        if kind == "balanced":
            assert np.ptp(counts) <= 1
        if kind == "one":
            assert np.count_nonzero(counts) == MIXTURES.top_k
        if kind == "skewed":
            assert counts.max() > 3 * counts.min()
    again = perf.routing(kind, MIXTURES, seed=1)
    assert all(np.array_equal(again[name], chosen[name]) for name in chosen)
    assert not np.array_equal(perf.routing(kind, MIXTURES, seed=2)["l0_topk"], chosen["l0_topk"])


def test_bad_arguments(program):
    good = perf.routing("balanced", MIXTURES)
    for routes, message in (
        ({}, "routes: l0_topk is missing"),
        (
            good | {"l2_topk": good["l2_topk"][1:]},
            r"l2_topk must be integers of shape \[37, 3\], found int64 \[36, 3\]",
        ),
        (good | {"l2_topk": good["l2_topk"] + 1}, r"l2_topk must name experts 0..11, found 1..12"),
        ([good, good], "routes are for 2 images, 1 are predicted"),
    ):
        with pytest.raises(BadInput, match=message):
            perf.predict(program, routes)
    for arguments, message in (
        ({"task": 1}, "task must be 0..0, found 1"),
        ({"bandwidth": 0}, "bandwidth must be 1..1024 port words per 1024 cycles, found 0"),
        ({"latency": 0}, "latency must be at least 1 cycle, found 0"),
    ):
        with pytest.raises(BadInput, match=message):
            perf.predict(program, **arguments)
    with pytest.raises(BadInput, match="routing must be balanced, skewed or one, found 'even'"):
        perf.routing("even", MIXTURES)


def test_a_program_that_waits_for_ever(program):
    """A product whose rows of B nobody fills."""
    descriptors = program.descriptors()
    number = next(n for n, d in enumerate(descriptors) if d.op == Op.PRODUCT)
    raw = replace(descriptors[number], source=Source.NONE).pack()
    memory = program.memory[: number * 64] + raw + program.memory[(number + 1) * 64 :]
    with pytest.raises(
        BadInput, match=r"the program never ends: descriptor \d+ of image 0 waits for what does not"
    ):
        perf.predict(replace(program, memory=memory))
