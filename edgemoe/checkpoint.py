"""Model files, released weights and images: everything that is read is checked here, once.

A model file is safetensors with the configuration in its metadata (docs/model-file.md). Every rule that a
file breaks raises `BadInput` with one line: file, rule, value found, remedy.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput

FORMAT = "1"
"""Value of the metadata key ``edgemoe.format``."""

IMAGE_SUFFIXES = (".npy", ".png")

EDGE_MOE = ModelConfig(
    name="m3vit-tiny", channels=3, height=128, width=256, patch=(16, 16), dim=192, depth=12, heads=3,
    mlp_dim=768, experts=16, expert_dim=384, top_k=2, moe_blocks=(1, 3, 5, 7, 9, 11), tasks=("task0",),
)  # fmt: skip
"""The published M3ViT-tiny; the tasks are those whose gates a released directory holds."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A configuration and its float32 tensors, by the names of docs/model-file.md; always consistent.

    Raises:
        BadInput: on construction, if a tensor is missing, unknown, of another shape, or not finite.
    """

    config: ModelConfig
    tensors: dict[str, FloatArray]
    source: str = "model"

    def __post_init__(self) -> None:
        check_config(self.config, self.source)
        check_tensors(self.config, self.tensors, self.source)

    def __getitem__(self, name: str) -> FloatArray:
        return self.tensors[name]

    def get(self, name: str) -> FloatArray | None:
        """The tensor, or None if the model has no such (optional) tensor."""
        return self.tensors.get(name)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.size for tensor in self.tensors.values())


# -- schema -------------------------------------------------------------------------------------


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model file, optional ones included (see `optional_names`)."""
    c, dim = config, config.dim
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.weight": (dim, c.channels, *c.patch),
        "patch_embed.bias": (dim,),
        "pos_embed": (c.tokens, dim),
    }
    for i in range(c.depth):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in _block_shapes(c, i).items()}
    if c.final_norm:
        shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    for task, classes in enumerate(c.classes):
        if classes:
            shapes |= {f"heads.{task}.weight": (classes, dim), f"heads.{task}.bias": (classes,)}
    return shapes


def _block_shapes(c: ModelConfig, block: int) -> dict[str, tuple[int, ...]]:
    dim = c.dim
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,),
    }  # fmt: skip
    if block in c.moe_blocks:
        e, hidden = c.experts, c.expert_dim
        return shapes | {
            "moe.gate.weight": (len(c.tasks), e, dim), "moe.gate.bias": (len(c.tasks), e),
            "moe.fc1.weight": (e, hidden, dim), "moe.fc1.bias": (e, hidden),
            "moe.fc2.weight": (e, dim, hidden), "moe.fc2.bias": (e, dim),
        }  # fmt: skip
    return shapes | {
        "mlp.fc1.weight": (c.mlp_dim, dim), "mlp.fc1.bias": (c.mlp_dim,),
        "mlp.fc2.weight": (dim, c.mlp_dim), "mlp.fc2.bias": (dim,),
    }  # fmt: skip


def optional_names(config: ModelConfig) -> set[str]:
    """Tensors that a model file may leave out: the biases of the gates."""
    return {f"blocks.{i}.moe.gate.bias" for i in config.moe_blocks}


def check_config(config: ModelConfig, source: str) -> None:
    """Rules of a model file that `ModelConfig` leaves open: the image normalisation.

    Raises:
        BadInput: naming ``source`` and the rule.
    """
    for key in ("image_mean", "image_std"):
        values = getattr(config, key)
        if len(values) not in (0, config.channels):
            raise BadInput(
                f"{source}: {key} must have one value for each of the {config.channels} channels or none, "
                f"found {len(values)}"
            )
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
            raise BadInput(f"{source}: {key} must be finite numbers, found {list(values)}")
    if any(v <= 0 for v in config.image_std):
        raise BadInput(f"{source}: image_std must be positive, found {list(config.image_std)}")


def check_tensors(config: ModelConfig, tensors: Mapping[str, NDArray[Any]], source: str) -> None:
    """Raise `BadInput` unless ``tensors`` are exactly those of ``config``: names, shapes, float32, finite."""
    shapes = expected_shapes(config)
    if missing := [n for n in shapes if n not in tensors and n not in optional_names(config)]:
        raise BadInput(
            f"{source}: missing {_listing(missing)}; a model file holds every tensor of its configuration"
        )
    if extra := [n for n in tensors if n not in shapes]:
        raise BadInput(f"{source}: unexpected {_listing(extra)}; remove it or correct the configuration")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise BadInput(
                f"{source}: {name} must be float32, found {tensor.dtype}; convert it before saving"
            )
        if tensor.shape != shapes[name]:
            raise BadInput(
                f"{source}: {name} must have shape {list(shapes[name])} by its configuration, "
                f"found {list(tensor.shape)}"
            )
        if bad := int(np.count_nonzero(~np.isfinite(tensor))):
            raise BadInput(
                f"{source}: {name} must be finite, found NaN or infinity in {bad} of {tensor.size} values"
            )


def _listing(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    kind = "tensor" if len(names) == 1 else f"{len(names)} tensors:"
    return f"{kind} {shown}" + (", ..." if len(names) > limit else "")


# -- model files --------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file.

    Raises:
        BadInput: the file does not exist, is truncated or no safetensors, or breaks the schema.
    """
    from safetensors import SafetensorError, safe_open

    path = _existing(path)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"{path}: not a complete safetensors file ({reason}); export the model again"
        ) from None
    return Model(_config_from(metadata, str(path)), tensors, str(path))


def _config_from(metadata: dict[str, str], source: str) -> ModelConfig:
    found = metadata.get("edgemoe.format")
    if found != FORMAT:
        raise BadInput(
            f"{source}: metadata edgemoe.format must be {FORMAT!r}, found {found!r}; see docs/model-file.md"
        )
    try:
        values = json.loads(metadata["edgemoe.config"])
    except KeyError:
        raise BadInput(f"{source}: metadata edgemoe.config is missing; see docs/model-file.md") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{source}: metadata edgemoe.config must be JSON ({error})") from None
    if not isinstance(values, dict):
        raise BadInput(
            f"{source}: metadata edgemoe.config must be a JSON object, found {type(values).__name__}"
        )
    for key in ("patch", "moe_blocks", "classes"):
        for item in values.get(key) or ():
            if not isinstance(item, int) or isinstance(item, bool):
                raise BadInput(f"{source}: {key} must be a list of int, found {item!r} in it")
    return ModelConfig.from_dict(values, source)


def save(path: str | os.PathLike[str], config: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file atomically: readers see the old file or the whole new one."""
    from safetensors.numpy import save as serialise

    model = Model(config, {n: np.ascontiguousarray(t, np.float32) for n, t in tensors.items()}, str(path))
    data = serialise(model.tensors, {"edgemoe.format": FORMAT, "edgemoe.config": config.to_json()})
    path = Path(path)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        Path(partial).unlink(missing_ok=True)
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None


def export(module: Any, config: ModelConfig) -> Model:
    """The model of a PyTorch module whose ``state_dict`` has the names of docs/model-file.md.

    Nothing of PyTorch is imported; any object with ``state_dict()`` of array-likes will do.
    """
    tensors = {}
    for name, value in module.state_dict().items():
        value = value.detach().cpu() if hasattr(value, "detach") else value
        tensors[name] = np.ascontiguousarray(value, dtype=np.float32)
    return Model(config, tensors, type(module).__name__)


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "no file"
        raise BadInput(f"{path}: must be a file, found {found}; check the path")
    return path


# -- released weights ---------------------------------------------------------------------------


def import_edge_moe(directory: str | os.PathLike[str], base: ModelConfig = EDGE_MOE) -> Model:
    """The model of a directory in the layout of the public Edge-MoE release: raw little-endian float32.

    Files are ``{name}.float32.bin``: patch_embed_*, pos_embed, l{i}_norm{1,2}_*, l{i}_qkv_*,
    l{i}_attn_proj_*, l{i}_fc{1,2}_* (dense), l{i}_w_gate_T_task{t}, l{i}_htoh4_* and l{i}_h4toh_* (experts).
    All tasks whose gates are found are imported, as ``task0``, ``task1``, ...

    Args:
        directory: the unpacked ``weights`` folder.
        base: the architecture; its tasks are ignored.

    Raises:
        BadInput: one line with every missing file, or every file of a wrong size.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise BadInput(f"{directory}: must be a directory of .float32.bin files, found none; check the path")
    config = replace(base, tasks=tuple(f"task{t}" for t in range(_task_count(directory, base))))
    files = _edge_moe_files(config)
    _check_files(directory, files)
    arrays = {
        name: np.fromfile(directory / f"{name}.float32.bin", "<f4").astype(np.float32).reshape(shape)
        for name, shape in files.items()
    }
    return Model(config, _from_edge_moe(config, arrays), str(directory))


def _task_count(directory: Path, config: ModelConfig) -> int:
    pattern = re.compile(r"l\d+_w_gate_T_task(\d+)\.float32\.bin")
    tasks = [int(m[1]) for entry in directory.iterdir() if (m := pattern.fullmatch(entry.name))]
    return max(tasks, default=0) + 1 if config.moe_blocks else len(config.tasks)


def _edge_moe_files(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every file by its name without suffix."""
    dim = c.dim
    files: dict[str, tuple[int, ...]] = {
        "patch_embed_weight": (dim, c.channels, *c.patch),
        "patch_embed_bias": (dim,),
        "pos_embed": (c.tokens, dim),
    }
    for i in range(c.depth):
        layers = {"qkv": (3, dim, dim), "attn_proj": (dim, dim)}
        if i in c.moe_blocks:
            files |= {f"l{i}_w_gate_T_task{t}": (c.experts, dim) for t in range(len(c.tasks))}
            layers |= {"htoh4": (c.experts, c.expert_dim, dim), "h4toh": (c.experts, dim, c.expert_dim)}
        else:
            layers |= {"fc1": (c.mlp_dim, dim), "fc2": (dim, c.mlp_dim)}
        for norm in ("norm1", "norm2"):
            files |= {f"l{i}_{norm}_weight": (dim,), f"l{i}_{norm}_bias": (dim,)}
        for layer, shape in layers.items():
            files |= {f"l{i}_{layer}_weight": shape, f"l{i}_{layer}_bias": shape[:-1]}
    return files


def _check_files(directory: Path, files: dict[str, tuple[int, ...]]) -> None:
    paths = {name: directory / f"{name}.float32.bin" for name in files}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        raise BadInput(
            f"{directory}: {len(missing)} files are missing: {', '.join(missing)}; copy them from the release"
        )
    wrong = [
        f"{path.name} has {path.stat().st_size} bytes and must have {4 * math.prod(files[name])}"
        for name, path in paths.items()
        if path.stat().st_size != 4 * math.prod(files[name])
    ]
    if wrong:
        raise BadInput(f"{directory}: {'; '.join(wrong)}; copy these files from the release again")


def _from_edge_moe(c: ModelConfig, arrays: dict[str, FloatArray]) -> dict[str, FloatArray]:
    tensors = {
        "patch_embed.weight": arrays["patch_embed_weight"],
        "patch_embed.bias": arrays["patch_embed_bias"],
        "pos_embed": arrays["pos_embed"],
    }
    for i in range(c.depth):
        names = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "qkv", "attn.proj": "attn_proj"}
        if i in c.moe_blocks:
            names |= {"moe.fc1": "htoh4", "moe.fc2": "h4toh"}
            gates = [arrays[f"l{i}_w_gate_T_task{t}"] for t in range(len(c.tasks))]
            tensors[f"blocks.{i}.moe.gate.weight"] = np.stack(gates)
        else:
            names |= {"mlp.fc1": "fc1", "mlp.fc2": "fc2"}
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                tensors[f"blocks.{i}.{ours}.{kind}"] = arrays[f"l{i}_{theirs}_{kind}"]
        for kind, shape in (("weight", (3 * c.dim, c.dim)), ("bias", (3 * c.dim,))):
            name = f"blocks.{i}.attn.qkv.{kind}"
            tensors[name] = tensors[name].reshape(shape)
    return tensors


# -- images -------------------------------------------------------------------------------------


def load_image(path: str | os.PathLike[str], config: ModelConfig) -> NDArray[Any]:
    """One image (channels, height, width): uint8, or float32 in [0, 1).

    A .npy holds such an array (float64 is converted); a .png is read as grey or RGB by the number of channels.

    Raises:
        BadInput: wrong suffix, unreadable file, wrong size, type or range.
    """
    path = _existing(path)
    array = _read_array(path, config)
    shape = (config.channels, config.height, config.width)
    if array.shape != shape:
        raise BadInput(
            f"{path}: an image of model {config.name} must be {list(shape)} (channels, height, width), "
            f"found {list(array.shape)}; crop or resize it"
        )
    return _checked_pixels(array, str(path))


def load_images(path: str | os.PathLike[str], config: ModelConfig) -> NDArray[Any]:
    """Images (n, channels, height, width) of a directory of .npy and .png files (in order of their names),
    of ``images`` in a .npz, of a .npy stack, or of a single image file.

    Uint8 if all images are; else float32.

    Raises:
        BadInput: no images, or one that `load_image` would refuse.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise BadInput(f"{path}: must hold images ({', '.join(IMAGE_SUFFIXES)}), found none")
        images = [load_image(file, config) for file in files]
        if len({image.dtype for image in images}) > 1:
            images = [as_float(image).astype(np.float32) for image in images]
        return np.stack(images)
    path = _existing(path)
    if path.suffix.lower() not in (".npy", ".npz"):
        return load_image(path, config)[None]
    array = _read_array(path, config)
    if path.suffix.lower() == ".npy" and array.ndim == 3:
        return load_image(path, config)[None]
    shape = (config.channels, config.height, config.width)
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise BadInput(
            f"{path}: images of model {config.name} must be a stack [n, {', '.join(map(str, shape))}], "
            f"found {list(array.shape)}"
        )
    return _checked_pixels(array, str(path))


def as_float(image: NDArray[Any]) -> NDArray[np.float64]:
    """Pixels in [0, 1): a uint8 u is u/256, floats are unchanged."""
    return image / 256.0 if image.dtype == np.uint8 else np.asarray(image, np.float64)


def _read_array(path: Path, config: ModelConfig) -> NDArray[Any]:
    suffix = path.suffix.lower()
    if suffix == ".png":
        return _read_png(path, config)
    if suffix not in (".npy", ".npz"):
        raise BadInput(
            f"{path}: an image must be .npy or .png (a stack .npy or .npz), found {suffix or 'no suffix'}"
        )
    try:
        found = np.load(path, allow_pickle=False)
        if suffix == ".npy":
            return np.asarray(found)
        with found:
            if "images" not in found:
                raise BadInput(
                    f"{path}: must hold an array 'images', found {', '.join(found.files) or 'nothing'}"
                )
            return found["images"]
    except BadInput:
        raise
    except Exception as error:  # numpy raises zip, EOF, value and header errors of many kinds
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: not a readable {suffix} file ({reason}); write it with numpy.save") from None


def _read_png(path: Path, config: ModelConfig) -> NDArray[np.uint8]:
    from PIL import Image

    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if config.channels not in modes:
        raise BadInput(
            f"{path}: model {config.name} has {config.channels} channels, a .png gives 1, 3 or 4; use .npy"
        )
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise BadInput(
                    f"{path}: a .png must have 8 bits per channel, found mode {file.mode}; convert it or use .npy"
                )
            pixels = np.asarray(file.convert(modes[config.channels]), np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: not a readable .png file ({reason})") from None
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _checked_pixels(array: NDArray[Any], source: str) -> NDArray[Any]:
    if array.dtype == np.uint8:
        return array
    if array.dtype not in (np.float32, np.float64):
        raise BadInput(
            f"{source}: pixels must be uint8, or float32 in [0, 1), found {array.dtype}; convert them"
        )
    if not np.isfinite(array).all():
        raise BadInput(f"{source}: pixels must be finite, found NaN or infinity")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high >= 1:
        raise BadInput(
            f"{source}: float pixels must be in [0, 1), found {low:g} to {high:g}; "
            "divide by 256 and leave mean and standard deviation to the model"
        )
    return np.minimum(array.astype(np.float32), np.float32(1 - 2.0**-24))


# -- synthetic ----------------------------------------------------------------------------------


def random_model(config: ModelConfig, seed: int) -> Model:
    """A model whose activations have the statistics of a trained one: for tests of numbers and cycles.

    Weights keep the variance of their input, gains lie around 1, gates spread the tokens over the experts.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        if re.fullmatch(r"(.*\.)?norm[12]?\.weight", name):
            tensor = 1 + 0.2 * random.standard_normal(shape)
        elif name.endswith("bias"):
            tensor = 0.1 * random.standard_normal(shape)
        elif name == "pos_embed":
            tensor = 0.5 * random.standard_normal(shape)
        else:
            fan_in = math.prod(shape[1:]) if name == "patch_embed.weight" else shape[-1]
            gain = 2.0 if name.startswith("patch_embed") or ".gate." in name else 1.0
            tensor = gain * random.standard_normal(shape) / math.sqrt(fan_in)
        tensors[name] = tensor.astype(np.float32)
    return Model(config, tensors, f"random model of seed {seed}")
