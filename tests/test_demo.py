"""The demo: its bookkeeping on made-up runs, and the whole thing on the generated Verilog."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgemoe import api, demo, inputs
from edgemoe.cli import main


@pytest.fixture(scope="module")
def program():
    return api.compile(api.load_model("nano"), "nano")


def made_up_run(program, images=2, each=100):
    """Writes of every descriptor ``each`` cycles apart, in two tables, as the monitor has them."""
    count = len(program.symbols) - 1
    numbers = np.tile(np.arange(count), images)
    cycles = (np.arange(images * count) + 1) * each
    even = numbers % 2 == 0
    tables = {k: {"cycle": cycles[m], "number": numbers[m]} for k, m in (("product", even), ("load", ~even))}
    return SimpleNamespace(
        records=SimpleNamespace(kinds=lambda: tables), cycles=int(cycles[-1]) + 7,
        counters={"cycles": int(cycles[-1]) + 7}, external_words=1000,
    )  # fmt: skip


def test_cycles_by_descriptor_add_up_to_the_first_image(program):
    run = made_up_run(program)
    routes = {f"l{b}_topk": np.zeros((37, 2), int) for b in (1, 3)}
    steps = demo.descriptors(program, run, routes)
    assert [s["number"] for s in steps] == list(range(len(program.symbols)))
    assert sum(s["cycles"] for s in steps) == demo.last_writes(run)[1] == 100 * len(program.symbols)
    assert {s["cycles"] for s in steps[:-1]} == {100}
    groups = list(dict.fromkeys(s["group"] for s in steps))
    assert groups == ["input", "block 0", "block 1", "block 2", "block 3", "output"]


def test_every_descriptor_has_a_kind_of_work(program):
    kinds = {s.tensors[0].name: demo.kind(s.tensors[0].name, program) for s in program.symbols if s.tensors}
    assert kinds["l0_hidden_e{e}"] == "dense MLP" and kinds["l1_hidden_e{e}"] == "experts"
    assert kinds["l0_scores_h2"] == "QK" and kinds["l3_attention_h0"] == "AV" and kinds["l1_gate"] == "gates"
    work = {name for name, macs in program.model.macs().items() if macs}
    assert work <= set(kinds.values())
    assert "other" not in {kind for name, kind in kinds.items() if name not in ("x", "logits")}


def test_weight_bytes_follow_the_experts_that_are_used(program):
    def experts_bytes(used):
        routes = {f"l{b}_topk": np.array(used) for b in (1, 3)}
        steps = demo.descriptors(program, made_up_run(program), routes)
        return [s["bytes"] for s in steps if s["kind"] == "experts"]

    assert experts_bytes([[0, 1], [2, 1]]) == [3 * b for b in experts_bytes([[0, 0]])]


def test_experts_are_counted_by_task(program):
    routes = [[{"l1_topk": np.array([[0, 1], [0, 2]]), "l3_topk": np.array([[7, 7], [7, 7]])}] * 2, [
        {"l1_topk": np.array([[5, 5], [5, 5]]), "l3_topk": np.array([[7, 7], [7, 7]])}]]  # fmt: skip
    first, second = demo.experts(program, routes)
    assert first["block"] == 1 and first["tokens"][0].tolist() == [4, 2, 2, 0, 0, 0, 0, 0]
    assert first["tokens"][1].tolist() == [0, 0, 0, 0, 0, 4, 0, 0]
    assert second["tokens"][0][7] == 8


def test_performance_is_a_mean_over_images_and_tasks(program):
    run = made_up_run(program)
    found = demo.performance(program, [run, run], 4)
    assert found["cycles_per_image"] == run.counters["cycles"] / 2
    assert found["external_bytes_per_image"] == 1000 * 8 / 2
    assert found["mac_utilisation"] == pytest.approx(program.useful_macs / found["cycles_per_image"] / 64)


def test_answers_stop_when_the_demo_fails(program):
    model = api.load_model("nano")
    images, _ = inputs.test_images()
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError), demo.Answers(model, program, np.tile(images, (40, 1, 1, 1))):
        raise ZeroDivisionError
    assert time.monotonic() - start < 30  # all of them take minutes
    with demo.Answers(model, program, images[:2]) as answers:
        assert [a.shape for a in answers.wait()] == [(2, 2), (2, 2)]


def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    argv = ["demo", "--images", "3", "-o", str(out), "--json", str(tmp_path / "d.json")]
    assert main(argv) == 0, capsys.readouterr().err
    values = json.loads((out / "demo.json").read_text())
    assert json.loads((tmp_path / "d.json").read_text()) == values
    assert values["images"] == 3 and values["tasks"] == 2 and values["mismatches"] == 0
    assert values["tensors_compared"] > 2 * 3 * 50
    assert len(values["accuracy_float"]) == len(values["accuracy_golden"]) == 2
    assert min(values["accuracy_float"] + values["accuracy_golden"]) > 0.9
    assert 0.3 < values["mac_utilisation"] <= 1 and values["cycles_per_image"] > 70_000
    assert all(a["gateware"] == a["golden"] for r in values["results"] for a in r["answers"])
    assert {p.name for p in out.iterdir()} == {
        "demo.json",
        "report.html",
        "manifest.json",
        "build",
        "verilog",
    }
    assert (out / "verilog" / "accelerator.v").stat().st_size > 100_000
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"model", "test images"}
    text = capsys.readouterr().out
    assert "mismatches" in text and "gateware" in text


def test_a_mismatch_ends_with_1_and_names_the_first_difference(tmp_path, capsys, monkeypatch):
    def broken(*arguments, **options):
        found = check(*arguments, **options)
        return replace(
            found, mismatches=2, first="descriptor 4, tensor l0_q, token 3, channel 5: golden 7, gateware 8"
        )

    check = api.check
    monkeypatch.setattr(api, "check", broken)
    assert main(["demo", "--images", "1", "-o", str(tmp_path / "demo")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("l0_q, token 3, channel 5: golden 7, gateware 8")
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["mismatches"] == 2
