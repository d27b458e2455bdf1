"""Bad input: at most two lines that say what, the rule, the value and the remedy; the right exit code; no rest."""

import os
import subprocess
import sys

import numpy as np
import pytest

from cli import TINY, refused, tiny_model
from edgemoe import checkpoint

BAD, MISSING, UNFIT = 2, 3, 4


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path / "tiny.safetensors")


@pytest.fixture
def run(tmp_path, capsys):
    def command(code, *argv):
        return refused(capsys, tmp_path, code, *argv)

    return command


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, words",
    [
        (["demo", "--imges", "3"], ["--imges", "did you mean --images"]),
        (["simm"], ["simm", "did you mean sim"]),
        ([], ["VERB", "edgemoe --help"]),
        (["info"], ["MODEL"]),
        (["demo", "--images", "many"], ["--images", "many"]),
        (["demo", "--images", "0"], ["--images", "1..", "0"]),
        (["demo", "--images", "1000"], ["--images", "1000"]),
        (["sim", "x", "--image", "y", "--waves-cycles", "9:3"], ["--waves-cycles", "A:B", "9:3"]),
        (["perf", "x", "--routing", "random"], ["--routing", "balanced", "random"]),
        (["perf", "x", "--routing", "one", "--image", "nano:0"], ["--routing", "--image"]),
        (["compile", "nano", "--hardware", "nano", "--pixel-bytes", "3", "-o", "x"], ["--pixel-bytes", "3"]),
        (["verilog", "--hardware", "nano"], ["--output"]),
    ],
)
def test_options(run, tmp_path, argv, words):
    message = run(BAD, *argv)
    assert all(word in message for word in words), message


# -- model files --------------------------------------------------------------------------------


def test_missing_model_file(run, tmp_path):
    assert "none.safetensors" in run(BAD, "info", tmp_path / "none.safetensors")


def test_directory_as_model_file(run, tmp_path):
    assert "directory" in run(BAD, "info", tmp_path)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_truncated_model(run, tmp_path, model, size):
    whole = model.read_bytes()
    model.write_bytes(whole[:size])
    assert "not a complete safetensors file" in run(BAD, "info", model)


def test_file_that_is_no_model(run, tmp_path):
    (tmp_path / "m.safetensors").write_text("hello, I am a text file and not a model\n" * 40)
    assert "safetensors" in run(BAD, "info", tmp_path / "m.safetensors")


def test_wrong_shape(run, tmp_path):
    bad = {"patch_embed.bias": np.zeros(15, np.float32)}
    message = run(BAD, "info", tiny_model(tmp_path / "m", bad))
    assert "patch_embed.bias" in message and "[16]" in message and "[15]" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(run, tmp_path, value):
    bad = np.zeros(16, np.float32)
    bad[3] = value
    message = run(BAD, "info", tiny_model(tmp_path / "m", {"patch_embed.bias": bad}))
    assert "patch_embed.bias" in message and "1 of 16" in message


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"top_k": 5}, ["top_k 5", "4 experts"]),
        ({"heads": 3}, ["dim 16", "heads 3"]),
        ({"height": 10}, ["10x8", "4x4"]),
        ({"colour": "red"}, ["colour"]),
        ({"depth": "two"}, ["depth", "two"]),
        ({"moe_blocks": [7]}, ["moe_blocks", "7"]),
        ({"classes": [3]}, ["classes"]),
    ],
)
def test_configuration_of_a_model(run, tmp_path, changes, words):
    message = run(BAD, "info", tiny_model(tmp_path / "m", **changes))
    assert all(word in message for word in words), message


def test_import_names_every_missing_file(run, tmp_path):
    message = run(BAD, "import", "edge-moe", tmp_path, "-o", tmp_path / "out.safetensors")
    assert "patch_embed_weight.float32.bin" in message


def test_import_of_an_unknown_layout(run, tmp_path):
    assert "edge-moe" in run(BAD, "import", "pytorch", tmp_path, "-o", tmp_path / "out.safetensors")


# -- images and tasks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((1, 8, 9), np.uint8), ["[1, 8, 8]", "[1, 8, 9]"]),
        (np.zeros((3, 8, 8), np.uint8), ["[3, 8, 8]"]),
        (np.zeros((8, 8), np.uint8), ["[8, 8]"]),
        (np.zeros((1, 8, 8), np.int32), ["int32"]),
        (np.full((1, 8, 8), 1.5, np.float32), ["1.5"]),
        (np.full((1, 8, 8), -0.1, np.float32), ["-0.1"]),
        (np.full((1, 8, 8), np.nan, np.float32), ["NaN"]),
    ],
)
def test_images(run, tmp_path, model, array, words):
    np.save(tmp_path / "image.npy", array)
    message = run(BAD, "reference", model, "--image", tmp_path / "image.npy", "-o", tmp_path / "out.npz")
    assert "image.npy" in message and all(word in message for word in words), message


def test_image_that_is_no_image(run, tmp_path, model):
    for name in ("a.npy", "a.png", "a.jpeg"):
        (tmp_path / name).write_text("no image")
        assert name in run(BAD, "reference", model, "--image", tmp_path / name)


def test_image_that_does_not_exist(run, tmp_path, model):
    assert "none.npy" in run(BAD, "reference", model, "--image", tmp_path / "none.npy")
    assert "0..255" in run(BAD, "reference", "nano", "--image", "nano:256")
    assert "[n, 1, 8, 8]" in run(BAD, "reference", model, "--image", "nano:0")


@pytest.mark.parametrize("task", ["2", "-1", "c", "1.5"])
def test_tasks(run, tmp_path, model, task):
    np.save(tmp_path / "image.npy", np.zeros((1, 8, 8), np.uint8))
    message = run(BAD, "reference", model, "--image", tmp_path / "image.npy", f"--task={task}")
    assert task in message and "0 (a), 1 (b)" in message


@pytest.mark.parametrize(
    "routes, words",
    [
        ({"l1_topk": np.zeros((5, 2), np.int64)}, ["l1_topk", "different"]),
        ({"l1_topk": np.full((5, 2), 4)}, ["0..3", "4"]),
        ({"l1_topk": np.zeros((4, 2), np.int64)}, ["[5, 2]", "[4, 2]"]),
        ({"other": np.zeros(3)}, ["l{L}_topk"]),
    ],
)
def test_routes(run, tmp_path, model, routes, words):
    np.save(tmp_path / "image.npy", np.zeros((1, 8, 8), np.uint8))
    np.savez(tmp_path / "routes.npz", **routes)
    message = run(
        BAD, "reference", model, "--image", tmp_path / "image.npy", "--routes", tmp_path / "routes.npz"
    )
    assert all(word in message for word in words), message


# -- hardware -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("in_lanes = 12", ["in_lanes", "power of two", "12"]),
        ("acc_bits = 20", ["acc_bits is 20", "needs 32"]),
        ("lanes = 8", ["lanes", "in_lanes"]),
        ('in_lanes = "8"', ["in_lanes", "'8'"]),
        ("slot_sets = 15", ["slot_sets", "1..14", "15"]),
        ('profile = "w4a4"', ["profile", "w8a16", "w4a4"]),
        ("in_lanes = ", ["TOML"]),
        ('base = "micro"', ["base", "nano", "micro"]),
    ],
)
def test_hardware_files(run, tmp_path, text, words):
    path = tmp_path / "hw.toml"
    path.write_text(text + "\n" if "base" in text else f'base = "nano"\n{text}\n')
    message = run(BAD, "verilog", "--hardware", path, "-o", tmp_path / "out")
    assert all(word in message for word in words), message


def test_hardware_that_does_not_exist(run, tmp_path):
    message = run(BAD, "verilog", "--hardware", "nanno", "-o", tmp_path / "out")
    assert "nanno" in message and "m3vit-64" in message


def test_model_that_exceeds_the_hardware(run, tmp_path):
    big = checkpoint.random_model(checkpoint.replace(TINY, dim=80, heads=2), 1)
    checkpoint.save(tmp_path / "big.safetensors", big.config, big.tensors)
    images = np.zeros((1, 1, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", images)
    message = run(
        UNFIT, "compile", tmp_path / "big.safetensors", "--hardware", "nano",
        "--calibration", tmp_path / "images.npy", "-o", tmp_path / "build",
    )  # fmt: skip
    assert "dim 80" in message and "has 64" in message and "--fit" in message


def test_profile_that_does_not_exist(run, tmp_path):
    message = run(BAD, "compile", "nano", "--hardware", "nano", "--profile", "w4a4", "-o", tmp_path / "build")
    assert "w4a4" in message and "w16a16" in message


def test_calibration_is_needed(run, tmp_path, model):
    assert "--calibration" in run(BAD, "compile", model, "--hardware", "nano", "-o", tmp_path / "build")


# -- builds and outputs -------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["golden", "sim", "compare", "perf"])
def test_directory_that_is_no_build(run, tmp_path, verb):
    message = run(BAD, verb, tmp_path, "--image", "nano:0")
    assert "edgemoe compile" in message


@pytest.mark.parametrize(
    "argv",
    [
        ["verilog", "--hardware", "nano"],
        ["compile", "nano", "--hardware", "nano"],
        ["demo", "--images", "1"],
    ],
)
def test_output_directories_that_cannot_be_written(run, tmp_path, argv):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    assert "file" in run(BAD, *argv, "-o", tmp_path / "file")
    assert "cannot be written" in run(BAD, *argv, "-o", tmp_path / "file" / "below")
    assert "did not write" in run(BAD, *argv, "-o", tmp_path / "folder")


def test_output_files_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for option in ("-o", "--json"):
        argv = ["reference", "nano", "--image", "nano:0", option]
        assert "folder" in run(BAD, *argv, tmp_path / "folder")
        assert "cannot be written" in run(BAD, *argv, tmp_path / "file" / "below.npz")


# -- tools --------------------------------------------------------------------------------------


def test_missing_tools_are_named_with_their_remedy(tmp_path):
    """With an empty PATH neither perl, make nor a compiler is found."""
    environment = {**os.environ, "PATH": str(tmp_path), "CXX": ""}
    for argv in (["doctor"], ["demo", "--images", "1", "-o", str(tmp_path / "demo")]):
        done = subprocess.run(
            [sys.executable, "-m", "edgemoe", *argv], env=environment, capture_output=True, text=True
        )
        assert done.returncode == MISSING, done.stderr
        assert "Traceback" not in done.stderr and "install" in done.stderr.splitlines()[-1]
        assert not any(tmp_path.iterdir())
