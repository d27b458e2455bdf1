"""Copies tensors and cuts patches of images into the activation memory (LOAD, IMAGE).

    request  +--------+  port words  +---------+  2 L bytes  +------------+  L pixels  +---------+  write
    -------->| reader |------------->| gearbox |------------>| conversion |----------->| aligner |------>
    data     +--------+              +---------+             +------------+            +----^----+
                                                                 pieces: address, lanes     |
    job ------------------------------------------------------> walk -----------------------+

A *piece* is what one write takes: neighbouring pixels of one run, within one activation word. The walk
goes through all pieces by additions alone; the aligner holds two chunks of L pixels as a ring and
turns it so that the piece's first pixel comes to its lane. LOAD is a run of whole words.
"""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from edgemoe.config import HardwareConfig
from edgemoe.core.activation import WritePort
from edgemoe.core.dma import REGION_LENGTH_BITS, BurstReader
from edgemoe.core.interface import READ_REQUEST
from edgemoe.gearbox import Gearbox
from edgemoe.isa import FIELDS, Op
from edgemoe.numeric import IntArray, unreset
from edgemoe.stream import Buffer, connect

QUEUE_WORDS = 64
"""Port words of the loader's queue: what one word per cycle needs at a latency of 48 cycles."""

GEOMETRY = ("channels", "grid_y", "grid_x", "patch_y", "patch_x", "segment", "pixel_bytes")
"""Fields of the descriptor that only IMAGE uses."""


def loader_job() -> data.StructLayout:
    """A LOAD or IMAGE; the fields are those of the descriptor, but ``address`` is absolute."""
    names = ("op", "address", "length", "d_base", "d_stride", *GEOMETRY)
    return data.StructLayout({name: FIELDS[name] for name in names})


# -- golden -------------------------------------------------------------------------------------

Writes = tuple[NDArray[np.int64], NDArray[np.bool_], IntArray]
"""Addresses (n), masks (n x L) and values (n x L, 0 outside the mask) of the writes in order."""


def load_words(raw: bytes, lanes: int, d_base: int) -> Writes:
    """Writes of a LOAD of the bytes ``raw``; an incomplete last word is not written."""
    values = np.frombuffer(raw, "<i2").astype(np.int64)
    values = values[: len(values) // lanes * lanes].reshape(-1, lanes)
    return d_base + np.arange(len(values)), np.ones(values.shape, bool), values


def cut_patches(
    image: NDArray, lanes: int, d_base: int, d_stride: int, patch_y: int, patch_x: int, segment: int
) -> Writes:
    """Writes of an IMAGE: ``image`` is C x H x W, uint8 or int16; ``segment`` as in docs/architecture.md."""
    pixels = image.astype(np.int64) << 7 if image.dtype == np.uint8 else image.astype(np.int64)
    channels, height, width = image.shape
    addresses, masks, values = [], [], []
    for c in range(channels):
        for y in range(height):
            gy, py = divmod(y, patch_y)
            for gx in range(width // patch_x):
                row = d_base + (gy * (width // patch_x) + gx) * d_stride
                position = (c * patch_y + py) * segment
                run = pixels[c, y, gx * patch_x : (gx + 1) * patch_x]
                for at in range(0, patch_x, lanes):
                    piece = run[at : at + lanes]
                    word, lane = divmod(position + at, lanes)
                    value = np.zeros(lanes, np.int64)
                    value[lane : lane + len(piece)] = piece
                    mask = np.zeros(lanes, bool)
                    mask[lane : lane + len(piece)] = True
                    addresses.append(row + word)
                    masks.append(mask)
                    values.append(value)
    return np.array(addresses), np.array(masks), np.array(values)


def piece_cycles(patch_x: int, lanes: int) -> float:
    """Cycles that `Aligner` needs for a piece in the mean, if chunks never make it wait."""
    runs, level, cycle = 4 * lanes, lanes, 0
    pieces = [min(lanes, patch_x - at) for at in range(0, patch_x, lanes)] * runs
    left = iter(pieces)
    piece = next(left, 0)
    while piece:
        put, take = level <= lanes, level >= piece
        level += lanes * put - piece * take
        cycle += 1
        if take:
            piece = next(left, 0)
    return cycle / len(pieces)


# -- gateware -----------------------------------------------------------------------------------


def piece_layout(lanes: int) -> data.StructLayout:
    """A write to come: ``extra + 1`` pixels from lane ``lane`` of word ``address``; the ``final`` one of a job."""
    k = (lanes - 1).bit_length()
    return data.StructLayout({"address": 16, "lane": k, "extra": k, "final": 1})


class Walk(wiring.Component):
    """Lists the pieces of a job.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    job : In(stream.Signature(loader_job()))
    o : Out(stream.Signature(piece_layout(in_lanes)))
        Nothing for a job without a whole word or with a dimension of 0.
    nothing : Out(1)
        Pulse: the job has no pieces.

    Throughput: one piece per cycle; latency 3 cycles.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "job": In(stream.Signature(loader_job())),
                "o": Out(stream.Signature(piece_layout(hardware.in_lanes))),
                "nothing": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """Nested counters that count down, with restart values instead of products."""
        m = Module()
        lanes, port = self.hardware.in_lanes, self.hardware.port_bytes
        k = (lanes - 1).bit_length()
        job = Signal(loader_job(), reset_less=True)
        o = self.o

        # Whole activation words of a LOAD: length * port / (2 lanes), a constant shift.
        up, down = port.bit_length() - 1, k + 1
        words = (job.length << up) >> down
        words_left = Signal(REGION_LENGTH_BITS + max(0, up - down), reset_less=True)

        counters = {name: Signal(FIELDS[name], name=f"{name}_left", reset_less=True) for name in GEOMETRY[:4]}
        less = {name: Signal(FIELDS[name], name=f"{name}_less", reset_less=True) for name in GEOMETRY[:5]}
        run = Signal(FIELDS["patch_x"], reset_less=True)  # pixels of the run from this piece on, minus 1
        row = Signal(16, reset_less=True)  # word of the patch
        row_first = Signal(16, reset_less=True)  # that of the first patch of the row of patches
        position = Signal(16 + k, reset_less=True)  # lanes from the start of the patch to the run
        position_first = Signal(16 + k, reset_less=True)  # that of the channel
        word = Signal(16, reset_less=True)  # the same, and the whole words of the run before this piece
        linear = Signal(reset_less=True)

        patch_end = run[k:] == 0
        ends = [counters[name] == 0 for name in ("grid_x", "patch_y", "grid_y", "channels")]
        row_next = row + job.d_stride
        position_next = position + job.segment

        def patch(first: Value) -> None:
            m.d.sync += [row.eq(first), word.eq(first)]

        def restart(*names: str) -> None:
            m.d.sync += [counters[name].eq(less[name]) for name in names]

        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)
        m.d.sync += self.nothing.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.job.ready.eq(1)
                m.d.sync += job.eq(self.job.payload)
                with m.If(self.job.valid):
                    m.next = "PREPARE"
            with m.State("PREPARE"):
                m.d.sync += [less[name].eq(job[name] - 1) for name in less]
                m.d.sync += [counters[name].eq(job[name] - 1) for name in counters]
                m.d.sync += [
                    linear.eq(job.op == Op.LOAD),
                    words_left.eq(words - 1),
                    run.eq(job.patch_x - 1),
                    row_first.eq(job.d_base),
                    position.eq(0),
                    position_first.eq(0),
                ]
                patch(job.d_base)
                m.next = "WALK"
                some_words, some_pixels = words != 0, Cat(job[name].any() for name in less).all()
                with m.If(~Mux(job.op == Op.LOAD, some_words, some_pixels)):
                    m.d.sync += self.nothing.eq(1)
                    m.next = "IDLE"
            with m.State("WALK"):
                with m.If(o.ready | ~o.valid):
                    m.d.sync += [
                        o.valid.eq(1),
                        o.payload.address.eq(word + (position >> k)),
                        o.payload.lane.eq(position),
                        o.payload.extra.eq(Mux(patch_end, run, lanes - 1)),
                        o.payload.final.eq(patch_end & Cat(ends).all()),
                        run.eq(run - lanes),
                        word.eq(word + 1),
                    ]
                    with m.If(linear):
                        m.d.sync += [
                            o.payload.lane.eq(0),
                            o.payload.extra.eq(lanes - 1),
                            o.payload.final.eq(words_left == 0),
                            words_left.eq(words_left - 1),
                        ]
                        with m.If(words_left == 0):
                            m.next = "IDLE"
                    with m.Elif(patch_end):
                        m.d.sync += [run.eq(less["patch_x"]), counters["grid_x"].eq(counters["grid_x"] - 1)]
                        patch(row_next)
                        with m.If(ends[0]):
                            restart("grid_x")
                            patch(row_first)
                            m.d.sync += [
                                counters["patch_y"].eq(counters["patch_y"] - 1),
                                position.eq(position_next),
                            ]
                        with m.If(Cat(ends[:2]).all()):
                            restart("patch_y")
                            patch(row_next)
                            m.d.sync += [
                                counters["grid_y"].eq(counters["grid_y"] - 1),
                                row_first.eq(row_next),
                                position.eq(position_first),
                            ]
                        with m.If(Cat(ends[:3]).all()):
                            restart("grid_y")
                            patch(job.d_base)
                            m.d.sync += [
                                counters["channels"].eq(counters["channels"] - 1),
                                row_first.eq(job.d_base),
                                position.eq(position_next),
                                position_first.eq(position_next),
                            ]
                        with m.If(Cat(ends).all()):
                            m.next = "IDLE"
        return m


class Aligner(wiring.Component):
    """Takes the pixels of each piece from a stream of chunks and turns them to their lanes.

    Parameters
    ----------
    hardware : HardwareConfig
        Its ``in_lanes`` are the pixels of a chunk.

    Members
    -------
    i : In(stream.Signature(data.ArrayLayout(signed(16), lanes)))
    piece : In(stream.Signature(piece_layout(lanes)))
    write : Out(WritePort) with 16-bit values
    final : Out(1)
        High with the write of a piece that is marked so.

    Throughput: one piece per cycle, if there are pixels: a chunk per cycle if pieces are whole, else in 2 cycles at worst.
    Latency 3 cycles.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        self.lanes = hardware.in_lanes
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(signed(16), self.lanes))),
                "piece": In(stream.Signature(piece_layout(self.lanes))),
                "write": Out(WritePort(hardware, bits=16)),
                "final": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """A ring of two chunks, and a rotation in two register stages."""
        m = Module()
        n = self.lanes
        k = (n - 1).bit_length()
        ring = Signal(2 * n * 16, reset_less=True)
        half = Signal()  # where the next chunk goes
        at = Signal(k + 1)  # next pixel
        level = Signal(range(2 * n + 1))
        piece = self.piece.payload
        put, take = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(
                level <= n
            ),  # not also where this piece makes room: a long path for a cycle now and then
            put.eq(self.i.valid & self.i.ready),
            self.piece.ready.eq(level > piece.extra),
            take.eq(self.piece.valid & self.piece.ready),
        ]
        with m.If(put):
            m.d.sync += [ring.word_select(half, n * 16).eq(self.i.payload.as_value()), half.eq(~half)]
        used = Signal(k + 1)
        m.d.comb += used.eq(Mux(take, piece.extra + 1, 0))
        m.d.sync += [level.eq(level - used + Mux(put, n, 0)), at.eq(at + used)]

        # Lane l gets pixel (at - lane + l) of the ring. Stage 1 turns by halves and quarters of the ring.
        turn = Signal(k + 1)
        m.d.comb += turn.eq(at - piece.lane)
        pixels = [ring.word_select(i, 16) for i in range(2 * n)] * 2
        valid, final = Signal(2), Signal(2)
        m.d.sync += [valid.eq(Cat(take, valid)), final.eq(Cat(piece.final, final))]
        coarse = min(2, k + 1)
        for bit in range(k, k - coarse, -1):
            pixels = self._turn(pixels, turn[bit], 1 << bit)
        first = [Signal(16, name=f"pixel{i}", reset_less=True) for i in range(len(pixels))]
        fine = Signal(max(1, k + 1 - coarse), reset_less=True)
        lane, upto = Signal(k, reset_less=True), Signal(k, reset_less=True)
        address = Signal(16, reset_less=True)
        m.d.sync += [register.eq(value) for register, value in zip(first, pixels, strict=True)]
        m.d.sync += [
            fine.eq(turn),
            lane.eq(piece.lane),
            upto.eq(piece.lane + piece.extra),
            address.eq(piece.address),
        ]

        pixels = list(first)
        for bit in range(k - coarse, -1, -1):
            pixels = self._turn(pixels, fine[bit], 1 << bit)
        mask = [(lane <= i) & (i <= upto) for i in range(n)]
        value, target = unreset(m, self.write.value), unreset(m, self.write.address)
        m.d.sync += [
            self.write.en.eq(valid[0]),
            self.final.eq(valid[0] & final[0]),
            target.eq(address),
            self.write.mask.eq(Cat(mask)),
            value.as_value().eq(Cat(Mux(mask[i], pixels[i], 0) for i in range(n))),
        ]
        return m

    def _turn(self, pixels: list[Value], by: Value, step: int) -> list[Value]:
        """``pixels`` from 0 or from ``step`` on, as many as turns by less than ``step`` still need."""
        return [Mux(by, pixels[i + step], pixels[i]) for i in range(self.lanes + step - 1)]


class Loader(wiring.Component):
    """Executes LOAD and IMAGE.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    job : In(stream.Signature(loader_job()))
        Taken when the job before is done and the rest of its words has been dropped.
    request : Out(stream.Signature(READ_REQUEST)), data : In(stream.Signature(unsigned(8 * port_bytes)))
        ``data.ready`` is always high when data come.
    write : Out(WritePort(hardware, bits=16))
        Values outside the mask are 0.
    done : Out(1)
        Pulse, with the last write of a job (a job without writes: some cycles after it was taken).

    What ``length`` covers beyond the image is read and dropped; what it lacks are undefined pixels. Throughput: a port word, a word of
    a LOAD, a piece or L pixels per cycle, whichever is slowest. Latency: about 20 cycles and the memory's.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        super().__init__(
            {
                "job": In(stream.Signature(loader_job())),
                "request": Out(stream.Signature(READ_REQUEST)),
                "data": In(stream.Signature(unsigned(8 * hardware.port_bytes))),
                "write": Out(WritePort(hardware, bits=16)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        """Reader, gearbox, conversion of pixels, walk and aligner; what lies behind the reader is reset per job."""
        m = Module()
        n, port = self.hardware.in_lanes, self.hardware.port_bytes
        clear = Signal()
        reader = m.submodules.reader = BurstReader(port, QUEUE_WORDS, QUEUE_WORDS // 4)
        gearbox, aligner = Gearbox(port, 2 * n), Aligner(self.hardware)
        m.submodules.gearbox = ResetInserter(clear)(gearbox)
        m.submodules.aligner = ResetInserter(clear)(aligner)
        walk = m.submodules.walk = Walk(self.hardware)
        buffer = m.submodules.buffer = Buffer(piece_layout(n))
        connect(m, reader.request, wiring.flipped(self.request))
        connect(m, wiring.flipped(self.data), reader.data)
        connect(m, walk.o, buffer.i)
        connect(m, buffer.o, aligner.piece)
        wiring.connect(m, aligner.write, wiring.flipped(self.write))

        job = Signal(loader_job(), reset_less=True)
        bytes_only = Signal(reset_less=True)
        pending = Signal(REGION_LENGTH_BITS, reset_less=True)  # words that have not left the reader
        some = Signal()
        drop = Signal()
        pad = Signal()  # whatever comes, so that the gearbox gives its last words
        left_reader = reader.o.valid & reader.o.ready
        m.d.comb += [
            gearbox.i.valid.eq((reader.o.valid & ~drop) | pad),
            gearbox.i.payload.eq(reader.o.payload),
            reader.o.ready.eq(gearbox.i.ready | drop),
        ]
        with m.If(left_reader):
            m.d.sync += pending.eq(pending - 1)
        m.d.sync += some.eq(pending != 0)

        # 2 L bytes are L pixels of 16 bits, or twice L of 8 bits.
        packed = Buffer(unsigned(16 * n))
        m.submodules.packed = ResetInserter(clear)(packed)
        connect(m, gearbox.o, packed.i)
        upper = Signal()
        word = packed.o.payload
        for i in range(n):
            byte = Mux(upper, word.word_select(n + i, 8), word.word_select(i, 8))
            m.d.comb += aligner.i.payload[i].eq(Mux(bytes_only, byte << 7, word.word_select(i, 16)))
        m.d.comb += [
            aligner.i.valid.eq(packed.o.valid),
            packed.o.ready.eq(aligner.i.ready & (upper | ~bytes_only)),
        ]
        with m.If(aligner.i.valid & aligner.i.ready):
            m.d.sync += upper.eq(~upper & bytes_only)

        ended = Signal()
        with m.If(aligner.final | walk.nothing):
            m.d.sync += ended.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.job.ready.eq(1), clear.eq(1)]
                m.d.sync += [
                    job.eq(self.job.payload),
                    upper.eq(0),
                    ended.eq(0),
                ]
                with m.If(self.job.valid):
                    m.next = "READ"
            with m.State("READ"):
                m.d.sync += [
                    pending.eq(job.length),
                    bytes_only.eq((job.op == Op.IMAGE) & (job.pixel_bytes == 1)),
                ]
                m.d.comb += reader.command.valid.eq(1)
                with m.If(reader.command.ready):
                    m.next = "WALK"
            with m.State("WALK"):
                m.d.comb += walk.job.valid.eq(1)
                with m.If(walk.job.ready):
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += pad.eq(~some)
                with m.If(ended):
                    m.next = "DROP"
            with m.State("DROP"):
                m.d.comb += drop.eq(1)
                with m.If(~some & ~left_reader):
                    m.next = "IDLE"
        m.d.comb += [
            reader.command.payload.address.eq(job.address),
            reader.command.payload.length.eq(job.length),
            walk.job.payload.eq(job),
            self.done.eq(aligner.final | walk.nothing),
        ]
        return m
