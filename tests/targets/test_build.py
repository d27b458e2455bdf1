"""`build`: gateware of a board with its pins, stages with recorded tools, the report, and errors."""

import json
import os
import re
import threading
import time

import pytest

from cli import refused
from edgemoe import bitstream, rate, synthesis
from edgemoe.cli import main
from edgemoe.config import NAMED, HardwareConfig, load_hardware
from edgemoe.errors import DoesNotFit
from edgemoe.manifest import sha256
from edgemoe.targets import ulx3s
from edgemoe.targets.top import identity
from test_synth import REPORT, fake

BAD, MISSING, UNFIT = 2, 3, 4
CORE, MEMORY = "$glbnet$top.core_clock", "$glbnet$memory_clk"


def netlist(lut=1):
    """What yosys writes: a PLL whose clocks have several names, and some cells."""
    cells = {f"l{k}": {"type": "LUT4", "connections": {"Z": [100 + k]}} for k in range(lut)}
    cells["pll"] = {"type": "EHXPLLL", "connections": {"CLKOP": [2], "CLKOS": [3], "CLKOS2": [4]}}
    names = {"clk": [2], "top.core_clock": [2], "memory_clk": [3], "chip_clk": [4]}
    return {
        "modules": {
            "top": {
                "attributes": {"top": "1"},
                "netnames": {name: {"bits": bits} for name, bits in names.items()},
                "cells": cells,
            }
        }
    }


def report(core, memory):
    """What nextpnr writes."""
    (path,) = [p for p in REPORT["critical_paths"] if p["from"] == "posedge clk"]
    return {
        **REPORT,
        "fmax": {
            CORE: {"achieved": core, "constraint": 80},
            MEMORY: {"achieved": memory, "constraint": 133},
            "$glbnet$chip_clk": {"achieved": 10.0, "constraint": 133},
        },
        "critical_paths": [{**path, "from": f"posedge {CORE}", "to": f"posedge {CORE}"}],
    }


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Programs that write recorded results; the second seed is the best."""
    folder = tmp_path / "tools"
    folder.mkdir()
    reports = {
        str(seed): report(core, memory) for seed, core, memory in ((1, 90, 140), (2, 82, 150), (3, 75, 160))
    }
    programs = {
        "YOSYS": f"open('top.json', 'w').write({json.dumps(netlist())!r}); print('Yosys 0.99 (made up)')",
        "NEXTPNR_ECP5": f"""
if '--report' in sys.argv:
    option = lambda name: sys.argv[sys.argv.index(name) + 1]
    open(option('--report'), 'w').write(json.dumps({reports!r}[option('--seed')]))
    open(option('--textcfg'), 'w').write('configuration of seed ' + option('--seed'))
    open('arguments', 'a').write(' '.join(sys.argv[1:]) + chr(10))
print('Version nextpnr-0.42')""",
        "ECPPACK": "option = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        "open(option('--bit'), 'w').write(open(option('--input')).read() + ', packed')",
    }
    for variable, body in programs.items():
        monkeypatch.setenv(variable, str(fake(folder, variable.lower(), body)))
    monkeypatch.setattr(bitstream, "elaborate", lambda target, spec, folder: (folder / "top.lpf").touch())
    return folder


def build(tmp_path, *more):
    path = tmp_path / "r.json"
    argv = ["build", "--board", "ulx3s-25f", "-o", str(tmp_path / "out"), "--json", str(path), *more]
    return main(argv), json.loads(path.read_text()) if path.is_file() else None


ROOMY = "--board", "ulx3s-85f", "--hardware", "ulx3s-25f", "--model", "nano"
"""A device that this design does not nearly fill."""


# -- the flow -----------------------------------------------------------------------------------


def test_the_best_seed_is_packed_and_the_median_is_reported(tools, tmp_path, capsys):
    code, values = build(tmp_path, "--seeds", "3")
    assert code == 0 and values["met"] is True
    assert (
        values["fmax_mhz"] == 82 and values["fmax_by_seed"] == [90, 82, 75] and values["seeds"] == [1, 2, 3]
    )
    assert (
        values["memory_fmax_mhz"] == 150 and values["target_mhz"] == 80 and values["memory_target_mhz"] == 100
    )
    assert values["resources"] == {"lut": 472, "ff": 807, "dsp": 2, "bram": 3}
    assert values["tools"] == {"yosys": "0.99", "nextpnr": "0.42"}
    assert values["report"] == "build" and values["seed"] == 1
    bit = tmp_path / "out" / "ulx3s-25f.bit"
    assert values["bitstream"] == str(bit) and bit.read_text() == "configuration of seed 1, packed"
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert all(values[key] == value for key, value in kept.items())
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["configuration"]["hardware"]["name"] == NAMED["ulx3s-25f"].name
    out = capsys.readouterr()
    assert "82 MHz (median of 3 seeds), runs at 80 MHz" in out.out and "from unit.a" in out.out
    for stage in ("gateware", "synthesis", "place and route, 3 seeds", "bitstream of seed 1"):
        assert stage in out.err
    assert {"gateware", "synthesis"} <= {name.split(": ")[1].split(" of")[0] for name in values["seconds"]}


def test_seeds_run_at_a_time_as_far_as_there_are_cores(tmp_path, monkeypatch, tools):
    running, most, lock = [0], [0], threading.Lock()
    original = bitstream.place_and_route

    def observed(*arguments):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.3)
        found = original(*arguments)
        with lock:
            running[0] -= 1
        return found

    monkeypatch.setattr(bitstream, "place_and_route", observed)
    for cores, together in ((2, 2), (1, 1), (None, 1)):
        most[0] = 0
        monkeypatch.setattr(bitstream.os, "cpu_count", lambda cores=cores: cores)
        code, values = build(tmp_path, "--seeds", "3")
        assert code == 0 and values["seeds"] == [1, 2, 3] and most[0] == together


def test_the_bar_follows_the_routers_table(tools, tmp_path, monkeypatch):
    inner = os.environ["NEXTPNR_ECP5"]
    rows = [(1000, 200), (2000, 300), (3000, 150), (3500, 0)]
    table = ["Info:            |   (re-)routed arcs  |   delta    | remaining|       time spent     |"]
    table += [
        f"Info: {n:10} | {n:8} {0:10} | {10:4} {20:5} | {left:9}| {0.5:10} {1.5:10}|" for n, left in rows
    ]
    routing = fake(
        tools, "routing", "import subprocess\n"
        f"print({chr(10).join(table)!r}, flush=True)\n"
        f"sys.exit(subprocess.call([{inner!r}, *sys.argv[1:]]))",
    )  # fmt: skip
    monkeypatch.setenv("NEXTPNR_ECP5", str(routing))
    told = []
    bitstream.build(
        "ulx3s-85f",
        "ulx3s-25f",
        1,
        None,
        None,
        tmp_path / "out",
        "nano",
        lambda *told_now: told.append(told_now),
    )
    stage = "ulx3s-85f: place and route, 1 seed"
    assert [part for what, part in told if what == stage] == [None, 0, 0, 0.5, 1]


def test_a_board_has_a_clock_of_the_memory_that_can_be_raised():
    board, hardware = ulx3s.BOARDS["ulx3s-85f"], NAMED["ulx3s-85f"]
    assert round(board.specification(hardware, 80).memory_hz) == 114_285_714
    assert round(board.specification(hardware, 80, 133).memory_hz) == 133_333_333


def test_images_per_second_follow_from_the_clocks(tools, tmp_path, capsys):
    _, values = build(tmp_path)
    rate = values["rate"]
    assert values["device_fps"] == pytest.approx(80e6 / rate["cycles"], abs=0.01)
    assert rate["core_mhz"] == 80 and rate["memory_mhz"] == 100
    # 2 bytes per clock of the memory, 8 of a port word, five clocks of the memory in four of the core
    assert 0.95 * 320 < rate["bandwidth"] < 320
    assert rate["formula"] in capsys.readouterr().out
    main(["compile", "nano", "--hardware", "ulx3s-25f", "-o", str(tmp_path / "b")])
    main(["perf", str(tmp_path / "b"), "--json", str(tmp_path / "p.json")])
    fast = json.loads((tmp_path / "p.json").read_text())["cycles"]
    assert fast <= rate["cycles"] < 2 * fast


def test_a_clock_that_is_missed_exits_with_4_and_still_has_a_bitstream(tools, tmp_path, capsys):
    code, values = build(tmp_path, "--target-mhz", "95")
    assert code == UNFIT and values["met"] is False
    assert (tmp_path / "out" / "ulx3s-25f.bit").is_file() and (tmp_path / "out" / "report.json").is_file()
    message = capsys.readouterr().err.splitlines()[-1]
    assert "90 of 95 MHz (core)" in message and "--target-mhz" in message
    assert values["rate"]["core_mhz"] == 90  # what is reached, not what was wanted


def test_a_memory_clock_that_is_missed_counts_too(tools, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ulx3s, "MEMORY_MHZ", (141, 142))
    code, values = build(tmp_path, "--target-mhz", "47.5", "--memory-mhz", "142")
    assert code == UNFIT and values["memory_target_mhz"] > 140
    assert "(memory)" in capsys.readouterr().err


def test_the_memory_may_be_slower(tools, tmp_path):
    code, values = build(tmp_path, "--target-mhz", "60", "--memory-mhz", "100")
    assert code == 0 and values["target_mhz"] == 60 and values["memory_target_mhz"] == 100


def test_what_exceeds_the_device_exits_with_4_and_reports(tools, tmp_path, monkeypatch, capsys):
    big = fake(tools, "big", f"open('top.json', 'w').write({json.dumps(netlist(24289))!r})")
    monkeypatch.setenv("YOSYS", str(big))
    code, values = build(tmp_path)
    assert code == UNFIT
    assert values["fits"] is False and values["bitstream"] is None and values["fmax_mhz"] is None
    assert "it needs 24289 of 24288 lut; use --hardware with fewer lanes" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.bit"))


def test_a_placement_that_fails_exits_with_4(tools, tmp_path, monkeypatch, capsys):
    broken = fake(tools, "broken", "print('ERROR: Unable to place cell x'); sys.exit('--report' in sys.argv)")
    monkeypatch.setenv("NEXTPNR_ECP5", str(broken))
    code, values = build(tmp_path)
    assert code == UNFIT and values["fits"] is False and "Unable to place cell x" in values["reason"]
    assert "Unable to place cell x" in capsys.readouterr().err


def test_options_of_nextpnr_come_from_the_environment(tools, tmp_path, monkeypatch):
    def arguments(options):
        monkeypatch.setenv("AMARANTH_nextpnr_opts", options)
        build(tmp_path, *ROOMY)
        return (tmp_path / "out" / "arguments").read_text().splitlines()[-1]

    assert "--85k" in arguments("--placer sa") and "--lpf top.lpf" in arguments("--placer sa")
    assert arguments("").endswith("--timing-allow-fail")
    assert arguments("--placer sa --router router2").endswith(
        "--timing-allow-fail --placer sa --router router2"
    )


@pytest.mark.parametrize("variable", ["YOSYS", "NEXTPNR_ECP5", "ECPPACK"])
def test_a_missing_tool_is_named_before_any_work(tools, tmp_path, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "no-such-program")
    argv = ["build", "--board", "ulx3s-25f", "-o", str(tmp_path / "out")]
    message = refused(capsys, tmp_path, MISSING, *argv)
    assert variable in message and "pip install 'edgemoe[flow]'" in message


def test_boards_and_numbers_that_cannot_be(tools, tmp_path, capsys):
    def message(*argv):
        return refused(capsys, tmp_path, BAD, "build", "-o", tmp_path / "out", *argv)

    assert "ulx3s-12f; found 'ulx3s'" in message("--board", "ulx3s")
    assert "--seeds" in message("--board", "ulx3s-25f", "--seeds", "0")
    assert "--target-mhz 900: pll: the core clock must run at" in message(
        "--board", "ulx3s-25f", "--target-mhz", "900"
    )
    assert "--memory-mhz 80: the memory must run at 90..133 MHz" in message(
        "--board", "ulx3s-25f", "--memory-mhz", "80"
    )
    assert "neither a file nor one of" in message("--board", "ulx3s-25f", "--hardware", "nanu")


# -- the design ---------------------------------------------------------------------------------

SMALL = HardwareConfig(
    name="small", in_lanes=8, out_lanes=1, port_bytes=8, tokens=8, dim=8, row=16, hidden=8, image=64, heads=1,
    experts=1, top_k=1, norm_lanes=1, memory_bytes=1 << 25,
)  # fmt: skip


@pytest.fixture(scope="module")
def gateware(tmp_path_factory):
    """RTLIL and constraints of a small design."""
    pytest.importorskip("amaranth_boards", reason="the extra `flow` is not installed")
    folder = tmp_path_factory.mktemp("gateware")
    target = bitstream.board("ulx3s-25f")
    bitstream.elaborate(target, target.specification(SMALL, 60), folder)
    return (folder / "top.il").read_text(), (folder / "top.lpf").read_text()


def test_pins_are_those_of_the_board(gateware):
    _, constraints = gateware
    pins = dict(re.findall(r'LOCATE COMP "(\S+)" SITE "(\w+)"', constraints))
    assert pins["clk25_0__io"] == "G2" and pins["uart_0__rx__io"] == "M1" and pins["uart_0__tx__io"] == "L4"
    assert pins["sdram_0__clk__io"] == "F19" and pins["sdram_0__dq__io[15]"] == "J17"
    assert len([name for name in pins if name.startswith("sdram")]) == 1 + 1 + 4 + 2 + 2 + 13 + 16
    assert len([name for name in pins if name.startswith("led")]) == 8
    assert len(set(pins.values())) == len(pins)


def test_every_pin_of_the_memory_has_a_register(gateware):
    text, _ = gateware
    commands, data = 1 + 4 + 2 + 13 + 2, 16
    assert text.count("cell \\OFS1P3DX ") == 2 * (commands + data)  # data, and whether they are driven
    assert text.count("cell \\IFS1P3DX ") == data == text.count("cell \\BB ")
    assert text.count("cell \\ODDRX1F ") == 1
    assert text.count("cell \\EHXPLLL ") == 1


def test_no_register_has_an_asynchronous_reset_or_is_alone_in_its_clock(gateware):
    """Eight flip-flops of a tile share clock and reset: in a device that is nearly full there is no tile for a few that differ."""
    text, _ = gateware
    assert "FD1S3" not in text and "$adff" not in text and "$aldff" not in text
    (begin,) = [m.end() for m in re.finditer(r"cell \\ODDRX1F .*\n", text)]
    (chip,) = re.findall(r"connect \\SCLK (\S+)", text[begin : text.index("end", begin)])
    assert not re.findall(rf"connect \\CLK {re.escape(chip)}\b", text)


def test_the_chip_is_clocked_in_the_middle_of_what_is_steady():
    for mhz in (90, 106.67, 120, 133.33):
        period = 1000 / mhz
        late = ulx3s.chip_phase(mhz * 1e6) / 360 * period
        assert period / 4 <= late <= 3 * period / 4  # setup and hold of the commands
        begin = ulx3s.PAD_NS + late + ulx3s.ACCESS_NS
        end = ulx3s.PAD_NS + late + period + ulx3s.HOLD_NS
        assert begin + 1 < 2 * period < end - 1, mhz


def test_hardware_with_more_memory_than_the_board_is_refused():
    with pytest.raises(DoesNotFit, match="memory_bytes 67108864, the SDRAM ulx3s has 33554432"):
        ulx3s.specification(NAMED["m3vit-64"], 80)


def test_the_identity_follows_from_the_hardware_and_not_from_its_name(tmp_path):
    nano = NAMED["nano"]
    file = tmp_path / "other.toml"
    file.write_text('base = "nano"\nname = "another"\npost_lanes = 4\nnorm_lanes = 8\n')
    assert identity(load_hardware(str(file))) == identity(nano) and len(identity(nano)) == 8
    file.write_text('base = "nano"\nout_lanes = 4\n')
    assert identity(load_hardware(str(file))) != identity(nano)


def test_boards_name_devices_and_hardware_that_exist():
    for name, board in ulx3s.BOARDS.items():
        assert board.name == name and board.target in synthesis.TARGETS
        spec = board.specification(NAMED[board.hardware], board.core_mhz)
        assert spec.board.core_hz == board.core_mhz * 1e6
        assert rate.fits(rate.shape_of(board.model).config, NAMED[board.hardware])


# -- the tools ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_tools_make_a_bitstream(tmp_path):
    """A design with one column of multipliers, from gateware to a file with the device's number in it."""
    from edgemoe.errors import ToolMissing

    try:
        for variable, name in (("YOSYS", "yosys"), ("NEXTPNR_ECP5", "nextpnr-ecp5"), ("ECPPACK", "ecppack")):
            synthesis.find(variable, name)
    except ToolMissing as error:
        pytest.skip(f"the open FPGA flow is not installed: {error}")
    hardware = tmp_path / "small.toml"
    keys = ("in_lanes", "out_lanes", "port_bytes", "tokens", "dim", "row", "hidden", "image", "heads", "experts",
            "top_k", "norm_lanes", "memory_bytes")  # fmt: skip
    hardware.write_text("".join(f"{key} = {getattr(SMALL, key)}\n" for key in keys))
    argv = [
        "build",
        "--board",
        "ulx3s-85f",
        "--hardware",
        str(hardware),
        "--target-mhz",
        "50",
        "--memory-mhz",
        "90",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main([*argv, "--json", str(tmp_path / "r.json")]) == 0
    values = json.loads((tmp_path / "r.json").read_text())
    assert values["met"] and values["device_fps"] is None  # the nano model does not fit
    content = (tmp_path / "out" / "ulx3s-85f.bit").read_bytes()
    assert b"LFE5U-85F" in content[:200] and bytes.fromhex("41113043") in content
    assert len(sha256(tmp_path / "out" / "ulx3s-85f.bit")) == 64
