"""Runs the command line inside the test's process, and files to run it on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgemoe import checkpoint
from edgemoe.cli import main
from edgemoe.config import ModelConfig

TINY = ModelConfig(
    name="tiny", channels=1, height=8, width=8, patch=(4, 4), dim=16, depth=2, heads=2, mlp_dim=32,
    experts=4, expert_dim=16, top_k=2, moe_blocks=(1,), tasks=("a", "b"), classes=(3, 2), final_norm=True,
)  # fmt: skip


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below ``folder`` and the bytes of the files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refused(capsys, folder: Path, code: int, *argv) -> str:
    """The message of a command that must fail with ``code`` and leave ``folder`` as it was."""
    before = tree(folder)
    found = main([str(a) for a in argv])
    out = capsys.readouterr()
    assert found == code, f"exit code {found}, must be {code}: {out.err}"
    assert out.err.strip() and len(out.err.splitlines()) <= 2, out.err
    assert "Traceback" not in out.out + out.err
    assert tree(folder) == before, "something was left behind"
    return out.err


def tiny_model(path: Path, tensors=None, **changes) -> Path:
    """A small model file; ``changes`` to its configuration are written without a check."""
    import safetensors.numpy

    values = json.loads(TINY.to_json()) | changes
    names = ModelConfig.__dataclass_fields__
    try:
        config = replace(
            TINY, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items() if k in names}
        )
    except Exception:
        config = TINY
    made = checkpoint.random_model(config, 1).tensors | (tensors or {})
    metadata = {"edgemoe.format": checkpoint.FORMAT, "edgemoe.config": json.dumps(values)}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in made.items()}, path, metadata)
    return path
