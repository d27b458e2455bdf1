"""Which experts the tokens go to: all that a prediction needs to know of the data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput
from edgemoe.isa import Op
from edgemoe.numeric import IntArray
from edgemoe.program import Program

Routes = Mapping[str, ArrayLike]
"""Experts by rank, (tokens, top_k), of every mixture block: ``l{L}_topk``."""


def routing(kind: str, model: ModelConfig, seed: int = 0) -> dict[str, IntArray]:
    """Experts of every token of every mixture block, by rank.

    Args:
        kind: ``balanced`` (all experts equally often), ``skewed`` (expert i about 1 / (i + 1) as often as the
            most frequent one) or ``one`` (all tokens to the same ``top_k`` experts).
        seed: which experts those are.

    Raises:
        BadInput: another ``kind``.
    """
    if kind not in ("balanced", "skewed", "one"):
        raise BadInput(f"routing must be balanced, skewed or one, found {kind!r}")
    rng = np.random.default_rng(seed)
    tokens, experts, k = model.tokens, model.experts, model.top_k
    routes = {}
    for block in model.moe_blocks:
        names = rng.permutation(experts)
        if kind == "balanced":
            chosen = np.arange(tokens * k).reshape(tokens, k) % experts
        elif kind == "one":
            chosen = np.tile(np.arange(k), (tokens, 1))
        else:  # the k largest of perturbed log frequencies are k draws without repetition
            chosen = np.argsort(
                np.log(1 + np.arange(experts)) + np.log(rng.exponential(size=(tokens, experts)))
            )[:, :k]
        routes[f"l{block}_topk"] = names[chosen]
    return routes


def tokens_per_expert(program: Program, routes: Routes) -> dict[int, IntArray]:
    """Tokens of every expert, by number of the routed EXPERTS.

    Raises:
        BadInput: a block is missing, or its array has a wrong shape or names no expert.
    """
    model, found = program.model, {}
    descriptors = program.descriptors()
    for symbol in program.symbols:
        if descriptors[symbol.number].op != Op.ROUTE:
            continue
        name = symbol.tensors[0].name
        if name not in routes:
            raise BadInput(f"routes: {name} is missing")
        chosen = np.asarray(routes[name])
        if chosen.shape != (model.tokens, model.top_k) or chosen.dtype.kind not in "iu":
            raise BadInput(
                f"routes: {name} must be integers of shape {[model.tokens, model.top_k]}, "
                f"found {chosen.dtype} {list(chosen.shape)}"
            )
        if chosen.min() < 0 or chosen.max() >= model.experts:
            raise BadInput(
                f"routes: {name} must name experts 0..{model.experts - 1}, found {chosen.min()}..{chosen.max()}"
            )
        found[symbol.number + 1] = np.bincount(chosen.ravel(), minlength=model.experts)
    return found
