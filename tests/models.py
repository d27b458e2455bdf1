"""Small random models for tests of compiler, golden machine and gateware: integers drawn directly, no floats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgemoe.config import PROFILES, HardwareConfig, ModelConfig, fit
from edgemoe.quantize import Block, Linear, Norm, QuantizedModel

CONFIG = ModelConfig(
    name="tiny", channels=2, height=12, width=12, patch=(4, 3), dim=24, depth=2, heads=2, mlp_dim=40,
    tasks=("a", "b"), experts=5, expert_dim=20, top_k=2, moe_blocks=(1,), classes=(3, 6), final_norm=True,
)  # fmt: skip
"""Two blocks, one of them a mixture; no dimension is a multiple of another."""


def linear(
    rng: np.random.Generator, outputs: int, inputs: int, bits: int, gain: float, limit: int = 0
) -> Linear:
    """Random weights; outputs have about ``gain`` times the range of random inputs of full range."""
    limit = limit or (1 << (bits - 1)) - 1
    weight = rng.integers(-limit, limit + 1, (outputs, inputs))
    step = gain / (limit * np.sqrt(inputs / 3))
    shift = np.full(outputs, int(np.floor(15 - np.log2(step))), np.int64)
    multiplier = np.rint(step * 2.0**shift * rng.uniform(0.6, 1, outputs)).astype(np.int64)
    bias = rng.integers(-limit * 3000, limit * 3000, outputs)
    return Linear(weight, bias, np.minimum(multiplier, 65535), shift)


def norm(rng: np.random.Generator, dim: int, frac: int) -> Norm:
    """Random affine step with an output of about 4096."""
    return Norm(rng.integers(-20000, 20000, dim), rng.integers(-1 << 22, 1 << 22, dim), 13, 1e-6, frac)


def random_model(config: ModelConfig = CONFIG, profile: str = "w8a16", seed: int = 0) -> QuantizedModel:
    """A quantised model whose tensors use much of their range and saturate now and then."""
    rng, c, bits = np.random.default_rng(seed), config, PROFILES[profile]
    formats: dict[str, int] = {"image": 15, "embed": 12}
    pixels = c.channels * c.patch[0] * c.patch[1]
    embed = linear(rng, c.dim, pixels, bits, 0.2)
    embed = replace(embed, weight=embed.weight.reshape(c.dim, c.channels, *c.patch))
    blocks = []
    for i in range(c.depth):
        names = ("norm1", "q", "k", "v", "attention", "post_attn", "norm2", "hidden", "post_mlp")
        formats |= {f"l{i}_{n}": 11 for n in names} | {f"l{i}_scores": 13, f"l{i}_gate": 13}
        fields = {
            "norm1": norm(rng, c.dim, 11), "norm2": norm(rng, c.dim, 11),
            "q": linear(rng, c.dim, c.dim, bits, 3), "k": linear(rng, c.dim, c.dim, bits, 3),
            "v": linear(rng, c.dim, c.dim, bits, 3),
            "score": tuple((int(rng.integers(33000, 65000)), 27 + int(rng.integers(0, 3))) for _ in range(c.heads)),
            "attention_multiplier": rng.integers(33000, 65000, c.dim),
            "attention_shift": rng.integers(36 - bits, 38 - bits, c.dim),
            "proj": linear(rng, c.dim, c.dim, bits, 0.5), "realign": i % 3, "gelu_frac": 9 + i % 4,
        }  # fmt: skip
        if i in c.moe_blocks:
            fields["fc1"] = tuple(linear(rng, c.expert_dim, c.dim, bits, 2) for _ in range(c.experts))
            fields["fc2"] = tuple(linear(rng, c.dim, c.expert_dim, bits, 0.7) for _ in range(c.experts))
            gates = (linear(rng, c.experts, c.dim, 16, 9, 32639) for _ in c.tasks)
            fields["gates"] = tuple(gates)
        else:
            fields["mlp"] = linear(rng, c.mlp_dim, c.dim, bits, 2), linear(rng, c.dim, c.mlp_dim, bits, 0.5)
        blocks.append(Block(**fields))
    formats |= {"x": 11, "norm": 11} | {f"logits{t}": 9 + t for t in range(len(c.tasks))}
    heads = tuple(linear(rng, n, c.dim, bits, 1) if n else None for n in (c.classes or (0,) * len(c.tasks)))
    return QuantizedModel(
        config=c, profile=profile, b_bits=bits, formats=formats,
        factors={f"l{i}_{n}": rng.uniform(1, 2, c.dim) for i in range(c.depth) for n in ("q", "k", "v", "attention")},
        embed=embed, pos_embed=rng.integers(-8000, 8000, (c.tokens, c.dim)),
        blocks=tuple(blocks), final_norm=norm(rng, c.dim, 11) if c.final_norm else None, heads=heads,
    )  # fmt: skip


def random_image(config: ModelConfig, seed: int = 0) -> np.ndarray:
    """A uint8 image."""
    shape = (config.channels, config.height, config.width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def hardware(config: ModelConfig = CONFIG, in_lanes: int = 8, out_lanes: int = 8, port_bytes: int = 8,
             slot_sets: int = 2, profile: str = "w8a16", hidden: int = 24, **others: int) -> HardwareConfig:  # fmt: skip
    """Hardware that ``config`` fits exactly; ``hidden`` sets how a dense MLP is cut."""
    start = HardwareConfig(
        name=f"test-{in_lanes}x{out_lanes}-{slot_sets}-{port_bytes}", in_lanes=in_lanes, out_lanes=out_lanes,
        port_bytes=port_bytes, tokens=1, dim=1, row=1, hidden=hidden, image=1, heads=1, experts=1, top_k=1,
        slot_sets=slot_sets, profile=profile, memory_bytes=1 << 20, **others,
    )  # fmt: skip
    return fit(start, config)


HARDWARE = {
    "two sets": replace(hardware(in_lanes=8, out_lanes=4, port_bytes=8), top_k=5),
    "staircase": hardware(in_lanes=8, out_lanes=4, port_bytes=4, slot_sets=1),
    "wide port": hardware(in_lanes=8, out_lanes=4, port_bytes=32, norm_lanes=2, gate_lanes=2),
    "16 lanes": hardware(in_lanes=16, out_lanes=2, port_bytes=16, post_lanes=1),
    "16 bits": hardware(in_lanes=8, out_lanes=2, port_bytes=2, profile="w16a16", gate_lanes=1),
    "one slot": hardware(in_lanes=8, out_lanes=1, port_bytes=8, slot_sets=1),
    "many sets": hardware(in_lanes=8, out_lanes=4, port_bytes=16, slot_sets=5),
}
"""Lanes, slots, ports and profiles that between them use every branch of the generators."""
