"""Released weights and calibration images that are bad, on the command line: one line, exit code 2, nothing written."""

import os

import numpy as np
import pytest

from cli import refused, tiny_model
from edgemoe import checkpoint
from edgemoe.cli import main

BAD = 2
SUFFIX = ".float32.bin"


@pytest.fixture
def released(tmp_path_factory):
    """A directory with every file of the release at its size, two tasks; all zeros, and sparse on disk."""
    folder = tmp_path_factory.mktemp("released")
    config = checkpoint.replace(checkpoint.EDGE_MOE, tasks=("task0", "task1"))
    for name, shape in checkpoint._edge_moe_files(config).items():
        with open(folder / (name + SUFFIX), "wb") as file:
            file.truncate(4 * int(np.prod(shape)))
    return folder


@pytest.fixture
def run(tmp_path, capsys):
    def command(*argv):
        return refused(capsys, tmp_path, BAD, *argv)

    return command


def resize(path, change):
    os.truncate(path, path.stat().st_size + change)


def poke(path, value):
    """Overwrite the last number of a file."""
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(value).tobytes())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(
            lambda d: resize(d / f"l3_htoh4_weight{SUFFIX}", -1),
            ["l3_htoh4_weight", "4718591 bytes", "must have 4718592", "again"], id="truncated",
        ),
        pytest.param(
            lambda d: resize(d / f"l3_htoh4_weight{SUFFIX}", -4718592),
            ["l3_htoh4_weight", "has 0 bytes", "must have 4718592"], id="empty",
        ),
        pytest.param(
            lambda d: resize(d / f"l0_fc1_weight{SUFFIX}", 4),
            ["l0_fc1_weight", "589828 bytes", "must have 589824"], id="too long",
        ),
        pytest.param(
            lambda d: (d / f"l5_w_gate_T_task0{SUFFIX}").unlink(),
            ["1 files are missing", "l5_w_gate_T_task0", "release"], id="no gate of a task",
        ),
        pytest.param(
            lambda d: (d / f"l9_w_gate_T_task1{SUFFIX}").unlink(), ["l9_w_gate_T_task1"], id="no gate of the last task"
        ),
        pytest.param(lambda d: poke(d / f"l7_qkv_bias{SUFFIX}", np.nan), ["blocks.7.attn.qkv.bias", "finite"], id="NaN"),
        pytest.param(
            lambda d: poke(d / f"l11_h4toh_weight{SUFFIX}", np.inf), ["blocks.11.moe.fc2.weight", "finite"],
            id="infinity",
        ),
        pytest.param(lambda d: poke(d / f"pos_embed{SUFFIX}", -np.inf), ["pos_embed", "finite"], id="-infinity"),
    ],
)  # fmt: skip
def test_released_weights(run, released, tmp_path, spoil, words):
    spoil(released)
    message = run("import", "edge-moe", released, "-o", tmp_path / "m.safetensors")
    assert all(word in message for word in words), message


def test_good_weights_are_imported(released, tmp_path, capsys):
    """The directory that the cases above spoil is not refused for another reason."""
    assert main(["import", "edge-moe", str(released), "-o", str(tmp_path / "m.safetensors")]) == 0
    assert "m3vit-tiny, 2 tasks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 1, 8, 9), np.uint8), ["[n, 1, 8, 8]", "[4, 1, 8, 9]"]),
        (np.zeros((4, 3, 8, 8), np.uint8), ["[n, 1, 8, 8]", "[4, 3, 8, 8]"]),
        (np.zeros((0, 1, 8, 8), np.uint8), ["[n, 1, 8, 8]", "[0, 1, 8, 8]"]),
        (np.full((2, 1, 8, 8), 1.0, np.float32), ["[0, 1)", "1"]),
        (np.full((2, 1, 8, 8), -0.01, np.float32), ["[0, 1)", "-0.01"]),
        (np.full((2, 1, 8, 8), np.nan, np.float32), ["finite"]),
        (np.zeros((2, 1, 8, 8), np.int64), ["uint8", "int64"]),
    ],
)
def test_calibration_images(run, tmp_path, images, words):
    model = tiny_model(tmp_path / "tiny.safetensors")
    np.save(tmp_path / "images.npy", images)
    message = run(
        "compile", model, "--hardware", "nano", "--calibration", tmp_path / "images.npy", "-o", tmp_path / "build"
    )  # fmt: skip
    assert "images.npy" in message and all(word in message for word in words), message


@pytest.mark.parametrize("verb", ["golden", "sim", "perf", "compare"])
@pytest.mark.parametrize("value", [1.0, -0.5, np.inf])
def test_images_of_a_build(tmp_path, run, capsys, verb, value):
    """Every verb that takes an image refuses values outside of [0, 1)."""
    model = tiny_model(tmp_path / "tiny.safetensors")
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 8, 8), np.float32))
    argv = [
        "compile",
        model,
        "--hardware",
        "nano",
        "--calibration",
        tmp_path / "images.npy",
        "-o",
        tmp_path / "b",
    ]
    assert main([str(a) for a in argv]) == 0
    capsys.readouterr()
    np.save(tmp_path / "image.npy", np.full((1, 8, 8), value, np.float32))
    message = run(verb, tmp_path / "b", "--image", tmp_path / "image.npy", "--json", tmp_path / "report.json")
    assert "image.npy" in message and ("[0, 1)" in message or "finite" in message), message
