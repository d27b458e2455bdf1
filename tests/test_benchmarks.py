"""The tables of `make bench` on the shape of M3ViT-tiny, and docs/results.json beside today's cycle model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ablation, board, breakdown, document, lanes, published, slow_memory, workload
from edgemoe import perf
from models import CONFIG, random_model

RESULTS = Path(__file__).parents[1] / "docs" / "results.json"
STALE = 0.005
"""How far docs/results.json may be from what the cycle model says today."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Without released weights."""
    return workload.load(tmp_path_factory.mktemp("empty"))


def test_a_model_of_zeros_costs_what_any_of_its_shape_does(monkeypatch):
    hardware = replace(workload.NAMED["nano"], heads=16)
    programs = [
        workload.compile_model(model, hardware)
        for model in (random_model(CONFIG), replace(workload.zeros(CONFIG), heads=random_model(CONFIG).heads))
    ]
    first, second = (perf.predict(program) for program in programs)
    assert first == second


def test_all_numbers_of_lanes_keep_what_must_hold(work):
    """Any routing; utilisation and bytes that must hold, the latter with 8 bits a pixel, and cycles at 256."""
    rows = []
    for name in lanes.HARDWARE:
        program = work.program(name)
        for kind in ("balanced", "skewed"):
            found = perf.predict(program, work.routes[kind])
            rows.append((program.hardware.macs, kind, found))
    for macs, kind, found in rows:
        pixels = work.model.config.channels * work.model.config.height * work.model.config.width
        assert (
            found.external_bytes - pixels <= published.MUST_BYTES["any"]
        )  # the program takes 16 bits a pixel
        assert found.mac_utilisation >= published.MUST[macs], (macs, kind)
        if macs == 256:
            assert found.cycles <= published.MUST_CYCLES


@pytest.mark.parametrize("rate", slow_memory.RATES)
def test_a_slow_memory_is_overlapped_within_every_descriptor(work, rate):
    row = slow_memory.row(work.program(slow_memory.HARDWARE), "balanced", work.routes["balanced"], rate)
    assert row["bytes_per_cycle"] == pytest.approx(rate, rel=0.01)
    assert row["bound"] <= row["cycles"] <= (1 + slow_memory.LIMIT) * row["bound"]


def test_kinds_of_descriptors_add_up(work):
    values = breakdown.measure(work)
    for found in values["hardware"].values():
        kinds = found["kinds"].values()
        assert sum(row["cycles"] for row in kinds) == found["cycles"]
        for row in kinds:
            assert row["cycles"] == pytest.approx(sum(row[part] for part in breakdown.PARTS))
    assert "dense MLP" in breakdown.section_text(values)


def test_without_a_technique_nothing_is_faster(work):
    values = ablation.measure(work)
    base, *rest = values["rows"]
    assert all(row["cycles"] >= base["cycles"] for row in rest)
    worst = max(rest, key=lambda row: row["external_bytes"])
    assert "token by token" in worst["off"] and worst["external_bytes"] > 10 * base["external_bytes"]
    assert ablation.section_text(values).count("\n| ") == len(rest) + 2


BUILT = {
    "hardware": "ulx3s-85f", "resources": dict(lut=36000, ff=31000, dsp=153, bram=199),
    "capacity": dict(lut=83640, ff=83640, dsp=156, bram=208), "tools": {"yosys": "0.99"}, "fits": True, "reason": None,
    "fmax_by_seed": [81.26, 83.5, 79.0], "fmax_mhz": 81.26, "memory_fmax_mhz": 99.04, "memory_target_mhz": 100.0,
    "device_fps": 7.5, "rate": {"formula": "80 MHz / 3 cycles"},
}  # fmt: skip


def test_the_board_s_clocks_are_told_by_seed_and_beside_what_is_wanted():
    text = board.section_text(BUILT)
    for part in (
        "| LUT | 36,000 of 83,640 |",
        "| core, MHz, by seed | 81.3, 83.5, 79.0 |",
        "| core, MHz, median | 81.3 | 80 / 100 |",
        "| memory, MHz, median | 99.0 | 100 |",
        "| images per second | 7.50 | 6 / 10 |",
        "Images per second: 80 MHz / 3 cycles.",
    ):
        assert part in text


def test_a_board_that_is_not_routed_is_told_with_its_reason():
    text = board.section_text({**BUILT, "fits": False, "reason": "nextpnr failed", "rate": None})
    assert "| routed | no: nextpnr failed |" in text and "MHz" not in text


def test_tables_are_markdown():
    assert document.table(["a", ">b"], [[1, 2]]) == "| a | b |\n|---|--:|\n| 1 | 2 |"


def test_the_results_in_the_documentation_are_todays(work):
    """After a change of the machine: make bench."""
    results = json.loads(RESULTS.read_text())
    for row in results["lanes"]:
        if row["hardware"] == workload.BASE and row["routing"] in workload.KINDS:
            found = perf.predict(
                work.program(row["hardware"], slot_sets=row["slot_sets"]), work.routes[row["routing"]]
            )
            assert found.cycles == pytest.approx(row["cycles"], rel=STALE), "run make bench"
            assert found.external_bytes == row["external_bytes"], "run make bench"
    for task in results["m3vit"]["tasks"]:
        assert task["mismatches"] == 0
