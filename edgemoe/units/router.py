"""Top-k gating of all tokens, and the queues by which experts are visited one after the other.

All tokens are routed first; then each expert with a token is visited once and takes its whole queue, so its
weights are loaded once (expert-by-expert computation: Sarkar et al., Edge-MoE, ICCAD 2023, arXiv 2305.18691).

    score memory --codes--> argmax over lanes --> choices --+--> place --> entries  (sorted by expert, token)
                      |                            |        |      ^
                      |                            +--> counts --> starts --> visits
                      +--> shift by M - n, sum --> d --> 1/d (outside) ---+

The passes over the score memory are: pass j finds choice j of every token, among the codes that come after
choice j - 1 in the order (larger code first, then lower index). That needs no mask, only the last choice.
Pass 1 also sums d, because choice 0 has told M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2
from numpy.typing import ArrayLike

from edgemoe.numeric import (
    IntArray,
    ceil_div,
    floor_shift,
    floor_shift_value,
    is_power_of_two,
    register,
    rounding_shift,
    rounding_shift_value,
    shift_stage_value,
)
from edgemoe.stream import pipeline

NEVER = 31
"""The shift that makes every weight 0."""
SCORE_ONE = 1 << 15
"""A gate score of 1, the largest."""
LIMB = 17
"""Unsigned bits of one operand of an 18 x 18 bit signed multiplier."""


@dataclass(frozen=True)
class RouterSpec:
    """Capacities of a router and the format of its codes.

    Parameters
    ----------
    in_lanes : int
        Codes per response, of the score memory's words or parts of them; a power of two.
    tokens, experts, top_k : int
        Largest number of tokens, experts and choices per token.
    guard : int
        Bits of d below those of a weight.
    mantissa_frac, exponent_bits : int
        Fields of a code: mf below n.
    """

    in_lanes: int
    tokens: int
    experts: int
    top_k: int
    guard: int = 12
    mantissa_frac: int = 14
    exponent_bits: int = 8

    def __post_init__(self) -> None:
        if not is_power_of_two(self.in_lanes):
            raise ValueError(f"in_lanes must be a power of two, not {self.in_lanes}")
        for name in ("tokens", "experts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(
                f"top_k must be 1..experts, found top_k {self.top_k} with {self.experts} experts"
            )
        if self.mantissa_frac + self.guard + 1 > NEVER:
            raise ValueError(
                f"mantissa_frac + guard is {self.mantissa_frac + self.guard}; "
                f"a shift of {NEVER} must clear a weight, so at most {NEVER - 1}"
            )

    @property
    def words(self) -> int:
        """Words of a token's codes."""
        return ceil_div(self.experts, self.in_lanes)

    @property
    def code_bits(self) -> int:
        """Width of a code."""
        return self.mantissa_frac + self.exponent_bits

    @property
    def code(self) -> data.StructLayout:
        """Fields of a code."""
        return data.StructLayout({"mf": unsigned(self.mantissa_frac), "n": signed(self.exponent_bits)})

    @property
    def sum_bits(self) -> int:
        """Width of d."""
        return (self.experts * (((2 << self.mantissa_frac) - 1) << self.guard)).bit_length()

    @property
    def visit(self) -> data.StructLayout:
        """A visit: the expert, the index of its first entry, and its number of entries."""
        return data.StructLayout({
            "expert": range(self.experts), "start": range(self.tokens * self.top_k),
            "count": range(self.tokens + 1),
        })  # fmt: skip

    @property
    def entry(self) -> data.StructLayout:
        """An entry of a queue."""
        return data.StructLayout({"token": range(self.tokens), "score": 16})

    @property
    def decision(self) -> data.StructLayout:
        """A decision, for monitors."""
        return data.StructLayout({
            "valid": 1, "token": range(self.tokens), "rank": range(self.top_k),
            "expert": range(self.experts), "score": 16,
        })  # fmt: skip


# -- golden -------------------------------------------------------------------------------------


def route(
    codes: ArrayLike,
    top_k: int,
    reciprocal: Callable[[IntArray], tuple[IntArray, IntArray]],
    spec: RouterSpec,
) -> tuple[IntArray, IntArray]:
    """The ``top_k`` experts of each token, best first, and their gate scores with 15 fraction bits.

        wide = (m << guard) >> min(M - n, 31);  d = sum of wide over all experts;  (r, p) = reciprocal(d)
        score = min(rs(wide * r, p + 1), 32768)

    Args:
        codes: (tokens, experts); the greater code is the better one, of equal ones the lower index.
        top_k: 1..experts.
        reciprocal: ``edgemoe.units.softmax.reciprocal`` of the softmax's spec.

    Returns:
        indices and scores, both (tokens, top_k).
    """
    codes = np.asarray(codes, np.int64)
    if not 1 <= top_k <= codes.shape[1]:
        raise ValueError(f"top_k must be 1..experts, found top_k {top_k} with {codes.shape[1]} experts")
    chosen = np.argsort(-codes, axis=1, kind="stable")[:, :top_k]
    n = floor_shift(codes, spec.mantissa_frac)
    mantissa = (1 << spec.mantissa_frac) + codes - (n << spec.mantissa_frac)
    wide = floor_shift(mantissa << spec.guard, np.minimum(n.max(axis=1, keepdims=True) - n, NEVER))
    r, position = reciprocal(wide.sum(axis=1))
    scores = rounding_shift(np.take_along_axis(wide, chosen, 1) * r[:, None], position[:, None] + 1)
    return chosen, np.minimum(scores, SCORE_ONE)


def queues(topk: ArrayLike, scores: ArrayLike, experts: int) -> tuple[IntArray, IntArray, IntArray]:
    """Visits (n, 3) as ``expert, start, count``, ascending, and the entries' tokens and scores.

    Entries are sorted by expert, then by token; the entries of a visit are ``start .. start + count - 1``.
    """
    topk, scores = np.asarray(topk, np.int64), np.asarray(scores, np.int64)
    order = np.argsort(topk.ravel(), kind="stable")
    counts = np.bincount(topk.ravel(), minlength=experts)
    starts = np.cumsum(counts) - counts
    (used,) = np.nonzero(counts)
    visits = np.stack([used, starts[used], counts[used]], axis=1)
    return visits, order // topk.shape[1], scores.ravel()[order]


# -- gateware -----------------------------------------------------------------------------------

FRONT_STAGES = 6
"""Registers of a pass besides the levels of its trees."""
PLACE_STAGES = 14
"""Registers from an address of a choice to its entry."""


class Router(wiring.Component):
    """Chooses every token's experts and builds the experts' queues.

    ``topk, scores = route(codes, top_k, ...);  visits, token, score = queues(topk, scores, experts)``

    Parameters
    ----------
    spec : RouterSpec
    readers : int
        Read ports of the list of visits.

    Members
    -------
    job : In(stream.Signature({tokens, experts, top_k}))
        Starts; accepted when the previous job is done. Results stay until then.
    request : Out(stream.Signature({row, word}))
        Word ``word`` of the codes of token ``row``.
    response : In(stream.Signature({code: Array(signed(22), in_lanes)}))
        The words, in the order of the requests. Lanes beyond the experts are ignored.
    divide : Out(stream.Signature({d}))
        d of each token, in order.
    quotient : In(stream.Signature({multiplier: 16, position: 6}))
        Their reciprocals, in order.
    done : Out(1)
        High for one cycle when the queues are ready.
    visits : Out
        Number of experts with a token.
    visit_index_{0..readers-1} : In, visit_{0..readers-1} : Out(spec.visit)
        ``visit_index``-th visit, combinational.
    entry_index, entry_en : In, entry : Out(spec.entry)
        Entry, one cycle later.
    chosen : Out(spec.decision)
        ``tokens * top_k`` decisions with ``valid``, by token, then by rank.

    Latency: `cycles`. Cost: per lane a comparator, a tree node of compare and of add, a shifter; one multiplier.
    """

    def __init__(self, spec: RouterSpec, readers: int = 3):
        self.spec, self.readers = spec, readers
        job = {"tokens": range(spec.tokens + 1), "experts": range(spec.experts + 1),
               "top_k": range(spec.top_k + 1)}  # fmt: skip
        request = {"row": range(spec.tokens), "word": range(spec.words)}
        response = {"code": data.ArrayLayout(signed(spec.code_bits), spec.in_lanes)}
        members = {
            "job": In(stream.Signature(data.StructLayout(job))),
            "request": Out(stream.Signature(data.StructLayout(request))),
            "response": In(stream.Signature(data.StructLayout(response))),
            "divide": Out(stream.Signature(data.StructLayout({"d": spec.sum_bits}))),
            "quotient": In(stream.Signature(data.StructLayout({"multiplier": 16, "position": 6}))),
            "done": Out(1),
            "visits": Out(range(spec.experts + 1)),
            "entry_index": In(range(spec.tokens * spec.top_k)),
            "entry_en": In(1),
            "entry": Out(spec.entry),
            "chosen": Out(spec.decision),
        }
        for n in range(readers):
            members[f"visit_index_{n}"] = In(range(spec.experts))
            members[f"visit_{n}"] = Out(spec.visit)
        super().__init__(members)

    @property
    def _index_bits(self) -> int:
        """Bits of an expert's index, as word above lane."""
        return ceil_log2(self.spec.words) + ceil_log2(self.spec.in_lanes)

    def elaborate(self, platform) -> Module:
        m = Module()
        spec = self.spec

        # The job.
        tokens_last, experts_last = Signal(range(spec.tokens)), Signal(range(spec.experts))
        rank_last, pass_last = Signal(range(spec.top_k)), Signal(range(max(spec.top_k, 2)))
        number = Signal.like(pass_last)
        job = self.job.payload

        # Choices by token and rank: written by the passes, read by the next pass and to place the entries.
        choice = data.StructLayout({"code": spec.code_bits, "expert": self._index_bits})
        rank_bits = ceil_log2(spec.top_k)
        m.submodules.choices = choices = Memory(shape=choice, depth=spec.tokens << rank_bits, init=[])
        choice_write, choice_read = choices.write_port(), choices.read_port()
        m.submodules.quotients = quotients = Memory(
            shape=self.quotient.payload.shape(), depth=spec.tokens, init=[]
        )

        # Tokens per expert; then the index of each expert's next entry.
        m.submodules.counts = counts = Memory(shape=range(spec.tokens + 1), depth=spec.experts, init=[])
        m.submodules.nexts = nexts = Memory(
            shape=range(spec.tokens * spec.top_k + 1), depth=spec.experts, init=[]
        )
        count_write, count_read = counts.write_port(), counts.read_port(domain="comb")
        next_write, next_read = nexts.write_port(), nexts.read_port(domain="comb")
        m.d.comb += count_write.addr.eq(count_read.addr)

        m.submodules.visit_list = visit_list = Memory(shape=spec.visit, depth=spec.experts, init=[])
        visit_write = visit_list.write_port()
        for n in range(self.readers):
            port = visit_list.read_port(domain="comb")
            m.d.comb += [
                port.addr.eq(getattr(self, f"visit_index_{n}")),
                getattr(self, f"visit_{n}").eq(port.data),
            ]
        m.submodules.entries = entries = Memory(shape=spec.entry, depth=spec.tokens * spec.top_k, init=[])
        entry_write, entry_read = entries.write_port(), entries.read_port()
        m.d.comb += [
            entry_read.addr.eq(self.entry_index),
            entry_read.en.eq(self.entry_en),
            self.entry.eq(entry_read.data),
        ]

        # Quotients are kept as they come.
        received, received_all = Signal(range(spec.tokens)), Signal()
        quotient_write = quotients.write_port()
        m.d.comb += [
            self.quotient.ready.eq(1),
            quotient_write.addr.eq(received),
            quotient_write.data.eq(self.quotient.payload),
            quotient_write.en.eq(self.quotient.valid),
        ]
        with m.If(self.quotient.valid):
            m.d.sync += [received.eq(received + 1), received_all.eq(received == tokens_last)]

        passes, placing = Signal(), Signal()
        pass_end, commit = self._passes(m, passes, number, rank_last, tokens_last, experts_last,
                                        choice_write, choice_read)  # fmt: skip
        placed, place_end = self._places(m, placing, tokens_last, rank_last, choice, choice_read,
                                         quotients.read_port())  # fmt: skip

        # An expert per cycle: clear its count; later, turn the counts into starts.
        expert, total = Signal(range(spec.experts)), Signal(range(spec.tokens * spec.top_k + 1))
        expert_end = expert == experts_last
        count = count_read.data
        m.d.comb += [
            visit_write.addr.eq(self.visits[: len(visit_write.addr)]),
            visit_write.data.expert.eq(expert),
            visit_write.data.start.eq(total),
            visit_write.data.count.eq(count),
            entry_write.addr.eq(next_read.data),
            entry_write.data.token.eq(placed.token),
            entry_write.data.score.eq(placed.score),
            entry_write.en.eq(placed.valid),
        ]
        m.d.sync += [self.chosen.eq(placed), self.done.eq(0)]

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.job.ready.eq(1)
                m.d.sync += [
                    tokens_last.eq(job.tokens - 1),
                    experts_last.eq(job.experts - 1),
                    rank_last.eq(job.top_k - 1),
                    pass_last.eq(Mux(job.top_k > 2, job.top_k - 1, 1)),
                    number.eq(0),
                    expert.eq(0),
                    received.eq(0),
                    received_all.eq(0),
                ]
                with m.If(self.job.valid):
                    m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += [count_read.addr.eq(expert), count_write.data.eq(0), count_write.en.eq(1)]
                m.d.sync += expert.eq(expert + 1)
                with m.If(expert_end):
                    m.next = "PASS"
            with m.State("PASS"):
                m.d.comb += [
                    passes.eq(1),
                    count_read.addr.eq(commit.expert),
                    count_write.data.eq(count + 1),
                    count_write.en.eq(commit.valid),
                ]
                m.d.sync += [expert.eq(0), total.eq(0)]
                with m.If(pass_end):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.comb += [
                    count_read.addr.eq(commit.expert),
                    count_write.data.eq(count + 1),
                    count_write.en.eq(commit.valid),
                ]
                m.d.sync += [number.eq(number + 1), self.visits.eq(0)]
                m.next = "PASS"
                with m.If(number == pass_last):
                    m.next = "STARTS"
            with m.State("STARTS"):
                m.d.comb += [
                    count_read.addr.eq(expert),
                    next_write.addr.eq(expert),
                    next_write.data.eq(total),
                    next_write.en.eq(1),
                    visit_write.en.eq(count != 0),
                ]
                m.d.sync += [
                    expert.eq(expert + 1),
                    total.eq(total + count),
                    self.visits.eq(self.visits + (count != 0)),
                ]
                with m.If(expert_end):
                    m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(received_all):
                    m.next = "PLACE"
            with m.State("PLACE"):
                m.d.comb += [
                    placing.eq(1),
                    next_read.addr.eq(placed.expert),
                    next_write.addr.eq(placed.expert),
                    next_write.data.eq(next_read.data + 1),
                    next_write.en.eq(placed.valid),
                ]
                with m.If(place_end):
                    m.d.sync += self.done.eq(1)
                    m.next = "IDLE"
        return m

    def _passes(self, m: Module, active: Value, number: Value, rank_last: Value, tokens_last: Value,
                experts_last: Value, choice_write, choice_read) -> tuple[Value, data.View]:  # fmt: skip
        """Stream all words once; ``(end of the pass, {valid, expert})`` of each choice."""
        spec = self.spec
        lanes, lane_bits, index_bits = spec.in_lanes, ceil_log2(spec.in_lanes), self._index_bits
        words_last, lane_last = Signal(range(spec.words)), Signal(range(lanes))
        first_pass, choosing, summing = Signal(), Signal(), Signal()
        m.d.sync += [
            words_last.eq(experts_last[lane_bits:]),
            lane_last.eq(experts_last[:lane_bits]),
            first_pass.eq(number == 0),
            choosing.eq(number <= rank_last),
            summing.eq(number == 1),
        ]

        # Requests, and the place of each response.
        def walk(name: str, step: Value) -> tuple[Signal, Signal, Value, Value]:
            token, word = Signal(range(spec.tokens), name=f"{name}_token"), Signal(range(spec.words))
            word_end = word == words_last
            with m.If(step):
                m.d.sync += [word.eq(word + 1)]
                with m.If(word_end):
                    m.d.sync += [word.eq(0), token.eq(token + 1)]
            with m.If(~active):
                m.d.sync += [word.eq(0), token.eq(0)]
            return token, word, word_end, word_end & (token == tokens_last)

        sent_all, taken = Signal(), Signal()
        sent = self.request.valid & self.request.ready
        token, word, _, request_end = walk("request", sent)
        m.d.comb += [
            self.request.valid.eq(active & ~sent_all),
            self.request.payload.row.eq(token),
            self.request.payload.word.eq(word),
        ]
        m.d.sync += sent_all.eq(active & (sent_all | (sent & request_end)))

        sink_ready = Signal()
        levels = lane_bits
        stages = FRONT_STAGES + levels
        enable, valid = pipeline(m, self.response.valid, sink_ready, stages)
        m.d.comb += [self.response.ready.eq(enable), taken.eq(self.response.valid & enable)]
        token, word, word_end, pass_end = walk("response", taken)

        def later(value: Value, count: int = 1) -> Value:
            return register(m, enable, value, count)

        # 1, 2: the token's last choice is read.
        rank_bits = ceil_log2(spec.top_k)
        previous_rank = (number - 1)[:rank_bits] if rank_bits else Const(0, 0)
        with m.If(active):
            m.d.comb += [
                choice_read.addr.eq(Cat(previous_rank, token)),
                choice_read.en.eq(enable),
            ]
        previous = data.View(choice_read.data.shape(), later(Value.cast(choice_read.data)))
        previous_n = data.View(spec.code, previous.code).n
        # lane 0 is in every word: a constant, not a register
        known = [Const(1), *(later(~word_end | (lane <= lane_last), 2) for lane in range(1, lanes))]
        codes = [later(self.response.payload.code[lane].as_unsigned(), 2) for lane in range(lanes)]
        word = later(word, 2)[: index_bits - lane_bits]

        # 3: may a code be chosen? How far is it below the maximum?
        sign = 1 << (spec.code_bits - 1)
        last_key = Cat(~previous.expert, previous.code ^ sign)
        candidates, gaps = [], []
        for lane, code in enumerate(codes):
            index = Cat(Const(lane, lane_bits), word)
            eligible = known[lane] & (first_pass | (Cat(~index, code ^ sign) < last_key))
            # `code` leaves as offset binary below its eligibility: one number to compare.
            candidates.append((later(Cat(code ^ sign, eligible)), later(index)))
            gap = (previous_n - data.View(spec.code, code).n)[: spec.exponent_bits]
            gaps.append(later(Mux(known[lane], gap, Const(-1, spec.exponent_bits))))
        mantissas = [
            Cat(Const(0, spec.guard), later(code[: spec.mantissa_frac], 2), Const(1, 1)) for code in codes
        ]

        # 4..: the best lane; of equals the lower. Its path is three stages shorter than the sum's.
        while len(candidates) > 1:
            pairs = zip(candidates[::2], candidates[1::2], strict=True)
            candidates = [
                (later(Mux(b[0] > a[0], b[0], a[0])), later(Mux(b[0] > a[0], b[1], a[1]))) for a, b in pairs
            ]
        (key, index) = (later(x, 3) for x in candidates[0])

        # 4, 5, 6, ..: weights with guard bits, and their sum.
        amounts = [later(Mux(gap[5:].any(), NEVER, gap[:5])) for gap in gaps]
        wide = [later(shift_stage_value(x, s, 2, 5)) for x, s in zip(mantissas, amounts, strict=True)]
        wide = [later(shift_stage_value(x, later(s), 0, 2)) for x, s in zip(wide, amounts, strict=True)]
        while len(wide) > 1:
            wide = [later(a + b) for a, b in zip(wide[::2], wide[1::2], strict=True)]

        # Over the words of a token.
        token, word_end, pass_end = (later(x, stages) for x in (token, word_end, pass_end))
        first, best_key, best_index = Signal(init=1), Signal.like(key), Signal.like(index)
        total = Signal(spec.sum_bits)
        commit = Signal(data.StructLayout({"valid": 1, "expert": range(spec.experts)}))
        committed_token = Signal(range(spec.tokens))
        moved = valid & sink_ready
        m.d.comb += [
            sink_ready.eq(~self.divide.valid | self.divide.ready),
            self.divide.payload.d.eq(total),
            commit.expert.eq(best_index),
            choice_write.addr.eq(Cat(number[:rank_bits], committed_token)),
            choice_write.data.code.eq(best_key[: spec.code_bits] ^ sign),
            choice_write.data.expert.eq(best_index),
            choice_write.en.eq(commit.valid),
        ]
        m.d.sync += commit.valid.eq(moved & word_end & choosing)
        with m.If(self.divide.ready):
            m.d.sync += self.divide.valid.eq(0)
        with m.If(moved):
            with m.If(first | (key > best_key)):
                m.d.sync += [best_key.eq(key), best_index.eq(index)]
            m.d.sync += [
                total.eq(Mux(first, 0, total) + wide[0]),
                first.eq(word_end),
                self.divide.valid.eq(word_end & summing),
                committed_token.eq(token),
            ]
        return moved & pass_end, commit

    def _places(self, m: Module, active: Value, tokens_last: Value, rank_last: Value,
                choice: data.StructLayout, choice_read, quotient_read) -> tuple[data.View, Value]:  # fmt: skip
        """Walk over the choices by token and rank, two cycles each: decisions, and the last one."""
        spec = self.spec
        rank_bits = ceil_log2(spec.top_k)

        def later(value: Value, count: int = 1) -> Value:
            return register(m, 1, value, count)

        # 0: address. The second cycle of each choice is for the upper half of its product.
        upper, finished = Signal(), Signal()
        token, rank = Signal(range(spec.tokens)), Signal(range(spec.top_k))
        rank_end = rank == rank_last
        with m.If(active):
            m.d.comb += [choice_read.addr.eq(Cat(rank[:rank_bits], token)), choice_read.en.eq(1)]
            m.d.sync += upper.eq(~upper)
            with m.If(upper):
                m.d.sync += rank.eq(rank + 1)
                with m.If(rank_end):
                    m.d.sync += [
                        rank.eq(0),
                        token.eq(token + 1),
                        finished.eq(finished | (token == tokens_last)),
                    ]
        with m.Else():
            m.d.sync += [token.eq(0), rank.eq(0), upper.eq(0), finished.eq(0)]
        m.d.comb += [quotient_read.addr.eq(token), quotient_read.en.eq(1)]
        line = Signal(PLACE_STAGES - 1)
        m.d.sync += line.eq(Cat(active & upper & ~finished, line))

        # 1, 2: choice and quotient. 3: distance from the first choice, which has M.
        found = data.View(choice, later(Value.cast(choice_read.data)))
        quotient = data.View(self.quotient.payload.shape(), later(Value.cast(quotient_read.data)))
        code = data.View(spec.code, found.code)
        is_first = later(rank == 0, 2)
        maximum = Signal(signed(spec.exponent_bits))
        with m.If(is_first):
            m.d.sync += maximum.eq(code.n)
        gap = later(Mux(is_first, 0, maximum - code.n)[: spec.exponent_bits])
        wide = Cat(Const(0, spec.guard), later(code.mf, 2), Const(1, 1))

        # 4, 5, 6: shift.
        amount = later(Mux(gap[5:].any(), NEVER, gap[:5]))
        wide = later(shift_stage_value(wide, amount, 2, 5))
        wide = later(shift_stage_value(wide, later(amount), 0, 2))

        # 7, 8, 9: product in two halves. The place of the half in its choice is that of `upper`.
        a = later(Mux(later(upper, 6), wide[LIMB:], wide[:LIMB]))
        b = later(quotient.multiplier, 5)
        product = later(a * b)
        total = Signal(len(wide) + 16)
        m.d.sync += total.eq(Mux(later(upper, 8), total + (product << LIMB), product))

        # 10..13: shift by p; d is at least 2**least.
        least = spec.mantissa_frac + spec.guard
        most = spec.sum_bits - 1
        far = later((quotient.position - least)[: (most - least).bit_length()], 7)
        score = later(shift_stage_value(floor_shift_value(total, least), far, 2, len(far)))
        score = later(shift_stage_value(score, later(far), 0, 2))
        score = later(rounding_shift_value(score, 1))
        score = later(Mux(score > SCORE_ONE, SCORE_ONE, score)[:16])

        decision = Signal(spec.decision)
        end = later(token == tokens_last, PLACE_STAGES - 1) & later(rank_end, PLACE_STAGES - 1)
        m.d.comb += [
            decision.valid.eq(line[-1]),
            decision.token.eq(later(token, PLACE_STAGES - 1)),
            decision.rank.eq(later(rank, PLACE_STAGES - 1)),
            decision.expert.eq(later(found.expert, PLACE_STAGES - 3)),
            decision.score.eq(score),
        ]
        return decision, decision.valid & end


# -- cycles -------------------------------------------------------------------------------------


def cycles(
    spec: RouterSpec, tokens: int, experts: int, top_k: int, response: int = 1, divide: int = 1
) -> int:
    """Cycles from the job to ``done``, both counted, without stalls.

    Args:
        response: cycles from a request to its response.
        divide: cycles from a divide to its quotient.
    """
    words = ceil_div(experts, spec.in_lanes)
    stages = FRONT_STAGES + ceil_log2(spec.in_lanes)
    one_pass = tokens * words + response + stages + 1
    passes = max(top_k, 2)
    starts = max(experts, divide - (passes - 2) * one_pass)
    return 1 + experts + passes * one_pass + starts + 1 + 2 * tokens * top_k + PLACE_STAGES
