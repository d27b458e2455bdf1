"""`floorplan`: sites that exist, slots side by side, and other cells where their wires pull them."""

import itertools
import json
import re

import numpy as np
import pytest

from edgemoe import floorplan, synthesis, wires
from edgemoe.errors import ToolMissing
from edgemoe.units.matmul import DotArray, MatmulSpec

SMALL = floorplan.Sites((4, 13), (10, 20), (30,))
DEVICES = {"85k": floorplan.LFE5U_85F, "25k": floorplan.LFE5U_25F}


def cell(kind, inputs=(), outputs=(), **pins):
    """``inputs`` and ``outputs`` are nets; ``pins`` are inputs with names."""
    connections = {f"I{i}": [bit] for i, bit in enumerate(inputs)} | {pin: [bit] for pin, bit in pins.items()}
    directions = dict.fromkeys(connections, "input")
    connections |= {f"O{i}": [bit] for i, bit in enumerate(outputs)}
    return {
        "type": kind,
        "attributes": {},
        "port_directions": directions | {f"O{i}": "output" for i in range(len(outputs))},
        "connections": connections,
    }


def netlist(cells):
    return {"modules": {"top": {"attributes": {"top": "1"}, "ports": {}, "cells": cells, "netnames": {}}}}


def array(slots, pairs):
    """Slots of ``pairs`` adders, each with a block RAM that feeds its first multiplier; net 1 is the operand of all."""
    cells, bit = {}, itertools.count(2)
    for slot in range(slots):
        row = next(bit)
        cells[f"core.rows{slot}"] = cell(floorplan.RAM, outputs=[row])
        for pair in range(pairs):
            a, b, total = (next(bit) for _ in range(3))
            path = f"core.array.slot{slot}.U$"
            cells[f"{path}{3 * pair}"] = cell(floorplan.MULTIPLIER, [1, row], [a])
            cells[f"{path}{3 * pair + 1}"] = cell(floorplan.MULTIPLIER, [1], [b])
            cells[f"{path}{3 * pair + 2}"] = cell(floorplan.ADDER, outputs=[total], MA0=a, MB0=b)
            cells[f"core.sum{slot}_{pair}"] = cell("TRELLIS_FF", [total], [next(bit)])
    cells["core.a"] = cell("TRELLIS_FF", outputs=[1])
    return cells


def test_a_slot_has_neighbouring_sites_and_its_block_ram_near():
    cells = array(4, 2)
    sites = floorplan.floorplan(netlist(cells), SMALL)
    assert len(set(sites.values())) == len(sites) == 4 * 7
    assert {name: c["attributes"].get("BEL") for name, c in cells.items()} == {n: sites.get(n) for n in cells}
    for slot in range(4):
        place = floorplan.points(site for name, site in sites.items() if f"slot{slot}." in name)
        assert len(set(place[:, 1])) == 1 and np.ptp(place[:, 0]) < 9
        (ram,) = floorplan.points([sites[f"core.rows{slot}"]])
        assert abs(ram[0] - place[:, 0].mean()) < 5
        for pair in range(2):
            first, second, adder = (sites[f"core.array.slot{slot}.U${3 * pair + k}"] for k in range(3))
            assert (first, second, adder) in {SMALL.half(y, n) for y in (10, 20) for n in range(4)}


def test_rows_are_walked_back_and_forth():
    sites = floorplan.floorplan(netlist(array(4, 2)), SMALL)
    columns = [floorplan.points([sites[f"core.array.slot{s}.U$0"]])[0] for s in range(4)]
    assert [tuple(c) for c in columns] == [(4, 10), (13, 10), (13, 20), (4, 20)]


@pytest.mark.parametrize(
    "cells", [array(9, 1), array(1, 5), {f"r{i}": cell(floorplan.RAM) for i in range(9)}]
)
def test_what_does_not_fit_is_left_alone(cells):
    before = json.dumps(cells)
    assert floorplan.floorplan(netlist(cells), SMALL) == {}
    assert json.dumps(cells) == before


def test_other_block_rams_lie_where_their_wires_pull_them():
    cells = array(4, 2)
    for slot in (0, 1):  # to either end of a row
        cells[f"core.near{slot}"] = cell(
            floorplan.RAM, cells[f"core.sum{slot}_0"]["connections"]["O0"], [900 + slot]
        )
        cells[f"core.then{slot}"] = cell("TRELLIS_FF", [900 + slot], [910 + slot])
    sites = floorplan.floorplan(netlist(cells), SMALL)
    (left,), (right,) = (floorplan.points([sites[f"core.near{slot}"]]) for slot in (0, 1))
    assert left[0] < right[0]


def test_multipliers_of_a_unit_lie_side_by_side():
    """Two units pull to the middle, where the slots are; one by one their multipliers would go to either end of a row."""
    cells = array(2, 2)
    for i, path in enumerate(("core.writer.gelu", "core.writer.gelu", "core.norm", "core.norm")):
        cells[f"{path}.product{i}"] = cell(floorplan.MULTIPLIER, [1], [900 + i])
        cells[f"then{i}"] = cell("TRELLIS_FF", [900 + i, 1], [910 + i])
    places = floorplan.Sites((4, 13, 22), (10,), (30,))
    sites = floorplan.floorplan(netlist(cells), places)
    for path in ("core.writer.gelu", "core.norm"):
        place = floorplan.points(site for name, site in sites.items() if name.startswith(f"{path}."))
        assert len(place) == 2 and np.ptp(place[:, 0]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_places_for_a_unit_are_near_each_other(seed):
    drawn = np.random.default_rng(seed)
    places, wanted = drawn.uniform(0, 100, (12, 2)), drawn.uniform(40, 60, (3, 2))

    def cost(chosen):
        at = places[list(chosen)]
        return ((at - at.mean(0)) ** 2).sum() + ((at - wanted.mean(0)) ** 2).sum()

    chosen = floorplan.together(wanted, places)
    assert len(set(chosen)) == 3
    # among a place and the two nearest to it, none is better
    for place in places:
        others = np.argsort(((places - place) ** 2).sum(1))[:3]
        assert cost(chosen) <= cost(others) + 1e-9


def test_free_cells_share_the_way_between_fixed_ones():
    """A chain between two fixed cells is least long in squares where all links are equal."""
    names = [f"f{i}" for i in range(6)]
    cells = {name: cell("TRELLIS_FF", [i], [i + 1]) for i, name in enumerate(names)}
    fixed = {"f0": "X0/Y0/EBR0", "f5": "X50/Y10/EBR0"}
    where = wires.Wires(cells).relaxed(fixed, np.array([25.0, 5.0]))
    assert np.allclose(where, np.linspace((0, 0), (50, 10), 6), atol=0.05)


def test_a_cell_is_pulled_to_its_neighbours():
    cells = {
        "a": cell("TRELLIS_FF", [], [1]),
        "b": cell("TRELLIS_FF", [1], [2]),
        "c": cell("TRELLIS_FF", [2], []),
    }
    found = wires.Wires(cells)
    assert np.allclose(found.pull(["b"], np.array([(0, 0), (99, 99), (10, 4)], float)), [(5, 2)])
    assert found.sources(["b", "c"], "TRELLIS_FF") == ["a", "b"] and found.driver(2) == "b"


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_as_good_as_any_exchange(seed):
    drawn = np.random.default_rng(seed)
    wanted, places = drawn.uniform(0, 10, (6, 2)), drawn.uniform(0, 10, (7, 2))
    chosen = floorplan.assign(wanted, places)
    assert len(set(chosen)) == 6

    def cost(order):
        return ((wanted - places[list(order)]) ** 2).sum()

    best = min(cost(order) for order in itertools.permutations(range(7), 6))
    assert best <= cost(chosen) <= 1.2 * best
    for i, j in itertools.combinations(range(6), 2):
        other = chosen.copy()
        other[[i, j]] = other[[j, i]]
        assert cost(chosen) <= cost(other) + 1e-9


def test_neighbours_stay_neighbours_where_all_want_one_place():
    wanted = np.array([(5 + 0.01 * i, 0) for i in range(8)])
    places = np.array([(10 * i, 0) for i in range(8)], float)
    assert list(floorplan.assign(wanted, places)) == list(range(8))


def nextpnr(device, path, folder):
    try:
        program = synthesis.find("NEXTPNR_ECP5", "nextpnr-ecp5")
    except ToolMissing as error:
        pytest.skip(f"no place and route: {error}")
    command = [
        program,
        f"--{device}",
        "--package",
        "CABGA381",
        "--json",
        path.name,
        "--no-route",
        "--lpf-allow-unconstrained",
    ]
    return synthesis.run(command, folder, "nextpnr.log")


@pytest.mark.parametrize("device", DEVICES)
def test_the_device_has_all_these_sites_and_no_others(device, tmp_path):
    sites = DEVICES[device]
    cells = {}
    for kind in (floorplan.RAM, floorplan.MULTIPLIER):
        for i, site in enumerate(sites.of(kind)):
            cells[f"{kind}{i}"] = cell(kind) | {"parameters": {}, "attributes": {"BEL": site}}
    (tmp_path / "top.json").write_text(json.dumps(netlist(cells)))
    log = nextpnr(device, tmp_path / "top.json", tmp_path)
    for kind in (floorplan.RAM, floorplan.MULTIPLIER):
        used, have = re.findall(rf"{kind}: +(\d+)/ +(\d+)", log)[-1]
        assert used == have == str(len(sites.of(kind)))


@pytest.mark.parametrize("device", DEVICES)
def test_nextpnr_accepts_the_plan_of_an_array(device, tmp_path):
    synthesis.elaborate(DotArray(MatmulSpec(4, 4, 8, 32)), tmp_path / "top.il", "ecp5")
    synthesis.run_yosys(synthesis.find("YOSYS", "yosys"), synthesis.script("ecp5"), tmp_path)
    assert floorplan.floorplan_file(tmp_path / "top.json", DEVICES[device]) == 16 + 8
    assert "16/" in re.findall(r"MULT18X18D: +\S+", nextpnr(device, tmp_path / "top.json", tmp_path))[-1]
