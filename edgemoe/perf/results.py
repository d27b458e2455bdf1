"""What a run costs, and which of its multiplications count."""

from __future__ import annotations

from dataclasses import dataclass

from edgemoe.isa import Descriptor, Dest, Op, Source
from edgemoe.program import Program


@dataclass(frozen=True)
class Cost:
    """What one descriptor costs, in cycles and bytes.

    Attributes:
        image, number, op, name: which it is, and the tensor that it writes.
        finish: cycle of its last write.
        cycles: from the last write of the descriptor before; the sum over all is that of the run.
        bytes: read or written in external memory, the descriptor itself included.
        busy: cycles of the array for multiplications that count, as if it were always full.
        padding: the array's other cycles: zeros in rows, words and tokens, second digits, the pace of the writer.
        weights: it waited for operand B. activations: it waited for operand A.
        drain: the rest of ``cycles``: pipelines that run empty, and all that the array does not do. Negative
            where a descriptor's own work lies in the time of the one before.
    """

    image: int
    number: int
    op: str
    name: str
    finish: int
    cycles: int
    bytes: int
    busy: float
    padding: float
    weights: int
    activations: int
    drain: float


@dataclass(frozen=True)
class Prediction:
    """What a run costs.

    Attributes:
        cycles: from start to done, as the control port counts them.
        mac_utilisation: useful multiply-accumulates per multiplier and cycle.
        external_bytes: read and written.
        mac_cycles, weight_stalls, activation_stalls: as the control port counts them.
        descriptors: the parts, in the order of execution.
    """

    cycles: int
    mac_utilisation: float
    external_bytes: int
    mac_cycles: int
    weight_stalls: int
    activation_stalls: int
    descriptors: list[Cost]


def useful_macs(program: Program) -> list[int]:
    """Multiply-accumulates of each descriptor that count: no padding of any kind."""
    c = program.model
    tokens, dim = c.tokens, c.dim

    def useful(number: int, d: Descriptor) -> int:
        if d.op == Op.EXPERTS:
            return 2 * tokens * dim * (c.top_k * c.expert_dim if d.routed else c.mlp_dim)
        if d.op != Op.PRODUCT:
            return 0
        if d.source in (Source.KEYS, Source.VALUES):
            return tokens * tokens * c.head_dim
        if d.dest in (Dest.KEYS, Dest.VALUES):
            return tokens * dim * c.head_dim
        name = program.symbols[number].tensors[0].name
        special = {
            "embed": (tokens - 1) * dim * c.channels * c.patch[0] * c.patch[1],
            "head": dim * max(c.classes, default=0),
        }
        return special.get(name, tokens * dim * (c.experts if d.dest == Dest.SCORES else dim))

    return [useful(number, d) for number, d in enumerate(program.descriptors())]


def tensor_names(program: Program, number: int) -> str:
    """Tensors that a descriptor writes."""
    return " ".join(t.name.replace("_e{e}", "") for t in program.symbols[number].tensors)
