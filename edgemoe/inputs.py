"""What a user names on the command line: models, images, tasks, routes; and the packaged examples."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemoe import checkpoint
from edgemoe.checkpoint import Model
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput

NANO = "nano"
"""Name of the packaged model and of its test images."""

CALIBRATION = 16
"""The last packaged images calibrate the nano model; reports of single images come from the others."""


def packaged(file: str) -> Path:
    """A file of `edgemoe.data`."""
    return Path(str(resources.files("edgemoe.data") / file))


def model(name: str | os.PathLike[str]) -> Model:
    """A model file, or the packaged model ``nano``."""
    return checkpoint.load(model_path(name))


def model_path(name: str | os.PathLike[str]) -> Path:
    """The file of a model."""
    return packaged("multimnist-nano.safetensors") if str(name) == NANO else Path(name)


def lasting_name(name: str | os.PathLike[str]) -> str:
    """How a manifest names a model: by absolute path, or ``nano``."""
    return NANO if str(name) == NANO else str(Path(name).resolve())


def test_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The packaged images (n, 1, 36, 36) and their labels (n, tasks)."""
    with np.load(packaged("multimnist-test.npz")) as file:
        return file["images"], file["labels"]


def image(text: str | os.PathLike[str], config: ModelConfig) -> NDArray[Any]:
    """The image (channels, height, width) that ``text`` names: a file, ``FILE.npz:N`` or ``nano:N``.

    Raises:
        BadInput: no such file or number, or an image that the model cannot take.
    """
    match = re.fullmatch(r"(.+):(\d+)", str(text))
    if match is None or Path(text).exists():
        return checkpoint.load_image(text, config)
    name, number = match[1], int(match[2])
    stack = packaged("multimnist-test.npz") if name == NANO else name
    images = checkpoint.load_images(stack, config)
    if number >= len(images):
        raise BadInput(f"{text}: {name} has images 0..{len(images) - 1}, found {number}")
    return images[number]


def calibration(text: str | os.PathLike[str] | None, config: ModelConfig) -> NDArray[Any]:
    """The images that set a model's formats; without ``text`` the last packaged ones, if they fit the model."""
    if text is not None:
        return checkpoint.load_images(text, config)
    images, _ = test_images()
    if images.shape[1:] != (config.channels, config.height, config.width):
        raise BadInput(
            f"model {config.name} takes {config.channels}x{config.height}x{config.width} images and has no packaged "
            "ones to calibrate with; give some with --calibration"
        )
    return images[-CALIBRATION:]


def task(text: str | int, config: ModelConfig) -> int:
    """The number of the task that ``text`` names or numbers."""
    names = list(config.tasks)
    if str(text) in names:
        return names.index(str(text))
    if re.fullmatch(r"\d+", str(text)) and int(text) < len(names):
        return int(text)
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    raise BadInput(f"--task must be one of {known} of model {config.name}; found {text!r}")


def routes(path: str | os.PathLike[str] | None) -> dict[str, NDArray[Any]] | None:
    """The arrays of a routes file, or None without one; the model's shapes are checked by who uses them."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise BadInput(f"{path}: must be a .npz file with arrays l{{L}}_topk, found no file; check --routes")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files if re.fullmatch(r"l\d+_topk", name)}
    except Exception as error:  # numpy raises zip, EOF, value and header errors of many kinds
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: not a readable .npz file ({reason}); write it with numpy.savez") from None
    if not found:
        raise BadInput(f"{path}: must hold arrays l{{L}}_topk, found none; a --trace output has them")
    return found
