"""Outputs that are complete or absent: written beside their place, moved there when they are finished."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgemoe.errors import BadInput

MANIFEST = "manifest.json"
"""Every output directory has one; a directory with one may be replaced."""


@contextmanager
def directory(path: Path | str) -> Iterator[Path]:
    """Yield an empty directory that replaces ``path`` at the end, or vanishes if the block raises.

    Raises:
        BadInput: ``path`` is a file, cannot be written, or is a directory with something else in it.
    """
    target = Path(path)
    _check_directory(target)
    with _beside(target, directory=True) as temporary:
        yield temporary
        if target.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            target.replace(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)


def check_directory(path: Path | str) -> None:
    """Raise `BadInput` now if `directory` would: before the work, not after it. Leaves nothing behind."""
    _check_directory(Path(path))
    try:
        with _beside(Path(path), directory=True):
            raise _NothingWritten
    except _NothingWritten:
        pass


def check_file(path: Path | str) -> None:
    """Raise `BadInput` now if `file` would: before the work, not after it. Leaves nothing behind."""
    try:
        with file(path):
            raise _NothingWritten
    except _NothingWritten:
        pass


class _NothingWritten(Exception):
    """Makes `_beside` clean up after a check."""


def _check_directory(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise BadInput(f"{target}: the output must be a directory, found a file; choose another -o")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise BadInput(f"{target}: holds files that edgemoe did not write; empty it or choose another -o")


@contextmanager
def file(path: Path | str) -> Iterator[Path]:
    """Yield the name of a file that replaces ``path`` at the end, or vanishes if the block raises.

    A link is followed; a device or pipe (``/dev/stdout``) is written to, not replaced.

    Raises:
        BadInput: ``path`` is a directory or cannot be written.
    """
    target = Path(os.path.realpath(path))
    if _is_special(Path(path)):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / Path(path).name
            yield temporary
            with open(path, "ab") as stream:
                stream.write(temporary.read_bytes())
        return
    if target.is_dir():
        raise BadInput(f"{target}: the output must be a file, found a directory; choose another -o")
    with _beside(target, directory=False) as temporary:
        yield temporary
        temporary.replace(target)


def _is_special(path: Path) -> bool:
    """Whether there is something at ``path`` that is neither a file nor a directory."""
    return path.exists() and not path.is_file() and not path.is_dir() or str(path).startswith("/dev/")


def write_json(path: Path | str, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON, atomically; numbers that JSON does not have (inf, NaN) become null."""
    with file(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


@contextmanager
def _beside(target: Path, directory: bool) -> Iterator[Path]:
    """A temporary name in the folder of ``target``; folders made for it go too if the block raises."""
    target = target.absolute()
    try:
        made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise BadInput(f"{target}: cannot be written ({error.strerror}); choose another -o") from None
    try:
        place.chmod(0o755)
        name = place / target.name
        if directory:
            name.mkdir()
        yield name
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    shutil.rmtree(place, ignore_errors=True)


def _plain(value: Any) -> Any:
    """``value`` with numpy scalars and arrays, tuples and paths as what JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def cache() -> Path:
    """Where generated Verilog and simulators are kept: $EDGEMOE_CACHE, or edgemoe/ in the user's cache folder."""
    named = os.environ.get("EDGEMOE_CACHE")
    general = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(general) / "edgemoe"
