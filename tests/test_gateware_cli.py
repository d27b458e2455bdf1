"""`sim` and `compare` on the generated Verilog, on Verilog that is broken, and on a memory image that is."""

import json
import re

import numpy as np
import pytest

from edgemoe import api
from edgemoe.cli import main


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "build"
    assert main(["compile", "nano", "--hardware", "nano", "-o", str(path)]) == 0
    return path


def test_sim_equals_golden(build, tmp_path, capsys):
    argv = [str(build), "--image", "nano:5", "--task", "right", "--trace"]
    assert main(["sim", *argv, "-o", str(tmp_path / "s.npz"), "--json", str(tmp_path / "s.json")]) == 0
    assert main(["golden", *argv, "-o", str(tmp_path / "g.npz")]) == 0
    with np.load(tmp_path / "s.npz") as simulated, np.load(tmp_path / "g.npz") as golden:
        assert set(golden.files) <= set(simulated.files) | {"head"}
        for name in simulated.files:
            assert (simulated[name] == golden[name]).all(), name
        assert {"x", "logits", "embed", "l1_topk", "l3_post_mlp"} <= set(simulated.files)
    values = json.loads((tmp_path / "s.json").read_text())
    assert values["mismatches"] == 0 and values["tensors_compared"] > 100
    assert values["cycles"] > 70_000 and 0 < values["mac_utilisation"] < 1
    assert values["external_bytes"] > 100_000 and values["seconds"] > 0


def test_a_simulation_says_where_it_is(build):
    """Descriptor, cycles and speed of both runs, in order."""
    program, seen = api.load_build(build), []
    images = [api.load_image("nano:5", program.model)] * 4
    api.simulate(program, images, (0, 1), watch=seen.append)
    pattern = r"task (left|right), descriptor (\d+) of 80 \(([\w ]*)\), ([\d,]+) cycles(?:, [\d,]+ cycles/s)?"
    found = [re.fullmatch(pattern, line) for line in seen]
    assert all(found) and {m[1] for m in found} == {"left", "right"}, seen
    cycles = [int(m[4].replace(",", "")) for m in found if m[1] == "right"]
    assert cycles == sorted(cycles) and cycles[-1] > 4 * 70_000
    assert (found[-1][2], found[-1][3]) == (
        "76",
        "head",
    )  # the last that the monitor sees: x is stored, not written


def test_progress_is_quiet_where_there_is_no_terminal(build, capsys, monkeypatch):
    argv = ["sim", str(build), "--image", "nano:5"]
    assert main(argv) == 0
    assert "cycles/s" not in capsys.readouterr().err
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(argv) == 0
    assert re.search(r"descriptor \d+ of 80 .*\d cycles", capsys.readouterr().err)


def test_compare_has_both_comparisons(build, tmp_path, capsys):
    assert main(["compare", str(build), "--image", "nano:6", "--json", str(tmp_path / "c.json")]) == 0
    values = json.loads((tmp_path / "c.json").read_text())
    rows = {row["tensor"]: row for row in values["accuracy"]}
    assert rows["x"]["db_forced"] > 30 and rows["l1_topk"]["agreement"] > 0.8
    assert values["mismatches"] == 0
    assert "l3_post_mlp" in capsys.readouterr().out


def test_a_broken_line_of_verilog_is_a_difference_that_is_named(build, tmp_path, capsys):
    assert main(["verilog", "--hardware", "nano", "-o", str(tmp_path / "v")]) == 0
    source = tmp_path / "v" / "accelerator.v"
    text = source.read_text()
    start = text.index("module \\accelerator.core.array.slot3 ")
    product = re.compile(r"(assign [^;]*?) \* ([^;]*;)")
    broken = text[:start] + product.sub(r"\1 + \2", text[start:], count=1)
    assert broken != text
    source.write_text(broken)
    argv = ["sim", str(build), "--image", "nano:5", "--verilog", str(tmp_path / "v")]
    assert main([*argv, "--json", str(tmp_path / "s.json")]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"descriptor 2 \(PRODUCT\), embed\[\d+, 3\]: .*golden -?\d+, gateware -?\d+", message), (
        message
    )
    assert json.loads((tmp_path / "s.json").read_text())["mismatches"] > 1000


def test_a_flipped_byte_of_memory_changes_both_sides_alike(build, tmp_path):
    program = api.load_build(build)
    whole = api.golden(program, api.load_image("nano:5", program.model))
    path = tmp_path / "build"
    path.mkdir()
    for file in build.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    region = next(r for r in program.regions if r.name == "l0_q")
    raw = bytearray((path / "memory.bin").read_bytes())
    raw[region.offset + region.size - 1] ^= 0x40
    (path / "memory.bin").write_bytes(raw)
    assert main(["sim", str(path), "--image", "nano:5", "-o", str(tmp_path / "s.npz")]) == 0
    with np.load(tmp_path / "s.npz") as simulated:
        assert (simulated["x"] != whole["x"]).any()


def test_wrong_verilog_is_bad_input(build, tmp_path, capsys):
    argv = ["sim", str(build), "--image", "nano:5", "--verilog"]
    assert main([*argv, str(tmp_path)]) == 2
    (tmp_path / "accelerator.v").write_text("module other(); endmodule\n")
    assert main([*argv, str(tmp_path)]) == 2
    assert all(
        "edgemoe verilog" in line for line in capsys.readouterr().err.splitlines() if "edgemoe:" in line
    )
