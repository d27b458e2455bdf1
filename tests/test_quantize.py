"""Formats and integers of a quantised model: every rule that the compiler and the hardware rely on."""

from dataclasses import replace

import numpy as np
import pytest

from edgemoe import calibration, checkpoint, reference
from edgemoe import quantize as q
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput
from edgemoe.numeric import rounding_shift
from edgemoe.units.layernorm import epsilon_term

CONFIG = ModelConfig(
    name="tiny", channels=2, height=12, width=12, patch=(3, 4), dim=24, depth=3, heads=3, mlp_dim=40,
    tasks=("a", "b"), experts=5, expert_dim=16, top_k=2, moe_blocks=(1,), classes=(3, 0), final_norm=True,
    image_mean=(0.5, 0.4), image_std=(0.2, 0.25),
)  # fmt: skip
MODEL = checkpoint.random_model(CONFIG, 2)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 2, 12, 12)).astype(np.uint8)


@pytest.fixture(scope="module", params=["w8a16", "w16a16"])
def quantized(request):
    return q.quantize(MODEL, request.param, IMAGES)


def changed(**tensors):
    """MODEL with some tensors replaced; dots in names are written as two underscores."""
    named = {name.replace("__", "."): np.asarray(t, np.float32) for name, t in tensors.items()}
    return checkpoint.Model(CONFIG, MODEL.tensors | named)


# -- parameters ---------------------------------------------------------------------------------


def test_factor_is_normalised_and_accurate():
    value = np.array([1.0, 0.5, 0.3, 3e-4, 1.99999999, 20000.0, 1e-9, 3e-15, 0.0])
    multiplier, shift = q.factor(value)
    np.testing.assert_array_equal(shift[:5], [15, 16, 17, 27, 14])
    assert ((multiplier[:7] >= 1 << 15) & (multiplier[:7] < 1 << 16)).all()
    assert (multiplier >= 0).all()
    assert (shift >= 1).all()
    assert (shift <= 63).all()
    np.testing.assert_allclose(multiplier * 2.0**-shift, value, rtol=2**-16, atol=2.0**-64)
    with pytest.raises(BadInput, match=r"factor is 40000 and must be below 2\^15"):
        q.factor(40000.0)
    with pytest.raises(BadInput, match=r"below 2\^6"):
        q.factor(100.0, 10)


def test_linear_matches_its_float_layer():
    random = np.random.default_rng(3)
    weight, bias = random.normal(0, 0.2, (6, 30)), random.normal(0, 1, 6)
    x = random.integers(-30000, 30000, (50, 30))
    linear = q.quantize_linear(weight, bias, 2.0**11, 2.0**10, 32767)
    acc = x @ linear.weight.T.astype(np.int64) + linear.bias
    got = rounding_shift(acc * linear.multiplier, linear.shift)
    exact = (x * 2.0**-11 @ weight.T + bias) * 2.0**10
    assert np.abs(got - exact).max() < 1.5
    worst = np.abs(linear.weight.astype(np.int64)).sum(axis=1) * 32768 + np.abs(linear.bias)
    assert 1 << (linear.accumulator_bits - 2) <= worst.max() < 1 << (linear.accumulator_bits - 1)


def test_weights_are_rounded_to_nearest_without_moments():
    weight = np.array([[12.7, -3.49, 0.51, 127.0], [0.0, 0.0, 0.0, 0.0]])
    linear = q.quantize_linear(weight, np.array([0.0, 0.25]), 1.0, 1.0, 127)
    np.testing.assert_array_equal(linear.weight, [[13, -3, 1, 127], [0, 0, 0, 0]])


def test_channels_of_zeros_keep_their_bias():
    linear = q.quantize_linear(np.zeros((3, 8)), np.array([0.0, 0.7, -300.0]), 2.0**12, 2.0**6, 127)
    got = rounding_shift(linear.bias * linear.multiplier, linear.shift)
    np.testing.assert_array_equal(got, [0, 45, -19200])
    assert linear.accumulator_bits <= 16 + 8 - 1 + 3 + 1


def test_a_large_bias_costs_no_accumulator_bits():
    linear = q.quantize_linear(np.full((1, 16), 1e-7), np.array([5.0]), 2.0**10, 2.0**10, 127)
    assert np.abs(linear.bias).max() <= 16 * 128 * 32768
    assert rounding_shift(linear.bias * linear.multiplier, linear.shift).tolist() == [5120]


def test_rounding_with_moments_has_less_error_than_to_nearest():
    random = np.random.default_rng(4)
    x = random.normal(0, 1, (400, 6)) @ random.normal(0, 1, (6, 40)) + random.normal(20, 0.1, (400, 40))
    weight = random.normal(0, 1, (20, 40))
    moments = calibration.Moments()
    moments.update(x)
    inputs = q.Inputs(moments.mean, moments.covariance + 0.01 * np.eye(40))

    def error(linear):
        step = linear.multiplier * 2.0**-linear.shift
        return (x @ linear.weight.T.astype(float) + linear.bias) * step - x @ weight.T

    nearest, rounded = (error(q.quantize_linear(weight, 0.0, 1.0, 1.0, 127, i)) for i in (None, inputs))
    assert np.square(rounded).mean() < 0.1 * np.square(nearest).mean()
    step = np.abs(weight).max(axis=1) / 127
    assert (np.abs(rounded.mean(axis=0)) < 0.6 * step).all(), (
        "the bias takes the mean error, up to its rounding"
    )


def test_norm_matches_its_float_step():
    random = np.random.default_rng(5)
    gamma, beta = random.normal(0, 3, 24), random.normal(0, 2, 24)
    norm = q.quantize_norm(gamma, beta, np.full(24, 2.0**11), 1e-6, 10)
    assert np.abs(norm.gamma).max() in range(1 << 14, 1 << 15)
    assert np.abs(norm.beta).max() < 1 << 41
    z = random.integers(-(4 << 12), 4 << 12, (100, 24))
    exact = (z / 4096 * gamma + beta) * 2.0**11
    assert np.abs(rounding_shift(z * norm.gamma + norm.beta, norm.shift) - exact).max() < 1.5
    flat = q.quantize_norm(np.zeros(4), np.zeros(4), np.ones(4), 1e-6, 10)
    assert not flat.gamma.any()
    assert 1 <= flat.shift <= 63


# -- formats ------------------------------------------------------------------------------------


def test_fraction_bits_hold_the_magnitude_with_headroom():
    assert q.fraction_bits(1.0, 1.25) == 14
    assert q.fraction_bits(7.9, 1.0) == 12
    assert q.fraction_bits(8.1, 1.0) == 11
    assert q.fraction_bits(0.0, 1.5) == 20
    assert q.fraction_bits(1e9, 1.5) == 0
    assert q.fraction_bits(0.1, 1.5, q.GELU_FRACS) == 13


def test_residual_formats_only_lose_bits_and_at_most_seven_at_once():
    assert q.residual_fracs([1.0, 8.5, 3.0, 40.0], 1.25, 20) == [14, 11, 11, 9]
    assert q.residual_fracs([0.01, 60.0], 1.25, 20) == [15, 8]
    assert q.residual_fracs([0.001], 1.25, 12) == [12]


def test_the_largest_values_fit_their_formats(quantized):
    for row in quantized.report():
        if row.name.endswith(("_fc1", "_hidden")):
            continue
        assert row.headroom >= 1, row
        assert row.clipped == 0, row
    names = {row.name for row in quantized.report()}
    assert {"embed", "l1_scores", "l1_gate", "l2_post_mlp", "l0_q", "norm", "logits0"} <= names


def test_the_report_counts_what_clips():
    statistics = calibration.Statistics()
    statistics.update(np.array([[0.0, 0.5, -1.0, 3.0], [4.0, 8.0, -16.0, 0.1]]))
    assert [statistics.beyond(e) for e in (0, 2, 3, 4, 5)] == [5 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert (statistics.low, statistics.high, statistics.magnitude) == (-16, 8, 16)
    np.testing.assert_array_equal(statistics.peak, [4, 8, 16, 3])


# -- the whole model ----------------------------------------------------------------------------


def test_integers_stay_in_their_fields(quantized):
    for name, linear in quantized.linears().items():
        limit = q.GATE_LIMIT if "gates" in name else (1 << (quantized.b_bits - 1)) - 1
        assert np.abs(linear.weight.astype(int)).max() <= limit, name
        assert np.abs(linear.bias).max() < 1 << 41, name
        assert (linear.shift >= 1).all(), name
        assert (linear.shift <= 63).all(), name
        assert ((linear.multiplier >= 0) & (linear.multiplier < 1 << 16)).all(), name
        inputs = linear.weight[0].size
        bits = 16 if "gates" in name else quantized.b_bits
        assert linear.accumulator_bits <= 16 + bits - 1 + (inputs - 1).bit_length() + 1, name
    for block in quantized.blocks:
        assert block.gelu_frac in q.GELU_FRACS
        assert 0 <= block.realign <= 7
        assert all(10 <= shift <= 63 and 0 < multiplier < 1 << 16 for multiplier, shift in block.score)
        assert (block.attention_shift >= 10).all()
        for norm in (block.norm1, block.norm2):
            assert np.abs(norm.gamma).max() < 1 << 15
            assert np.abs(norm.beta).max() < 1 << 41
            epsilon_term(norm.eps, CONFIG.dim, norm.x_frac)
    assert np.abs(quantized.pos_embed).max() < 1 << 15


def test_the_model_has_the_parts_of_its_configuration(quantized):
    assert quantized.embed.weight.shape == (24, 2, 3, 4)
    assert quantized.pos_embed.shape == (CONFIG.tokens, 24)
    assert [bool(block.mlp) for block in quantized.blocks] == [True, False, True]
    mixture = quantized.blocks[1]
    assert (len(mixture.fc1), len(mixture.fc2), len(mixture.gates)) == (5, 5, 2)
    assert [head is not None for head in quantized.heads] == [True, False]
    assert quantized.final_norm.x_frac == quantized.formats["x"] == quantized.formats["l2_post_mlp"]
    fracs = [quantized.formats[n] for n in ("embed", "l0_post_attn", "l1_post_attn", "l2_post_attn")]
    assert [block.realign for block in quantized.blocks] == [
        a - b for a, b in zip(fracs, fracs[1:], strict=False)
    ]


def test_factors_of_queries_and_keys_cancel(quantized):
    for i, block in enumerate(quantized.blocks):
        scale = {n: 2.0 ** quantized.formats[f"l{i}_{n}"] * quantized.factors[f"l{i}_{n}"] for n in "qk"}
        gain = np.log2(np.e) / np.sqrt(CONFIG.head_dim) * 2.0**13 / (scale["q"] * scale["k"])
        for (multiplier, shift), part in zip(block.score, gain.reshape(CONFIG.heads, -1), strict=True):
            np.testing.assert_allclose(part, multiplier * 2.0**-shift, rtol=1e-4)


def test_the_embedding_folds_mean_and_deviation():
    quantized = q.quantize(MODEL, "w16a16", IMAGES)
    patches = reference.patches(IMAGES[:1].astype(np.int64) << 7, CONFIG)[0]
    linear = quantized.embed
    acc = patches @ linear.weight.reshape(24, -1).T.astype(np.int64) + linear.bias
    x = quantized.pos_embed[1:] + rounding_shift(acc * linear.multiplier, linear.shift)
    wanted = reference.run(MODEL, IMAGES[0], 0)["embed"][1:]
    assert np.abs(quantized.dequantize("embed", x) - wanted).max() < 3 * 2.0 ** -quantized.formats["embed"]


def test_dequantize_undoes_formats_and_factors(quantized):
    values = np.linspace(-0.1, 0.1, 24)
    codes = np.rint(values * 2.0 ** quantized.formats["l0_k"] * quantized.factors["l0_k"])
    np.testing.assert_allclose(quantized.dequantize("l0_k", codes), values, atol=1e-4)


def test_quantisation_is_a_function_of_its_inputs():
    a, b = (q.quantize(MODEL, "w8a16", IMAGES[:2]) for _ in range(2))
    np.testing.assert_array_equal(a.blocks[1].fc2[3].weight, b.blocks[1].fc2[3].weight)
    assert a.formats == b.formats


def test_models_with_dead_channels_and_heads_are_quantised():
    qkv, bias = MODEL["blocks.0.attn.qkv.weight"].copy(), MODEL["blocks.0.attn.qkv.bias"].copy()
    qkv[:8], qkv[24:32], qkv[50] = 0, 0, 0
    bias[:8], bias[24:32], bias[50] = 0, 0, 0
    model = changed(
        blocks__0__attn__qkv__weight=qkv, blocks__0__attn__qkv__bias=bias,
        blocks__0__mlp__fc1__weight=np.zeros((40, 24)), blocks__0__norm2__weight=np.zeros(24),
        blocks__0__norm2__bias=np.zeros(24), blocks__2__attn__proj__weight=np.zeros((24, 24)),
    )  # fmt: skip
    for profile in ("w8a16", "w16a16"):
        quantized = q.quantize(model, profile, IMAGES)
        assert all(np.isfinite(f).all() for f in quantized.factors.values())
        assert not quantized.blocks[0].k.weight[:8].any()


def test_extreme_weights_end_with_a_message():
    with pytest.raises(BadInput, match="LayerNorm scales by 1e"):
        q.quantize(changed(blocks__0__norm1__weight=np.full(24, 1e12)), "w8a16", IMAGES)


def test_bad_arguments_are_refused():
    with pytest.raises(BadInput, match="profile must be one of w8a16, w16a16, found 'w4a4'"):
        q.quantize(MODEL, "w4a4", IMAGES)
    with pytest.raises(BadInput, match="must have shape"):
        q.quantize(MODEL, "w8a16", np.zeros((9, 2, 12, 13), np.uint8))


# -- calibration --------------------------------------------------------------------------------


def test_few_calibration_images_are_completed():
    full = calibration.calibration_images(CONFIG, IMAGES)
    np.testing.assert_array_equal(full * 256, IMAGES)
    few = calibration.calibration_images(CONFIG, IMAGES[:1])
    assert few.shape == (calibration.FEW_IMAGES, 2, 12, 12)
    np.testing.assert_array_equal(few[1] * 256, IMAGES[0][:, :, ::-1])
    none = calibration.calibration_images(CONFIG)
    assert none.shape == few.shape
    assert none.min() >= 0
    assert none.max() < 1


def test_moments_of_experts_come_from_their_own_tokens():
    result = calibration.calibrate(MODEL, IMAGES, batch=4)
    runs = [reference.run(MODEL, image, task) for task in range(2) for image in IMAGES]
    rows = np.concatenate([r["l1_norm2"][(r["l1_topk"] == 2).any(axis=1)] for r in runs])
    moments = result.moments["l1_norm2.2"]
    assert moments.rows == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0))
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), atol=1e-9)
    assert result.statistics["l1_norm2"].high == max(r["l1_norm2"].max() for r in runs)
    visits = sum(m.rows for n, m in result.moments.items() if n.startswith("l1_hidden."))
    assert visits == len(runs) * CONFIG.tokens * CONFIG.top_k


def test_an_expert_that_no_token_visits_is_quantised():
    bias = np.zeros((2, 5))
    bias[:, 4] = -1000
    model = changed(blocks__1__moe__gate__bias=bias)
    quantized = q.quantize(model, "w8a16", IMAGES)
    assert np.abs(quantized.blocks[1].fc2[4].weight).max() == 127


def test_a_model_without_classes_and_experts():
    config = replace(CONFIG, moe_blocks=(), experts=0, expert_dim=0, top_k=0, classes=(), final_norm=False,
                     tasks=("only",), image_mean=(), image_std=())  # fmt: skip
    quantized = q.quantize(checkpoint.random_model(config, 1), "w8a16")
    assert quantized.heads == (None,)
    assert quantized.final_norm is None
    assert all(block.mlp and not block.gates for block in quantized.blocks)
