"""A unit is one file with four faces: Spec, golden function, Component, cycle formula; and a test of its own.

That golden and gateware are equal under all stalls, and that the cycles are those of the formula, is shown by
``tests/units/test_<unit>.py``; here stands which units there are, and that none of them lacks a face.
"""

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import NamedTuple

import pytest
from amaranth.lib import wiring

ROOT = Path(__file__).parents[1]


class Faces(NamedTuple):
    spec: str
    golden: str
    components: tuple[str, ...]
    cycles: tuple[str, ...]


UNITS = {
    "attention": Faces("ReorderSpec", "schedule", ("ReorderUnit",), ("steps", "cycles")),
    "gelu": Faces("GeluSpec", "gelu", ("Gelu",), ("cycles",)),
    "layernorm": Faces("LayerNormSpec", "layernorm", ("LayerNorm",), ("cycles",)),
    "matmul": Faces("MatmulSpec", "matmul", ("DotArray",), ("cycles",)),
    "requantise": Faces("RequantiseSpec", "requantise", ("Requantise",), ("cycles",)),
    "residual": Faces("ResidualSpec", "accumulate", ("Residual",), ("cycles",)),
    "router": Faces("RouterSpec", "route", ("Router",), ("cycles",)),
    "softmax": Faces(
        "SoftmaxSpec",
        "softmax",
        ("Exponential", "RowMaximum", "Weigher", "Reciprocal"),
        ("exponential_cycles", "weigher_cycles", "reciprocal_cycles"),
    ),
}


def test_every_unit_is_registered():
    files = {path.stem for path in (ROOT / "edgemoe" / "units").glob("*.py")} - {"__init__"}
    assert files == set(UNITS)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_has_four_faces(name):
    module, faces = importlib.import_module(f"edgemoe.units.{name}"), UNITS[name]
    spec = getattr(module, faces.spec)
    assert dataclasses.is_dataclass(spec) and spec.__dataclass_params__.frozen
    for component in faces.components:
        assert issubclass(getattr(module, component), wiring.Component)
    for function in (faces.golden, *faces.cycles):
        assert inspect.isfunction(getattr(module, function))


@pytest.mark.parametrize("name", UNITS)
def test_every_face_is_documented(name):
    module, faces = importlib.import_module(f"edgemoe.units.{name}"), UNITS[name]
    for face in (faces.spec, faces.golden, *faces.components, *faces.cycles):
        assert inspect.getdoc(getattr(module, face)), f"{name}.{face} has no docstring"
    assert module.__doc__


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_has_a_test_with_stalls_and_cycles(name):
    text = (ROOT / "tests" / "units" / f"test_{name}.py").read_text()
    assert "stall" in text.lower() and any(cycles in text for cycles in UNITS[name].cycles)
