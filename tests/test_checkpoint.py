"""Model files, released weights and images: what is read back, and the one line for what is not."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe import checkpoint
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput

CONFIG = ModelConfig(
    name="tiny", channels=3, height=8, width=8, patch=(4, 4), dim=8, depth=2, heads=2, mlp_dim=12,
    tasks=("a", "b"), experts=3, expert_dim=6, top_k=2, moe_blocks=(1,), classes=(4, 0), final_norm=True,
    image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.2, 0.25),
)  # fmt: skip
NANO = Path(checkpoint.__file__).parent / "data"


@pytest.fixture
def model():
    return checkpoint.random_model(CONFIG, 1)


def refuse(pattern, function, *args):
    with pytest.raises(BadInput, match=pattern) as caught:
        function(*args)
    assert "\n" not in str(caught.value)


# -- model files --------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_unchanged(tmp_path, model):
    path = tmp_path / "m.safetensors"
    path.write_text("old")
    checkpoint.save(path, CONFIG, model.tensors)
    again = checkpoint.load(path)
    assert again.config == CONFIG
    assert sorted(again.tensors) == sorted(model.tensors)
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(again[name], tensor)
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_the_packaged_model_loads():
    model = checkpoint.load(NANO / "multimnist-nano.safetensors")
    assert model.config.tasks == ("left", "right")
    assert model.get("blocks.1.moe.gate.bias") is None


def test_export_takes_the_state_of_a_module(model):
    class Module:
        def state_dict(self):
            return {name: tensor.astype(np.float64) for name, tensor in model.tensors.items()}

    assert checkpoint.export(Module(), CONFIG).parameters == model.parameters


def test_bad_files_are_refused(tmp_path, model):
    path = tmp_path / "m.safetensors"
    refuse("m.safetensors: must be a file, found no file", checkpoint.load, path)
    refuse("found a directory", checkpoint.load, tmp_path)
    checkpoint.save(path, CONFIG, model.tensors)
    whole = path.read_bytes()
    for part in (b"", whole[:5], whole[:100], whole[:-1], b"hello, this is no model at all", whole + b"x"):
        path.write_bytes(part)
        refuse("m.safetensors: not a complete safetensors file", checkpoint.load, path)


@pytest.mark.parametrize(
    ("metadata", "pattern"),
    [
        (None, r"edgemoe.format must be '1', found None"),
        ({"edgemoe.format": "2"}, r"edgemoe.format must be '1', found '2'"),
        ({"edgemoe.format": "1"}, "edgemoe.config is missing"),
        ({"edgemoe.format": "1", "edgemoe.config": "{"}, "edgemoe.config must be JSON"),
        ({"edgemoe.format": "1", "edgemoe.config": "[]"}, "must be a JSON object, found list"),
        ({"edgemoe.format": "1", "edgemoe.config": '{"patch": ["a", 4]}'}, "patch must be a list of int"),
        ({"edgemoe.format": "1", "edgemoe.config": '{"speed": 4}'}, "unknown key 'speed'"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, model, metadata, pattern):
    path = tmp_path / "m.safetensors"
    save_file(model.tensors, path, metadata)
    refuse(pattern, checkpoint.load, path)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"pos_embed": None}, "missing tensor pos_embed; "),
        ({"norm.weight": None, "norm.bias": None}, "missing 2 tensors: norm.weight, norm.bias"),
        ({"other": np.zeros(3, np.float32)}, "unexpected tensor other; "),
        ({"pos_embed": np.zeros((4, 8), np.float32)}, r"pos_embed must have shape \[5, 8\].*found \[4, 8\]"),
        ({"pos_embed": np.zeros((5, 8), np.float16)}, "pos_embed must be float32, found float16"),
        ({"norm.bias": np.full(8, np.nan, np.float32)}, "norm.bias must be finite.*8 of 8 values"),
        ({"norm.bias": np.float32([0] * 7 + [np.inf])}, "norm.bias must be finite.*1 of 8 values"),
    ],
)
def test_tensors_are_checked_against_the_schema(tmp_path, model, change, pattern):
    tensors = {name: t for name, t in (model.tensors | change).items() if t is not None}
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, {"edgemoe.format": "1", "edgemoe.config": CONFIG.to_json()})
    refuse(f"m.safetensors: {pattern}", checkpoint.load, path)


def test_the_bias_of_a_gate_may_be_left_out(model):
    tensors = dict(model.tensors)
    del tensors["blocks.1.moe.gate.bias"]
    assert checkpoint.Model(CONFIG, tensors).get("blocks.1.moe.gate.bias") is None


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (
            {"image_mean": (0.5,)},
            "image_mean must have one value for each of the 3 channels or none, found 1",
        ),
        ({"image_std": (0.5, 0.0, 0.5)}, "image_std must be positive"),
        ({"image_mean": (0.5, float("nan"), 0.5)}, "image_mean must be finite"),
    ],
)
def test_image_normalisation_is_checked(model, change, pattern):
    refuse(pattern, checkpoint.Model, replace(CONFIG, **change), model.tensors)


def test_save_names_a_path_that_cannot_be_written(tmp_path, model):
    refuse("cannot be written", checkpoint.save, tmp_path / "none" / "m", CONFIG, model.tensors)
    (tmp_path / "directory").mkdir()
    refuse("cannot be written", checkpoint.save, tmp_path / "directory", CONFIG, model.tensors)
    assert os.listdir(tmp_path) == ["directory"]


# -- released weights ---------------------------------------------------------------------------

BASE = replace(CONFIG, tasks=("x",), classes=(), final_norm=False, image_mean=(), image_std=())


@pytest.fixture
def released(tmp_path):
    """A small directory in the published layout, two tasks."""
    config = replace(BASE, tasks=("task0", "task1"))
    model = checkpoint.random_model(config, 3)
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.endswith("gate.bias")}
    theirs = {
        "mlp.fc": "fc",
        "moe.fc1": "htoh4",
        "moe.fc2": "h4toh",
        "attn.qkv": "qkv",
        "attn.proj": "attn_proj",
    }
    for name, tensor in tensors.items():
        if "gate" in name:
            for task, weight in enumerate(tensor):
                weight.tofile(tmp_path / f"l1_w_gate_T_task{task}.float32.bin")
            continue
        for ours, their in theirs.items():
            name = name.replace(ours, their)
        name = name.replace("blocks.", "l").replace(".", "_")
        tensor.tofile(tmp_path / f"{name}.float32.bin")
    return tmp_path, checkpoint.Model(config, tensors)


def test_released_weights_are_imported_under_our_names(released):
    directory, wanted = released
    model = checkpoint.import_edge_moe(directory, BASE)
    assert model.config.tasks == ("task0", "task1")
    assert sorted(model.tensors) == sorted(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        np.testing.assert_array_equal(model[name], tensor, err_msg=name)


def test_all_missing_files_are_named(released):
    directory, _ = released
    for name in ("pos_embed", "l1_htoh4_weight"):
        (directory / f"{name}.float32.bin").unlink()
    pattern = "2 files are missing: pos_embed.float32.bin, l1_htoh4_weight.float32.bin"
    refuse(pattern, checkpoint.import_edge_moe, directory, BASE)
    refuse("must be a directory", checkpoint.import_edge_moe, directory / "none", BASE)


def test_a_gap_in_the_tasks_is_named(released):
    directory, _ = released
    (directory / "l1_w_gate_T_task0.float32.bin").unlink()
    refuse("1 files are missing: l1_w_gate_T_task0", checkpoint.import_edge_moe, directory, BASE)


def test_files_of_a_wrong_size_are_named(released):
    directory, _ = released
    path = directory / "l0_qkv_bias.float32.bin"
    path.write_bytes(path.read_bytes()[:-4])
    refuse(
        "l0_qkv_bias.float32.bin has 92 bytes and must have 96", checkpoint.import_edge_moe, directory, BASE
    )
    path.write_bytes(np.full(24, np.nan, "<f4").tobytes())
    refuse("attn.qkv.bias must be finite", checkpoint.import_edge_moe, directory, BASE)


# -- images -------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)


def stored(path, array):
    np.save(path, array)
    return path


def test_images_are_loaded(tmp_path):
    from PIL import Image

    Image.fromarray(PIXELS.transpose(1, 2, 0)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(checkpoint.load_image(tmp_path / "a.png", CONFIG), PIXELS)
    image = checkpoint.load_image(stored(tmp_path / "b.npy", PIXELS / 256), CONFIG)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image * 256, PIXELS)
    images = checkpoint.load_images(tmp_path, CONFIG)
    np.testing.assert_array_equal(checkpoint.as_float(images) * 256, [PIXELS, PIXELS])
    grey = replace(CONFIG, channels=1, image_mean=(), image_std=())
    assert checkpoint.load_image(tmp_path / "a.png", grey).shape == (1, 8, 8)


def test_stacks_are_loaded(tmp_path):
    stack = np.stack([PIXELS, 255 - PIXELS])
    np.savez(tmp_path / "s.npz", images=stack, labels=np.arange(2))
    for path in (stored(tmp_path / "s.npy", stack), tmp_path / "s.npz"):
        np.testing.assert_array_equal(checkpoint.load_images(path, CONFIG), stack)
    single = checkpoint.load_images(stored(tmp_path / "one.npy", PIXELS), CONFIG)
    np.testing.assert_array_equal(single, PIXELS[None])


def test_a_float_just_below_one_stays_below_one(tmp_path):
    path = stored(tmp_path / "a.npy", np.full((3, 8, 8), np.nextafter(1, 0)))
    assert checkpoint.load_image(path, CONFIG).max() < 1


@pytest.mark.parametrize(
    ("array", "pattern"),
    [
        (PIXELS[:1], r"must be \[3, 8, 8\] .* found \[1, 8, 8\]"),
        (PIXELS.transpose(1, 2, 0), r"found \[8, 8, 3\]"),
        (PIXELS.astype(np.int64), r"pixels must be uint8, or float32 in \[0, 1\), found int64"),
        (PIXELS.astype(np.float32), r"float pixels must be in \[0, 1\), found 0 to 255"),
        (PIXELS / -255, "float pixels must be in"),
        (np.where(PIXELS > 9, 0.5, np.nan), "pixels must be finite"),
        (np.array([{}]), "not a readable .npy file"),
    ],
)
def test_bad_images_are_refused(tmp_path, array, pattern):
    path = tmp_path / "a.npy"
    np.save(path, array, allow_pickle=True)
    refuse(f"a.npy: .*{pattern}", checkpoint.load_image, path, CONFIG)


def test_bad_image_files_are_refused(tmp_path):
    from PIL import Image

    refuse("none.npy: must be a file", checkpoint.load_image, tmp_path / "none.npy", CONFIG)
    for name, content, pattern in (
        ("a.npy", b"", "not a readable .npy file"),
        ("b.png", b"\x89PNG\r\n", "not a readable .png file"),
        ("c.gif", b"", "must be .npy or .png"),
        ("d.npz", b"PK", "not a readable .npz file"),
    ):
        (tmp_path / name).write_bytes(content)
        refuse(f"{name}: .*{pattern}", checkpoint.load_images, tmp_path / name, CONFIG)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "e.png")
    refuse("must have 8 bits per channel", checkpoint.load_image, tmp_path / "e.png", CONFIG)
    two = replace(CONFIG, channels=2, image_mean=(), image_std=())
    refuse("has 2 channels, a .png gives 1, 3 or 4", checkpoint.load_image, tmp_path / "e.png", two)


def test_bad_stacks_are_refused(tmp_path):
    refuse(
        r"stack \[n, 3, 8, 8\], found \[3\]",
        checkpoint.load_images,
        stored(tmp_path / "a.npy", PIXELS[:, 0, 0]),
        CONFIG,
    )
    refuse("stack", checkpoint.load_images, stored(tmp_path / "b.npy", PIXELS[None, :, :4]), CONFIG)
    refuse("stack", checkpoint.load_images, stored(tmp_path / "c.npy", PIXELS[None][:0]), CONFIG)
    np.savez(tmp_path / "d.npz", pictures=PIXELS)
    refuse("must hold an array 'images', found pictures", checkpoint.load_images, tmp_path / "d.npz", CONFIG)
    (tmp_path / "empty").mkdir()
    refuse("must hold images", checkpoint.load_images, tmp_path / "empty", CONFIG)


def test_the_configuration_survives_json():
    assert ModelConfig.from_dict(json.loads(CONFIG.to_json())) == CONFIG
