"""Packing of weights, parameters, images and outputs: layout as documented, and every inverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgemoe import memmap
from edgemoe.core.activation import page_size
from edgemoe.errors import BadInput, DoesNotFit
from edgemoe.memmap import MemoryImage, Parameters, Stored
from models import CONFIG, hardware

SHAPES = [
    {"in_lanes": 8, "out_lanes": 8, "port_bytes": 8},
    {"in_lanes": 8, "out_lanes": 8, "port_bytes": 32},
    {"in_lanes": 16, "out_lanes": 4, "port_bytes": 128},
    {"in_lanes": 16, "out_lanes": 8, "port_bytes": 2, "slot_sets": 1},
    {"in_lanes": 8, "out_lanes": 16, "port_bytes": 32, "profile": "w16a16"},
]


def draw(rows: int, width: int, bits: int = 8) -> tuple[np.ndarray, Parameters]:
    rng = np.random.default_rng(rows * width)
    weights = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, width))
    parameters = (
        rng.integers(0, 1 << 16, rows),
        rng.integers(0, 64, rows),
        rng.integers(-(1 << 41), 1 << 41, rows),
    )
    return weights, Parameters.of(*parameters)


def same(a: Parameters, b: Parameters) -> bool:
    return all(
        np.array_equal(x, y) for x, y in ((a.multiplier, b.multiplier), (a.shift, b.shift), (a.bias, b.bias))
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows,words", [(1, 1), (7, 3), (16, 2), (21, 1)])
def test_product_round_trip(shape, rows, words):
    hw = hardware(**shape)
    weights, parameters = draw(rows, words * hw.in_lanes, hw.b_bits)
    raw = memmap.pack_product(hw, weights, parameters)
    assert len(raw) == memmap.product_bytes(hw, rows, words)
    got, got_parameters = memmap.unpack_product(hw, raw, rows, words)
    assert np.array_equal(got, weights)
    assert same(got_parameters, parameters)
    assert (
        len(memmap.pad_region(hw, raw)) % hw.port_bytes
        == len(memmap.pad_region(hw, raw)) % hw.fill_bytes
        == 0
    )


def test_layout_of_a_block_is_the_documented_one():
    """Two rows of a fill word each time, lowest row first; parameters before rows; blocks of out_lanes rows."""
    hw = hardware(in_lanes=8, out_lanes=4, port_bytes=16)
    assert hw.fill_rows == 2 and hw.fill_bytes == 16
    weights = np.arange(5 * 16).reshape(5, 16)
    parameters = Parameters.of(np.arange(1, 6), np.arange(11, 16), -np.arange(1, 6))
    raw = memmap.pack_product(hw, weights, parameters)
    first = int.from_bytes(raw[8:16], "little")
    assert (first & 0xFFFF, first >> 16 & 63, first >> 22) == (2, 12, (1 << 42) - 2)
    body = raw[32:]
    assert list(body[:16]) == [*range(8), *range(16, 24)]  # word 0 of rows 0 and 1
    assert list(body[16:32]) == [*range(8, 16), *range(24, 32)]  # word 1
    assert list(body[32:40]) == list(range(32, 40))  # rows 2 and 3
    second = raw[32 + 64 :]
    assert len(second) == 32 + 32
    assert second[8:32] == bytes(24)  # one row in the last block
    assert list(second[32:48]) == [*range(64, 72), *[0] * 8]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_norm_round_trip(shape):
    hw = hardware(**shape)
    _, parameters = draw(13, 8)
    raw = memmap.pack_parameters(hw, parameters)
    assert len(raw) % hw.fill_bytes == 0
    assert same(memmap.unpack_parameters(hw, raw, 13), parameters)
    rng = np.random.default_rng(0)
    gamma, beta = rng.integers(-(1 << 15), 1 << 15, 20), rng.integers(-(1 << 41), 1 << 41, 20)
    words = -(-20 // hw.in_lanes)
    got = memmap.unpack_norm(hw, memmap.pack_norm(hw, gamma, beta), words)
    assert np.array_equal(got[0][:20], gamma) and np.array_equal(got[1][:20], beta)
    assert not got[0][20:].any() and not got[1][20:].any()


def test_digits_rebuild_the_code():
    codes = np.arange(-32639, 32640)
    high, low = memmap.split_digits(codes)
    assert np.array_equal(256 * high + low, codes)
    assert max(high.max(), low.max()) == 127 and min(high.min(), low.min()) == -128
    with pytest.raises(DoesNotFit, match=r"gate: weight code is 32640..32640; the field holds -32639..32639"):
        memmap.split_digits([32640])


def test_parameter_beyond_its_field_is_refused():
    with pytest.raises(DoesNotFit, match=r"l0_q: bias is .*; the field holds -2199023255552..2199023255551"):
        Parameters.of(1, 1, 1 << 41, "l0_q")
    with pytest.raises(DoesNotFit, match="l0_q: multiplier is 65536"):
        Parameters.of(65536, 1, 0, "l0_q")


def test_patch_positions():
    hw = hardware()
    assert hw.segment(CONFIG) == 4
    positions = memmap.patch_positions(hw, 2, 4, 3, 4)
    assert positions[:7].tolist() == [0, 1, 2, 4, 5, 6, 8]
    assert positions[12] == 16 and len(positions) == 2 * 4 * 3  # channel 1


def test_pixels_of_both_widths():
    hw = hardware()
    image = np.random.default_rng(0).integers(0, 256, (2, 12, 12)).astype(np.uint8)
    assert np.array_equal(memmap.pixels(image, CONFIG, 2), image.astype(np.int16) << 7)
    assert np.array_equal(memmap.pixels(image, CONFIG, 1), image)
    assert np.array_equal(memmap.pixels(image / 256, CONFIG, 1), image)
    raw = memmap.pack_image(image, hw, CONFIG, 1)
    assert raw[:288] == image.tobytes() and len(raw) == memmap.image_bytes(hw, CONFIG, 1)
    top = np.full((2, 12, 12), np.nextafter(np.float32(1), np.float32(0)))
    assert memmap.pixels(top, CONFIG, 2).max() == 32767


@pytest.mark.parametrize(
    "image,message",
    [
        (np.zeros((1, 12, 12), np.uint8), r"shape \[1, 12, 12\], model tiny takes \[2, 12, 12\]"),
        (np.zeros((2, 12, 12), int), "type int64; it must be uint8, or float"),
        (np.full((2, 12, 12), 1.0), r"must lie in \[0, 1\)"),
        (np.full((2, 12, 12), np.nan), r"must lie in \[0, 1\)"),
        (np.full((2, 12, 12), 0.001), "multiples of 1/256; compile with 2 bytes per pixel"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(BadInput, match=message):
        memmap.pixels(image, CONFIG, 1)


def test_rows_and_stored():
    hw = hardware(port_bytes=64)
    values = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, (5, 20))
    raw = memmap.pack_rows(hw, values)
    assert len(raw) == memmap.rows_bytes(hw, 5, 3) == 256
    assert np.array_equal(Stored("x", 0, 5, 3, 20, (0,)).unpack(hw, raw), values)


def test_memory_image_places_regions_on_port_words():
    memory = MemoryImage(hardware(port_bytes=16))
    assert memory.append(bytes(17)) == (0, 2)
    assert memory.append(b"\1") == (2, 1)
    assert memory.tobytes() == bytes(32) + b"\1" + bytes(15)


def test_pages_do_not_overlap():
    hw = replace(hardware(), tokens=100)
    bases = [hw.page_base(page) for page in memmap.Page]
    ends = [base + page_size(hw, page) for page, base in enumerate(bases)]
    assert ends == [*bases[1:], hw.activation_end]  # and no gaps: a region may run from a page over the next
