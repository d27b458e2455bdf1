"""Netlists for an ECP5 equal the golden functions: the benches of sim/ on what synthesis made of the units."""

import importlib
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgemoe import api, synthesis
from edgemoe.compare import compare_run
from edgemoe.compile import compile_model
from edgemoe.core.accelerator import Accelerator
from edgemoe.errors import EdgemoeError, ToolMissing
from edgemoe.golden import Golden
from edgemoe.simulation import cocotb_build, gates
from edgemoe.simulation.runner import simulate as simulate_program
from edgemoe.verilog import FILE, TOP
from gateware import FAST_BUILD, stalled
from models import CONFIG, hardware, random_image, random_model

HERE = Path(__file__).parent
for place in (HERE, HERE.parents[1] / "sim"):  # benches are imported by name, here and in the simulation
    sys.path.append(str(place))

SIMULATOR = "verilator" if cocotb_build.missing("icarus") else "icarus"
"""Icarus compiles a netlist in seconds, Verilator in a minute."""

UNITS = (
    "residual", "row_maximum", "dot_array", "reciprocal", "weigher", "gelu", "requantise", "exponential", "reorder", "layernorm",
    "router", "sdram",
)  # fmt: skip


@pytest.fixture(scope="module")
def yosys():
    try:
        found = synthesis.find("YOSYS", "yosys")
        gates.share(found)
    except ToolMissing as error:
        pytest.skip(f"no synthesis: {error}")
    if reason := cocotb_build.missing(SIMULATOR):
        pytest.skip(reason)
    return found


def census(text, name="top"):
    """How many cells of each kind a module has."""
    top = text[text.index(f"module {name}(") : text.index("endmodule")]
    return Counter(re.findall(r"^  ([A-Z]\w+) ", top, re.M))


def simulate(bench, text, folder, **environment):
    design = cocotb_build.build(text, SIMULATOR, api.cache())
    environment = {"EDGEMOE_SIM_EXAMPLES": "3", "PYTHONWARNINGS": "error::DeprecationWarning", **environment}
    outcomes = cocotb_build.run(design, f"bench_{bench}", folder, environment)
    assert outcomes
    for outcome in outcomes:
        assert not outcome.failure, f"{outcome.name}: {outcome.failure}"


@pytest.mark.long
@pytest.mark.parametrize("unit", UNITS)
def test_the_netlist_of_a_unit_equals_golden(unit, yosys, tmp_path):
    bench = importlib.import_module(f"bench_{unit}")
    models = bench.sources() if hasattr(bench, "sources") else ""
    text = gates.netlist(bench.component(), yosys, api.cache(), outside=models)
    found = census(text)
    assert (
        set(found) <= {*gates.CELLS, "MULT18X18D", "ALU54B", "DP16KD"}
        and found["LUT4"]
        and found["TRELLIS_FF"]
    )
    if unit == "dot_array":
        assert found["MULT18X18D"] == 2 * found["ALU54B"] == bench.SPEC.in_lanes * bench.SPEC.out_lanes
    simulate(unit, text + models, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("unit", ["residual", "weigher"])
def test_the_netlist_for_a_device_that_is_nearly_full_equals_golden(unit, yosys, tmp_path):
    bench = importlib.import_module(f"bench_{unit}")
    text = gates.netlist(bench.component(), yosys, api.cache(), tight=True)
    found, plain = census(text), census(gates.netlist(bench.component(), yosys, api.cache()))
    assert found["CCU2C"] <= plain["CCU2C"] and found["PFUMX"] == 0 < plain["PFUMX"]
    simulate(unit, text, tmp_path)


@pytest.mark.long
def test_the_netlist_of_the_link_answers_as_its_golden_twin(yosys, tmp_path):
    bench = importlib.import_module("bench_link")
    text = gates.netlist(bench.component(), yosys, api.cache())
    assert census(text)["TRELLIS_FF"] > 1000
    simulate("link", text, tmp_path)


@pytest.mark.parametrize("b_bits", [8, 16])
def test_explicit_multipliers_equal_inferred_ones(b_bits, yosys, tmp_path):
    bench = importlib.import_module("bench_multiplier")
    text = gates.netlist(bench.Multipliers(b_bits), yosys, api.cache())
    found = census(text)
    assert found["MULT18X18D"] == 5 and found["ALU54B"] == 1  # the product of a and b is inferred once
    # the explicit ones have their registers inside
    assert text.count('.REG_OUTPUT_CLK("CLK0")') == 1 and text.count('.REG_PIPELINE_CLK("CLK0")') == 2
    simulate("multiplier", text, tmp_path, B_BITS=str(b_bits))


@pytest.mark.parametrize(("width", "depth"), [(32, 512), (16, 1024), (9, 2048), (4, 4096)])
def test_registers_inside_block_rams_equal_a_model(width, depth, yosys, tmp_path):
    bench = importlib.import_module("bench_absorb")
    text = gates.netlist(bench.Memories(width, depth), yosys, api.cache())
    found = census(text)
    assert found["DP16KD"] == len(bench.KINDS) and found["TRELLIS_FF"] == 2 * width  # of kept and open
    assert text.count('.REGMODE_B("OUTREG")') + text.count('.REGMODE_A("OUTREG")') == (4 if width > 18 else 2)
    simulate("absorb", text, tmp_path, WIDTH=str(width), DEPTH=str(depth))


def test_registers_inside_multipliers_equal_a_model(yosys, tmp_path):
    bench = importlib.import_module("bench_product")
    text = gates.netlist(bench.Products(), yosys, api.cache())
    found = census(text)
    assert found["MULT18X18D"] == 2 and found["TRELLIS_FF"] == 2 * bench.BITS
    assert text.count('.REG_OUTPUT_CLK("CLK0")') == 1
    simulate("product", text, tmp_path)


@pytest.mark.slow
def test_the_netlist_of_a_core_equals_golden(yosys, tmp_path):
    """A whole accelerator runs a small model: every element of every tensor, two images and both tasks."""
    hw = hardware(in_lanes=8, out_lanes=2, port_bytes=8)
    text = gates.netlist(Accelerator(hw), yosys, api.cache(), TOP)
    found = census(text, TOP)
    assert found["MULT18X18D"] >= hw.macs and found["DP16KD"]
    (tmp_path / FILE).write_text(text)
    program = compile_model(random_model(CONFIG, hw.profile, 0), hw, pixel_bytes=1)
    images = [random_image(CONFIG, s) for s in (1, 2)]
    results = simulate_program(
        program, hw, np.stack(images), [0, 1], build_dir=api.cache(), verilog_dir=tmp_path, options=FAST_BUILD,
        memory=stalled(3),
    )  # fmt: skip
    machine = Golden(program)
    for task, result in enumerate(results):
        comparison = compare_run(program, machine.execute(images, task, trace=True), result)
        assert comparison.mismatches == 0, str(comparison.first)
        assert comparison.tensors_compared > 0


def test_a_netlist_that_is_wrong_is_noticed(yosys, tmp_path):
    bench = importlib.import_module("bench_residual")
    text = gates.netlist(bench.component(), yosys, api.cache())
    at = text.index(".INIT(16'h") + len(".INIT(16'h")
    wrong = text[:at] + f"{int(text[at], 16) ^ 15:x}" + text[at + 1 :]
    with pytest.raises(AssertionError):
        simulate("residual", wrong, tmp_path)


def test_a_synthesis_that_fails_is_one_error(yosys, tmp_path):
    bench = importlib.import_module("bench_residual")
    with pytest.raises(EdgemoeError, match=r"yosys failed: ERROR: Command syntax error"):
        gates.netlist(bench.component(), yosys, tmp_path, options="-nonsense")
    assert not list(tmp_path.iterdir())


def test_a_yosys_without_its_cells_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(gates.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match="edgemoe\\[flow\\]"):
        gates.share(str(tmp_path / "bin" / "yosys"))
    (tmp_path / "share" / "yosys" / "lattice").mkdir(parents=True)
    (tmp_path / "share" / "yosys" / "lattice" / gates.LIBRARY[0]).write_text("")
    assert gates.share(str(tmp_path / "bin" / "yosys")) == tmp_path.resolve() / "share" / "yosys"
