"""From a float model to integers: formats of the activations, codes of the weights, requantisation.

Every tensor has one *scale*: codes per unit, for each channel. For most it is a power of two, ``2^frac``,
chosen so that the largest value of the calibration images fits in 16 bits with headroom. Where a factor per
channel costs nothing, because it disappears in parameters that exist anyway, the scale is ``2^frac * factor``:

- k, q: the factors are inverse to each other, so the scores do not change;
- v: the multipliers of the attention output take its inverse.

They even out the channels of a token's key or value, which share one exponent when they become 8-bit
mantissas. A linear layer with input scale u and output scale o is then

    code_out = rs((sum_j code_in[j] * w[j] + bias) * multiplier, shift)
    w[j] = round(W[j] / (u[j] * step)),   bias = round(b / step),   multiplier * 2^-shift = step * o

with one ``step`` per output channel. Roundings are those of docs/arithmetic.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemoe.calibration import BASE_2, LOG2E, Calibration, Moments, Statistics, calibrate, calibration_images
from edgemoe.checkpoint import Model
from edgemoe.config import A_BITS, PROFILES, ModelConfig
from edgemoe.errors import BadInput
from edgemoe.numeric import IntArray, saturate

Array = NDArray[Any]

IMAGE_FRAC = 15
SCORE_FRAC, SCORE_BITS = 13, 21
NORMALISED_FRAC = 12
"""Fraction bits of z, the normalised token before gamma (docs/arithmetic.md)."""
MID_BITS = 22
GELU_FRACS = range(8, 14)
FRACS = range(21)
"""Formats of the other activations."""
MAX_REALIGN = 7
EPS_TERM_BITS = 40
BIAS_BITS, MULTIPLIER_BITS, MAX_SHIFT = 42, 16, 63
GATE_LIMIT = 32639
"""Largest code of a gate weight: two balanced 8-bit digits, 127 * 256 + 127."""
MIN_SHARED_SHIFT = 10
"""The exponent of K (or V), at most 8, lowers the shift of scores (or of the attention output)."""

HEADROOM = {"w8a16": 2.0, "w16a16": 1.5}
"""How far a value of an unseen image may exceed the calibration's before it clips. Beside 8-bit weights a bit
of an activation costs nothing."""
RESIDUAL_HEADROOM = 1.1
"""The same for the residual, whose peaks are the model's own (they hardly vary between images), and whose
rounding is the largest error of the 16-bit profile."""

DAMPING = 0.1
"""Part of the mean variance that is added to every input's variance when weights are rounded."""
PRIOR_TOKENS = 64
"""Weight of what is known of all tokens against an expert's own, counted in tokens."""


# -- result -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """Integers of ``code_out = rs((weight . code_in + bias) * multiplier, shift)``.

    Attributes:
        weight: (outputs, inputs) int16, within +-127 or +-32767 by profile; the patch embedding's is
            (dim, channels, ph, pw), a gate's lies within +-32639 in every profile.
        bias: (outputs) int64, in accumulator units.
        multiplier: (outputs) int64, 0..65535; normalised to 32768..65535 where the shift allows.
        shift: (outputs) int64, 1..63.
    """

    weight: NDArray[np.int16]
    bias: IntArray
    multiplier: IntArray
    shift: IntArray

    @property
    def accumulator_bits(self) -> int:
        """Signed bits that hold acc + bias for every input: ``sum |w| * 2^15 + |bias|`` per output."""
        return accumulator_bits(self)


@dataclass(frozen=True)
class Norm:
    """Integers of ``code = sat16(rs(z * gamma + beta, shift))``, z with 12 fraction bits.

    Attributes:
        gamma: (dim) int64 within 16 signed bits.
        beta: (dim) int64 within 42 signed bits, in units of the product.
        shift: for all channels, 1..63.
        eps: epsilon of the variance, in units of the residual squared.
        x_frac: fraction bits of the residual that enters.
    """

    gamma: IntArray
    beta: IntArray
    shift: int
    eps: float
    x_frac: int


@dataclass(frozen=True)
class Block:
    """Integers of one transformer block.

    Attributes:
        q, k, v: dim rows each, head by head.
        score: (multiplier, shift) per head; the shift is at least 10 because K's exponent lowers it.
        attention_multiplier, attention_shift: (dim), from ``mid`` to the attention's format; shift >= 10.
        realign: fraction bits that the residual loses before this block's first contribution, 0..7.
        gelu_frac: format of the MLP's or of all experts' hidden values, 8..13.
        mlp: (fc1, fc2) of a dense block, else None.
        fc1, fc2: one Linear per expert of a mixture block, else empty.
        gates: one Linear per task of a mixture block, else empty.
    """

    norm1: Norm
    q: Linear
    k: Linear
    v: Linear
    score: tuple[tuple[int, int], ...]
    attention_multiplier: IntArray
    attention_shift: IntArray
    proj: Linear
    realign: int
    norm2: Norm
    gelu_frac: int
    mlp: tuple[Linear, Linear] | None = None
    fc1: tuple[Linear, ...] = ()
    fc2: tuple[Linear, ...] = ()
    gates: tuple[Linear, ...] = ()


@dataclass(frozen=True)
class TensorReport:
    """One row of `QuantizedModel.report`.

    Attributes:
        name: tensor.
        low, high: range over the calibration images.
        frac: fraction bits.
        clipped: fraction of the calibration values beyond the format.
        headroom: limit of the format divided by the largest magnitude.
    """

    name: str
    low: float
    high: float
    frac: int
    clipped: float
    headroom: float


@dataclass(frozen=True)
class QuantizedModel:
    """All integers of a model; hardware-independent.

    Attributes:
        formats: fraction bits by tensor name (names of `edgemoe.reference.TRACE`; also ``image``).
        factors: for tensors with a factor per channel; code = value * 2^frac * factor. Only `dequantize` and
            comparisons with float use them: in the integers they are folded.
        embed: patch embedding. pos_embed: (tokens, dim) int64 codes in the format ``embed``.
        heads: None for a task without a head.
    """

    config: ModelConfig
    profile: str
    b_bits: int
    formats: dict[str, int]
    factors: dict[str, NDArray[np.float64]]
    embed: Linear
    pos_embed: IntArray
    blocks: tuple[Block, ...]
    final_norm: Norm | None
    heads: tuple[Linear | None, ...]
    rows: tuple[TensorReport, ...] = field(default=(), repr=False)

    def dequantize(self, name: str, codes: ArrayLike) -> NDArray[np.float64]:
        """Values of the codes of a tensor, channels last."""
        return np.asarray(codes, np.float64) * 2.0 ** -self.formats[name] / self.factors.get(name, 1.0)

    def report(self) -> list[TensorReport]:
        """Range, format, clipping and headroom of every tensor over the calibration images."""
        return list(self.rows)

    def linears(self) -> dict[str, Linear]:
        """Every linear layer by name."""
        layers = {"embed": self.embed}
        for i, block in enumerate(self.blocks):
            layers |= {f"l{i}_{n}": getattr(block, n) for n in ("q", "k", "v", "proj")}
            if block.mlp:
                layers |= {f"l{i}_fc1": block.mlp[0], f"l{i}_fc2": block.mlp[1]}
            for kind in ("fc1", "fc2", "gates"):
                layers |= {f"l{i}_{kind}_{n}": linear for n, linear in enumerate(getattr(block, kind))}
        return layers | {f"head_{t}": head for t, head in enumerate(self.heads) if head}


# -- formats ------------------------------------------------------------------------------------


def fraction_bits(magnitude: float, headroom: float, allowed: range = FRACS) -> int:
    """Largest number of fraction bits in ``allowed`` with which ``magnitude * headroom`` fits in 16 bits."""
    if magnitude <= 0:
        return allowed[-1]
    frac = A_BITS - 1 - math.ceil(math.log2(magnitude * headroom))
    return min(max(frac, allowed[0]), allowed[-1])


def _hidden_frac(statistics: Statistics, headroom: float) -> int:
    # Below 0 a clipped value is harmless: GELU is 0 there up to 1 ulp.
    return fraction_bits(max(statistics.high, 0.0), headroom, GELU_FRACS)


def residual_fracs(magnitudes: Sequence[float], headroom: float, highest: int) -> list[int]:
    """Formats of the residual after the embedding and after each block: never more fraction bits than
    before, and at most 7 fewer.

    Args:
        magnitudes: largest value of the embedding, then of each block (after attention and after the MLP).
        highest: limit set by the epsilon of LayerNorm.
    """
    fracs = [fraction_bits(m, headroom, range(FRACS[0], highest + 1)) for m in magnitudes]
    for i in range(1, len(fracs)):
        fracs[i] = min(fracs[i], fracs[i - 1])
    for i in range(len(fracs) - 1, 0, -1):
        fracs[i - 1] = min(fracs[i - 1], fracs[i] + MAX_REALIGN)
    return fracs


def _highest_residual_frac(config: ModelConfig) -> int:
    """The epsilon term eps * dim^2 * 4^frac must fit its field, and stay below the largest variance."""
    room = min(2.0**EPS_TERM_BITS, config.dim**2 * 2.0 ** (2 * (A_BITS - 1))) / (
        config.norm_eps * config.dim**2
    )
    return min(FRACS[-1], math.ceil(math.log(room, 4)) - 1)


# -- parameters ---------------------------------------------------------------------------------


def factor(value: ArrayLike, least_shift: int = 1) -> tuple[IntArray, IntArray]:
    """``(multiplier, shift)`` with ``multiplier * 2^-shift`` nearest to each ``value`` >= 0.

    The multiplier has 16 bits, normalised unless the shift would exceed 63.

    Raises:
        BadInput: a value so large that the shift would be below ``least_shift``.
    """
    value = np.asarray(value, np.float64)
    exponent = np.frexp(np.maximum(value, 2.0**-80))[1]
    shift = np.minimum(MULTIPLIER_BITS - exponent, MAX_SHIFT)
    multiplier = np.rint(np.ldexp(value, shift)).astype(np.int64)
    carry = multiplier >> MULTIPLIER_BITS
    multiplier, shift = multiplier >> carry, (shift - carry).astype(np.int64)
    if shift.size and shift.min() < least_shift:
        raise BadInput(
            f"a requantisation factor is {value.max():g} and must be below 2^{MULTIPLIER_BITS - least_shift}; "
            "check the ranges of the model's weights"
        )
    return multiplier, shift


def accumulator_bits(linear: Linear) -> int:
    """Signed bits that hold ``sum |w| * 2^15 + |bias|`` of every output of ``linear``."""
    weights = np.abs(linear.weight.reshape(len(linear.weight), -1).astype(np.int64)).sum(axis=1)
    return int((weights * (1 << (A_BITS - 1)) + np.abs(linear.bias)).max()).bit_length() + 1


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a linear layer.

    Attributes:
        mean: (inputs). covariance: (inputs, inputs), positive definite.
    """

    mean: Array
    covariance: Array


def quantize_linear(
    weight: Array, bias: Array | float, in_scale: ArrayLike, out_scale: ArrayLike, limit: int,
    inputs: Inputs | None = None,
) -> Linear:  # fmt: skip
    """Integers of ``y = weight @ x + bias`` (see the module's equations).

    Args:
        weight: (outputs, inputs) float. bias: (outputs) or 0.
        in_scale, out_scale: codes per unit, for all or for each channel.
        limit: largest magnitude of a weight's code.
        inputs: if known, weights are rounded by `round_weights`, and the mean error moves into the bias; else
            to nearest.
    """
    outputs, channels = weight.shape
    in_scale = np.broadcast_to(np.asarray(in_scale, np.float64), (channels,))
    scaled = np.asarray(weight, np.float64) / in_scale
    bias = np.broadcast_to(np.asarray(bias, np.float64), (outputs,))
    # A bias beyond all that the inputs can reach would need accumulator bits of its own: coarsen the step.
    reach = channels * (limit + 1) << (A_BITS - 1)
    step = np.maximum(np.abs(scaled).max(axis=1) / limit, np.abs(bias) / reach)
    step = np.where(step > 0, step, 1.0)
    target = scaled / step[:, None]
    if inputs is None:
        codes = np.clip(np.rint(target), -limit, limit)
    else:
        codes = round_weights(target, inputs.covariance * np.outer(in_scale, in_scale), limit)
        bias = bias + (target - codes) @ (inputs.mean * in_scale) * step
        bias = np.clip(bias, -reach * step, reach * step)
    multiplier, shift = factor(step * out_scale)
    return Linear(codes.astype(np.int16), np.rint(bias / step).astype(np.int64), multiplier, shift)


ROUNDING_BLOCK = 32


def round_weights(target: Array, covariance: Array, limit: int) -> Array:
    """Integers near ``target`` (outputs, inputs) with a small error of ``target @ x``, not of each weight.

    Input by input, the one with the largest variance first, the column is rounded to nearest, and the columns
    that are left take over what is predictable of the error from the covariance of the inputs. The update of
    columns further away is done a block at a time.

    Source: GPTQ, Frantar et al., ICLR 2023 (arXiv 2210.17323).
    """
    order = np.argsort(-np.diag(covariance), kind="stable")
    rest = target[:, order]
    predict = np.linalg.cholesky(np.linalg.inv(covariance[np.ix_(order, order)])).T
    codes = np.empty_like(rest)
    for start in range(0, rest.shape[1], ROUNDING_BLOCK):
        end = min(start + ROUNDING_BLOCK, rest.shape[1])
        errors = np.empty((len(rest), end - start))
        for j in range(start, end):
            codes[:, j] = np.clip(np.rint(rest[:, j]), -limit, limit)
            errors[:, j - start] = (rest[:, j] - codes[:, j]) / predict[j, j]
            rest[:, j + 1 : end] -= np.outer(errors[:, j - start], predict[j, j + 1 : end])
        rest[:, end:] -= errors @ predict[start:end, end:]
    result = np.empty_like(codes)
    result[:, order] = codes
    return result


def quantize_norm(weight: Array, bias: Array, out_scale: Array, eps: float, x_frac: int) -> Norm:
    """Integers of a LayerNorm's affine step; ``out_scale`` is codes per unit of each channel."""
    gain = np.asarray(weight, np.float64) * out_scale
    offset = np.asarray(bias, np.float64) * out_scale
    # The largest shift with which gamma = gain * 2^(shift - 12) and beta = offset * 2^shift fit their fields.
    shift = min(
        NORMALISED_FRAC + _spare_bits(np.abs(gain).max(), A_BITS),
        _spare_bits(np.abs(offset).max(), BIAS_BITS),
        BIAS_BITS - A_BITS + NORMALISED_FRAC,
    )
    if shift < 1:
        raise BadInput(f"a LayerNorm scales by {np.abs(weight).max():g}; its parameters exceed 16 bits")
    gamma = np.rint(np.ldexp(gain, shift - NORMALISED_FRAC)).astype(np.int64)
    return Norm(gamma, np.rint(np.ldexp(offset, shift)).astype(np.int64), shift, eps, x_frac)


def _spare_bits(value: float, bits: int) -> int:
    """Largest shift with which ``value * 2^shift``, rounded, fits in ``bits`` signed bits."""
    return math.floor(math.log2(((1 << (bits - 1)) - 1) / value)) if value > 0 else bits


# -- factors per channel ------------------------------------------------------------------------

FACTOR_RANGE = 32.0
"""Factors lie within this ratio of their geometric mean."""


def even(peak: Array) -> NDArray[np.float64]:
    """Factors that bring channels of these largest magnitudes to a common one; 1 for channels of zeros."""
    good = np.isfinite(peak) & (peak > 0)
    if not good.any():
        return np.ones_like(peak)
    logs = np.where(good, -np.log2(np.where(good, peak, 1.0)), 0.0)
    logs = np.where(good, logs - logs[good].mean(), 0.0)
    limit = math.log2(FACTOR_RANGE)
    return np.exp2(np.clip(logs, -limit, limit))


# -- quantisation -------------------------------------------------------------------------------


def quantize(
    model: Model,
    profile: str,
    images: Array | None = None,
    *,
    calibration: Calibration | None = None,
) -> QuantizedModel:
    """All integers of ``model``.

    Args:
        profile: ``w8a16`` or ``w16a16``.
        images: (n, channels, height, width) for the calibration, completed by `calibration_images`.
        calibration: a result of `calibrate` to use instead of ``images``.

    Raises:
        BadInput: unknown profile, bad images, or weights beyond the integer fields.
    """
    if profile not in PROFILES:
        raise BadInput(f"profile must be one of {', '.join(PROFILES)}, found {profile!r}")
    if calibration is None:
        calibration = calibrate(model, calibration_images(model.config, images))
    return _Quantizer(model, profile, calibration).result()


def _mean_variance(covariance: Array) -> float:
    return float(np.trace(covariance)) / len(covariance)


class _Quantizer:
    """Chooses formats and factors in the order of the model and converts layer by layer."""

    def __init__(self, model: Model, profile: str, calibration: Calibration) -> None:
        self.model, self.config = model, model.config
        self.profile, self.b_bits = profile, PROFILES[profile]
        self.limit = (1 << (self.b_bits - 1)) - 1
        self.statistics, self.moments = calibration.statistics, calibration.moments
        self.headroom = HEADROOM[profile]
        self.formats: dict[str, int] = {"image": IMAGE_FRAC}
        self.factors: dict[str, NDArray[np.float64]] = {}
        self._residuals()

    # -- scales

    def scale(self, name: str) -> NDArray[np.float64] | float:
        """Codes per unit of a tensor, one number or one per channel."""
        return 2.0 ** self.formats[name] * self.factors.get(name, 1.0)

    def _set(self, name: str) -> None:
        """Power-of-two format."""
        self.formats[name] = fraction_bits(self.statistics[name].magnitude, self.headroom)

    def _set_factors(self, name: str, factors: Array) -> None:
        """Format with a factor per channel, such that every head's largest value has exactly the headroom."""
        peak = self.statistics[name].peak.reshape(self.config.heads, -1)
        factors = factors.reshape(self.config.heads, -1)
        largest = (peak * factors).max(axis=1, keepdims=True)
        limit = ((1 << (A_BITS - 1)) - 1) / self.headroom
        factors = factors * limit / np.where(largest > 0, largest, 1.0)
        self._set(name)
        self.factors[name] = factors.ravel() / 2.0 ** self.formats[name]

    def _residuals(self) -> None:
        start = float(np.abs(self.model["pos_embed"]).max())
        magnitudes = [max(self.statistics["embed"].magnitude, start)]
        for i in range(self.config.depth):
            pair = (self.statistics[f"l{i}_post_attn"], self.statistics[f"l{i}_post_mlp"])
            magnitudes.append(max(s.magnitude for s in pair))
        fracs = residual_fracs(magnitudes, RESIDUAL_HEADROOM, _highest_residual_frac(self.config))
        self.formats["embed"] = fracs[0]
        for i, frac in enumerate(fracs[1:]):
            self.formats[f"l{i}_post_attn"] = self.formats[f"l{i}_post_mlp"] = frac
            self.formats[f"l{i}_proj"] = self.formats[f"l{i}_expert"] = self.formats[f"l{i}_mlp"] = frac
            if i in self.config.moe_blocks:
                del self.formats[f"l{i}_mlp"]
            else:
                del self.formats[f"l{i}_expert"]
        self.formats["x"] = fracs[-1]

    def _residual_before(self, block: int) -> int:
        return self.formats[f"l{block - 1}_post_mlp" if block else "embed"]

    # -- layers

    def _linear(
        self, weight: Array, bias: Array | float, source: str, out_scale: ArrayLike, expert: int | None = None
    ) -> Linear:
        """A layer whose inputs are tensor ``source``; of an expert, only the tokens that visit it."""
        return quantize_linear(
            weight, bias, self.scale(source), out_scale, self.limit, self._inputs(source, expert)
        )

    def _inputs(self, source: str, expert: int | None) -> Inputs | None:
        """Moments of the inputs, damped; None where rounding to nearest is as good (16-bit weights)."""
        if self.b_bits > 8:
            return None
        if expert is not None:
            mean, covariance = self._expert_moments(source, self.moments.get(f"{source}.{expert}"))
        elif source in self.moments:
            mean, covariance = self.moments[source].mean, self.moments[source].covariance
        else:
            return None
        # The second term outweighs what is left of the mean in the covariance of constants.
        damping = DAMPING * max(_mean_variance(covariance), 0.0) + 1e-9 * float(mean @ mean) / len(mean)
        return Inputs(mean, covariance + damping * np.eye(len(mean))) if damping > 0 else None

    def _expert_moments(self, source: str, own: Moments | None) -> tuple[Array, Array]:
        """Mean and covariance of an expert's inputs, drawn towards those of all tokens and a mean of 0."""
        everyone = self.moments.get(source)
        if everyone is not None:
            prior = everyone.covariance
        else:
            # Hidden values of different experts have nothing in common but their size.
            experts = [m for n, m in self.moments.items() if n.startswith(f"{source}.")]
            size = sum(m.rows * _mean_variance(m.covariance) for m in experts) / sum(m.rows for m in experts)
            prior = size * np.eye(len(experts[0].mean))
        if own is None:
            return np.zeros(len(prior)), prior
        share = own.rows / (own.rows + PRIOR_TOKENS)
        return share * own.mean, share * own.covariance + (1 - share) * prior

    def _norm(self, name: str, tensor: str, x_frac: int) -> Norm:
        weight, bias = self.model[f"{name}.weight"], self.model[f"{name}.bias"]
        return quantize_norm(
            weight, bias, np.broadcast_to(self.scale(tensor), weight.shape), self.config.norm_eps, x_frac
        )

    def _embed(self) -> Linear:
        """The patch embedding with the image's mean and standard deviation folded in."""
        c = self.config
        weight = self.model["patch_embed.weight"].astype(np.float64)
        bias = self.model["patch_embed.bias"].astype(np.float64)
        if c.image_std:
            weight = weight / np.array(c.image_std)[:, None, None]
        if c.image_mean:
            bias = bias - (weight * np.array(c.image_mean)[:, None, None]).sum(axis=(1, 2, 3))
        linear = self._linear(weight.reshape(c.dim, -1), bias, "image", self.scale("embed"))
        return Linear(linear.weight.reshape(weight.shape), linear.bias, linear.multiplier, linear.shift)

    def _attention(self, i: int) -> dict[str, Any]:
        name = f"blocks.{i}.attn"
        weights = np.split(self.model[f"{name}.qkv.weight"].astype(np.float64), 3)
        biases = np.split(self.model[f"{name}.qkv.bias"].astype(np.float64), 3)
        self._set(f"l{i}_norm1")
        self._attention_factors(i)
        parts: dict[str, Any] = {
            "norm1": self._norm(f"blocks.{i}.norm1", f"l{i}_norm1", self._residual_before(i))
        }
        for kind, weight, bias in zip("qkv", weights, biases, strict=True):
            parts[kind] = self._linear(weight, bias, f"l{i}_norm1", self.scale(f"l{i}_{kind}"))
        parts["score"] = self._scores(i)
        gain = self.scale(f"l{i}_attention") / self.scale(f"l{i}_v")
        multiplier, shift = factor(gain * 2.0 ** -(MID_BITS - 1 - self.b_bits), MIN_SHARED_SHIFT)
        parts |= {"attention_multiplier": multiplier, "attention_shift": shift}
        weight, bias = self.model[f"{name}.proj.weight"], self.model[f"{name}.proj.bias"]
        return parts | {"proj": self._linear(weight, bias, f"l{i}_attention", self.scale(f"l{i}_proj"))}

    def _attention_factors(self, i: int) -> None:
        """Even out the channels that share a token's exponent; q takes the inverse of k's factors."""
        heads = self.config.heads
        k, v = (
            np.concatenate([even(p) for p in np.split(self.statistics[f"l{i}_{n}"].peak, heads)])
            for n in "kv"
        )
        self._set_factors(f"l{i}_k", k)
        self._set_factors(f"l{i}_q", 1 / k)
        self._set_factors(f"l{i}_v", v)
        self._set(f"l{i}_attention")

    def _scores(self, i: int) -> tuple[tuple[int, int], ...]:
        c = self.config
        self.formats[f"l{i}_scores"] = SCORE_FRAC
        product = (self.scale(f"l{i}_q") * self.scale(f"l{i}_k")).reshape(c.heads, -1)[:, 0]
        gain = 2.0**SCORE_FRAC * LOG2E / math.sqrt(c.head_dim) / product
        pairs = [factor(g, MIN_SHARED_SHIFT) for g in gain]
        return tuple((int(m), int(s)) for m, s in pairs)

    def _mlp(self, i: int) -> dict[str, Any]:
        c, name = self.config, f"blocks.{i}"
        kind = "moe" if i in c.moe_blocks else "mlp"
        w1, b1 = (self.model[f"{name}.{kind}.fc1.{part}"] for part in ("weight", "bias"))
        w2, b2 = (self.model[f"{name}.{kind}.fc2.{part}"] for part in ("weight", "bias"))
        source, hidden = f"l{i}_norm2", f"l{i}_hidden"
        self._set(source)
        frac = _hidden_frac(self.statistics[f"l{i}_fc1"], self.headroom)
        self.formats[f"l{i}_fc1"] = self.formats[hidden] = frac
        parts: dict[str, Any] = {
            "norm2": self._norm(f"{name}.norm2", source, self.formats[f"l{i}_post_attn"]),
            "gelu_frac": frac,
        }
        out = self.scale(f"l{i}_post_mlp")
        if kind == "mlp":
            pair = self._linear(w1, b1, source, 2.0**frac), self._linear(w2, b2, hidden, out)
            return parts | {"mlp": pair}
        parts["fc1"] = tuple(self._linear(w1[e], b1[e], source, 2.0**frac, e) for e in range(c.experts))
        parts["fc2"] = tuple(self._linear(w2[e], b2[e], hidden, out, e) for e in range(c.experts))
        return parts | {"gates": self._gates(i)}

    def _gates(self, i: int) -> tuple[Linear, ...]:
        weight = self.model[f"blocks.{i}.moe.gate.weight"]
        bias = self.model.get(f"blocks.{i}.moe.gate.bias")
        self.formats[f"l{i}_gate"] = SCORE_FRAC
        gain = 2.0**SCORE_FRAC * LOG2E
        return tuple(
            quantize_linear(w, 0.0 if bias is None else bias[t], self.scale(f"l{i}_norm2"), gain, GATE_LIMIT)
            for t, w in enumerate(weight)
        )

    def _block(self, i: int) -> Block:
        realign = self._residual_before(i) - self.formats[f"l{i}_post_attn"]
        return Block(realign=realign, **self._attention(i), **self._mlp(i))

    def _head(self, task: int) -> Linear | None:
        c = self.config
        if not (c.classes and c.classes[task]):
            return None
        self._set(f"logits{task}")
        weight, bias = self.model[f"heads.{task}.weight"], self.model[f"heads.{task}.bias"]
        return self._linear(weight, bias, "norm" if c.final_norm else "x", self.scale(f"logits{task}"))

    def result(self) -> QuantizedModel:
        """Convert everything."""
        blocks = tuple(self._block(i) for i in range(self.config.depth))
        final = None
        if self.config.final_norm:
            self._set("norm")
            final = self._norm("norm", "norm", self.formats["x"])
        pos = saturate(np.rint(self.model["pos_embed"] * self.scale("embed")), A_BITS)
        heads = tuple(self._head(t) for t in range(len(self.config.tasks)))
        return QuantizedModel(
            self.config, self.profile, self.b_bits, self.formats, self.factors, self._embed(), pos, blocks, final,
            heads, tuple(self._rows()),
        )  # fmt: skip

    def _rows(self) -> list[TensorReport]:
        rows = []
        for name, statistics in self.statistics.items():
            if name not in self.formats:
                continue
            factors = self.factors.get(name)
            bits = SCORE_BITS if name.endswith(BASE_2) else A_BITS
            limit = 2.0 ** (bits - 1 - self.formats[name])
            per_channel = statistics.peak if factors is not None else None
            peak = statistics.magnitude if per_channel is None else float((per_channel * factors).max())
            clipped = statistics.beyond(round(math.log2(limit))) if factors is None else 0.0
            headroom = limit / peak if peak else math.inf
            rows.append(
                TensorReport(name, statistics.low, statistics.high, self.formats[name], clipped, headroom)
            )
        return rows
