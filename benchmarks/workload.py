"""M3ViT-tiny: the released weights, image and routes where they are there, else its shape alone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from edgemoe import api, checkpoint, perf
from edgemoe.compile import compile_model
from edgemoe.config import NAMED, PROFILES, HardwareConfig, ModelConfig
from edgemoe.golden import Golden
from edgemoe.program import Program
from edgemoe.quantize import Block, Linear, Norm, QuantizedModel, quantize

ROOT = Path(__file__).parents[1]
WEIGHTS = Path(os.environ.get("EDGEMOE_M3VIT", ROOT.parent / "shared" / "m3vit"))
BUILD = ROOT / "build" / "bench"
RELEASED = "released image"
KINDS = ("balanced", "skewed", "one")
BASE = "m3vit-256"
"""The hardware of every table that has only one."""


@dataclass(frozen=True)
class Workload:
    """What is run.

    Attributes:
        model: of the profile w8a16.
        image: the released one, or None.
        routes: by name, the released image's tasks first.
        machine: the golden machine of the released weights, or None.
    """

    model: QuantizedModel
    image: np.ndarray | None
    routes: dict[str, perf.Routes]
    machine: Golden | None = None

    @property
    def released(self) -> bool:
        """Whether the weights are the released ones."""
        return self.image is not None

    @property
    def first(self) -> str:
        """The routing of tables that have only one: the released image, task 0, or balanced."""
        return next(iter(self.routes))

    def program(self, hardware: str | HardwareConfig, **changes: int) -> Program:
        """The model compiled for a hardware."""
        base = NAMED[hardware] if isinstance(hardware, str) else hardware
        return compile_model(self.model, replace(base, **changes))


def load(weights: Path = WEIGHTS) -> Workload:
    """The released model if ``weights`` has it, quantised as `edgemoe compile` does; else zeros of its shape."""
    if not (weights / "make_experts.py").is_file():
        config = replace(checkpoint.EDGE_MOE, tasks=("task0", "task1"))
        return Workload(zeros(config), None, {kind: perf.routing(kind, config) for kind in KINDS})
    complete = BUILD / "weights"
    subprocess.run([sys.executable, str(weights / "make_experts.py"), str(complete)], check=True)
    model = checkpoint.import_edge_moe(complete)
    c = model.config
    image = np.fromfile(complete / "image.float32.bin", "<f4").reshape(c.channels, c.height, c.width)
    quantised = quantize(model, "w8a16", image[None])
    machine = Golden(compile_model(quantised, NAMED[BASE]))
    routes: dict[str, perf.Routes] = {}
    for task, name in enumerate(c.tasks):
        tensors = machine.run(image, task)
        routes[f"{RELEASED}, {name}"] = {k: v for k, v in tensors.items() if k.endswith("_topk")}
    return Workload(
        quantised, image, routes | {kind: perf.routing(kind, c) for kind in KINDS}, machine
    )  # fmt: skip


@cache
def nano(hardware: str = "nano") -> Program:
    """The packaged model, compiled."""
    return api.compile(api.load_model("nano"), hardware)


def zeros(config: ModelConfig, profile: str = "w8a16") -> QuantizedModel:
    """A model of zeros without heads: cycles and bytes depend on shapes and routes only."""
    c = config

    def linear(outputs: int, *inputs: int) -> Linear:
        none = np.zeros(outputs, np.int64)
        return Linear(np.zeros((outputs, *inputs), np.int16), none, none, none + 32)

    def norm() -> Norm:
        return Norm(np.zeros(c.dim, np.int64), np.zeros(c.dim, np.int64), 13, c.norm_eps, 11)

    def block(number: int) -> Block:
        fields = {name: linear(c.dim, c.dim) for name in ("q", "k", "v", "proj")}
        if number in c.moe_blocks:
            fields["fc1"] = (linear(c.expert_dim, c.dim),) * c.experts
            fields["fc2"] = (linear(c.dim, c.expert_dim),) * c.experts
            fields["gates"] = tuple(linear(c.experts, c.dim) for _ in c.tasks)
        else:
            fields["mlp"] = linear(c.mlp_dim, c.dim), linear(c.dim, c.mlp_dim)
        return Block(
            norm1=norm(), norm2=norm(), score=((0, 32),) * c.heads, realign=0, gelu_frac=11,
            attention_multiplier=np.zeros(c.dim, np.int64), attention_shift=np.full(c.dim, 32), **fields,
        )  # fmt: skip

    return QuantizedModel(
        config=c, profile=profile, b_bits=PROFILES[profile], formats={}, factors={},
        embed=linear(c.dim, c.channels, *c.patch), pos_embed=np.zeros((c.tokens, c.dim), np.int64),
        blocks=tuple(block(i) for i in range(c.depth)), final_norm=norm() if c.final_norm else None,
        heads=(None,) * len(c.tasks),
    )  # fmt: skip
