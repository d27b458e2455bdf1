"""`absorb` on netlists written by hand: what moves, and every rule that keeps a flip-flop where it is."""

import copy
import json

import pytest

from edgemoe import absorb

CLOCK, OTHER_CLOCK, ENABLE, OTHER_ENABLE = 2, 3, 4, 5
RAM, MULTIPLIER = absorb.RAM, absorb.MULTIPLIER


def wired(**pins):
    return {pin: [bit] for pin, bit in pins.items()}


def cell(kind, settings, inputs, outputs):
    directions = dict.fromkeys(inputs, "input") | dict.fromkeys(outputs, "output")
    return {
        "type": kind, "parameters": settings, "attributes": {}, "port_directions": directions,
        "connections": wired(**inputs, **outputs),
    }  # fmt: skip


def register(d, q, **changes):
    pins = {"CLK": CLOCK, "DI": d, "LSR": "0", "CE": ENABLE} | {
        k: v for k, v in changes.items() if len(k) < 4
    }
    settings = {"CEMUX": "CE", "CLKMUX": "CLK", "GSR": "DISABLED", "LSRMUX": "LSR", "REGSET": "RESET"}
    settings |= {k: v for k, v in changes.items() if len(k) > 3 or k == "GSR"}
    pins.pop("GSR", None)
    return cell("TRELLIS_FF", settings, pins, {"Q": q})


def table(**inputs):
    return cell("LUT4", {}, inputs, {"Z": 90})


def memory(width, outputs, **changes):
    settings = {
        "DATA_WIDTH_A": f"{width:032b}", "DATA_WIDTH_B": f"{width:032b}", "REGMODE_A": "NOREG", "REGMODE_B": "NOREG",
        "CLKAMUX": "CLKA", "CLKBMUX": "CLKB", "GSR": "DISABLED",
    }  # fmt: skip
    pins = {
        "CLKA": CLOCK, "CLKB": CLOCK, "CEA": "1", "CEB": 6, "OCEA": "0", "OCEB": "1", "RSTA": "0", "RSTB": "0",
    }  # fmt: skip
    return cell(
        RAM,
        settings | {k: v for k, v in changes.items() if k in settings},
        pins | {k: v for k, v in changes.items() if k in pins},
        outputs,
    )


def design(cells, **names):
    nets = {name: {"bits": list(bits)} for name, bits in names.items()}
    module = {
        "attributes": {"top": "1"},
        "ports": {"o": {"direction": "output", "bits": [30]}, "clk": {"direction": "input", "bits": [CLOCK]}},
        "cells": cells,
        "netnames": nets,
    }
    return {"modules": {"LUT4": {"attributes": {}, "cells": {}, "netnames": {}}, "top": module}}


def two_bits(width=9, first=None, second=None, more=None, **changes):
    """A memory with outputs 10 and 11 of port B, and registers behind them with outputs 20 and 21."""
    cells = {
        "ram": memory(width, {"DOB0": 10, "DOB1": 11, "DOB2": 12}, **changes),
        "r0": register(10, 20, **(first or {})),
        "r1": register(11, 21, **(second or {})),
        "t": table(A=20, B=21),
    }
    return design(cells | (more or {}), word=[10, 11, 12], kept=[20, 21])


def product(**changes):
    cells = {
        "m": cell(MULTIPLIER, {}, {"A0": 7, "B0": 8}, {"P0": 10, "P1": 11}),
        "r0": register(10, 20, CEMUX="1 ", **changes),
        "r1": register(11, 21, CE="1"),
        "t": table(A=20, B=21),
    }
    return design(cells)


def top(netlist):
    return netlist["modules"]["top"]


def run(netlist):
    before = copy.deepcopy(netlist)
    found = absorb.absorb(netlist, "harness_")
    if not found.ports:
        assert netlist == before  # nothing is touched
    return found


def refusal(netlist):
    found = run(netlist)
    assert not found.registers and not found.ports
    ((_, reason),) = found.refused
    return reason


# -- what moves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "sides"), [(9, "B"), (18, "B"), (36, "AB")])
def test_registers_move_into_a_port(width, sides):
    netlist = two_bits(width)
    found = run(netlist)
    assert found.registers == {RAM: 2} and found.ports == {RAM: 1} and not found.refused
    cells = top(netlist)["cells"]
    assert set(cells) == {"ram", "t"}
    pins, settings = cells["ram"]["connections"], cells["ram"]["parameters"]
    assert {s for s in "AB" if settings[f"REGMODE_{s}"] == "OUTREG"} == set(sides)
    assert pins["DOB0"] == [20] and pins["DOB1"] == [21] and pins["DOB2"] == [12]
    assert pins["OCEB"] == [ENABLE] and pins["OCEA"] == ([ENABLE] if "A" in sides else ["0"])
    assert pins["CEB"] == [6]
    assert top(netlist)["netnames"] == {"word": {"bits": ["x", "x", 12]}, "kept": {"bits": [20, 21]}}


def test_the_halves_of_a_wide_word_move_together():
    netlist = two_bits(36)
    top(netlist)["cells"]["ram"]["connections"]["DOA3"] = [13]
    top(netlist)["cells"]["ram"]["port_directions"]["DOA3"] = "output"
    top(netlist)["cells"]["r2"] = register(13, 23)
    assert run(netlist).registers == {RAM: 3}
    netlist = two_bits(36)
    top(netlist)["cells"]["ram"]["connections"]["DOA3"] = [13]
    top(netlist)["cells"]["ram"]["port_directions"]["DOA3"] = "output"
    top(netlist)["cells"]["t2"] = table(A=13)
    assert refusal(netlist) == "a load that is no register"


def test_both_ports_of_a_memory_have_their_own_registers():
    netlist = two_bits(more={"r2": register(13, 23, CEMUX="1 "), "t2": table(A=23)})
    top(netlist)["cells"]["ram"]["connections"]["DOA0"] = [13]
    top(netlist)["cells"]["ram"]["port_directions"]["DOA0"] = "output"
    assert run(netlist).ports == {RAM: 2}
    pins = top(netlist)["cells"]["ram"]["connections"]
    assert pins["OCEA"] == ["1"] and pins["OCEB"] == [ENABLE]


def test_a_port_that_nothing_looks_at_stays():
    netlist = design({"ram": memory(9, {"DOB0": 10})})
    found = run(netlist)
    assert not found.ports and not found.refused


@pytest.mark.parametrize("always", [{"CEMUX": "1 "}, {"CE": "1"}])
def test_a_register_without_enable_is_always_enabled(always):
    netlist = two_bits(first=always, second=always)
    run(netlist)
    assert top(netlist)["cells"]["ram"]["connections"]["OCEB"] == ["1"]


@pytest.mark.parametrize("idle", [{"LSRMUX": "INV", "LSR": "1"}, {"LSR": None}])
def test_a_reset_that_never_comes_is_none(idle):
    netlist = two_bits(first=idle)
    if idle["LSR"] is None:
        del top(netlist)["cells"]["r0"]["connections"]["LSR"]
    assert run(netlist).registers == {RAM: 2}


def test_registers_of_one_bit_become_one():
    """Whatever looked at the second one looks at the first: pins, enables, ports and names."""
    enabled = {"CE": 22}
    netlist = two_bits(
        first=enabled, second=enabled, more={"r2": register(10, 22, CE=22), "t2": table(A=22, B=30)}
    )
    top(netlist)["netnames"]["copy"] = {"bits": [22]}
    top(netlist)["ports"]["o"]["bits"] = [22]
    assert run(netlist).registers == {RAM: 3}
    cells = top(netlist)["cells"]
    assert cells["t2"]["connections"]["A"] == [20] and cells["ram"]["connections"]["OCEB"] == [20]
    assert top(netlist)["ports"]["o"]["bits"] == [20] and top(netlist)["netnames"]["copy"]["bits"] == [20]


def test_a_wide_memory_that_nothing_writes_needs_no_clock_there():
    netlist = two_bits(36, CLKA="0", CEA="0", CLKAMUX="INV")
    assert run(netlist).ports == {RAM: 1}
    ram = top(netlist)["cells"]["ram"]
    assert ram["connections"]["CLKA"] == [CLOCK] and ram["parameters"]["CLKAMUX"] == "CLKA"


def test_names_of_nets_that_are_gone_are_gone():
    netlist = two_bits()
    top(netlist)["netnames"] |= {"lost": {"bits": [10, 11]}, "undriven": {"bits": ["x"]}}
    run(netlist)
    assert "lost" not in top(netlist)["netnames"] and "undriven" in top(netlist)["netnames"]


# -- what stays ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "reason"), [
    ({"more": {"t2": table(C=11)}}, "a load that is no register"),
    ({"second": {"CE": 11}}, "a load that is no register"),
    ({"first": {"CLK": OTHER_CLOCK}}, "registers of several clocks, or of a falling one"),
    ({"first": {"CLKMUX": "INV"}, "second": {"CLKMUX": "INV"}}, "registers of several clocks, or of a falling one"),
    ({"first": {"CLK": OTHER_CLOCK}, "second": {"CLK": OTHER_CLOCK}}, "another clock"),
    ({"CLKBMUX": "INV"}, "another clock"),
    ({"first": {"CLK": "0"}, "second": {"CLK": "0"}, "CLKB": "0"}, "registers of several clocks, or of a falling one"),
    ({"first": {"LSR": 40}}, "a register with a reset"),
    ({"first": {"LSR": "1"}}, "a register with a reset"),
    ({"first": {"LSRMUX": "INV"}}, "a register with a reset"),
    ({"first": {"REGSET": "SET"}}, "a register that begins as 1"),
    ({"first": {"GSR": "ENABLED"}}, "a register that the reset of the device reaches"),
    ({"first": {"CE": OTHER_ENABLE}}, "registers of several enables, or of an inverted one"),
    ({"first": {"CEMUX": "1 "}}, "registers of several enables, or of an inverted one"),
    ({"first": {"CEMUX": "INV"}, "second": {"CEMUX": "INV"}}, "registers of several enables, or of an inverted one"),
    ({"first": {"CE": "0"}, "second": {"CE": "0"}}, "registers of several enables, or of an inverted one"),
    ({"GSR": "ENABLED"}, "the reset of the device reaches the port"),
    ({"RSTB": 40}, "a reset of the port"),
    ({"width": 36, "RSTA": 40}, "a reset of the port"),
    ({"width": 36, "CLKA": OTHER_CLOCK}, "another clock"),
    ({"width": 36, "CLKA": "0"}, "another clock"),
])  # fmt: skip
def test_a_rule_keeps_the_registers_of_a_port(what, reason):
    assert refusal(two_bits(**what)) == reason


@pytest.mark.parametrize("attribute", absorb.PINNED)
def test_registers_that_have_to_stay_do(attribute):
    netlist = two_bits()
    top(netlist)["cells"]["r1"]["attributes"][attribute] = "1"
    assert refusal(netlist) == "a register that must stay"


@pytest.mark.parametrize(("name", "attributes"), [("\\harness_capture", {}), ("word", {"keep": "1"})])
def test_registers_of_the_harness_and_of_kept_signals_stay(name, attributes):
    netlist = two_bits()
    top(netlist)["netnames"][name] = {"bits": [21], "attributes": attributes}
    assert refusal(netlist) == "a register that must stay"


@pytest.mark.parametrize("name", ["o", "DI"])
def test_an_output_of_the_module_is_a_load(name):
    netlist = two_bits()
    top(netlist)["ports"][name] = {"direction": "output", "bits": [11]}
    assert refusal(netlist) == "a load that is no register"


def test_a_pin_of_unknown_direction_is_a_load():
    netlist = two_bits(more={"s": {"type": "special", "parameters": {}, "connections": {"X": [11]}}})
    assert refusal(netlist) == "a load that is no register"


def test_a_register_that_is_there_already_stays():
    netlist = two_bits(REGMODE_B="OUTREG")
    found = run(netlist)
    assert not found.ports and not found.refused


# -- multipliers --------------------------------------------------------------------------------


def registered(**changes):
    pins = {"CLK0": CLOCK, "CE0": "1", "RST0": "0"} | changes
    return cell(MULTIPLIER, {"REG_OUTPUT_CLK": "CLK0", "REG_INPUTA_CLK": "CLK0"}, pins, {"P0": 50})


@pytest.mark.parametrize("neighbour", [None, registered()])
def test_registers_move_into_a_multiplier(neighbour):
    netlist = product()
    if neighbour:
        top(netlist)["cells"]["n"] = neighbour
    assert run(netlist).registers == {MULTIPLIER: 2}
    m = top(netlist)["cells"]["m"]
    assert m["parameters"]["REG_OUTPUT_CLK"] == "CLK0" and m["connections"]["P1"] == [21]
    assert {pin: m["connections"][pin] for pin in ("CLK0", "CE0", "RST0")} == wired(
        CLK0=CLOCK, CE0="1", RST0="0"
    )
    assert m["port_directions"]["CE0"] == "input"


def test_a_multiplier_with_a_register_keeps_what_is_behind_it():
    netlist = product()
    top(netlist)["cells"]["m"] = registered()
    top(netlist)["cells"]["m"]["connections"]["P0"] = [10]
    found = run(netlist)
    assert not found.ports and not found.refused


def test_a_multiplier_has_no_enable_of_its_own():
    netlist = product()
    for name in ("r0", "r1"):
        register = top(netlist)["cells"][name]
        register["parameters"]["CEMUX"], register["connections"]["CE"] = "CE", [ENABLE]
    assert refusal(netlist) == "an enable"


@pytest.mark.parametrize(
    "change", [{"CLK0": OTHER_CLOCK}, {"CE0": ENABLE}, {"RST0": 40}, {"CLK1": CLOCK}, {"CE2": ENABLE}]
)
def test_multipliers_that_disagree_keep_their_registers_outside(change):
    netlist = product()
    top(netlist)["cells"]["n"] = registered(**change)
    assert refusal(netlist) == "another multiplier's clock, enable or reset"


def test_multipliers_of_two_clocks_do_not_both_get_registers():
    netlist = product()
    other = product(CLK=OTHER_CLOCK)
    for name, moved in top(other)["cells"].items():
        moved["connections"] = {
            pin: [bit + 100 if isinstance(bit, int) and 10 <= bit < 90 else bit for bit in bits]
            for pin, bits in moved["connections"].items()
        }
        if name == "r1":
            moved["connections"]["CLK"] = [OTHER_CLOCK]
        top(netlist)["cells"][f"other_{name}"] = moved
    found = run(netlist)
    assert found.ports == {MULTIPLIER: 1}
    assert found.refused == {(MULTIPLIER, "another multiplier's clock, enable or reset"): 1}


# -- files --------------------------------------------------------------------------------------


def test_a_file_is_rewritten_and_the_counts_are_told(tmp_path):
    path = tmp_path / "top.json"
    more = {"ram2": memory(9, {"DOB0": 13}), "t2": table(A=13)}
    path.write_text(json.dumps(two_bits(more=more)))
    netlist, found = absorb.absorb_file(path, "harness_")
    assert json.loads(path.read_text()) == netlist
    assert str(found) == (
        "2 flip-flops into 1 ports of DP16KD\n1 ports of DP16KD not: a load that is no register"
    )
