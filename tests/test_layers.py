"""The layers of docs/architecture.md: who may import whom, read from the sources without importing them."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgemoe"
FILES = sorted(PACKAGE.rglob("*.py"))

NUMBERS = {"errors", "numeric", "interpolation", "multiplier"}
UNITS = {"config", "stream", "units"}
LAYOUT = {"isa", "memmap", "program"}
MODEL = {"checkpoint", "reference", "calibration", "quantize"}
FILES_OUT = {"output", "manifest"}
GATEWARE = NUMBERS | UNITS | {"gearbox", "isa", "core", "periph"}

ALLOWED = {
    "errors": set(),
    "numeric": {"errors"},
    "multiplier": {"errors", "numeric"},
    "interpolation": NUMBERS | {"stream"},
    "config": NUMBERS,
    "stream": NUMBERS,
    "gearbox": NUMBERS | {"stream"},
    "units": NUMBERS | UNITS,
    "protocol": {"errors", "config"},
    "isa": NUMBERS | {"config"},
    "output": {"errors"},
    "manifest": {"errors"},
    "memmap": NUMBERS | {"config", "isa"},
    "program": NUMBERS | {"config", "isa", "memmap"} | FILES_OUT,
    "checkpoint": NUMBERS | {"config"} | FILES_OUT,
    "reference": NUMBERS | {"config", "checkpoint"},
    "calibration": NUMBERS | {"config"} | MODEL,
    "quantize": NUMBERS | {"config"} | MODEL,
    "compile": NUMBERS | UNITS | LAYOUT | MODEL | FILES_OUT,
    "golden": NUMBERS | UNITS | LAYOUT | {"reference"},
    "perf": NUMBERS | UNITS | LAYOUT | {"golden", "core"},
    "core": GATEWARE,
    "periph": NUMBERS | {"config", "stream", "gearbox", "protocol", "core"},
    "verilog": GATEWARE | FILES_OUT | {"simulation"},
}
"""What each module or folder of the package may import from the package. Those that are not listed are the
layer that people see (command line, API, demo, simulation, boards): they may import everything but each
other's private parts."""

LAZY = {"simulation", "targets"}
"""Imported only inside functions, by the layer that people see: `edgemoe --help` must not load them."""


def name_of(path: Path) -> str:
    """``units/gelu.py`` is ``units``, ``config.py`` is ``config``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path, top_level: bool = False) -> list[tuple[int, str]]:
    """``(line, dotted module)`` of every import; ``from edgemoe import x`` counts as ``edgemoe.x``."""
    tree = ast.parse(path.read_text())
    if top_level:
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
        nodes = [n for node in tree.body for n in walk_outside_functions(node)]
    else:
        nodes = list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "edgemoe":
                found += [(node.lineno, f"edgemoe.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module or ""))
    return found


def walk_outside_functions(node: ast.AST):
    """What runs when the module is imported: not the bodies of functions, not imports for annotations."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from walk_outside_functions(child)


def layer(module: str) -> str | None:
    """``edgemoe.units.gelu`` is ``units``; None outside of the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "edgemoe" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = name_of(path)
    for line, module in imports(path):
        imported = layer(module)
        if imported is None or imported == own or own not in ALLOWED or module == "edgemoe.__version__":
            continue
        assert imported in ALLOWED[own], f"{path}:{line}: {own} must not import {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "units").glob("*.py")), ids=lambda p: p.name)
def test_units_do_not_import_each_other(path):
    """Parts of the shared compute unit may be composed; the golden function of a unit needs only its Spec."""
    composing = {"matmul.py", "attention.py", "router.py", "__init__.py"}
    for line, module in imports(path):
        other = module.startswith("edgemoe.units.") and module != f"edgemoe.units.{path.stem}"
        assert not other or path.name in composing, f"{path}:{line}: unit imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "periph").glob("*.py")), ids=lambda p: p.name)
def test_peripherals_know_only_the_ports_of_the_core(path):
    for line, module in imports(path):
        assert layer(module) != "core" or module == "edgemoe.core.interface", f"{path}:{line}: {module}"


def test_the_golden_machine_shares_only_checks_with_the_float_model():
    tree = ast.parse((PACKAGE / "golden.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "edgemoe.reference":
            assert all(alias.name.startswith("check_") for alias in node.names)
        assert not (isinstance(node, ast.ImportFrom) and node.module == "edgemoe" and "reference" in
                    {alias.name for alias in node.names})  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_tests_sim_or_boards(path):
    for line, module in imports(path):
        assert module.split(".")[0] not in ("tests", "sim", "boards", "examples"), f"{path}:{line}: {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_simulation_is_imported_lazily(path):
    if name_of(path) in LAZY | {"compare"}:
        return
    for line, module in imports(path, top_level=True):
        assert layer(module) not in LAZY, f"{path}:{line}: import {module} inside the function that needs it"


def test_the_command_line_imports_only_the_standard_library_at_first():
    for path in (PACKAGE / "cli" / "__init__.py", PACKAGE / "cli" / "parser.py", PACKAGE / "__init__.py"):
        for line, module in imports(path, top_level=True):
            root = module.split(".")[0]
            assert root in sys.stdlib_module_names or module in ("edgemoe", "edgemoe.errors"), (
                f"{path}:{line}"
            )


def test_every_third_party_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.split(r"[\[<>=!~ ]", text)[0].lower().replace("-", "_") for text in declared}
    modules = {"PIL": "pillow", "serial": "pyserial", "cocotb_tools": "cocotb"}
    for path in FILES:
        for line, module in imports(path):
            root = module.split(".")[0]
            known = root in sys.stdlib_module_names or root == "edgemoe"
            assert known or modules.get(root, root) in names, (
                f"{path}:{line}: {root} is not in pyproject.toml"
            )


def test_every_dependency_says_why_and_is_a_range():
    section = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0]
    lines = re.findall(r'^  "([^"]+)",?(.*)$', section.split("dependencies = [", 1)[1], re.MULTILINE)
    assert len(lines) > 10
    for dependency, rest in lines:
        assert re.search(r"#\s*\S+", rest), f"{dependency} does not say why"
        assert ">=" in dependency and "==" not in dependency, f"{dependency} must be a range"
