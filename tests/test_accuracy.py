"""Accuracy of the golden machine against float: the packaged model, and M3ViT-tiny where its files are."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemoe import calibration, checkpoint, reference
from edgemoe.compile import compile_model
from edgemoe.config import NAMED, fit
from edgemoe.golden import Golden
from edgemoe.quantize import quantize

ROOT = Path(__file__).parents[1]
DATA = ROOT / "edgemoe" / "data"

SAME_ROUTES = {"w8a16": 37, "w16a16": 56}
UNSEEN = {"w8a16": 34, "w16a16": 54}
"""dB of the final x with the reference's routes: the calibrated image, and images that no calibration saw."""
ROUTES = {"w8a16": 0.97, "w16a16": 0.99}
"""Tokens with the reference's set of experts, free-running."""


def build(model, hardware, profile, images):
    target = fit(replace(NAMED[hardware], profile=profile, acc_bits=0), model.config)
    return Golden(compile_model(quantize(model, profile, images), target))


# -- nano ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano():
    model = checkpoint.load(DATA / "multimnist-nano.safetensors")
    with np.load(DATA / "multimnist-test.npz") as data:
        return model, data["images"], data["labels"]


@pytest.mark.parametrize("profile", ["w8a16", "w16a16"])
def test_nano_classifies_as_well_as_float(nano, profile):
    """Calibration on the last images, test on the others."""
    model, images, labels = nano
    seen, unseen = images[-32:], images[:-32]
    machine = build(model, "nano", profile, seen)
    for task in range(2):
        golden = machine.run_batch(unseen, task)["logits"]
        float_ = reference.run_batch(model, unseen, task)
        right = [(logits.argmax(axis=1) == labels[:-32, task]).mean() for logits in (golden, float_)]
        assert abs(right[0] - right[1]) <= 0.01, f"task {task}: golden {right[0]:.3f}, float {right[1]:.3f}"
        same = (golden.argmax(axis=1) == float_.argmax(axis=1)).mean()
        assert same >= 0.99, f"task {task}: {same:.3f} of the decisions are those of float"


# -- M3ViT --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def m3vit(tmp_path_factory):
    """The model with the seeded experts, and the released image."""
    source = Path(os.environ.get("EDGEMOE_M3VIT", ROOT.parent / "shared" / "m3vit"))
    if not (source / "make_experts.py").is_file():
        pytest.skip(f"M3ViT-tiny is not in {source}; set EDGEMOE_M3VIT to the folder with make_experts.py")
    directory = tmp_path_factory.mktemp("m3vit")
    subprocess.run([sys.executable, str(source / "make_experts.py"), str(directory)], check=True)
    image = np.fromfile(directory / "image.float32.bin", "<f4").reshape(3, 128, 256)
    return checkpoint.import_edge_moe(directory), image


@pytest.fixture(scope="module", params=["w8a16", "w16a16"])
def machine(request, m3vit):
    model, image = m3vit
    return request.param, build(model, "m3vit-256", request.param, image[None])


def measure(model, golden, image, task):
    """dB with the reference's routes, and the agreement of the golden machine's own routes."""
    wanted = reference.run(model, image, task)
    forced = golden.run(image, task, routes=wanted)
    agreement, _ = reference.route_agreement(wanted, golden.run(image, task))
    return reference.decibel(wanted["x"], forced["x"]), agreement


@pytest.mark.parametrize("task", [0, 1])
def test_m3vit_on_the_calibrated_image(m3vit, machine, task):
    (model, image), (profile, golden) = m3vit, machine
    db, agreement = measure(model, golden, image, task)
    assert db >= SAME_ROUTES[profile], f"{db:.1f} dB"
    assert agreement >= ROUTES[profile], f"{100 * agreement:.1f} % of the routes"


def test_m3vit_on_unseen_images(m3vit, machine):
    """A cut-out at twice the size, a shifted and darker image, and one that is nothing but a 1/f spectrum."""
    (model, image), (profile, golden) = m3vit, machine
    unseen = {
        "cut-out": np.kron(image[:, 20:84, 60:188], np.ones((1, 2, 2), np.float32)),
        "shifted": np.float32(0.8) * np.roll(image, (37, 71), (1, 2)),
        "synthetic": calibration.natural_image(model.config, 1000).astype(np.float32),
    }
    results = [
        (name, task, *measure(model, golden, u, task)) for name, u in unseen.items() for task in (0, 1)
    ]
    for name, task, db, _ in results:
        assert db >= UNSEEN[profile], f"{name}, task {task}: {db:.1f} dB"
    assert np.mean([agreement for *_, agreement in results]) >= ROUTES[profile], results
