"""The wheel holds all that the command line needs: built, installed without a network, run outside the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*argv, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))} | environment
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (path,) = out.glob("edgemoe-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An environment with the wheel, and of this one's packages all but edgemoe itself."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    # A plain path: the .pth files in it, and with them an editable edgemoe, are not followed.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    return python


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.startswith("edgemoe-")}
    package = ROOT / "edgemoe"
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert names == {str(p.relative_to(ROOT)) for p in files}
    assert {"edgemoe/data/multimnist-nano.safetensors", "edgemoe/templates/report.html"} <= names


def test_the_wheel_declares_the_command(wheel):
    with zipfile.ZipFile(wheel) as file:
        (entry,) = (n for n in file.namelist() if n.endswith("entry_points.txt"))
        assert "edgemoe = edgemoe.cli:entry" in file.read(entry).decode()
        (licence,) = (n for n in file.namelist() if n.endswith("LICENSE"))
        assert "BSD 2-Clause" in file.read(licence).decode()


def test_it_is_the_wheel_that_runs(python, tmp_path):
    code = "import edgemoe; print(edgemoe.__file__)"
    path = Path(call(python, "-c", code, cwd=tmp_path).strip())
    assert python.parents[1] in path.parents


def test_demo_runs_from_the_wheel_outside_the_checkout(python, tmp_path):
    call(python, "-m", "edgemoe", "demo", "--images", "2", "-o", "demo", cwd=tmp_path)
    report = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert report["images"] == 2 and report["mismatches"] == 0
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
