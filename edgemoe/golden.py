"""The bit-exact machine: runs a program's descriptors over its memory image with the units' golden functions.

It reads what the gateware reads (descriptors, weights and images as bytes) and keeps the same state:
activation memory, block exponents of K and V, row maxima, queues. Nothing in here knows about
lanes in time: slots, blocks and beats change the order of the work, not the result.

All state has a leading axis of images, which run together: a descriptor is executed for a whole batch. The
images of a batch start from what the batch before has left in its last image; a batch of one is the hardware's
order to the letter, and a trace is taken in that order.

`Machine` is the accelerator (bytes in, bytes out); `Golden` wraps it for one `Program` and returns float
tensors by name. With ``trace`` every write to the activation memory is recorded as the monitor of the gateware
records it (docs/architecture.md, "Monitor").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemoe import memmap
from edgemoe.config import HardwareConfig
from edgemoe.isa import Descriptor, Dest, Error, Mode, Op, Source
from edgemoe.memmap import Parameters
from edgemoe.numeric import IntArray, block_exponent, ceil_div, mantissa, saturate, sign_extend
from edgemoe.program import MachineError, Program, Symbol, Tensor, scan_program
from edgemoe.reference import check_routes, check_task
from edgemoe.units import gelu, layernorm, requantise, residual, router, softmax

SCORE_BITS = 21
EXACT = 1 << 53
"""Sums of products below this are exact in float64."""
BATCH_VALUES = 1 << 19
"""Activations that a batch keeps at most: larger ones are slower, they leave the processor's caches."""


@dataclass(frozen=True)
class Write:
    """What one descriptor, or one half of an expert's visit, wrote to the activation memory.

    Attributes:
        number: of the descriptor. visit: 0, or ``2 * v`` (hidden) and ``2 * v + 1`` (residual) of the v-th visit.
        expert: that was visited.
        rows: (R) the row that was addressed: token, position in the queue, or word for LOAD.
        values: (R, C) after the write; of IMAGE and LOAD the words' lanes.
        addends: (R, C) ``mid`` before residual, GELU, code or saturation; None for NORM, LOAD, IMAGE.
        base, stride: row r is at word ``base + r * stride``, its channel c in word ``c // lanes``, lane
            ``c % lanes``; if ``transposed`` it is at word ``base + c * stride + r // lanes``, lane ``(r + c) % lanes``.
        mask: (C) lanes that were written, where not all are.
    """

    number: int
    visit: int
    expert: int
    rows: IntArray
    values: IntArray
    addends: IntArray | None
    base: int
    stride: int
    lanes: int
    transposed: bool = False
    mask: NDArray[np.bool_] | None = None

    def addresses(self) -> IntArray:
        """(R, C) word of every value."""
        channel = np.arange(self.values.shape[1])
        if self.transposed:
            return self.base + channel * self.stride + self.rows[:, None] // self.lanes
        return self.base + self.rows[:, None] * self.stride + channel // self.lanes

    def lane(self) -> IntArray:
        """(R, C) lane of every value."""
        channel = np.arange(self.values.shape[1])
        return (channel + (self.rows[:, None] if self.transposed else 0)) % self.lanes + np.zeros_like(
            self.values
        )


@dataclass(frozen=True)
class Routes:
    """Decisions of one ROUTE: (tokens, top_k) experts by rank, and their scores with 15 fraction bits."""

    number: int
    experts: IntArray
    scores: IntArray


@dataclass
class Result:
    """Outcome of a run.

    Attributes:
        output: bytes that were stored, all images; word ``output_words`` starts the second.
        routes: per image, by number of the ROUTE descriptor.
        saturated: scores that did not fit their 21 bits.
        trace: per image, every write in order; empty without ``trace``.
    """

    output: bytes = b""
    routes: list[dict[int, Routes]] = field(default_factory=list)
    saturated: int = 0
    trace: list[list[Write]] = field(default_factory=list)


@dataclass(frozen=True)
class _Rows:
    """Decoded operand B: ``matrix`` (..., values, rows) float64 for the product, and the rows' parameters."""

    matrix: NDArray[np.float64]
    parameters: Parameters


class Machine:
    """The accelerator.

    Parameters
    ----------
    hardware : HardwareConfig
        Lanes, widths and capacities.
    memory : bytes
        What lies at the ``program`` address.
    """

    def __init__(self, hardware: HardwareConfig, memory: bytes) -> None:
        self.hardware, self.memory = hardware, bytes(memory)
        self.lanes = hardware.in_lanes
        self.softmax = softmax.SoftmaxSpec(
            b_bits=hardware.b_bits, keys=max(hardware.tokens, hardware.experts)
        )
        self.requantise = requantise.RequantiseSpec(hardware.acc_bits)
        self.gelu = gelu.GeluSpec()
        self.layernorm = layernorm.LayerNormSpec(hardware.in_lanes, hardware.norm_lanes, hardware.dim)
        self.router = router.RouterSpec(
            hardware.gate_lanes, hardware.tokens, hardware.experts, min(hardware.top_k, hardware.experts)
        )
        self.operations: dict[Op, Callable[[Descriptor], None]] = {
            Op.LOAD: self._load,
            Op.IMAGE: self._image,
            Op.NORM: self._norm,
            Op.PRODUCT: self._product,
            Op.ROUTE: self._route,
            Op.EXPERTS: self._experts,
            Op.STORE: self._store,
        }
        self._decoded: dict[tuple[int, ...], Any] = {}
        self.reset()

    @property
    def batch(self) -> int:
        """Images that run together."""
        return max(1, BATCH_VALUES // (self.hardware.activation_end * self.lanes))

    def reset(self) -> None:
        """Power-up state: everything 0."""
        h = self.hardware
        self.images = 1
        self.activations = np.zeros((1, h.activation_end, self.lanes), np.int64)
        tokens = max(h.tokens, h.experts)
        self.k_exponents = np.zeros((1, h.heads, tokens), np.int64)
        self.v_exponents = np.zeros((1, h.heads, tokens), np.int64)
        self.v_largest = np.zeros((1, h.heads), np.int64)
        self.maxima = np.zeros((1, tokens), np.int64)
        self.queues = router.queues(np.zeros((0, 1)), np.zeros((0, 1)), h.experts)

    @cached_property
    def program(self) -> list[Descriptor]:
        """Descriptors to the first END, each checked as the hardware's dispatcher does, in order."""
        program = []
        for descriptor in scan_program(self.memory):
            self._check(len(program), descriptor)
            program.append(descriptor)
        return program

    def run(
        self, images: bytes, task: int = 0, count: int = 1, trace: bool = False,
        routes: Mapping[int, IntArray] | None = None,
    ) -> Result:  # fmt: skip
        """Run ``count`` images back to back.

        Args:
            images: raw pixels, image i at port word ``i * IMAGE.stride``.
            task: selects regions of gates and heads.
            trace: record every write.
            routes: experts (count, tokens, top_k) to force, by number of the ROUTE descriptor.

        Raises:
            MachineError: what stops the hardware with an error code.
        """
        self.raw, self.task, self.forced = images, task, routes or {}
        self.result, self.output = Result(), bytearray()
        size = 1 if trace else self.batch
        for first in range(0, count, size):
            self._begin(first, min(size, count - first))
            self.writes: list[Write] | None = [] if trace else None
            for number, descriptor in enumerate(self.program):
                self.number = number
                if descriptor.op != Op.END:
                    self._execute(descriptor)
            self.result.routes += self.decisions
            if self.writes is not None:
                self.result.trace.append(self.writes)
        self.result.output = bytes(self.output)
        return self.result

    def _execute(self, d: Descriptor) -> None:
        """One descriptor; a value that a unit does not take (the hardware computes something) is an error, too."""
        try:
            self.operations[Op(d.op)](d)
        except ValueError as error:
            raise self._fail(Error.CAPACITY, str(error)) from None

    # -- state --------------------------------------------------------------------------------

    def _begin(self, first: int, images: int) -> None:
        """A batch of ``images`` from image ``first`` on."""
        self.first, self.images = first, images
        self.decisions: list[dict[int, Routes]] = [{} for _ in range(images)]
        for name in ("activations", "k_exponents", "v_exponents", "v_largest", "maxima"):
            setattr(self, name, np.repeat(getattr(self, name)[-1:], images, axis=0))

    def _fail(self, code: Error, message: str) -> MachineError:
        return _failure(self.number, self.program[self.number], code, message)

    def _check(self, number: int, d: Descriptor) -> None:
        """Raise what the dispatcher reports before any of the descriptor is executed."""
        h = self.hardware
        if d.op == Op.PRODUCT and d.source not in (Source.WEIGHTS, Source.KEYS, Source.VALUES):
            raise _failure(number, d, Error.OPCODE, f"source {d.source} is not one of a product")
        sizes: dict[str, tuple[int, int]] = {}
        if d.op in (Op.PRODUCT, Op.EXPERTS):
            sizes = {
                "count": (d.count, h.tokens), "head": (d.head, h.heads - 1), "keys": (d.keys, h.tokens),
                "words of a row of B": (max(d.words << d.double, d.words2), h.slot_words),
                "rows of K": (d.rows if d.source == Source.KEYS else 0, h.tokens),
            }  # fmt: skip
        elif d.op == Op.NORM:
            sizes = {"count": (d.count, h.tokens), "dim": (d.dim, h.dim)}
        elif d.op == Op.ROUTE:
            sizes = {
                "count": (d.count, h.tokens), "experts": (d.experts, h.experts), "top_k": (d.top_k, h.top_k)
            }  # fmt: skip
        for name, (value, limit) in sizes.items():
            if value > limit:
                raise _failure(number, d, Error.CAPACITY, f"{name} is {value}, the hardware has {limit}")
        empty = {
            Op.PRODUCT: ("count", "words", "rows"),
            Op.EXPERTS: ("count", "words", "rows"),
            Op.ROUTE: ("top_k",),
        }
        for name in empty.get(Op(d.op), ()):
            if not getattr(d, name):
                raise _failure(number, d, Error.CAPACITY, f"{name} is 0")

    def _rows(self, base: int, stride: int, count: int, words: int) -> IntArray:
        """View (images, count, words * lanes) of rows in the activation memory."""
        memory, lanes = self.activations, self.lanes
        last = base + (count - 1) * stride + words
        if last > memory.shape[1]:
            raise self._fail(
                Error.ADDRESS, f"word {last - 1} of activation memory, which has {memory.shape[1]}"
            )
        word = lanes * memory.itemsize
        return np.ndarray(
            (self.images, count, words * lanes), memory.dtype, memory, base * word,
            (memory.strides[0], stride * word, memory.itemsize),
        )  # fmt: skip

    def _external(self, address: int, length: int) -> bytes:
        """Port words of the memory image."""
        port = self.hardware.port_bytes
        if (address + length) * port > len(self.memory):
            raise self._fail(
                Error.ADDRESS,
                f"port words {address}..{address + length - 1}, the image has {len(self.memory) // port}",
            )
        return self.memory[address * port : (address + length) * port]

    def _cached(self, key: tuple[int, ...], make: Callable[[], Any]) -> Any:
        """Decode once: the memory image does not change."""
        key = (self.number, *key)
        if key not in self._decoded:
            self._decoded[key] = make()
        return self._decoded[key]

    def _record(self, rows: ArrayLike, values: IntArray, addends: IntArray | None, base: int, stride: int,
                visit: int = 0, expert: int = 0, **others: Any) -> None:  # fmt: skip
        """Note a write of the only image, if there is a trace."""
        if self.writes is not None:
            self.writes.append(
                Write(
                    self.number, visit, expert, np.asarray(rows, np.int64), np.array(values[0]),
                    None if addends is None else np.array(addends[0]), base, stride, self.lanes, **others,
                )
            )  # fmt: skip

    # -- loads and stores -----------------------------------------------------------------------

    def _load(self, d: Descriptor) -> None:
        values = np.frombuffer(self._external(d.address, d.length), "<i2").astype(np.int64)
        values = memmap.pad_lanes(self.hardware, values).reshape(-1, self.lanes)
        words = len(values)
        target = self._rows(d.d_base, 1, words, 1)
        target[:] = values
        self._record(np.arange(words), target, None, d.d_base, 1)

    def _image(self, d: Descriptor) -> None:
        pixels = np.stack([self._pixels(d, self.first + i) for i in range(self.images)])
        cut = pixels.reshape(-1, d.channels, d.grid_y, d.patch_y, d.grid_x, d.patch_x)
        cut = cut.transpose(0, 2, 4, 1, 3, 5)
        positions = memmap.patch_positions(self.hardware, d.channels, d.patch_y, d.patch_x, d.segment)
        rows = d.grid_y * d.grid_x
        target = self._rows(d.d_base, d.d_stride, rows, d.d_stride)
        target[..., positions] = cut.reshape(self.images, rows, -1)
        mask = np.zeros(target.shape[-1], bool)
        mask[positions] = True
        self._record(np.arange(rows), target, None, d.d_base, d.d_stride, mask=mask)

    def _pixels(self, d: Descriptor, index: int) -> IntArray:
        """Operands A of all pixels of one image, in the order of the memory."""
        count = d.channels * d.grid_y * d.patch_y * d.grid_x * d.patch_x
        first = index * d.stride * self.hardware.port_bytes
        raw = self.raw[first : first + count * d.pixel_bytes]
        if len(raw) < count * d.pixel_bytes or d.pixel_bytes not in (1, 2):
            raise self._fail(
                Error.ADDRESS, f"image {index} has {len(raw)} bytes, {count * d.pixel_bytes} are read"
            )
        pixels = np.frombuffer(raw, "<u1" if d.pixel_bytes == 1 else "<i2").astype(np.int64)
        return pixels << (memmap.PIXEL_FRAC - 8) if d.pixel_bytes == 1 else pixels

    def _store(self, d: Descriptor) -> None:
        port = self.hardware.port_bytes
        rows = self._rows(d.a_base, d.a_stride, d.count, d.words).astype("<i2")
        for index, values in enumerate(rows, self.first):
            raw = values.tobytes()
            raw = raw.ljust(ceil_div(len(raw), port) * port, b"\0")
            first = (index * d.stride + d.address) * port
            self.output.extend(bytes(max(0, first + len(raw) - len(self.output))))
            self.output[first : first + len(raw)] = raw

    # -- norm -----------------------------------------------------------------------------------

    def _norm(self, d: Descriptor) -> None:
        gamma, beta = self._cached(
            (), lambda: memmap.unpack_norm(self.hardware, self._external(d.address, d.length), d.words)
        )
        x = self._rows(d.a_base, d.a_stride, d.count, d.words)[..., : d.dim]
        target = self._rows(d.d_base, d.d_stride, d.count, d.words)
        y = layernorm.layernorm(x, gamma[: d.dim], beta[: d.dim], d.shift, d.eps_term, self.layernorm)
        target[..., : d.dim] = y
        target[..., d.dim :] = 0
        self._record(np.arange(d.count), target, None, d.d_base, d.d_stride)

    # -- products -------------------------------------------------------------------------------

    def _accumulate(self, a: IntArray, b: NDArray[np.float64]) -> IntArray:
        """Exact dot products (..., T, rows) of ``a`` (..., T, values) with ``b`` (..., values, rows)."""
        if b.shape[-2] << (memmap.MULTIPLIER_BITS - 1 + self.hardware.b_bits - 1) >= EXACT:
            raise self._fail(Error.CAPACITY, f"rows of {b.shape[-2]} values are not exact in float64")
        return sign_extend((a.astype(np.float64) @ b).astype(np.int64), self.hardware.acc_bits)

    def _stream(self, raw: bytes, rows: int, words: int, double: int = 0) -> _Rows:
        """Operand B from the weight stream; the digits of a double row are joined."""
        weights, parameters = memmap.unpack_product(self.hardware, raw, rows, words * (1 + double))
        if double:
            high, low = np.split(weights, 2, axis=1)
            weights = (high << self.hardware.b_bits) + low
        return _Rows(np.ascontiguousarray(weights.T.astype(np.float64)), parameters)

    def _weights(self, d: Descriptor) -> _Rows:
        def decode() -> _Rows:
            raw = self._external(d.address + self.task * d.stride, d.length)
            return self._stream(raw, d.rows, d.words, d.double)

        return self._cached((self.task,), decode)

    def _keys(self, d: Descriptor) -> _Rows:
        exponents = self.k_exponents[:, d.head, : d.rows]
        rows = self._rows(d.b_base, d.b_stride, d.rows, d.words)
        b = mantissa(rows, exponents[..., None], self.hardware.b_bits)
        shift = d.shift - exponents[:, None, :]
        return _Rows(
            _transposed(b), Parameters(np.full_like(shift, d.multiplier), shift, np.zeros_like(shift))
        )

    def _values(self, d: Descriptor) -> _Rows:
        """Rows are V's channels, all tokens; lane (token + channel) mod lanes of a word holds the token."""
        rows = self._rows(d.b_base, d.b_stride, d.rows, d.words)
        channel, position = _rotation(d.rows, d.keys, self.lanes)
        b = mantissa(
            rows[:, channel, position], self.v_exponents[:, d.head, None, : d.keys], self.hardware.b_bits
        )
        p = self._cached(
            (), lambda: memmap.unpack_parameters(self.hardware, self._external(d.address, d.length), d.rows)
        )
        shift = p.shift - self.v_largest[:, d.head, None, None]
        return _Rows(_transposed(b), Parameters(p.multiplier, shift, p.bias))

    def _operand_a(self, d: Descriptor) -> tuple[IntArray, ArrayLike, ArrayLike]:
        """A, and the row factors: attention weights and 1/d if ``weigh``, else the rows as they are."""
        a = self._rows(d.a_base, d.a_stride, d.count, d.words)
        if not d.weigh:
            return a, 0, 0
        codes, maxima = a[..., : d.keys], self.maxima[:, : d.count, None]
        v = self.v_largest[:, d.head, None, None] - self.v_exponents[:, d.head, None, : d.keys]
        weights = softmax.attention_weights(codes, maxima, v, self.softmax)
        multiplier, shift = softmax.row_factor(softmax.row_sum(codes, maxima, self.softmax), self.softmax)
        return weights, multiplier[..., None], shift[..., None]

    def _mid(
        self, a: IntArray, b: _Rows, mode: int, row_multiplier: ArrayLike = 0, row_shift: ArrayLike = 0
    ) -> IntArray:
        p = b.parameters
        return requantise.requantise(
            self._accumulate(a, b.matrix), p.bias, p.multiplier, p.shift, row_multiplier, row_shift,
            requantise.Mode(mode), self.requantise,
        )  # fmt: skip

    def _product(self, d: Descriptor) -> None:
        rows = {Source.WEIGHTS: self._weights, Source.KEYS: self._keys, Source.VALUES: self._values}
        b = rows[Source(d.source)](d)
        a, row_multiplier, row_shift = self._operand_a(d)
        self._write(d, self._mid(a, b, d.mode, row_multiplier, row_shift))

    def _write(self, d: Descriptor, mid: IntArray) -> None:
        """Results of a product to where ``dest`` sends them."""
        if d.dest == Dest.VALUES:
            self._write_values(d, mid)
            return
        target = self._rows(d.d_base, d.d_stride, d.count, ceil_div(d.rows, self.lanes))[..., : d.rows]
        if d.dest == Dest.RESIDUAL:
            target[:] = residual.accumulate(target, mid, d.realign)
        elif d.dest == Dest.SCORES:
            y = saturate(mid, SCORE_BITS)
            self.result.saturated += int(np.count_nonzero(y != mid))
            target[:] = codes = softmax.score_code(y, self.softmax)
            self.maxima[:, : d.count] = softmax.row_maximum(codes, self.softmax)
        else:
            target[:] = out = self._activated(mid, d)
            if d.dest == Dest.KEYS:
                self.k_exponents[:, d.head, : d.count] = block_exponent(out, self.hardware.b_bits)
        self._record(np.arange(d.count), target, mid, d.d_base, d.d_stride)

    def _activated(self, mid: IntArray, d: Descriptor) -> IntArray:
        out = saturate(mid, 16)
        return gelu.gelu(out, d.frac, self.gelu) if d.gelu else out

    def _write_values(self, d: Descriptor, mid: IntArray) -> None:
        out = self._activated(mid, d)
        target = self._rows(d.d_base, d.d_stride, d.rows, ceil_div(d.count, self.lanes))
        channel, position = _rotation(d.rows, d.count, self.lanes)
        target[:, channel, position] = out.swapaxes(1, 2)
        exponents = block_exponent(out, self.hardware.b_bits)
        self.v_exponents[:, d.head, : d.count] = exponents
        self.v_largest[:, d.head] = exponents.max(axis=1)
        self._record(np.arange(d.count), out, mid, d.d_base, d.d_stride, transposed=True)

    # -- experts --------------------------------------------------------------------------------

    def _route(self, d: Descriptor) -> None:
        codes = self._rows(d.a_base, d.a_stride, d.count, d.words)[..., : d.experts].reshape(-1, d.experts)
        forced = self.forced.get(self.number)
        if forced is not None:
            forced = forced[self.first : self.first + self.images].reshape(len(codes), -1)
        experts, scores = router.route(
            codes, d.top_k if forced is None else d.experts,
            lambda values: softmax.reciprocal(values, self.softmax), self.router,
        )  # fmt: skip
        if forced is not None:
            rank = np.take_along_axis(np.argsort(experts, axis=1), forced, axis=1)
            experts, scores = forced, np.take_along_axis(scores, rank, axis=1)
        self.queues = router.queues(experts, scores, d.experts)
        for image, decisions in enumerate(self.decisions):
            part = slice(image * d.count, (image + 1) * d.count)
            decisions[self.number] = Routes(self.number, experts[part], scores[part])

    def _visits(self, d: Descriptor) -> Iterator[tuple[int, IntArray, IntArray]]:
        """Experts with their tokens (image * tokens + token) and scores, in ascending order."""
        if not d.routed:
            entries = np.arange(self.images * d.count)
            for expert in range(d.experts):
                yield expert, entries, np.full(len(entries), 1 << 15)
            return
        visits, entries, scores = self.queues
        for expert, start, count in visits.tolist():
            yield expert, entries[start : start + count], scores[start : start + count]

    def _expert_weights(self, d: Descriptor, expert: int) -> tuple[_Rows, _Rows]:
        def decode() -> tuple[_Rows, _Rows]:
            raw = self._external(d.address + expert * d.length, d.length)
            first = memmap.product_bytes(self.hardware, d.rows, d.words)
            return self._stream(raw, d.rows, d.words), self._stream(raw[first:], d.rows2, d.words2)

        return self._cached((expert,), decode)

    def _experts(self, d: Descriptor) -> None:
        a = self._rows(d.a_base, d.a_stride, d.count, d.words)
        x = self._rows(d.d2_base, d.d2_stride, d.count, ceil_div(d.rows2, self.lanes))[..., : d.rows2]
        for visit, (expert, entries, scores) in enumerate(self._visits(d)):
            fc1, fc2 = self._expert_weights(d, expert)
            image, token = np.divmod(entries, d.count)
            place = np.arange(len(image)) - np.searchsorted(image, image)
            longest = int(place.max()) + 1
            hidden = self._rows(d.d_base, d.d_stride, longest, ceil_div(d.rows, self.lanes))[..., : d.rows]
            mid = self._mid(a[image, token], fc1, Mode.CHANNEL)
            hidden[image, place] = values = gelu.gelu(saturate(mid, 16), d.frac, self.gelu)
            self._record(place, values[None], mid[None], d.d_base, d.d_stride, 2 * visit, expert)
            a2 = self._rows(d.a2_base, d.d_stride, longest, d.words2)
            mid = self._mid(a2[image, place], fc2, Mode.CHANNEL_ROW, scores[:, None], 15)
            x[image, token] = values = residual.accumulate(x[image, token], mid)
            self._record(token, values[None], mid[None], d.d2_base, d.d2_stride, 2 * visit + 1, expert)


@cache
def _rotation(channels: int, tokens: int, lanes: int) -> tuple[IntArray, IntArray]:
    """Indices (channels, 1) and (channels, tokens) into V transposed: channel c has token t in lane ``(t + c) % lanes``."""
    channel, token = np.arange(channels)[:, None], np.arange(tokens)
    return channel, token - token % lanes + (token + channel) % lanes


def _transposed(b: IntArray) -> NDArray[np.float64]:
    """Matrices (..., values, rows) for products from rows (..., rows, values)."""
    return b.swapaxes(-1, -2).astype(np.float64)


def _failure(number: int, d: Descriptor, code: Error, message: str) -> MachineError:
    return MachineError(code, f"descriptor {number} ({Op(d.op).name}): {message}")


# -- tensors ------------------------------------------------------------------------------------


class Golden:
    """Runs images through a `Program` and returns float tensors by name.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.machine = Machine(program.hardware, program.memory)

    def run(
        self,
        image: ArrayLike,
        task: int = 0,
        trace: bool = False,
        routes: Mapping[str, ArrayLike] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """One image (channels, height, width), uint8 or float in [0, 1).

        Args:
            task: index.
            trace: return the tensors of `tensors` too.
            routes: ``l{L}_topk`` (tokens, top_k) integers that force the experts; other names are ignored.

        Returns:
            ``x`` (tokens, dim), ``logits`` (classes) if the task has a head, ``l{L}_topk`` of every mixture block.

        Raises:
            BadInput: bad image, task or routes.
            MachineError: the program stops with an error code.
        """
        result = self.execute([image], task, trace, routes)
        out = self.outputs(result.output, task)
        names = self.names()
        for number, decision in result.routes[0].items():
            out[names[number]] = decision.experts
        if trace:
            out |= Tensors(self.program, task).collect(result.trace[0], result.routes[0])
        return out

    def run_batch(
        self, images: Sequence[ArrayLike], task: int = 0, routes: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Several images at once, several times as fast as `run`: its results, each with a leading axis of images.

        ``routes`` may have that axis, too.
        """
        p = self.program
        result = self.execute(images, task, routes=routes)
        size = p.output_words * p.hardware.port_bytes
        found = [self.outputs(result.output[i * size :], task) for i in range(len(images))]
        out = {name: np.stack([f[name] for f in found]) for name in (found[0] if found else ())}
        names = self.names()
        for number in result.routes[0] if found else ():
            out[names[number]] = np.stack([decisions[number].experts for decisions in result.routes])
        return out

    def execute(
        self, images: Sequence[ArrayLike], task: int = 0, trace: bool = False,
        routes: Mapping[str, ArrayLike] | None = None,
    ) -> Result:  # fmt: skip
        """Integers of several images, run back to back from power-up."""
        p = self.program
        check_task(p.model, task)
        raw = b"".join(memmap.pack_image(image, p.hardware, p.model, p.pixel_bytes) for image in images)
        self.machine.reset()
        return self.machine.run(raw, task, len(images), trace, self.forced(routes, len(images)))

    def names(self) -> dict[int, str]:
        """Name of the decisions of each ROUTE, by number of the descriptor."""
        return {
            s.number: s.tensors[0].name
            for s in self.program.symbols
            if s.tensors and "_topk" in s.tensors[0].name
        }

    def forced(self, routes: Mapping[str, ArrayLike] | None, images: int) -> dict[int, IntArray]:
        """Forced experts (images, tokens, top_k) by number of the ROUTE."""
        by_block = check_routes(self.program.model, routes, images)
        numbers = {name: number for number, name in self.names().items()}
        return {numbers[f"l{block}_topk"]: experts for block, experts in by_block.items()}

    def outputs(self, raw: bytes, task: int) -> dict[str, NDArray[np.float64]]:
        """``x``, and ``logits`` if the task has a head, from the output of one image."""
        p, out = self.program, {}
        for stored in p.outputs:
            codes = stored.unpack(p.hardware, raw)
            if stored.name == "logits":
                codes = codes[0, : p.model.classes[task]]
                if not codes.size:
                    continue
            out[stored.name] = codes * 2.0 ** -stored.fracs[task]
        return out


class Tensors:
    """Float tensors of one image, by the names of `edgemoe.reference.TRACE`, from a trace.

    ``l{L}_proj``, ``l{L}_mlp`` and ``l{L}_expert`` are what was added to the residual before it was saturated.
    Scores and gate are in natural units, the y codes divided by log2 e.
    """

    def __init__(self, program: Program, task: int) -> None:
        self.program, self.model, self.task = program, program.model, task

    def collect(self, writes: Sequence[Write], routes: Mapping[int, Routes]) -> dict[str, NDArray[Any]]:
        """All tensors, in the order of the program."""
        self.out: dict[str, NDArray[Any]] = {}
        c = self.model
        self.x = np.zeros((c.tokens, c.dim), np.int64)
        program = self.program.descriptors()
        pending = sorted(routes.values(), key=lambda r: r.number)
        for write in writes:
            while pending and pending[0].number < write.number:
                self._routes(pending.pop(0))
            descriptor, symbol = program[write.number], self.program.symbols[write.number]
            self._add(write, descriptor, symbol)
        return self.out

    def _routes(self, routes: Routes) -> None:
        names = [t.name for t in self.program.symbols[routes.number].tensors]
        self.experts = routes.experts
        self.out[names[0]], self.out[names[1]] = routes.experts, routes.scores / 2.0**15

    def _add(self, write: Write, d: Descriptor, symbol: Symbol) -> None:
        c, tensor = self.model, symbol.tensors[-1 if write.visit % 2 else 0]
        if d.op == Op.LOAD:
            width = ceil_div(c.dim, write.lanes) * write.lanes
            self.x[:] = write.values.ravel()[: c.tokens * width].reshape(c.tokens, width)[:, : c.dim]
        elif d.op == Op.IMAGE:
            return
        elif d.op == Op.EXPERTS:
            self._expert(write, d, tensor)
        elif d.dest == Dest.RESIDUAL and d.op == Op.PRODUCT:
            self._residual(write, tensor)
        elif d.dest == Dest.SCORES and d.op == Op.PRODUCT:
            self._stack(tensor.name, _scores(write.values), axis=0)
        else:
            self._stack(tensor.name, self._real(write.values, tensor), axis=-1)

    def _real(self, values: IntArray, tensor: Tensor) -> NDArray[np.float64]:
        """Real channels, dequantised."""
        if tensor.name == "head":
            stored = self.program.stored("logits")
            return values[:, : self.model.classes[self.task]] * np.float64(2.0 ** -stored.fracs[self.task])
        channels = list(tensor.channels) or slice(0, self.model.dim)
        return values[:, channels] * 2.0**-tensor.frac / np.asarray(tensor.factor or 1.0, np.float64)

    def _stack(self, name: str, values: NDArray[np.float64], axis: int) -> None:
        """Keep a tensor; heads ``_h0``, ``_h1``, ... are put together along ``axis``."""
        base, _, head = name.rpartition("_h")
        if not head.isdigit():
            self.out[name] = values
            return
        values = values[None] if axis == 0 else values
        self.out[base] = values if head == "0" else np.concatenate([self.out[base], values], axis=axis)

    def _residual(self, write: Write, tensor: Tensor) -> None:
        rows = write.rows + (self.model.tokens - len(write.rows))
        self.x[rows] = write.values
        self.out[tensor.name] = self.x * 2.0**-tensor.frac
        if write.addends is not None and tensor.name.endswith("_post_attn"):
            self.out[tensor.name.replace("post_attn", "proj")] = write.addends * 2.0**-tensor.frac

    def _expert(self, write: Write, d: Descriptor, tensor: Tensor) -> None:
        """Hidden values and contributions; of a mixture at [token, rank]."""
        c, part = self.model, write.visit % 2
        name = tensor.name.replace("_e{e}", "")
        mixture = bool(d.routed)
        if part:
            self.x[write.rows] = write.values
            self.out[name] = self.x * 2.0**-tensor.frac
            name = name.replace("post_mlp", "expert" if mixture else "mlp")
        values = (write.values if write.addends is None or not part else write.addends) * 2.0**-tensor.frac
        if not mixture and part:
            self.out[name] = self.out.get(name, 0) + values
        elif not mixture:
            values = values[:, : ceil_div(c.mlp_dim, d.experts)]
            joined = np.concatenate([self.out[name], values], axis=1) if write.expert else values
            self.out[name] = joined[:, : c.mlp_dim]
        else:
            values = values[:, : c.dim if part else c.expert_dim]
            target = self.out.setdefault(name, np.zeros((c.tokens, c.top_k, values.shape[1])))
            tokens, ranks = np.nonzero(self.experts == write.expert)
            target[tokens, ranks] = values


def _scores(codes: IntArray) -> NDArray[np.float64]:
    """Natural scores from codes: y = n + log2(1 + mf) in base 2."""
    spec = softmax.SoftmaxSpec()
    y = softmax.exponent(codes, spec) + np.log2(1 + softmax.fraction(codes, spec) / 2.0**spec.mantissa_frac)
    return y / np.log2(np.e)
