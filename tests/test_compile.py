"""The compiler: order, hazards and addresses of the descriptors, refusals, and the BUILD directory."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgemoe import program as builds
from edgemoe.compile import compile_model
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput, DoesNotFit
from edgemoe.isa import Dest, Op, Source
from models import CONFIG, hardware, random_model

DENSE = ModelConfig(
    name="dense",
    channels=1,
    height=8,
    width=8,
    patch=(4, 4),
    dim=16,
    depth=1,
    heads=1,
    mlp_dim=32,
    tasks=("only",),
)


@pytest.fixture(scope="module")
def program():
    return compile_model(random_model(), hardware())


def by_name(program, name):
    number = next(s.number for s in program.symbols if s.tensors and s.tensors[0].name == name)
    return number, program.descriptors()[number]


def test_order_of_the_program(program):
    ops = [d.op for d in program.descriptors()]
    heads = CONFIG.heads
    attention = [Op.NORM] + [Op.PRODUCT] * (1 + 4 * heads + 1) + [Op.NORM]
    start = [Op.LOAD, Op.IMAGE, Op.PRODUCT]
    end = [Op.NORM, Op.PRODUCT, Op.STORE, Op.STORE, Op.END]
    assert ops == start + attention + [Op.EXPERTS] + attention + [Op.PRODUCT, Op.ROUTE, Op.EXPERTS] + end


def test_weights_lie_in_the_order_of_use_without_gaps(program):
    hw, position = program.hardware, len(program.descriptors()) * 64
    position = -(-position // hw.port_bytes)
    for d in program.descriptors():
        if d.op in (Op.LOAD, Op.NORM, Op.PRODUCT, Op.EXPERTS) and d.length:
            assert d.address == position
            regions = d.experts if d.op == Op.EXPERTS else len(CONFIG.tasks) if d.stride else 1
            position += regions * d.length
    assert position * hw.port_bytes == len(program.memory)


def test_every_descriptor_waits_for_what_it_reads(program):
    for h in range(CONFIG.heads):
        for block in range(CONFIG.depth):
            n, d = by_name(program, f"l{block}_scores_h{h}")
            assert n - d.after == by_name(program, f"l{block}_k_h{h}")[0] and not d.wait
            n, d = by_name(program, f"l{block}_attention_h{h}")
            assert n - d.after == by_name(program, f"l{block}_v_h{h}")[0] and d.wait
    assert all(not by_name(program, f"l0_{n}_h{h}")[1].wait for n in "kv" for h in range(CONFIG.heads))
    for name in (
        "embed",
        "l0_norm1",
        "l0_q",
        "l0_post_attn",
        "l0_norm2",
        "l1_gate",
        "l1_topk",
        "head",
        "logits",
    ):
        assert by_name(program, name)[1].wait, name
    norms = [0] + [n for n, d in enumerate(program.descriptors()) if d.op == Op.NORM]
    for earlier, number in zip(norms, norms[1:]):
        assert number - program.descriptors()[number].after == earlier
    assert by_name(program, "l1_hidden_e{e}")[1].after == 1


def test_bias_of_fc2_is_in_the_first_slice_only(program):
    from edgemoe.memmap import product_bytes, unpack_product

    _, d = by_name(program, "l0_hidden_e{e}")
    hw = program.hardware
    assert d.experts == 2 and not d.routed
    for e in range(2):
        raw = program.memory[(d.address + e * d.length) * hw.port_bytes :]
        _, fc2 = unpack_product(hw, raw[product_bytes(hw, d.rows, d.words) :], d.rows2, d.words2)
        assert fc2.bias.any() == (e == 0)


def test_a_model_without_heads_stores_x_only():
    p = compile_model(random_model(DENSE), hardware(DENSE))
    assert [s.name for s in p.outputs] == ["x"]
    assert Op.ROUTE not in [d.op for d in p.descriptors()]


def test_a_head_of_some_tasks_only():
    config = replace(CONFIG, classes=(0, 4))
    p = compile_model(random_model(config), hardware(config))
    assert p.stored("logits").channels == 4


def test_symbols_have_formats(program):
    number, _ = by_name(program, "l1_k_h1")
    tensor = program.symbols[number].tensors[0]
    assert tensor.frac == 11 and len(tensor.factor) == CONFIG.head_dim == len(tensor.channels)
    assert program.symbols[by_name(program, "l1_hidden_e{e}")[0]].name(3, 1) == "l1_post_mlp_e3"


def test_double_gate_only_on_8_bit_weights():
    for profile, double in (("w8a16", 1), ("w16a16", 0)):
        p = compile_model(random_model(profile=profile), hardware(profile=profile))
        assert by_name(p, "l1_gate")[1].double == double


# -- refusals -----------------------------------------------------------------------------------


def test_other_profile_is_refused():
    with pytest.raises(
        BadInput, match="has 16-bit weights, hardware .* takes 8; compile with --profile w16a16"
    ):
        compile_model(random_model(profile="w16a16"), hardware())


def test_capacities_are_checked():
    with pytest.raises(DoesNotFit, match="needs tokens 13, hardware .* has 12; raise tokens"):
        compile_model(random_model(), replace(hardware(), tokens=12))


def test_external_memory_is_checked():
    hw = replace(hardware(), memory_bytes=1 << 12)
    with pytest.raises(
        DoesNotFit, match=r"needs \d+ bytes of external memory .* has 4096; raise memory_bytes"
    ):
        compile_model(random_model(), hw)


def test_descriptor_field_overflow_is_a_refusal(monkeypatch):
    from edgemoe import isa

    monkeypatch.setitem(isa.FIELDS, "eps_term", 4)
    with pytest.raises(
        DoesNotFit, match="descriptor 3: descriptor field eps_term = 2416 does not fit 4 bits"
    ):
        compile_model(random_model(), hardware())


def test_accumulator_is_proven():
    model, hw = random_model(), hardware()
    needed = model.embed.weight.shape[1:]
    object.__setattr__(hw, "acc_bits", 24)
    with pytest.raises(
        DoesNotFit, match=r"embed: the accumulator needs \d+ bits, hardware .* has acc_bits 24"
    ):
        compile_model(model, hw)
    assert needed


def test_score_shift_leaves_room_for_the_exponent():
    model = random_model()
    block = replace(model.blocks[0], score=((40000, 8), (40000, 20)))
    with pytest.raises(
        BadInput, match="l0_scores_h0: shift must exceed 8, the largest block exponent, found 8"
    ):
        compile_model(replace(model, blocks=(block, model.blocks[1])), hardware())


def test_pixel_bytes_is_checked():
    with pytest.raises(BadInput, match="pixel_bytes must be 1 or 2, found 3"):
        compile_model(random_model(), hardware(), pixel_bytes=3)


# -- BUILD --------------------------------------------------------------------------------------


def test_build_round_trip(tmp_path, program):
    weights = tmp_path / "model.bin"
    weights.write_bytes(b"abc")
    builds.save(program, tmp_path / "b", {"model": weights}, seed=7)
    assert builds.load(tmp_path / "b") == program
    about = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert (
        about["seed"] == 7
        and set(about["inputs"]) == {"model"}
        and about["configuration"]["profile"] == "w8a16"
    )
    assert str(tmp_path) not in (tmp_path / "b" / "manifest.json").read_text()
    text = (tmp_path / "b" / "program.txt").read_text().splitlines()
    assert len(text) == len(program.symbols) and "dest=residual" in text[2]


def test_build_is_reproducible_and_replaced(tmp_path, program):
    for _ in range(2):
        builds.save(program, tmp_path / "b")
    again = compile_model(random_model(), hardware())
    builds.save(again, tmp_path / "c")
    for name in ("memory.bin", "program.txt", "symbols.json", "manifest.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize("name", ["manifest.json", "symbols.json", "memory.bin"])
def test_incomplete_build_is_refused(tmp_path, program, name):
    builds.save(program, tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(BadInput, match=f"no {name}; make the directory with `edgemoe compile`"):
        builds.load(tmp_path / "b")


def test_damaged_build_is_refused(tmp_path, program):
    builds.save(program, tmp_path / "b")
    (tmp_path / "b" / "symbols.json").write_text("{}")
    with pytest.raises(BadInput, match="not a build directory of this version"):
        builds.load(tmp_path / "b")


def test_sources_and_destinations(program):
    kinds = {(d.source, d.dest) for d in program.descriptors() if d.op == Op.PRODUCT}
    weights = {(Source.WEIGHTS, d) for d in Dest}
    assert kinds == weights | {(Source.KEYS, Dest.SCORES), (Source.VALUES, Dest.ROWS)}
    assert all(d.rows for d in program.descriptors() if d.op == Op.PRODUCT)
    assert np.all([d.count for d in program.descriptors() if d.op == Op.NORM])
