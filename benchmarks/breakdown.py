"""Where the cycles go, by kind of descriptor."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.document import count, percent, section, table
from benchmarks.workload import BASE, Workload
from edgemoe import perf

PARTS = ("busy", "padding", "weights", "activations", "drain")
HARDWARE = (BASE, "m3vit-1024")
KINDS = {
    "pos_embed": "positional embedding", "image": "image", "embed": "patch embedding", "norm1": "LayerNorm before attention",
    "q": "q", "k": "k", "v": "v", "scores": "QK", "attention": "AV", "post_attn": "projection",
    "norm2": "LayerNorm before MLP", "hidden": "MLP", "gate": "gate", "topk": "top-k and queues", "x": "output", "": "end",
}  # fmt: skip


def kind(cost: perf.Cost) -> str:
    """``l3_scores_h1`` is ``scores``."""
    name = cost.name.split()[0] if cost.name else ""
    return re.sub(r"_h\d+$", "", re.sub(r"^l\d+_", "", name))


def measure(work: Workload) -> dict[str, Any]:
    """Sums over the descriptors of each kind, for the first routing."""
    found = {}
    for name in HARDWARE:
        program = work.program(name)
        routed = {n for n, d in enumerate(program.descriptors()) if d.routed}
        prediction = perf.predict(program, work.routes[work.first])
        sums: dict[str, dict[str, float]] = {}
        for cost in prediction.descriptors:
            label = KINDS[kind(cost)]
            label = "experts" if cost.number in routed else "dense MLP" if label == "MLP" else label
            row = sums.setdefault(label, dict.fromkeys(("descriptors", "cycles", "bytes", *PARTS), 0))
            row["descriptors"] += 1
            for key in ("cycles", "bytes", *PARTS):
                row[key] += getattr(cost, key)
        found[name] = {"cycles": prediction.cycles, "kinds": sums}
    return {"routing": work.first, "hardware": found}


def section_text(values: dict[str, Any]) -> str:
    """A table per hardware."""
    parts = [
        f"Shares of all cycles in per cent, routing: {values['routing']}. *Busy*: multiplications that count, as if the array were full; "
        "*padding*: zeros in rows, words and tokens, second digits of 16-bit gates, the pace of the writer; *weights*, *activations*: the "
        "array waits for operand B, or A; *drain*: pipelines that run empty and all that the array does not do (negative where "
        "a descriptor's own work lies in the time of the one before, as q's behind LayerNorm)."
    ]
    for name, found in values["hardware"].items():
        total = found["cycles"]
        rows = [
            [label, row["descriptors"], count(row["bytes"]), *(percent(row[k] / total, 2) for k in ("cycles", *PARTS))]
            for label, row in found["kinds"].items()
        ]  # fmt: skip
        sums = {
            k: sum(row[k] for row in found["kinds"].values())
            for k in ("descriptors", "bytes", "cycles", *PARTS)
        }
        shares = (f"**{percent(sums[k] / total, 2)}**" for k in ("cycles", *PARTS))
        rows.append(["**sum**", sums["descriptors"], count(sums["bytes"]), *shares])
        head = ("", ">descriptors", ">bytes", ">cycles", *(f">{p}" for p in PARTS))
        parts += [f"`{name}`, {count(total)} cycles:", table(head, rows)]
    return section("Where the cycles go", *parts)
