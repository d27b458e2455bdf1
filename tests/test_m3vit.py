"""M3ViT-tiny with the released weights, whole, through the gateware with 256 multipliers, for both tasks."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example():
    """The script behind `make m3vit`."""
    spec = importlib.util.spec_from_file_location("m3vit_run", ROOT / "examples" / "m3vit" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def weights():
    source = Path(os.environ.get("EDGEMOE_M3VIT", ROOT.parent / "shared" / "m3vit"))
    if not (source / "make_experts.py").is_file():
        pytest.skip(f"M3ViT-tiny is not in {source}; set EDGEMOE_M3VIT to the folder with make_experts.py")
    return source


@pytest.mark.long
@pytest.mark.parametrize("task", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_whole_image_at_256_multipliers(example, weights, tmp_path, task):
    (outcome,) = example.run(weights, tmp_path, "m3vit-256", None, lambda what: None, [task])
    assert outcome.mismatches == 0 and outcome.tensors > 400
    assert outcome.utilisation >= 0.95 and outcome.cycles <= 3_220_000
    assert outcome.db_forced >= 37 and outcome.routes_equal >= 0.97
    assert outcome.external_bytes <= 17_350_000


def test_weights_that_are_not_there(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--weights", str(tmp_path), "-o", str(tmp_path / "out")])
    assert example.main() == 2
    assert "EDGEMOE_M3VIT" in capsys.readouterr().err
