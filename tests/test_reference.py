"""The float model against an independent one, written token by token, and against its own rules."""

import math
from dataclasses import replace

import numpy as np
import pytest

from edgemoe import checkpoint, reference
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput

CONFIG = ModelConfig(
    name="tiny", channels=2, height=6, width=8, patch=(3, 4), dim=12, depth=2, heads=3, mlp_dim=10,
    tasks=("a", "b"), experts=4, expert_dim=6, top_k=2, moe_blocks=(1,), classes=(5, 0), final_norm=True,
    image_mean=(0.5, 0.4), image_std=(0.2, 0.25),
)  # fmt: skip
MODEL = checkpoint.random_model(CONFIG, 5)
IMAGES = np.random.default_rng(1).integers(0, 256, (3, 2, 6, 8)).astype(np.uint8)


def gelu(x):
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def norm(x, name, w):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / math.sqrt(variance + CONFIG.norm_eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def mlp(y, w1, b1, w2, b2):
    return w2 @ np.array([gelu(v) for v in w1 @ y + b1]) + b2


def tokenwise(image, task):
    """docs/model-file.md, "What it computes", with loops."""
    c, w = CONFIG, {name: tensor.astype(np.float64) for name, tensor in MODEL.tensors.items()}
    pixels = (image / 256 - np.array(c.image_mean)[:, None, None]) / np.array(c.image_std)[:, None, None]
    x = w["pos_embed"].copy()
    for p in range(c.tokens - 1):
        gy, gx = divmod(p, c.grid[1])
        patch = pixels[:, gy * 3 : gy * 3 + 3, gx * 4 : gx * 4 + 4]
        x[1 + p] += (w["patch_embed.weight"] * patch).sum(axis=(1, 2, 3)) + w["patch_embed.bias"]
    for i in range(c.depth):
        name = f"blocks.{i}."
        qkv = (
            np.array([w[name + "attn.qkv.weight"] @ norm(t, name + "norm1", w) for t in x])
            + w[name + "attn.qkv.bias"]
        )
        out = np.zeros_like(x)
        for h in range(c.heads):
            q, k, v = (qkv[:, part * 12 + h * 4 : part * 12 + h * 4 + 4] for part in range(3))
            for t in range(c.tokens):
                out[t, h * 4 : h * 4 + 4] = softmax(np.array([q[t] @ key / 2 for key in k])) @ v
        x = x + out @ w[name + "attn.proj.weight"].T + w[name + "attn.proj.bias"]
        for t in range(c.tokens):
            y = norm(x[t], name + "norm2", w)
            if i == 0:
                x[t] += mlp(
                    y, *(w[name + f"mlp.{n}"] for n in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"))
                )
                continue
            score = softmax(w[name + "moe.gate.weight"][task] @ y + w[name + "moe.gate.bias"][task])
            for e in sorted(range(c.experts), key=lambda e: (-score[e], e))[: c.top_k]:
                parts = (
                    w[name + f"moe.{n}"][e] for n in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
                )
                x[t] += score[e] * mlp(y, *parts)
    return x, w["heads.0.weight"] @ norm(x[0], "norm", w) + w["heads.0.bias"]


@pytest.mark.parametrize("task", [0, 1])
def test_run_equals_the_model_token_by_token(task):
    x, logits = tokenwise(IMAGES[0], task)
    result = reference.run(MODEL, IMAGES[0], task)
    np.testing.assert_allclose(result["x"], x, atol=1e-11)
    assert ("logits" in result) == (task == 0)
    if task == 0:
        np.testing.assert_allclose(result["logits"], logits, atol=1e-11)


def test_a_batch_equals_single_runs():
    single = [reference.run(MODEL, image, 0, trace=False) for image in IMAGES]
    np.testing.assert_allclose(
        reference.run_batch(MODEL, IMAGES, 0, batch=2), [r["logits"] for r in single], atol=1e-12
    )
    assert sorted(single[0]) == ["logits", "x"]
    assert reference.run_batch(MODEL, IMAGES, 1).shape == (3, CONFIG.tokens, CONFIG.dim)


def test_the_trace_has_the_tensors_that_it_promises():
    result = reference.run(MODEL, IMAGES[0], 0)
    expected = set()
    for name in reference.TRACE:
        expected |= {name.replace("{L}", str(i)) for i in range(CONFIG.depth)}
    only_mixture = {"gate", "margin", "topk", "score", "expert"}
    expected = {n for n in expected if not (n.startswith("l0_") and n[3:] in only_mixture)}
    assert set(result) == expected
    assert result["l1_topk"].dtype == np.int64
    assert result["l1_hidden"].shape == (CONFIG.tokens, 2, 6)
    total = result["l1_post_attn"] + result["l1_expert"].sum(axis=1)
    np.testing.assert_allclose(result["l1_post_mlp"], total, atol=1e-12)
    np.testing.assert_allclose(result["l0_post_attn"], result["embed"] + result["l0_proj"], atol=1e-12)


def test_float_and_uint8_pixels_mean_the_same():
    a, b = (
        reference.run(MODEL, image, 0)["x"] for image in (IMAGES[0], (IMAGES[0] / 256).astype(np.float32))
    )
    np.testing.assert_array_equal(a, b)


def test_forced_routes_choose_the_experts_but_not_the_scores():
    own = reference.run(MODEL, IMAGES[0], 0)
    again = reference.run(
        MODEL, IMAGES[0], 0, routes={"l1_topk": own["l1_topk"], "l1_margin": own["l1_margin"]}
    )
    np.testing.assert_array_equal(again["x"], own["x"])
    routes = np.tile(np.array([3, 1]), (CONFIG.tokens, 1))
    forced = reference.run(MODEL, IMAGES[0], 0, routes={"l1_topk": routes})
    np.testing.assert_array_equal(forced["l1_topk"], routes)
    score = reference.softmax(own["l1_gate"])
    np.testing.assert_allclose(forced["l1_score"], score[:, [3, 1]])


@pytest.mark.parametrize(
    ("routes", "pattern"),
    [
        (np.zeros((3, 2), int), r"l1_topk must be integers of shape \[5, 2\], found int64 \[3, 2\]"),
        (np.zeros((5, 2)), "must be integers"),
        (np.full((5, 2), 4), r"must name experts 0\.\.3, found 4\.\.4"),
        (np.ones((5, 2), int), "must name 2 different experts"),
    ],
)
def test_bad_routes_are_refused(routes, pattern):
    with pytest.raises(BadInput, match=pattern):
        reference.run(MODEL, IMAGES[0], 0, routes={"l1_topk": routes})


def test_bad_tasks_and_images_are_refused():
    with pytest.raises(BadInput, match=r"task must be one of 0 \(a\), 1 \(b\) of model tiny, found 2"):
        reference.run(MODEL, IMAGES[0], 2)
    with pytest.raises(BadInput, match=r"must have shape \[n, 2, 6, 8\], found \[1, 2, 6, 7\]"):
        reference.run(MODEL, IMAGES[0][:, :, :7], 0)


def test_gelu_is_exact():
    x = np.concatenate([np.linspace(-9, 9, 20001), [-1e6, -40.0, 0.0, 40.0, 1e6]])
    exact = np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in x])
    np.testing.assert_allclose(reference.gelu(x), exact, rtol=0, atol=1e-13)


def test_ties_go_to_the_lower_expert():
    logits = np.array([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(reference.top_k(logits, 2), [[1, 2], [0, 1]])
    many = np.random.default_rng(0).integers(0, 3, (50, 64)).astype(float)
    for row, chosen in zip(many, reference.top_k(many, 40), strict=True):
        assert chosen.tolist() == sorted(range(64), key=lambda e: (-row[e], e))[:40]
    np.testing.assert_array_equal(reference.margin(np.array([[1.0, 4.0, 2.0, 8.0]]), 2), [2.0])
    assert reference.margin(logits, 4).tolist() == [math.inf, math.inf]


def test_a_gate_without_bias_is_one_with_bias_zero():
    name = "blocks.1.moe.gate.bias"
    zero = checkpoint.Model(CONFIG, MODEL.tensors | {name: np.zeros((2, 4), np.float32)})
    none = checkpoint.Model(CONFIG, {n: t for n, t in MODEL.tensors.items() if n != name})
    np.testing.assert_array_equal(*(reference.run(m, IMAGES[0], 1)["x"] for m in (zero, none)))


def test_a_model_without_norm_and_heads_ends_with_the_last_block():
    config = replace(CONFIG, classes=(), final_norm=False)
    tensors = {n: t for n, t in MODEL.tensors.items() if not n.startswith(("norm", "heads"))}
    result = reference.run(checkpoint.Model(config, tensors), IMAGES[0], 0)
    np.testing.assert_array_equal(result["x"], result["l1_post_mlp"])
    assert "logits" not in result


def test_accuracy_measures():
    assert reference.decibel([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20.0)
    assert reference.decibel([1.0], [1.0]) == math.inf
    wanted = {"l1_topk": np.array([[0, 1], [2, 3]]), "l1_margin": np.array([0.5, 0.25])}
    assert reference.route_agreement(wanted, {"l1_topk": np.array([[1, 0], [2, 3]])}) == (1.0, 0.0)
    assert reference.route_agreement(wanted, {"l1_topk": np.array([[1, 0], [2, 1]])}) == (0.5, 0.25)
