"""report.html of the demo: the numbers of demo.json and the images, in one self-contained page."""

from __future__ import annotations

import base64
import struct
import zlib
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemoe.errors import ToolMissing

COLOURS = {
    "input": "#8896a8",
    "norm": "#b9c3cf",
    "patch embedding": "#5a91e8",
    "q, k, v, proj": "#2f6fdb",
    "QK": "#17a2a2",
    "AV": "#57c4b0",
    "dense MLP": "#8a5fd1",
    "gates": "#e0b13a",
    "experts": "#c9711a",
    "head": "#c8566b",
    "other": "#8896a8",
}
"""Colour of each kind of work; the kinds that multiply are those of `ModelConfig.macs`."""

LEFT, RIGHT, WIDTH, ROW = 90, 60, 1000, 32
"""Geometry of the charts: margins, width and height of a row, in units of the SVG."""


def render(demo: dict[str, Any], images: NDArray[Any]) -> str:
    """The page for the report of one demo.

    Args:
        demo: the object of demo.json (`edgemoe.demo`).
        images: the images of ``demo["results"]``, in the same order; uint8 or [0, 1).
    """
    try:
        import jinja2
    except ModuleNotFoundError:
        raise ToolMissing("jinja2 is not installed; install it with: pip install 'edgemoe[report]'") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        resources.files("edgemoe.templates").joinpath("report.html").read_text()
    )
    return template.render(
        d=demo,
        pictures=[png(image) for image in images],
        timeline=timeline(demo),
        experts=[expert_map(block, demo["task_names"]) for block in demo["experts"]],
    )


def png(image: NDArray[Any]) -> str:
    """An image (channels, height, width) as the data URI of a PNG file."""
    pixels = image if image.dtype == np.uint8 else np.clip(image * 256, 0, 255).astype(np.uint8)
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1]
    channels, height, width = pixels.shape
    rows = pixels.transpose(1, 2, 0).reshape(height, width * channels)
    data = zlib.compress(np.hstack([np.zeros((height, 1), np.uint8), rows]).tobytes(), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = b"".join(
        _chunk(kind, body) for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def timeline(demo: dict[str, Any]) -> dict[str, Any]:
    """Rows of bars, one row per block, and the sums by kind of work."""
    steps = demo["descriptors"]
    total = sum(step["cycles"] for step in steps)
    groups: dict[str, list[dict[str, Any]]] = {}
    for step in steps:
        groups.setdefault(step["group"], []).append(step)
    longest = max((sum(s["cycles"] for s in group) for group in groups.values()), default=1) or 1
    scale = (WIDTH - LEFT - RIGHT) / longest
    rows = []
    for index, (name, group) in enumerate(groups.items()):
        x, bars = float(LEFT), []
        for step in group:
            width = step["cycles"] * scale
            title = f"{step['name']}: {step['cycles']:,} cycles"
            bars.append({"x": x, "width": width, "colour": COLOURS[step["kind"]], "title": title})
            x += width
        rows.append(
            {
                "name": name,
                "y": index * ROW,
                "bars": bars,
                "end": x,
                "cycles": sum(s["cycles"] for s in group),
            }
        )
    return {
        "cycles": total,
        "width": WIDTH,
        "height": len(rows) * ROW,
        "rows": rows,
        "kinds": [_kind(name, demo, total) for name in COLOURS if any(s["kind"] == name for s in steps)],
    }


def _kind(name: str, demo: dict[str, Any], total: int) -> dict[str, Any]:
    cycles = sum(step["cycles"] for step in demo["descriptors"] if step["kind"] == name)
    macs = demo["macs"].get(name, 0)
    lanes = demo["hardware"]["in_lanes"] * demo["hardware"]["out_lanes"]
    return {
        "name": name,
        "colour": COLOURS[name],
        "cycles": cycles,
        "share": cycles / total if total else 0.0,
        "macs": macs,
        "utilisation": macs / (cycles * lanes) if cycles else 0.0,
    }


def expert_map(block: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
    """A row per task, a cell per expert, shaded by the share of the tokens."""
    shares = np.asarray(block["tokens"], float)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    width = (WIDTH - LEFT) / shares.shape[1]
    top = shares.max() or 1.0
    rows = [
        {
            "name": tasks[task],
            "y": 22 + task * 36,
            "cells": [
                {"x": LEFT + e * width, "width": width - 4, "shade": 0.85 * s / top, "text": f"{s:.0%}"}
                for e, s in enumerate(row)
            ],
        }
        for task, row in enumerate(shares)
    ]
    return {"number": block["block"], "width": WIDTH, "height": 22 + 36 * len(rows), "rows": rows}
