"""The whole accelerator on Verilator: every element of every tensor equals the golden machine's."""

from bench_core import HARDWARE
from run import simulate

from edgemoe import api, verilog


def test_core_equals_golden(tmp_path, record_property):
    text = verilog.cached(HARDWARE, api.cache()).read_text()
    simulate("bench_core", text, "verilator", tmp_path, record_property, top=verilog.TOP)
