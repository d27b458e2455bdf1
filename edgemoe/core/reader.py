"""The reader: streams rows of operand A from the activation memory to the array.

For every block of slots it walks all tokens of a product, looks a token up in its expert's queue where the
order is indirect, reads the words of its row, and turns score codes into attention weights on the way::

    tokens (queue, addresses) --> words --> activation memory --> weigher --> array
                                                                     +--> sum --> 1/d --> writer

What a token's result needs (its row, its address, its gate score) travels as the tag of its last word.

Throughput one word per cycle; a token takes at least 1 cycle.
"""

from __future__ import annotations

from collections.abc import Callable

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig
from edgemoe.core.activation import READ_LATENCY, ReadPort
from edgemoe.core.fifo import Fifo
from edgemoe.numeric import register, short_product_halves
from edgemoe.stream import Buffer, connect, pipeline
from edgemoe.units.softmax import Reciprocal, SoftmaxSpec, Weigher

SIDE_DEPTH = 16
"""More than the cycles from a request to its word."""
WEIGHT_DEPTH = 32
"""Words that have been asked for and wait behind the weigher: more than the cycles from the request of a row's last
word to its 1/d."""
FACTOR_DEPTH = 32
"""Rows whose 1/d has been asked for and waits for the writer."""
SCORE_ONE = 1 << 15
"""A gate score of 1."""


FOLLOW = data.StructLayout({"product": 1, "norm": 1, "index": 4})
"""Whose rows a phase follows: those of product number ``index`` (modulo 16), or those of the running layer norm."""

PROGRESS = data.StructLayout({"products": 4, "rows": 12, "norm_runs": 1, "norm_rows": 12})
"""Complete products (modulo 16) and written rows of the next one; whether layer norm runs, and its rows."""


def permission(m: Module, follow, progress) -> Callable[[Value], Value]:
    """Whether a row may be read: the phase that ``follow`` names has written it.

    It is a cycle late, since all but the comparison of rows is in registers: ``follow`` is that of the next cycle. A row that may
    be read may be read from then on, as long as ``follow`` stays.
    """
    ahead = (follow.index - progress.products)[:4]
    waits = register(m, 1, follow.product & (ahead != 0) & ~ahead[3])
    product, rows = register(m, 1, follow.product & (ahead == 0)), register(m, 1, progress.rows)
    norm, norm_rows = register(m, 1, follow.norm & progress.norm_runs), register(m, 1, progress.norm_rows)
    return lambda row: ~(waits | product & (rows <= row) | norm & (norm_rows <= row))


def read_job_layout() -> data.StructLayout:
    """One product, as the reader sees it (fields of `edgemoe.isa`).

    ``start``: first entry of the queue; ``queued``: take token and score from the queue; ``indirect_a``,
    ``indirect_d``: the row of A, or of the result, is the token of the entry and not its position.
    """
    return data.StructLayout(
        {
            "count": 12, "words": 12, "blocks": 13, "a_base": 16, "a_stride": 12, "d_base": 16, "d_stride": 12,
            "start": 16, "queued": 1, "indirect_a": 1, "indirect_d": 1,
            "double": 1, "weigh": 1, "head": 6, "keys": 12, "follow": FOLLOW,
        }
    )  # fmt: skip


TOKEN_TAG = data.StructLayout({"row": 12, "address": 16, "score": 16})
"""What the writer needs of a token: row of the result, address of that row, gate score."""

ROW_FACTOR = data.StructLayout({"multiplier": 16, "shift": 6})


class Reader(wiring.Component):
    """Operand A of every product.

    Parameters
    ----------
    hardware : HardwareConfig

    Members
    -------
    job : In(stream)
        `read_job_layout`.
    progress : In
        `PROGRESS` of the phases whose rows are followed.
    memory : Out(ReadPort)
    entry_index, entry_en : Out, entry : In({token, score})
        Synchronous read of the router's queue.
    row_read : Out, maximum : In(signed(8))
        Row maxima of the scores, combinational.
    head, word : Out, exponents : In, exponent_maximum : In
        Exponents of V, combinational.
    o : Out(stream)
        ``a`` (in_lanes) and ``tag`` (`TOKEN_TAG`): words in the order of `attention.schedule`.
    factor : Out(stream)
        1/d of every weighted row, in order (`ROW_FACTOR`).
    lost : Out(1)
        For simulation: a queue was full when something came. Never.

    Words are asked for only as far as there is room for them behind the weigher, and for the 1/d of their row: nothing
    between the memory and those two queues ever waits, so no path of ``ready`` leads through it.
    """

    def __init__(self, hardware: HardwareConfig):
        self.hardware = hardware
        self.softmax = SoftmaxSpec(b_bits=hardware.b_bits)
        lanes = hardware.in_lanes
        self.word_bits = max(1, (hardware.token_words - 1).bit_length())
        self.head_bits = max(1, (hardware.heads - 1).bit_length())
        self.queue_bits = max(1, (hardware.tokens * hardware.top_k - 1).bit_length())
        a_word = data.ArrayLayout(signed(16), lanes)
        super().__init__(
            {
                "job": In(stream.Signature(read_job_layout())),
                "progress": In(PROGRESS),
                "memory": Out(ReadPort(hardware)),
                "entry_index": Out(self.queue_bits),
                "entry_en": Out(1),
                "entry": In(data.StructLayout({"token": 12, "score": 16})),
                "row_read": Out(range(hardware.tokens)),
                "maximum": In(signed(8)),
                "head": Out(self.head_bits),
                "word": Out(self.word_bits),
                "exponents": In(data.ArrayLayout(unsigned(4), lanes)),
                "exponent_maximum": In(4),
                "o": Out(stream.Signature(data.StructLayout({"a": a_word, "tag": TOKEN_TAG}))),
                "factor": Out(stream.Signature(ROW_FACTOR)),
                "lost": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes = self.hardware.in_lanes
        tokens, job = self._tokens(m)
        side = data.StructLayout(
            {"word": 12, "last": 1, "weigh": 1, "head": self.head_bits, "keys": 12, "tag": TOKEN_TAG}
        )
        m.submodules.sides = sides = Fifo(side, SIDE_DEPTH)
        m.submodules.factors = factors = Fifo(ROW_FACTOR, FACTOR_DEPTH)
        arrived = self._words(m, job, tokens, sides, factors)

        # annotate: masks, maxima and exponents meet their word
        m.submodules.weigher = weigher = Weigher(
            self.softmax, lanes, tag=data.StructLayout({"weigh": 1, "tag": TOKEN_TAG})
        )
        here = sides.o.payload
        lane_bits = (lanes - 1).bit_length()
        full, rest = here.keys[lane_bits:], here.keys[:lane_bits]
        mask = [(here.word < full) | ((here.word == full) & (lane < rest)) for lane in range(lanes)]
        m.d.comb += [
            sides.o.ready.eq(arrived),
            self.row_read.eq(here.tag.row),
            self.head.eq(here.head),
            self.word.eq(here.word),
        ]
        m.d.sync += weigher.i.valid.eq(arrived)
        relative = [(self.exponent_maximum - self.exponents[lane])[:4] for lane in range(lanes)]
        fields = {
            "lane": Value.cast(self.memory.data), "mask": Cat(mask), "maximum": self.maximum,
            "relative": Cat(relative), "active": here.weigh, "last": here.last,
            "tag": Cat(here.weigh, Value.cast(here.tag)),
        }  # fmt: skip
        m.d.comb += [
            Value.cast(getattr(weigher.i.payload, name)).eq(register(m, 1, value))
            for name, value in fields.items()
        ]

        # 1/d, and the gate that holds a weighted row's last word back until its 1/d is there
        m.submodules.reciprocal = reciprocal = Reciprocal(self.softmax)
        m.d.comb += [
            weigher.sum.ready.eq(1),
            reciprocal.i.valid.eq(weigher.sum.valid),
            reciprocal.i.payload.d.eq(weigher.sum.payload),
            reciprocal.o.ready.eq(1),
            factors.i.valid.eq(reciprocal.o.valid),
            factors.i.payload.multiplier.eq(reciprocal.o.payload.multiplier),
            factors.i.payload.shift.eq(reciprocal.o.payload.shift),
        ]
        connect(m, factors.o, wiring.flipped(self.factor))
        m.submodules.weighted = weighted = Fifo(weigher.o.payload.shape(), WEIGHT_DEPTH, block=True)
        m.d.comb += [
            weigher.o.ready.eq(1),
            weighted.i.valid.eq(weigher.o.valid),
            Value.cast(weighted.i.payload).eq(Value.cast(weigher.o.payload)),
            self._left.eq(weighted.freed),
            self.lost.eq(
                (weighted.i.valid & ~weighted.i.ready)
                | (factors.i.valid & ~factors.i.ready)
                | (arrived & ~sides.o.valid)
            ),
        ]
        # Which words are such last ones is known from flip-flops beside that queue: its block RAM lies far away.
        m.submodules.finals = finals = Fifo(1, WEIGHT_DEPTH)
        ready_factors, some_factor = Signal(range(FACTOR_DEPTH + 3)), Signal()  # that no row has taken yet
        out, needs = weighted.o.payload, finals.o.payload
        may = ~needs | some_factor
        m.submodules.seam = seam = Buffer(self.o.payload.shape())
        m.d.comb += [
            finals.i.valid.eq(weigher.o.valid),
            finals.i.payload.eq(weigher.o.payload.tag.weigh & weigher.o.payload.last),
            seam.i.valid.eq(finals.o.valid & may),
            seam.i.payload.a.eq(out.a),
            Value.cast(seam.i.payload.tag).eq(Value.cast(out.tag.tag)),
            weighted.o.ready.eq(seam.i.ready & may),
            finals.o.ready.eq(seam.i.ready & may),
        ]
        came, went = factors.i.valid, seam.i.valid & seam.i.ready & needs
        following = Signal.like(ready_factors)
        m.d.comb += following.eq(ready_factors + came - went)
        m.d.sync += [ready_factors.eq(following), some_factor.eq(following != 0)]
        connect(m, seam.o, wiring.flipped(self.o))
        return m

    def _tokens(self, m: Module):
        """Walk the tokens of all blocks; give row address, result address, row and score of each.

        Returns the queue of tokens and the job of the one at its head: the tokens of a job are prepared while the
        words of the one before are still being read.
        """
        job, back = Signal(read_job_layout()), Signal(read_job_layout())
        moved, self._back_valid, self._back_done = Signal(init=1), Signal(), Signal()
        sets, slots = self.hardware.slot_sets, self.hardware.out_lanes
        active = Signal()
        block, index, limit = Signal(13), Signal(12), Signal(12)
        index_last, block_last, ends = (
            Signal(),
            Signal(),
            Signal(),
        )  # registers; this block is the job's last walk
        fields = data.StructLayout(
            {"a_row": 16, "d_row": 16, "row": 12, "position": 12, "score": 16, "job_last": 1}
        )
        m.submodules.tokens = tokens = Fifo(fields, 4)
        enable, valid = pipeline(m, active, tokens.i.ready, 4)

        has_ramp = sets == 1 and slots > 1
        ramp = Signal(12)  # further tokens of the staircase's ramp
        incoming = self.job.payload
        m.d.comb += self.job.ready.eq(~active & moved)
        with m.If(self._back_done):
            m.d.sync += self._back_valid.eq(0)
        self._moves, self._moving = Signal(), job  # to the back
        m.d.comb += self._moves.eq(~moved & (~self._back_valid | self._back_done))
        with m.If(self._moves):
            m.d.sync += [Value.cast(back).eq(Value.cast(job)), self._back_valid.eq(1), moved.eq(1)]
        with m.If(self.job.valid & self.job.ready):
            m.d.sync += [
                Value.cast(job).eq(Value.cast(incoming)),
                active.eq(1),
                moved.eq(0),
                block.eq(0),
                index.eq(0),
                limit.eq(incoming.count),
                index_last.eq(incoming.count == 1),
                block_last.eq(incoming.blocks == 1),
                ends.eq(0 if has_ramp else incoming.blocks == 1),
                ramp.eq(Mux(incoming.count < slots - 1, incoming.count, slots - 1) if sets == 1 else 0),
            ]
        with m.If(active & enable):
            m.d.sync += [index.eq(index + 1), index_last.eq(index + 2 == limit)]
            with m.If(index_last):
                following = Mux(block_last, ramp, limit) if has_ramp else limit
                m.d.sync += [
                    index.eq(0),
                    limit.eq(following),
                    index_last.eq(following == 1),
                    block.eq(block + 1),
                    block_last.eq(block + 2 == job.blocks),
                    ends.eq(block_last if has_ramp else block + 2 == job.blocks),
                ]
                with m.If(ends):
                    m.d.sync += active.eq(0)

        # stage 1: the queue's entry; 2: row numbers; 3: products; 4: sums
        m.d.comb += [
            self.entry_index.eq((job.start + index)[: self.queue_bits]),
            self.entry_en.eq(enable),
        ]
        position, last = register(m, enable, index), register(m, enable, index_last & ends)
        a_index = register(m, enable, Mux(job.indirect_a, self.entry.token, position))
        d_index = register(m, enable, Mux(job.indirect_d, self.entry.token, position))
        score = register(m, enable, Mux(job.queued, self.entry.score, SCORE_ONE), 3)
        a_parts, d_parts = (
            [register(m, enable, x[:16]) for x in short_product_halves(stride, index)]
            for stride, index in ((job.a_stride, a_index), (job.d_stride, d_index))
        )
        into = tokens.i.payload
        m.d.comb += [
            tokens.i.valid.eq(valid),
            into.a_row.eq(register(m, enable, (job.a_base + a_parts[0] + a_parts[1])[:16])),
            into.d_row.eq(register(m, enable, (job.d_base + d_parts[0] + d_parts[1])[:16])),
            into.row.eq(register(m, enable, d_index, 2)),
            into.position.eq(register(m, enable, position, 3)),
            into.score.eq(score),
            into.job_last.eq(register(m, enable, last, 3)),
        ]
        return tokens, back

    def _words(self, m: Module, job: Signal, tokens: Fifo, sides: Fifo, factors: Fifo) -> Value:
        """Read the words of each token, as far as there is room behind the weigher; returns when a word is here."""
        self._left = Signal()  # a word has left the queue behind the weigher
        room = Signal(range(WEIGHT_DEPTH + 1), init=WEIGHT_DEPTH)
        rooms = Signal(range(FACTOR_DEPTH + 1), init=FACTOR_DEPTH)  # for 1/d
        # a cycle late, when one more of each may have been claimed
        roomy = register(m, 1, (room >= 2) & (rooms >= 2))
        word, word_last, half = Signal(12), Signal(), Signal()
        follow = FOLLOW(Mux(self._moves, self._moving.follow.as_value(), job.follow.as_value()))
        may_read = permission(m, follow, self.progress)
        row_last = word_last & (half | ~job.double)

        # The next token and whether its row may be read, which is found out while it waits: the comparison of rows is no part of the
        # long way to memory and queues. Between two jobs it begins anew, unless the new one follows nothing.
        head = tokens.o.payload
        token, waiting = Signal(head.shape(), reset_less=True), Signal()
        written, free, leaves = Signal(), Signal(), Signal()
        issue = waiting & self._back_valid & roomy & (written | free)
        m.d.comb += [leaves.eq(issue & row_last), tokens.o.ready.eq(leaves | ~waiting)]
        here, ahead = may_read(token.position), may_read(head.position)
        with m.If(tokens.o.ready):
            m.d.sync += [
                Value.cast(token).eq(Value.cast(head)),
                waiting.eq(tokens.o.valid),
                written.eq(ahead & ~self._back_done & self._back_valid),
            ]
        with m.Else():
            m.d.sync += written.eq((written | here) & self._back_valid)
        with m.If(self._moves):
            m.d.sync += free.eq(~(follow.product | follow.norm))
        m.d.sync += [
            room.eq(room - issue + register(m, 1, self._left)),
            rooms.eq(rooms - (issue & row_last & job.weigh) + register(m, 1, factors.freed)),
        ]
        with m.If(issue):
            m.d.sync += [
                word.eq(Mux(word_last, 0, word + 1)),
                word_last.eq(Mux(word_last, job.words == 1, word + 2 == job.words)),
            ]
            with m.If(word_last & job.double):
                m.d.sync += half.eq(~half)
        with m.If(self._moves):
            m.d.sync += word_last.eq(self._moving.words == 1)
        m.d.comb += self._back_done.eq(leaves & token.job_last)
        side = Signal(sides.i.payload.shape(), reset_less=True)  # a cycle late: that queue may lie far away
        m.d.comb += [
            sides.i.valid.eq(self.memory.en),
            Value.cast(sides.i.payload).eq(Value.cast(side)),
        ]
        m.d.sync += [
            self.memory.en.eq(issue),
            self.memory.address.eq(token.a_row + word),
            side.word.eq(word),
            side.last.eq(row_last),
            side.weigh.eq(job.weigh),
            side.head.eq(job.head),
            side.keys.eq(job.keys),
            side.tag.row.eq(token.row),
            side.tag.address.eq(token.d_row),
            side.tag.score.eq(token.score),
        ]
        return register(m, 1, self.memory.en, READ_LATENCY)
