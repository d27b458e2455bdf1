"""The model in float64: what the integers are measured against.

`forward` runs a batch of images and shows every tensor, by the names of docs/model-file.md and
`TRACE`, to an observer; `run` collects them for one image, `run_batch` keeps only the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemoe.checkpoint import Model, as_float
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput

Array = NDArray[Any]
Observer = Callable[[str, Array], None]
"""Called with the name of a tensor and its values (images first) when it has been computed."""

TRACE = {
    "embed": "(tokens, dim) positional embedding plus patches",
    "l{L}_norm1": "(tokens, dim)",
    "l{L}_q": "(tokens, dim), head by head",
    "l{L}_k": "(tokens, dim)",
    "l{L}_v": "(tokens, dim)",
    "l{L}_scores": "(heads, tokens, tokens) q k^T / sqrt(head_dim), before softmax",
    "l{L}_attention": "(tokens, dim) softmax times v, heads side by side",
    "l{L}_proj": "(tokens, dim) what attention adds to the residual",
    "l{L}_post_attn": "(tokens, dim) the residual after attention",
    "l{L}_norm2": "(tokens, dim)",
    "l{L}_gate": "(tokens, experts) logits, mixture blocks",
    "l{L}_margin": "(tokens) gap between the last expert chosen and the first one left out, in logits",
    "l{L}_topk": "(tokens, top_k) experts, largest score first",
    "l{L}_score": "(tokens, top_k) their softmax scores, not renormalised",
    "l{L}_fc1": "(tokens, mlp_dim) or (tokens, top_k, expert_dim) before GELU",
    "l{L}_hidden": "the same after GELU",
    "l{L}_mlp": "(tokens, dim) what the MLP adds to the residual",
    "l{L}_expert": "(tokens, top_k, dim) what each chosen expert adds, score included",
    "l{L}_post_mlp": "(tokens, dim) the residual after the block",
    "norm": "(tokens, dim) if the model has a final norm",
    "x": "(tokens, dim) the residual after the last block",
    "logits": "(classes) if the task has a head",
}
"""Tensors that `run` returns, and their shapes."""


# -- functions ----------------------------------------------------------------------------------


@cache
def _normal_cdf_table() -> tuple[Array, int]:
    """Taylor coefficients of Phi around multiples of 1/64 from -8.5 to 8.5, order 6."""
    nodes = np.arange(-544, 545) / 64
    phi = np.exp(-nodes * nodes / 2) / math.sqrt(2 * math.pi)
    cdf = np.array([0.5 * math.erfc(-u / math.sqrt(2)) for u in nodes])
    hermite = [np.ones_like(nodes), nodes]
    for n in range(1, 5):
        hermite.append(nodes * hermite[n] - n * hermite[n - 1])
    terms = [(-1) ** n * phi * h / math.factorial(n + 1) for n, h in enumerate(hermite)]
    return np.stack([cdf, *terms]), 544


def normal_cdf(x: ArrayLike) -> NDArray[np.float64]:
    """Phi(x) of the normal distribution; absolute error below 1e-15."""
    x = np.asarray(x, np.float64)
    table, offset = _normal_cdf_table()
    clipped = np.clip(x, -8.5, 8.5)
    index = np.rint(clipped * 64).astype(np.intp)
    t = clipped - index / 64
    index += offset
    result = table[-1][index]
    for coefficients in table[-2::-1]:
        result = result * t + coefficients[index]
    return np.where(x < -8.5, 0.0, result)


def gelu(x: ArrayLike) -> NDArray[np.float64]:
    """``x * Phi(x)``, the exact GELU; absolute error below 1e-14."""
    x = np.asarray(x, np.float64)
    return x * normal_cdf(x)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> NDArray[np.float64]:
    """LayerNorm over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weight + bias


def softmax(x: Array) -> NDArray[np.float64]:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def top_k(logits: Array, k: int) -> Array:
    """Indices of the ``k`` largest along the last axis, largest first; ties go to the lower index."""
    return np.argsort(-logits, axis=-1, kind="stable")[..., :k]


def margin(logits: Array, k: int) -> NDArray[np.float64]:
    """Gap between the k-th and the next largest along the last axis; infinite if there is none."""
    if k >= logits.shape[-1]:
        return np.full(logits.shape[:-1], np.inf)
    ordered = np.sort(logits, axis=-1)
    return ordered[..., -k] - ordered[..., -k - 1]


# -- the model ----------------------------------------------------------------------------------


def forward(
    model: Model,
    images: Array,
    task: int,
    routes: Mapping[str, Array] | None = None,
    observe: Observer | None = None,
) -> dict[str, Array]:
    """Run a batch.

    Args:
        images: (n, channels, height, width), uint8 or float in [0, 1).
        task: index.
        routes: ``l{L}_topk`` (tokens, top_k) or (n, tokens, top_k), forces the experts of those blocks. The
            scores are still those of the gate.
        observe: gets the tensors of `TRACE`, each with a leading axis of images.

    Returns:
        ``x`` (n, tokens, dim), and ``logits`` (n, classes) if the task has a head.

    Raises:
        BadInput: no such task, images of another shape, or bad routes.
    """
    c = model.config
    check_task(c, task)
    show = observe or (lambda name, values: None)
    x = embed(model, images)
    forced = check_routes(c, routes, len(x))
    show("embed", x)
    for block in range(c.depth):
        w = _Weights(model, f"blocks.{block}.")
        named = _prefixed(show, f"l{block}_")
        x = x + _attention(x, w, c, named)
        named("post_attn", x)
        y = layer_norm(x, w["norm2.weight"], w["norm2.bias"], c.norm_eps)
        named("norm2", y)
        if block in c.moe_blocks:
            x = x + _mixture(y, w, c, task, forced.get(block), named)
        else:
            x = x + _mlp(y, w, named)
        named("post_mlp", x)
    result = {"x": x}
    if c.final_norm:
        x = layer_norm(x, *_pair(_Weights(model, ""), "norm"), c.norm_eps)
        show("norm", x)
    if c.classes and c.classes[task]:
        weight, bias = _pair(_Weights(model, ""), f"heads.{task}")
        result["logits"] = x[:, 0] @ weight.T + bias
    for name, values in result.items():
        show(name, values)
    return result


class _Weights:
    """The tensors below a prefix, in float64."""

    def __init__(self, model: Model, prefix: str) -> None:
        self.model, self.prefix = model, prefix

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.model[self.prefix + name].astype(np.float64)

    def get(self, name: str) -> NDArray[np.float64] | float:
        """The optional tensor, or 0."""
        tensor = self.model.get(self.prefix + name)
        return 0.0 if tensor is None else tensor.astype(np.float64)


def _pair(w: _Weights, name: str) -> tuple[Array, Array]:
    return w[f"{name}.weight"], w[f"{name}.bias"]


def _prefixed(show: Observer, prefix: str) -> Observer:
    return lambda name, values: show(prefix + name, values)


def patches(images: Array, config: ModelConfig) -> Array:
    """Patches in row-major order: (n, patches, channels * ph * pw) of (n, channels, height, width)."""
    (gy, gx), (py, px) = config.grid, config.patch
    cut = images.reshape(len(images), config.channels, gy, py, gx, px)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(len(images), gy * gx, -1)


def embed(model: Model, images: Array) -> NDArray[np.float64]:
    """Tokens (n, tokens, dim) that enter block 0."""
    c = model.config
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (c.channels, c.height, c.width):
        raise BadInput(
            f"images of model {c.name} must have shape [n, {c.channels}, {c.height}, {c.width}], "
            f"found {list(images.shape)}"
        )
    pixels = as_float(images)
    if c.image_mean:
        pixels = pixels - np.array(c.image_mean)[:, None, None]
    if c.image_std:
        pixels = pixels / np.array(c.image_std)[:, None, None]
    w = _Weights(model, "")
    x = np.repeat(w["pos_embed"][None], len(images), axis=0)
    x[:, 1:] += patches(pixels, c) @ w["patch_embed.weight"].reshape(c.dim, -1).T + w["patch_embed.bias"]
    return x


def _attention(x: Array, w: _Weights, c: ModelConfig, show: Observer) -> Array:
    y = layer_norm(x, w["norm1.weight"], w["norm1.bias"], c.norm_eps)
    show("norm1", y)
    qkv = y @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
    q, k, v = np.split(qkv, 3, axis=-1)
    for name, values in (("q", q), ("k", k), ("v", v)):
        show(name, values)
    n, tokens, dim = x.shape
    q, k, v = (t.reshape(n, tokens, c.heads, c.head_dim).transpose(0, 2, 1, 3) for t in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(c.head_dim)
    show("scores", scores)
    attention = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(n, tokens, dim)
    show("attention", attention)
    proj = attention @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    show("proj", proj)
    return proj


def _mlp(y: Array, w: _Weights, show: Observer) -> Array:
    fc1 = y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    show("fc1", fc1)
    hidden = gelu(fc1)
    show("hidden", hidden)
    out = hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    show("mlp", out)
    return out


def _mixture(y: Array, w: _Weights, c: ModelConfig, task: int, forced: Array | None, show: Observer) -> Array:
    n, tokens, dim = y.shape
    bias = w.get("moe.gate.bias")
    logits = y @ w["moe.gate.weight"][task].T + (bias[task] if np.ndim(bias) else 0.0)
    chosen = top_k(logits, c.top_k) if forced is None else forced
    score = np.take_along_axis(softmax(logits), chosen, axis=-1)
    for name, values in (
        ("gate", logits),
        ("margin", margin(logits, c.top_k)),
        ("topk", chosen),
        ("score", score),
    ):
        show(name, values)
    fc1, hidden, expert = _experts(y.reshape(-1, dim), chosen.reshape(-1, c.top_k), w, c)
    expert *= score.reshape(-1, c.top_k, 1)
    for name, values in (("fc1", fc1), ("hidden", hidden), ("expert", expert)):
        show(name, values.reshape(n, tokens, c.top_k, -1))
    out = expert.sum(axis=1).reshape(n, tokens, dim)
    show("mlp", out)
    return out


def _experts(y: Array, chosen: Array, w: _Weights, c: ModelConfig) -> tuple[Array, Array, Array]:
    """fc1, hidden and unscored output of every token's chosen experts; expert by expert."""
    fc1 = np.empty((*chosen.shape, c.expert_dim))
    hidden, out = np.empty_like(fc1), np.empty((*chosen.shape, c.dim))
    w1, b1 = _pair(w, "moe.fc1")
    w2, b2 = _pair(w, "moe.fc2")
    for e in range(c.experts):
        at = np.nonzero(chosen == e)
        if len(at[0]):
            before = y[at[0]] @ w1[e].T + b1[e]
            after = gelu(before)
            fc1[at], hidden[at] = before, after
            out[at] = after @ w2[e].T + b2[e]
    return fc1, hidden, out


# -- checks -------------------------------------------------------------------------------------


def check_task(config: ModelConfig, task: int) -> None:
    """Raise `BadInput` unless ``task`` is an index of the model's tasks."""
    if not 0 <= task < len(config.tasks):
        names = ", ".join(f"{i} ({name})" for i, name in enumerate(config.tasks))
        raise BadInput(f"task must be one of {names} of model {config.name}, found {task}")


def check_routes(config: ModelConfig, routes: Mapping[str, Array] | None, images: int) -> dict[int, Array]:
    """Forced experts (images, tokens, top_k) by block; arrays with other names than ``l{L}_topk`` are ignored.

    Raises:
        BadInput: wrong shape, not integers, no such expert, or an expert twice for one token.
    """
    forced = {}
    shape = (config.tokens, config.top_k)
    for block in config.moe_blocks:
        name = f"l{block}_topk"
        if routes is None or name not in routes:
            continue
        array = np.asarray(routes[name])
        if array.shape not in (shape, (images, *shape)) or array.dtype.kind not in "iu":
            raise BadInput(
                f"routes: {name} must be integers of shape {list(shape)}, found {array.dtype} {list(array.shape)}"
            )
        if array.min() < 0 or array.max() >= config.experts:
            raise BadInput(
                f"routes: {name} must name experts 0..{config.experts - 1}, found {array.min()}..{array.max()}"
            )
        if (np.diff(np.sort(array, axis=-1), axis=-1) == 0).any():
            raise BadInput(f"routes: {name} must name {config.top_k} different experts for every token")
        forced[block] = np.broadcast_to(array.astype(np.int64), (images, *shape))
    return forced


# -- runs ---------------------------------------------------------------------------------------


def run(
    model: Model,
    image: Array,
    task: int,
    routes: Mapping[str, Array] | None = None,
    trace: bool = True,
) -> dict[str, Array]:
    """One image (channels, height, width): ``x``, ``logits`` if the task has a head, and with ``trace``
    every tensor of `TRACE`; all float64 except ``l{L}_topk`` (int64).

    Raises:
        BadInput: see `forward`.
    """
    tensors: dict[str, Array] = {}

    def keep(name: str, values: Array) -> None:
        tensors[name] = values[0]

    result = forward(model, np.asarray(image)[None], task, routes, keep if trace else None)
    return tensors if trace else {name: values[0] for name, values in result.items()}


def run_batch(model: Model, images: Array, task: int, batch: int = 64) -> NDArray[np.float64]:
    """Logits (n, classes) of many images, ``batch`` at a time; ``x`` (n, tokens, dim) if the task has no head."""
    results = [forward(model, images[i : i + batch], task) for i in range(0, len(images), batch)]
    return np.concatenate([r.get("logits", r["x"]) for r in results])


# -- accuracy -----------------------------------------------------------------------------------


def decibel(reference: ArrayLike, test: ArrayLike) -> float:
    """Signal over error, ``10 log10(sum reference^2 / sum (reference - test)^2)``; inf if equal."""
    reference, test = np.asarray(reference, np.float64), np.asarray(test, np.float64)
    error = float(((reference - test) ** 2).sum())
    return 10 * math.log10(max(float((reference**2).sum()), 1e-300) / error) if error else math.inf


def route_agreement(reference: Mapping[str, Array], test: Mapping[str, Array]) -> tuple[float, float]:
    """Fraction of tokens, over all ``l{L}_topk`` of both, that visit the same set of experts; and the largest
    margin (``l{L}_margin`` of ``reference``, in logits) among those that do not, 0 if all do.
    """
    equal, largest = [], 0.0
    for name, wanted in reference.items():
        if name.endswith("_topk") and name in test:
            same = (np.sort(wanted, axis=-1) == np.sort(test[name], axis=-1)).all(axis=-1)
            equal.append(same.ravel())
            gaps = reference[name.replace("_topk", "_margin")][~same]
            largest = max(largest, float(gaps.max(initial=0.0)))
    return (float(np.concatenate(equal).mean()) if equal else 1.0), largest
