"""The reorder unit: fills the slots with rows of K, V or weights, one row per step.

The published accelerator holds P query rows and reuses every K vector that it reads for all of
them. Here the roles are exchanged, and the argument is the same: ``out_lanes`` *slots* hold rows of
operand B, operand A streams past, and each of its words is used by all slots, so the reads per cycle
do not depend on the number of slots. How a slot gets its next row decides the rest.

``slot_sets = 1`` is the paper's staircase. Slot o is replaced when the stream reaches token o, so its row
starts at token o and wraps around; in one step results of two blocks leave the array::

    token     0 1 2 3 0 1 2 3 0 1 2         4 tokens, 4 slots, 2 blocks: 2 * 4 + 3 steps
    slot 0    A A A A E E E E . . .
    slot 1    . B B B B F F F F . .         a row may be overwritten word by word in its last step,
    slot 2    . . C C C C G G G G .         behind the reads: one row arrives per step, no more
    slot 3    . . . D D D D H H H H

``slot_sets = 2`` fills one set of slots while the other computes: no ramp, twice the storage, and a block of
few tokens is filled at the full rate of the port. More sets are a prefetch buffer: filling goes on while a block of many
tokens computes, which blocks of few tokens behind it make up for. All give the same results.

    steps = blocks * max(tokens, slots) + slots - 1        slot_sets = 1
    steps = blocks * tokens                                slot_sets >= 2

A step takes as many cycles as a row has words, at least ``interval`` (what follows the array needs so
long for the results of a step) and, in the staircase, at least 2.

Source: Edge-MoE (arXiv 2305.18691), section on attention reordering.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from edgemoe.numeric import ceil_div, register
from edgemoe.stream import pipeline

COUNT_BITS = 12
ROWS_BITS = 16
MAX_SETS = 14


def set_bits(slot_sets: int) -> int:
    """Bits of a block's number across jobs, which finds its parameters.

    The parameters of as many blocks as are filled ahead are kept, and of two more: those that the writer uses.
    """
    return max(2, (slot_sets + 1).bit_length())


@dataclass(frozen=True)
class ReorderSpec:
    """Shape of the slots.

    Attributes:
        in_lanes, out_lanes: values per word; number of slots.
        b_bits: width of operand B.
        slot_words: words of the longest row.
        slot_sets: 1 (staircase), or the blocks that the slots hold at a time.
        fill_rows: rows that arrive together, word by word (1 in the staircase).
        interval: least cycles between the last beats of two steps.
    """

    in_lanes: int
    out_lanes: int
    b_bits: int
    slot_words: int
    slot_sets: int = 2
    fill_rows: int = 1
    interval: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.slot_sets <= MAX_SETS:
            raise ValueError(f"slot_sets must be 1..{MAX_SETS}, found {self.slot_sets}")
        if self.slot_sets == 1 and self.fill_rows != 1:
            raise ValueError(f"fill_rows must be 1 with slot_sets = 1, found {self.fill_rows}")
        if self.out_lanes % self.fill_rows:
            raise ValueError(f"fill_rows {self.fill_rows} must divide out_lanes {self.out_lanes}")

    @property
    def slot_bits(self) -> int:
        """Bits of a slot's number."""
        return (self.out_lanes - 1).bit_length()

    @property
    def set_bits(self) -> int:
        """Bits of a block's number across jobs."""
        return set_bits(self.slot_sets)


def steps(spec: ReorderSpec, tokens: int, rows: int) -> int:
    """Steps of a product of ``tokens`` rows of A with ``rows`` rows of B."""
    blocks = ceil_div(rows, spec.out_lanes)
    if spec.slot_sets > 1:
        return blocks * tokens
    return blocks * max(tokens, spec.out_lanes) + spec.out_lanes - 1


def schedule(spec: ReorderSpec, tokens: int, rows: int) -> Iterator[tuple[int, list[int | None]]]:
    """Golden order: for every step that has a token, the token and the row of B in each slot."""
    blocks = ceil_div(rows, spec.out_lanes)
    slots = range(spec.out_lanes)
    period = tokens if spec.slot_sets > 1 else max(tokens, spec.out_lanes)
    for step in range(steps(spec, tokens, rows)):
        block, token = divmod(step, period)
        if token >= tokens:
            continue
        held = [block if spec.slot_sets > 1 or slot <= token else block - 1 for slot in slots]
        numbers = [b * spec.out_lanes + slot for slot, b in zip(slots, held, strict=True)]
        yield token, [r if 0 <= b < blocks and r < rows else None for r, b in zip(numbers, held, strict=True)]


def cycles(spec: ReorderSpec, tokens: int, rows: int, words: int) -> int:
    """Cycles from the first to the last beat of a product whose rows and tokens never wait."""
    step = max(words, spec.interval)
    if spec.slot_sets > 1:
        return steps(spec, tokens, rows) * step
    blocks, ramp = ceil_div(rows, spec.out_lanes), spec.out_lanes - 1
    busy = blocks * tokens + min(ramp, tokens)
    idle = steps(spec, tokens, rows) - busy
    return busy * max(step, 2) + idle


def tag_layout(spec: ReorderSpec, tag) -> data.StructLayout:
    """What travels with a step: slots up to ``boundary`` hold block ``block``, the others the one before.

    ``set`` is the block's number across jobs (modulo); ``new`` and ``old`` say whether the two blocks exist in
    this job; ``end`` marks the last step of a job; ``token`` is the tag of the operand A stream.
    """
    return data.StructLayout(
        {
            "block": COUNT_BITS,
            "set": spec.set_bits,
            "boundary": max(spec.slot_bits, 1),
            "new": 1,
            "old": 1,
            "end": 1,
            "token": tag,
        }
    )


def job_layout() -> data.StructLayout:
    """A product for the stream side: tokens, words of a row, rows, and words after which to shift (0: never)."""
    return data.StructLayout(
        {"count": COUNT_BITS, "words": COUNT_BITS, "rows": ROWS_BITS, "half": COUNT_BITS}
    )


def fill_job_layout() -> data.StructLayout:
    """A product for the fill side; ``single``: rows arrive one by one although ``fill_rows`` > 1."""
    return data.StructLayout({"words": COUNT_BITS, "rows": ROWS_BITS, "single": 1})


class ReorderUnit(wiring.Component):
    """Slots, their filling, and the order of the beats.

    Parameters
    ----------
    spec : ReorderSpec
    tag : shape-like
        Payload of the operand A stream that reaches the results.

    Members
    -------
    job : In(stream), fill_job : In(stream)
        The same products for the two sides, in the same order; filling runs ahead as far as there is room.
    fill : In(stream)
        One word of ``fill_rows`` rows: ``b`` (fill_rows x in_lanes). Rows in order, words in order.
    a : In(stream)
        Words of operand A in the order of `schedule`: ``a`` (in_lanes), ``tag`` (read at a token's last word).
    o : Out(stream)
        Beats for `DotArray`; the tag is `tag_layout`.
    waiting_rows, waiting_tokens : Out(1)
        A product is active and the beat waits for operand B, or for operand A.
    step : Out(1)
        A step ends in this cycle, idle ones included.

    Throughput one beat per cycle; latency 2; out_lanes memories of slot_sets * slot_words words.
    """

    def __init__(self, spec: ReorderSpec, tag=0):
        self.spec = spec
        self.tag = tag_layout(spec, tag)
        a_word = data.ArrayLayout(signed(16), spec.in_lanes)
        b_word = data.ArrayLayout(signed(spec.b_bits), spec.in_lanes)
        super().__init__(
            {
                "job": In(stream.Signature(job_layout())),
                "fill_job": In(stream.Signature(fill_job_layout())),
                "fill": In(
                    stream.Signature(data.StructLayout({"b": data.ArrayLayout(b_word, spec.fill_rows)}))
                ),
                "a": In(stream.Signature(data.StructLayout({"a": a_word, "tag": tag}))),
                "o": Out(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "a": a_word,
                                "b": data.ArrayLayout(b_word, spec.out_lanes),
                                "first": 1,
                                "shift": 1,
                                "last": 1,
                                "tag": self.tag,
                            }
                        )
                    )
                ),
                "waiting_rows": Out(1),
                "waiting_tokens": Out(1),
                "step": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        position = _Position(m, self)
        filling = _Filling(m, self)
        if self.spec.slot_sets > 1:
            _many_sets(m, self, position, filling)
        else:
            _staircase(m, self, position, filling)
        self._beats(m, position, filling)
        return m

    def _beats(self, m: Module, position: _Position, filling: _Filling) -> None:
        """Issue a beat when its operands are there, and read the slots."""
        spec, a, o = self.spec, self.a, self.o
        enable, o_valid = pipeline(m, position.issue, o.ready, 2)
        spacing = Signal(range(spec.interval + 1))
        rested = Signal(init=1)  # spacing == 0, as a register
        spaced = ~position.word_last | rested
        wanted = position.active & ~position.idle
        m.d.comb += [
            position.issue.eq(wanted & position.rows_ready & a.valid & spaced),
            position.advance.eq(position.issue & enable),
            a.ready.eq(wanted & position.rows_ready & spaced & enable),
            o.valid.eq(o_valid),
            self.waiting_rows.eq(wanted & ~position.rows_ready),
            self.waiting_tokens.eq(wanted & position.rows_ready & ~a.valid),
        ]
        with m.If(position.advance & position.word_last):
            m.d.sync += [spacing.eq(spec.interval - 1), rested.eq(spec.interval == 1)]
        with m.Elif(~rested & enable):
            m.d.sync += [spacing.eq(spacing - 1), rested.eq(spacing == 1)]

        beat = [Signal(self.o.payload.shape(), name=f"beat{s}", reset_less=True) for s in range(2)]
        now = {
            "a": a.payload.a, "first": position.word == 0, "last": position.word_last,
            "shift": (position.half != 0) & (position.word == position.half),
        }  # fmt: skip
        tag = beat[0].tag
        with m.If(enable):
            m.d.sync += [Value.cast(getattr(beat[0], k)).eq(Value.cast(v)) for k, v in now.items()]
            m.d.sync += [
                tag.block.eq(position.block),
                tag.set.eq(position.set),
                tag.boundary.eq(position.boundary),
                tag.new.eq(position.new),
                tag.old.eq(position.old),
                tag.end.eq(position.end),
                Value.cast(tag.token).eq(Value.cast(a.payload.tag)),
            ]
            m.d.sync += [
                Value.cast(getattr(beat[1], k)).eq(Value.cast(getattr(beat[0], k)))
                for k in ("a", "first", "shift", "last", "tag")
            ]
        m.d.comb += [
            Value.cast(getattr(o.payload, k)).eq(Value.cast(getattr(beat[1], k)))
            for k in ("a", "first", "shift", "last", "tag")
        ]
        # a word is written in the cycle after it is taken: between these registers and the slots there is only wire
        address = register(m, 1, filling.address)
        words = [
            register(m, 1, Mux(filling.single, Value.cast(self.fill.payload.b[0]), Value.cast(word)))
            for word in self.fill.payload.b
        ]
        for slot in range(spec.out_lanes):
            memory = Memory(
                shape=spec.in_lanes * spec.b_bits, depth=spec.slot_sets * spec.slot_words, init=[]
            )
            m.submodules[f"slot{slot}"] = memory
            write, read = memory.write_port(), memory.read_port()
            m.d.sync += write.en.eq(
                filling.accept
                & Mux(filling.single, filling.slot == slot, filling.slot == slot // spec.fill_rows)
            )
            m.d.comb += [
                write.addr.eq(address),
                write.data.eq(words[slot % spec.fill_rows]),
                read.en.eq(enable),
                read.addr.eq(position.address),
            ]
            m.d.comb += Value.cast(o.payload.b[slot]).eq(register(m, enable, read.data))


class _Position:
    """Where the stream of operand A is: registers common to both kinds of slots."""

    def __init__(self, m: Module, unit: ReorderUnit):
        spec = unit.spec
        self.active, self.idle, self.rows_ready = Signal(), Signal(), Signal()
        self.issue, self.advance = Signal(), Signal()
        self.count, self.words, self.half = (Signal(COUNT_BITS) for _ in range(3))
        self.blocks, self.block = Signal(COUNT_BITS + 1), Signal(COUNT_BITS + 1)
        self.token, self.word = Signal(COUNT_BITS), Signal(COUNT_BITS)
        self.word_last, self.token_last = Signal(), Signal()
        self.set = Signal(spec.set_bits)
        self.boundary = Signal(max(spec.slot_bits, 1))
        self.new, self.old, self.end = Signal(), Signal(), Signal()
        self.address = Signal(range(spec.slot_sets * spec.slot_words))
        job = unit.job.payload
        m.d.comb += unit.job.ready.eq(~self.active)
        with m.If(unit.job.valid & unit.job.ready):
            m.d.sync += [
                self.active.eq(1),
                self.count.eq(job.count),
                self.words.eq(job.words),
                self.half.eq(job.half),
                self.blocks.eq((job.rows + spec.out_lanes - 1) >> spec.slot_bits),
                self.block.eq(0),
                self.token.eq(0),
                self.word.eq(0),
                self.word_last.eq(job.words == 1),
                self.token_last.eq(job.count == 1),
            ]
        with m.If(self.advance):
            m.d.sync += [
                self.word.eq(Mux(self.word_last, 0, self.word + 1)),
                self.word_last.eq(Mux(self.word_last, self.words == 1, self.word + 2 == self.words)),
            ]


class _Filling:
    """Where the filling is: the next word to be written."""

    def __init__(self, m: Module, unit: ReorderUnit):
        spec = unit.spec
        self.active, self.allowed, self.accept = Signal(), Signal(), Signal()
        self.words, self.rows, self.word = Signal(COUNT_BITS), Signal(ROWS_BITS), Signal(COUNT_BITS)
        self.single = Signal()
        self.slot = Signal(max(spec.slot_bits, 1))
        self.address = Signal(range(spec.slot_sets * spec.slot_words))
        self.row_done, self.block_done, self.job_done = Signal(), Signal(), Signal()
        job = unit.fill_job.payload
        groups = spec.out_lanes // spec.fill_rows
        last_slot = Mux(self.single, self.slot == spec.out_lanes - 1, self.slot == groups - 1)
        last_row = self.rows <= Mux(self.single, 1, spec.fill_rows)
        m.d.comb += [
            unit.fill_job.ready.eq(~self.active),
            self.accept.eq(unit.fill.valid & unit.fill.ready),
            unit.fill.ready.eq(self.active & self.allowed),
            self.row_done.eq(self.accept & (self.word + 1 == self.words)),
            self.block_done.eq(self.row_done & (last_slot | last_row)),
            self.job_done.eq(self.row_done & last_row),
        ]
        with m.If(unit.fill_job.valid & unit.fill_job.ready):
            m.d.sync += [
                self.active.eq(1),
                self.words.eq(job.words),
                self.rows.eq(job.rows),
                self.single.eq(job.single | (spec.fill_rows == 1)),
            ]
        with m.If(self.accept):
            m.d.sync += self.word.eq(self.word + 1)
            with m.If(self.row_done):
                m.d.sync += [
                    self.word.eq(0),
                    self.slot.eq(Mux(self.block_done, 0, self.slot + 1)),
                    self.rows.eq(self.rows - Mux(self.single, 1, spec.fill_rows)),
                ]
            with m.If(self.job_done):
                m.d.sync += self.active.eq(0)


def _many_sets(m: Module, unit: ReorderUnit, position: _Position, filling: _Filling) -> None:
    """A set is filled whole, then used for all tokens, then free again; the sets take turns."""
    spec = unit.spec
    taken, full, following = (Signal(range(spec.slot_sets + 1)) for _ in range(3))
    written = Signal()  # a cycle after the last word of a set has been taken
    fill_base, use_base = (Signal(range(spec.slot_sets * spec.slot_words)) for _ in range(2))
    last_base = (spec.slot_sets - 1) * spec.slot_words
    block_used = position.advance & position.word_last & position.token_last
    block_last = position.block + 1 == position.blocks
    m.d.comb += [
        filling.allowed.eq(taken != spec.slot_sets),
        filling.address.eq(fill_base + filling.word),
        following.eq(full + written - block_used),
        position.address.eq(use_base + position.word),
        position.boundary.eq(spec.out_lanes - 1),
        position.new.eq(1),
        position.end.eq(position.token_last & block_last),
        unit.step.eq(position.advance & position.word_last),
    ]
    m.d.sync += [
        written.eq(filling.block_done),
        taken.eq(taken + filling.block_done - block_used),
        full.eq(following),
        position.rows_ready.eq(following != 0),
    ]
    with m.If(filling.block_done):
        m.d.sync += fill_base.eq(Mux(fill_base == last_base, 0, fill_base + spec.slot_words))
    with m.If(position.advance & position.word_last):
        m.d.sync += [
            position.token.eq(Mux(position.token_last, 0, position.token + 1)),
            position.token_last.eq(
                Mux(position.token_last, position.count == 1, position.token + 2 == position.count)
            ),
        ]
    with m.If(block_used):
        m.d.sync += [
            use_base.eq(Mux(use_base == last_base, 0, use_base + spec.slot_words)),
            position.set.eq(position.set + 1),
            position.block.eq(position.block + 1),
        ]
        with m.If(block_last):
            m.d.sync += position.active.eq(0)


def _staircase(m: Module, unit: ReorderUnit, position: _Position, filling: _Filling) -> None:
    """One set; slot o changes its row when the stream reaches token o.

    The two sides chase each other. A beat needs the word of the row that starts in its step; a word may be
    written once the beat that reads the old one, in the step before, has been issued.
    """
    slots = unit.spec.out_lanes
    use_job, fill_job = Signal(2), Signal(2)
    fill_block = Signal(COUNT_BITS + 1)
    period_last, ramp_last = Signal(COUNT_BITS), Signal(COUNT_BITS)
    ramp = position.block == position.blocks
    slot_now = Mux(position.token < slots, position.token, slots - 1)

    # the stream side
    job = unit.job.payload
    with m.If(unit.job.valid & unit.job.ready):
        m.d.sync += [
            period_last.eq(Mux(job.count > slots, job.count, slots) - 1),
            ramp_last.eq(Mux(job.count < max(slots - 1, 1), job.count, max(slots - 1, 1)) - 1),
        ]
    fill = (
        fill_job,
        fill_block,
        filling.slot,
        filling.word,
    )  # as of the last cycle, since a word is written a cycle late
    written_job, written_block, written_slot, written_word = (Signal.like(x, name="written") for x in fill)
    m.d.sync += Cat(written_job, written_block, written_slot, written_word).eq(Cat(fill))
    ahead = (written_block > position.block) | (
        (written_block == position.block)
        & ((written_slot > slot_now) | ((written_slot == slot_now) & (written_word > position.word)))
    )
    row_last = position.token == period_last
    if slots == 1:  # no ramp
        last_step = final_use = (position.block + 1 == position.blocks) & row_last
    else:
        last_step = ramp & (position.token == slots - 2)
        final_use = ramp & (position.token == ramp_last)
    step = (position.advance & position.word_last) | (position.active & position.idle)
    m.d.comb += [
        position.idle.eq(position.token >= position.count),
        position.rows_ready.eq((use_job != written_job) | (ahead & ~ramp)),
        position.address.eq(position.word),
        position.boundary.eq(slot_now),
        position.new.eq(~ramp),
        position.old.eq(position.block != 0),
        position.end.eq(final_use),
        unit.step.eq(step),
    ]
    with m.If(step):
        m.d.sync += position.token.eq(Mux(row_last, 0, position.token + 1))
        with m.If(row_last):
            m.d.sync += [position.block.eq(position.block + 1), position.set.eq(position.set + 1)]
        with m.If(last_step):
            m.d.sync += [
                position.active.eq(0),
                use_job.eq(use_job + 1),
                position.token.eq(0),
                position.block.eq(0),
            ]

    # the fill side
    behind = filling.word < position.word
    before = Cat(
        position.block > fill_block,
        (position.block == fill_block) & (position.token >= filling.slot),
        (position.block == fill_block) & (position.token + 1 == filling.slot) & behind,
        (position.block + 1 == fill_block) & (filling.slot == 0) & row_last & behind,
    ).any()
    next_job = position.active & ramp & (position.token >= filling.slot)
    m.d.comb += [
        filling.address.eq(filling.word),
        filling.allowed.eq(
            Mux(
                use_job == fill_job,
                (fill_block == 0) | before,
                (fill_block == 0) & next_job & (fill_job == (use_job + 1)[:2]),
            )
        ),
    ]
    with m.If(filling.block_done):
        m.d.sync += fill_block.eq(fill_block + 1)
    with m.If(filling.job_done):
        m.d.sync += [fill_block.eq(0), fill_job.eq(fill_job + 1)]
