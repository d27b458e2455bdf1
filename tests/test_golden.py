"""The golden machine: against a plain computation, on many hardwares, on damaged programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgemoe.compile import compile_model
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput
from edgemoe.golden import Golden, Machine
from edgemoe.isa import Error, Op
from edgemoe.numeric import rounding_shift, saturate
from edgemoe.program import MachineError
from models import CONFIG, hardware, random_image, random_model

SHAPES = [
    {},
    {"in_lanes": 8, "out_lanes": 4, "port_bytes": 32},
    {"in_lanes": 16, "out_lanes": 8, "port_bytes": 32, "slot_sets": 1},
    {"in_lanes": 16, "out_lanes": 16, "port_bytes": 64},
    {"in_lanes": 32, "out_lanes": 2, "port_bytes": 2},
]


@pytest.fixture(scope="module")
def golden():
    return Golden(compile_model(random_model(), hardware()))


@pytest.mark.parametrize("profile", ["w8a16", "w16a16"])
@pytest.mark.parametrize("task", [0, 1])
def test_results_do_not_depend_on_the_hardware(profile, task):
    model, image = random_model(profile=profile), random_image(CONFIG)
    runs = [
        Golden(compile_model(model, hardware(profile=profile, **shape), pixel_bytes=1 + i % 2)).run(
            image, task, trace=True
        )
        for i, shape in enumerate(SHAPES)
    ]
    assert runs[0]["logits"].any() and len(np.unique(runs[0]["x"])) > 100
    for run in runs[1:]:
        assert list(run) == list(runs[0])
        for name, values in run.items():
            assert np.array_equal(values, runs[0][name]), name


def plain(linear, a):
    """A linear layer with Python integers: no memory image, no units."""
    acc = a @ linear.weight.reshape(len(linear.weight), -1).astype(object).T + linear.bias.astype(object)
    half = [1 << (int(s) - 1) for s in linear.shift]
    return (acc * linear.multiplier.astype(object) + half) // [1 << int(s) for s in linear.shift]


def test_products_against_plain_integers(golden):
    """Embedding, q, v and the hidden values of both kinds of MLP, recomputed from the traced inputs."""
    model, image = random_model(), random_image(CONFIG)
    trace = golden.run(image, trace=True)
    codes = lambda name, frac: np.rint(trace[name] * 2.0**frac).astype(np.int64).astype(object)  # noqa: E731
    cut = image.astype(np.int64).reshape(2, 3, 4, 4, 3).transpose(1, 3, 0, 2, 4).reshape(12, -1) << 7
    embed = saturate(
        (model.pos_embed[1:] + saturate(plain(model.embed, cut.astype(object)).astype(np.int64), 16)), 16
    )
    assert np.array_equal(codes("embed", 12)[1:], embed)
    assert np.array_equal(codes("embed", 12)[0], model.pos_embed[0])
    for block in (0, 1):
        for kind in "qkv":
            got = np.rint(trace[f"l{block}_{kind}"] * model.factors[f"l{block}_{kind}"] * 2.0**11).astype(
                np.int64
            )
            expected = plain(getattr(model.blocks[block], kind), codes(f"l{block}_norm1", 11))
            assert np.array_equal(got, saturate(expected.astype(np.int64), 16)), (block, kind)


def test_attention_against_floats():
    """Scores from q and k, attention from scores and v, within the error of 8-bit mantissas."""
    for profile, limit in (("w8a16", 2e-2), ("w16a16", 1e-3)):
        model = random_model(profile=profile)
        trace = Golden(compile_model(model, hardware(profile=profile))).run(random_image(CONFIG), trace=True)
        block = model.blocks[1]
        heads, size = CONFIG.heads, CONFIG.head_dim
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            q, k, v = (trace[f"l1_{n}"][:, part] * model.factors[f"l1_{n}"][part] * 2048 for n in "qkv")
            multiplier, shift = block.score[h]
            y = q @ k.T * multiplier / 2.0**shift / 2.0**13
            y = np.clip(y, -128, 128 - 2**-13)
            got = trace["l1_scores"][h] * np.log2(np.e)
            assert np.abs(got - y).max() < limit * np.abs(y).max()
            weights = np.exp2(got - got.max(axis=1, keepdims=True))
            scale = (
                block.attention_multiplier[part]
                * 2.0 ** -block.attention_shift[part]
                * 2.0 ** (21 - model.b_bits)
            )
            out = np.clip(weights @ v / weights.sum(axis=1, keepdims=True) * scale, -32768, 32767)
            codes = trace["l1_attention"][:, part] * model.factors["l1_attention"][part] * 2048
            assert np.abs(codes - out).max() < limit * np.abs(out).max()


def test_post_mlp_is_the_sum_of_its_contributions(golden):
    trace = golden.run(random_image(CONFIG), trace=True)
    x = np.rint(trace["l1_post_attn"] * 2048).astype(np.int64)
    parts = np.rint(trace["l1_expert"] * 2048).astype(np.int64)
    for token, experts in enumerate(trace["l1_topk"]):
        for rank in np.argsort(experts):
            x[token] = saturate(x[token] + saturate(parts[token, rank], 16), 16)
    assert np.array_equal(np.rint(trace["l1_post_mlp"] * 2048), x)
    realigned = rounding_shift(np.rint(trace["l0_post_mlp"] * 2048).astype(np.int64), 1)
    proj = np.rint(trace["l1_proj"] * 2048).astype(np.int64)
    assert np.array_equal(np.rint(trace["l1_post_attn"] * 2048), saturate(realigned + saturate(proj, 16), 16))


def test_tasks_differ_only_by_gate_and_head(golden):
    runs = [golden.run(random_image(CONFIG), task, trace=True) for task in (0, 1)]
    assert [len(r["logits"]) for r in runs] == [3, 6]
    assert np.array_equal(runs[0]["l1_post_attn"], runs[1]["l1_post_attn"])
    assert not np.array_equal(runs[0]["l1_gate"], runs[1]["l1_gate"])


def test_forced_routes(golden):
    image = random_image(CONFIG)
    free = golden.run(image, trace=True)
    again = golden.run(image, trace=True, routes={"l1_topk": free["l1_topk"], "other": np.zeros(3)})
    assert all(np.array_equal(again[n], free[n]) for n in free)
    other = (free["l1_topk"] + 1) % CONFIG.experts
    other[:, 1] = (other[:, 0] + 2) % CONFIG.experts
    forced = golden.run(image, trace=True, routes={"l1_topk": other})
    assert np.array_equal(forced["l1_topk"], other)
    probabilities = np.exp(free["l1_gate"])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert np.abs(forced["l1_score"] - np.take_along_axis(probabilities, other, 1)).max() < 1e-3
    with pytest.raises(BadInput, match="l1_topk must name experts 0..4, found 0..5"):
        golden.run(image, routes={"l1_topk": other * 0 + [0, 5]})


def test_all_tokens_to_one_pair_of_experts(golden):
    routes = np.tile([4, 0], (CONFIG.tokens, 1))
    trace = golden.run(random_image(CONFIG), trace=True, routes={"l1_topk": routes})
    assert np.array_equal(trace["l1_topk"], routes) and np.isfinite(trace["x"]).all()


def test_images_in_a_row_are_independent(golden):
    images = [random_image(CONFIG, seed) for seed in range(3)]
    size = golden.program.output_words * golden.program.hardware.port_bytes
    together = golden.execute(images, 1).output
    assert len(together) == 3 * size
    for i, image in enumerate(images):
        assert together[i * size : (i + 1) * size] == golden.execute([image], 1).output


def test_a_batch_is_its_images_one_by_one(golden):
    """Several batches, the last one smaller; the experts of every image are its own."""
    images = [random_image(CONFIG, seed) for seed in range(2 * golden.machine.batch + 1)]
    together = golden.run_batch(images, 1)
    assert list(together) == ["logits", "x", "l1_topk"] and golden.machine.batch > 1
    for i in (0, 1, len(images) - 1):
        for name, values in golden.run(images[i], 1).items():
            assert np.array_equal(together[name][i], values), name
    assert golden.execute(images[:3], 1, trace=True).output == golden.execute(images[:3], 1).output
    topk = golden.run_batch(images[:3], 1, {"l1_topk": together["l1_topk"][2::-1]})["l1_topk"]
    assert np.array_equal(topk, together["l1_topk"][2::-1])


def test_a_run_does_not_change_the_next(golden):
    first = golden.run(random_image(CONFIG), 0)
    golden.run(random_image(CONFIG, 1), 1)
    assert np.array_equal(golden.run(random_image(CONFIG), 0)["x"], first["x"])


def test_head_of_another_task_only():
    config = replace(CONFIG, classes=(0, 4))
    machine = Golden(compile_model(random_model(config), hardware(config)))
    assert "logits" not in machine.run(random_image(config), 0)
    assert machine.run(random_image(config), 1)["logits"].shape == (4,)


def test_plain_vision_transformer():
    config = ModelConfig(
        name="vit",
        channels=1,
        height=8,
        width=8,
        patch=(4, 4),
        dim=16,
        depth=1,
        heads=1,
        mlp_dim=32,
        tasks=("t",),
    )
    out = Golden(compile_model(random_model(config), hardware(config))).run(random_image(config))
    assert list(out) == ["x"] and out["x"].shape == (5, 16)


def test_bad_task(golden):
    with pytest.raises(BadInput, match=r"task must be one of 0 \(a\), 1 \(b\) of model tiny, found 2"):
        golden.run(random_image(CONFIG), 2)


# -- memory -------------------------------------------------------------------------------------


def altered(golden, offset: int, flip: int = 1) -> Golden:
    memory = bytearray(golden.program.memory)
    memory[offset] ^= flip
    return Golden(replace(golden.program, memory=bytes(memory)))


def test_every_region_is_read_from_the_memory_image(golden):
    """Flipping a high bit of the first used byte of a region changes the output of a task."""
    image = random_image(CONFIG)
    before = [golden.execute([image], task).output for task in (0, 1)]
    for region in golden.program.regions[1:]:
        # Of a parameter: the top byte of the bias. Attention outputs have none: the multiplier's.
        offset = region.offset + (7 if "attention" not in region.name else 1)
        machine = altered(golden, offset, 0x20)
        assert [machine.execute([image], task).output for task in (0, 1)] != before, region.name


def test_wrong_check_byte_is_error_1(golden):
    descriptors = golden.program.descriptors()
    with pytest.raises(
        MachineError, match=r"error 1 \(OPCODE\): descriptor 5 .* check must be 0xe5"
    ) as caught:
        altered(golden, 5 * 64, 0x10).execute([random_image(CONFIG)])
    assert caught.value.code == Error.OPCODE and caught.value.exit_code == 5 and len(descriptors) > 5


def test_unknown_operation_is_error_1(golden):
    with pytest.raises(MachineError, match="op 12"):
        altered(golden, 5 * 64, 8).execute([random_image(CONFIG)])


@pytest.mark.parametrize(
    "op,field,value,code",
    [
        (Op.PRODUCT, "a_base", 65535, Error.ADDRESS),
        (Op.PRODUCT, "address", 1 << 27, Error.ADDRESS),
        (Op.PRODUCT, "source", 0, Error.OPCODE),
        (Op.PRODUCT, "count", 4000, Error.CAPACITY),
        (Op.PRODUCT, "words", 0, Error.CAPACITY),
        (Op.PRODUCT, "words", 4000, Error.CAPACITY),
        (Op.PRODUCT, "head", 60, Error.CAPACITY),
        (Op.PRODUCT, "mode", 3, Error.CAPACITY),
        (Op.NORM, "dim", 4000, Error.CAPACITY),
        (Op.ROUTE, "top_k", 0, Error.CAPACITY),
        (Op.ROUTE, "experts", 100, Error.CAPACITY),
        (Op.EXPERTS, "words2", 4000, Error.CAPACITY),
        (Op.EXPERTS, "frac", 3, Error.CAPACITY),
    ],
)
def test_fields_out_of_range(golden, op, field, value, code):
    program = golden.program.descriptors()
    number = next(n for n, d in enumerate(program) if d.op == op)
    raw = replace(program[number], **{field: value}).pack()
    memory = golden.program.memory[: number * 64] + raw + golden.program.memory[number * 64 + 64 :]
    with pytest.raises(MachineError, match=f"descriptor {number}") as caught:
        Golden(replace(golden.program, memory=memory)).execute([random_image(CONFIG)])
    assert caught.value.code == code


def test_the_first_bad_descriptor_counts(golden):
    memory = bytearray(golden.program.memory)
    program = golden.program.descriptors()
    memory[6 * 64 : 7 * 64] = replace(program[6], count=4000).pack()
    memory[9 * 64] ^= 8
    with pytest.raises(MachineError, match="descriptor 6") as caught:
        Golden(replace(golden.program, memory=bytes(memory))).execute([random_image(CONFIG)])
    assert caught.value.code == Error.CAPACITY


def test_program_without_end():
    with pytest.raises(MachineError) as caught:
        Machine(hardware(), b"").run(b"")
    assert caught.value.code == Error.OPCODE


def test_missing_image(golden):
    with pytest.raises(MachineError, match="image 0 has 10 bytes"):
        golden.machine.run(bytes(10))


# -- trace --------------------------------------------------------------------------------------


def test_trace_replays_the_activation_memory(golden):
    """Writing every traced value at its address and lane, in order, rebuilds the memory."""
    result = golden.execute([random_image(CONFIG)], 1, trace=True)
    memory = np.zeros_like(golden.machine.activations[0])
    for write in result.trace[0]:
        keep = slice(None) if write.mask is None else write.mask
        memory[write.addresses()[:, keep], write.lane()[:, keep]] = write.values[:, keep]
    assert np.array_equal(memory, golden.machine.activations[0])


def test_trace_has_every_visit_in_order(golden):
    result = golden.execute([random_image(CONFIG)], 1, trace=True)
    (routes,) = result.routes[0].values()
    experts = [w for w in result.trace[0] if w.number == routes.number + 1]
    used = sorted(set(routes.experts.ravel()))
    assert [w.expert for w in experts] == [e for e in used for _ in range(2)]
    assert [w.visit for w in experts] == list(range(2 * len(used)))
    for hidden, out in zip(experts[::2], experts[1::2]):
        tokens = np.flatnonzero((routes.experts == out.expert).any(axis=1))
        assert np.array_equal(out.rows, tokens)
        assert np.array_equal(hidden.rows, np.arange(len(tokens)))


def test_pad_lanes_of_a_norm_are_zero():
    """24 channels in words of 16 lanes; layer norm writes the other 8 too."""
    machine = Golden(compile_model(random_model(), hardware(in_lanes=16)))
    program = machine.program.descriptors()
    norms = [
        w
        for w in machine.execute([random_image(CONFIG)], trace=True).trace[0]
        if program[w.number].op == Op.NORM
    ]
    assert len(norms) == 5
    assert all(w.values.shape[1] == 32 and not w.values[:, 24:].any() and w.values.any() for w in norms)
