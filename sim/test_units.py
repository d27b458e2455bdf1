"""Every unit on every simulator that is installed: equal to its golden function under all stall patterns."""

import importlib
from functools import cache
from pathlib import Path

import pytest
from run import simulate

from edgemoe import verilog
from edgemoe.simulation.cocotb_build import SIMULATORS, missing

UNITS = sorted(
    {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")} - {"core"}
)


@cache
def text(unit: str) -> str:
    bench = importlib.import_module(f"bench_{unit}")
    models = bench.sources() if hasattr(bench, "sources") else ""  # Verilog of what the design instantiates
    return verilog.convert(bench.component(), "top") + models


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("unit", UNITS)
def test_unit_equals_golden(unit, simulator, tmp_path, record_property):
    if simulator == "icarus" and missing(simulator):
        pytest.skip(missing(simulator))
    simulate(f"bench_{unit}", text(unit), simulator, tmp_path, record_property)
