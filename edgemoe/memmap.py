"""Where tensors lie: pages of the activation memory, and the bytes of weights, images and outputs.

The formats are those of docs/architecture.md ("Activation memory", "Weight stream"). Every ``pack`` has
its ``unpack`` beside it; the golden machine reads memory images through the latter only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemoe.config import HardwareConfig, ModelConfig
from edgemoe.errors import BadInput, DoesNotFit
from edgemoe.numeric import IntArray, ceil_div, round_up, sign_extend

MULTIPLIER_BITS, SHIFT_BITS, BIAS_BITS = 16, 6, 42
"""Fields of a channel parameter, LSB first."""
PARAMETER_BYTES = (MULTIPLIER_BITS + SHIFT_BITS + BIAS_BITS) // 8
PAD_SHIFT = 32
"""Shift of a padding channel; its multiplier is 0, so any shift from which an exponent can be taken will do."""
ACTIVATION_BYTES = 2


class Page(enum.IntEnum):
    """Pages of the activation memory; a region may run from one over those behind it.

    What they hold beside their names: NORM the image and the scores of a head, Q the attention output, Q to V
    the hidden channels, K the gate's scores.
    """

    X = 0
    NORM = 1
    Q = 2
    K = 3
    V = 4


# -- parameters ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """Parameters of the channels of a product: ``(acc + bias) * multiplier >> shift``, one row each."""

    multiplier: IntArray
    shift: IntArray
    bias: IntArray

    @classmethod
    def of(
        cls, multiplier: ArrayLike, shift: ArrayLike, bias: ArrayLike, name: str = "parameters"
    ) -> Parameters:
        """Broadcast to one length and check the widths.

        Raises:
            DoesNotFit: a value exceeds its field; the message starts with ``name``.
        """
        arrays = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(v, np.int64)) for v in (multiplier, shift, bias))
        )
        limits = {"multiplier": (0, MULTIPLIER_BITS), "shift": (0, SHIFT_BITS), "bias": (1, BIAS_BITS)}
        for (field_name, (signed, bits)), values in zip(limits.items(), arrays):
            low = -(1 << (bits - 1)) if signed else 0
            check_range(values, low, low + (1 << bits) - 1, f"{name}: {field_name}")
        return cls(*arrays)

    def __len__(self) -> int:
        return len(self.bias)

    def padded(self, rows: int) -> Parameters:
        """Extended to ``rows`` channels, the new ones always 0 (multiplier 0)."""
        extra = (0, rows - len(self))
        return Parameters(
            np.pad(self.multiplier, extra),
            np.pad(self.shift, extra, constant_values=PAD_SHIFT),
            np.pad(self.bias, extra),
        )

    def spread(self, positions: ArrayLike, rows: int) -> Parameters:
        """Channel i moved to ``positions[i]`` of ``rows``; the others are always 0."""
        out = Parameters.of(np.zeros(rows), PAD_SHIFT, 0)
        values = []
        for new, old in zip((out.multiplier, out.shift, out.bias), (self.multiplier, self.shift, self.bias)):
            new = new.copy()
            new[positions] = old
            values.append(new)
        return Parameters(*values)

    def pack(self) -> NDArray[np.uint64]:
        """One 64-bit word per channel."""
        bias = (self.bias & ((1 << BIAS_BITS) - 1)).astype(np.uint64)
        low = (self.multiplier | (self.shift << MULTIPLIER_BITS)).astype(np.uint64)
        return low | (bias << np.uint64(MULTIPLIER_BITS + SHIFT_BITS))

    @classmethod
    def unpack(cls, words: NDArray[np.uint64]) -> Parameters:
        """Inverse of `pack`."""
        low = (words & np.uint64((1 << (MULTIPLIER_BITS + SHIFT_BITS)) - 1)).astype(np.int64)
        bias = (words >> np.uint64(MULTIPLIER_BITS + SHIFT_BITS)).astype(np.int64)
        return cls(low & ((1 << MULTIPLIER_BITS) - 1), low >> MULTIPLIER_BITS, sign_extend(bias, BIAS_BITS))


def check_range(values: ArrayLike, low: int, high: int, name: str) -> None:
    """Raise `DoesNotFit` unless ``low <= values <= high``."""
    values = np.asarray(values)
    if values.size and (values.min() < low or values.max() > high):
        raise DoesNotFit(f"{name} is {values.min()}..{values.max()}; the field holds {low}..{high}")


# -- weight stream ------------------------------------------------------------------------------


def b_type(hardware: HardwareConfig) -> np.dtype:
    """Little-endian storage of an operand B."""
    return np.dtype(f"<i{hardware.b_bits // 8}")


def parameter_block_bytes(hardware: HardwareConfig) -> int:
    """Bytes of the parameters of one block of rows, padded to whole fill words."""
    return round_up(PARAMETER_BYTES * hardware.out_lanes, hardware.fill_bytes)


def group_bytes(hardware: HardwareConfig, words: int) -> int:
    """Bytes of a group of ``fill_rows`` rows of ``words`` words."""
    return words * hardware.fill_bytes


def product_bytes(hardware: HardwareConfig, rows: int, words: int) -> int:
    """Bytes of ``rows`` rows of ``words`` words and of their parameters, before the padding of a region."""
    blocks, groups = ceil_div(rows, hardware.out_lanes), ceil_div(rows, hardware.fill_rows)
    return blocks * parameter_block_bytes(hardware) + groups * group_bytes(hardware, words)


def region_bytes(hardware: HardwareConfig, size: int) -> int:
    """``size`` padded to what a region occupies: whole port words and whole fill words."""
    return round_up(size, max(hardware.port_bytes, hardware.fill_bytes))


def pad_region(hardware: HardwareConfig, raw: bytes) -> bytes:
    """``raw`` with the zeros that fill its region."""
    return raw.ljust(region_bytes(hardware, len(raw)), b"\0")


def pad_lanes(hardware: HardwareConfig, values: ArrayLike) -> IntArray:
    """Rows padded with zeros to whole words of ``in_lanes``."""
    values = np.asarray(values, np.int64)
    extra = -values.shape[-1] % hardware.in_lanes
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, extra)])


def _parameter_blocks(hardware: HardwareConfig, parameters: Parameters) -> NDArray[np.uint8]:
    """(blocks, bytes): the packed parameters of each block."""
    blocks = ceil_div(len(parameters), hardware.out_lanes)
    words = np.zeros(blocks * hardware.out_lanes, "<u8")
    words[: len(parameters)] = parameters.pack()
    raw = words.view(np.uint8).reshape(blocks, -1)
    return np.pad(raw, ((0, 0), (0, parameter_block_bytes(hardware) - raw.shape[1])))


def pack_parameters(hardware: HardwareConfig, parameters: Parameters) -> bytes:
    """Blocks of parameters without rows: the stream of a product whose B are the values."""
    return _parameter_blocks(hardware, parameters).tobytes()


def unpack_parameters(hardware: HardwareConfig, raw: bytes, rows: int) -> Parameters:
    """Inverse of `pack_parameters`."""
    blocks = ceil_div(rows, hardware.out_lanes)
    size = parameter_block_bytes(hardware)
    raw_blocks = np.frombuffer(raw, np.uint8, blocks * size).reshape(blocks, size)
    words = np.ascontiguousarray(raw_blocks[:, : PARAMETER_BYTES * hardware.out_lanes]).view("<u8")
    return Parameters.unpack(words.ravel()[:rows])


def pack_product(hardware: HardwareConfig, weights: ArrayLike, parameters: Parameters) -> bytes:
    """Weights (rows, values) and the rows' parameters as the stream carries them.

    ``values`` is a multiple of ``in_lanes``. Blocks of ``out_lanes`` rows: parameters, then groups of
    ``fill_rows`` rows interleaved word by word.
    """
    weights = np.asarray(weights)
    rows, width = weights.shape
    limit = 1 << (hardware.b_bits - 1)
    check_range(weights, -limit, limit - 1, "weights: code")
    fill, lanes = hardware.fill_rows, hardware.in_lanes
    groups, words = ceil_div(rows, fill), width // lanes
    padded = np.zeros((groups * fill, width), b_type(hardware))
    padded[:rows] = weights
    body = np.ascontiguousarray(padded.reshape(groups, fill, words, lanes).transpose(0, 2, 1, 3))
    heads = _parameter_blocks(hardware, parameters)
    per_block = hardware.out_lanes // fill
    chunks = []
    for block, head in enumerate(heads):
        chunks += [head.tobytes(), body[block * per_block : (block + 1) * per_block].tobytes()]
    return b"".join(chunks)


def unpack_product(
    hardware: HardwareConfig, raw: bytes, rows: int, words: int
) -> tuple[IntArray, Parameters]:
    """Inverse of `pack_product`: weights (rows, words * in_lanes) and parameters."""
    fill, lanes, size = hardware.fill_rows, hardware.in_lanes, parameter_block_bytes(hardware)
    weights = np.empty((round_up(rows, fill), words * lanes), np.int64)
    heads, position = [], 0
    for first in range(0, rows, hardware.out_lanes):
        groups = ceil_div(min(rows - first, hardware.out_lanes), fill)
        heads.append(raw[position : position + size])
        body = np.frombuffer(raw, b_type(hardware), groups * fill * words * lanes, position + size)
        body = body.reshape(groups, words, fill, lanes).transpose(0, 2, 1, 3)
        weights[first : first + groups * fill] = body.reshape(groups * fill, -1)
        position += size + groups * group_bytes(hardware, words)
    return weights[:rows], unpack_parameters(hardware, b"".join(heads), rows)


def split_digits(codes: ArrayLike) -> tuple[IntArray, IntArray]:
    """16-bit codes within +-32639 as ``256 * high + low`` of signed 8-bit digits."""
    codes = np.asarray(codes, np.int64)
    check_range(codes, -32639, 32639, "gate: weight code")
    low = sign_extend(codes, 8)
    return (codes - low) >> 8, low


def pack_norm(hardware: HardwareConfig, gamma: ArrayLike, beta: ArrayLike) -> bytes:
    """Gamma (16 bits, signed) and beta (42 bits) of each lane of a token, padded to whole fill words."""
    gamma, beta = pad_lanes(hardware, gamma), pad_lanes(hardware, beta)
    check_range(gamma, -(1 << 15), (1 << 15) - 1, "norm: gamma")
    check_range(beta, -(1 << (BIAS_BITS - 1)), (1 << (BIAS_BITS - 1)) - 1, "norm: beta")
    raw = Parameters(gamma & 0xFFFF, np.zeros_like(gamma), beta).pack().astype("<u8").tobytes()
    return raw.ljust(round_up(len(raw), hardware.fill_bytes), b"\0")


def unpack_norm(hardware: HardwareConfig, raw: bytes, words: int) -> tuple[IntArray, IntArray]:
    """Inverse of `pack_norm`: gamma and beta of ``words`` words."""
    parameters = Parameters.unpack(np.frombuffer(raw, "<u8", words * hardware.in_lanes))
    return sign_extend(parameters.multiplier, 16), parameters.bias


# -- activations in external memory --------------------------------------------------------------


def pack_rows(hardware: HardwareConfig, rows: ArrayLike) -> bytes:
    """Rows (count, channels) of int16 codes, each padded to whole words, padded to a port word."""
    values = pad_lanes(hardware, rows)
    check_range(values, -(1 << 15), (1 << 15) - 1, "activations: code")
    raw = values.astype("<i2").tobytes()
    return raw.ljust(round_up(len(raw), hardware.port_bytes), b"\0")


def rows_bytes(hardware: HardwareConfig, count: int, words: int) -> int:
    """Bytes of ``count`` rows of ``words`` words, padded to a port word."""
    return round_up(count * words * hardware.in_lanes * ACTIVATION_BYTES, hardware.port_bytes)


@dataclass(frozen=True)
class Stored:
    """A tensor in the output of one image: ``rows`` x ``channels`` int16, rows of ``words`` words.

    ``offset`` is in bytes from the start of the image's output; with task t a value is ``code * 2**-fracs[t]``.
    """

    name: str
    offset: int
    rows: int
    words: int
    channels: int
    fracs: tuple[int, ...]

    def unpack(self, hardware: HardwareConfig, raw: bytes) -> IntArray:
        """Codes (rows, channels) from the output of one image."""
        width = self.words * hardware.in_lanes
        return (
            np.frombuffer(raw, "<i2", self.rows * width, self.offset)
            .reshape(self.rows, width)[:, : self.channels]
            .astype(np.int64)
        )


# -- images -------------------------------------------------------------------------------------

PIXEL_FRAC = 15
"""Fraction bits of a pixel as operand A."""


def image_bytes(hardware: HardwareConfig, model: ModelConfig, pixel_bytes: int) -> int:
    """Bytes of one raw image in external memory, padded to a port word."""
    return round_up(model.channels * model.height * model.width * pixel_bytes, hardware.port_bytes)


def pixel_codes(image: ArrayLike, model: ModelConfig) -> IntArray:
    """Operand A of each pixel, 15 fraction bits: uint8 ``u`` is ``u << 7``, float in [0, 1) is rounded.

    Raises:
        BadInput: the shape is not the model's, or a value lies outside [0, 1).
    """
    image = np.asarray(image)
    shape = (model.channels, model.height, model.width)
    if image.shape != shape:
        raise BadInput(f"image has shape {list(image.shape)}, model {model.name} takes {list(shape)}")
    if image.dtype == np.uint8:
        return image.astype(np.int64) << (PIXEL_FRAC - 8)
    if not np.issubdtype(image.dtype, np.floating):
        raise BadInput(f"image has type {image.dtype}; it must be uint8, or float with values in [0, 1)")
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() < 1):
        raise BadInput(f"image has values in {image.min()}..{image.max()}; a float image must lie in [0, 1)")
    return np.minimum(np.round(image.astype(np.float64) * (1 << PIXEL_FRAC)), (1 << PIXEL_FRAC) - 1).astype(
        np.int64
    )


def pixels(image: ArrayLike, model: ModelConfig, pixel_bytes: int) -> NDArray[np.uint8] | NDArray[np.int16]:
    """Pixels (channels, height, width) as they lie in external memory: uint8 (u/256) or int16 (15 fraction bits).

    Raises:
        BadInput: see `pixel_codes`; or a pixel is no multiple of 1/256 and has only one byte.
    """
    codes = pixel_codes(image, model)
    if pixel_bytes == 2:
        return codes.astype("<i2")
    if (codes & ((1 << (PIXEL_FRAC - 8)) - 1)).any():
        raise BadInput("image has values that are no multiples of 1/256; compile with 2 bytes per pixel")
    return (codes >> (PIXEL_FRAC - 8)).astype(np.uint8)


def pack_image(image: ArrayLike, hardware: HardwareConfig, model: ModelConfig, pixel_bytes: int) -> bytes:
    """`pixels` as bytes, padded to a port word: what IMAGE reads."""
    return pixels(image, model, pixel_bytes).tobytes().ljust(image_bytes(hardware, model, pixel_bytes), b"\0")


def patch_positions(
    hardware: HardwareConfig, channels: int, patch_y: int, patch_x: int, segment: int
) -> IntArray:
    """Position of pixel (c, y, x) of a patch in its row of operand A: ``(c * patch_y + y) * segment + x``."""
    first = np.arange(channels * patch_y) * segment
    return (first[:, None] + np.arange(patch_x)).ravel()


# -- external memory ----------------------------------------------------------------------------


@dataclass
class MemoryImage:
    """The bytes that are loaded at the ``program`` address: regions one after another, on port words."""

    hardware: HardwareConfig
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0

    def append(self, raw: bytes) -> tuple[int, int]:
        """Add a region; returns its address and length in port words."""
        port = self.hardware.port_bytes
        raw = raw.ljust(round_up(len(raw), port), b"\0")
        address = self.size // port
        self.chunks.append(raw)
        self.size += len(raw)
        return address, len(raw) // port

    def tobytes(self) -> bytes:
        """All regions."""
        return b"".join(self.chunks)
