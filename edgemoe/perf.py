"""Cycles and bytes of a program, predicted from its descriptors without running it.

The model has the processes of the gateware, with their queues between them: fetch, dispatcher, weight DMA, filler,
executor, array and writer, layer norm. It moves from event to event, not from cycle to cycle: a burst of the memory,
a block of slots, a product. Within a block the beats of all tokens follow from one running maximum, so that a product
that reads the rows of the phase before as they are written is timed row by row. Data never matter, but for the
tokens of each expert (`routing`, or the decisions of the golden machine).

Latencies are sums over the components' own constants (`Timing`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edgemoe.config import HardwareConfig, ModelConfig
from edgemoe.core import fetch, loader, sequencer, writer
from edgemoe.core.activation import READ_LATENCY
from edgemoe.core.fifo import Fifo
from edgemoe.core.guard import Guard
from edgemoe.core.interface import MAX_BURST
from edgemoe.errors import BadInput
from edgemoe.isa import DESCRIPTOR_BYTES, Descriptor, Dest, Op, Source, Wait
from edgemoe.memmap import PARAMETER_BYTES, parameter_block_bytes, rows_bytes
from edgemoe.numeric import IntArray, ceil_div
from edgemoe.program import Program
from edgemoe.units import attention, layernorm, requantise, router
from edgemoe.units.gelu import Gelu
from edgemoe.units.matmul import MatmulSpec
from edgemoe.units.requantise import RequantiseSpec
from edgemoe.units.residual import Residual
from edgemoe.units.softmax import SoftmaxSpec, Weigher, reciprocal_cycles

START, STOP = 3, 2
"""Cycles from the start pulse, or from an image's END, to the fetch's first request; from the last END to done."""
DISPATCH = 5
"""Cycles from a descriptor to the dispatcher's state PUSH."""
SEEK = 2
"""Cycles of the weight DMA's sequencer between two regions of EXPERTS, if no expert lies between them."""
MAX_PENDING = 4
"""Descriptors of products under way at most."""
CLIENTS = 3
"""Readers of the memory port: fetch, weight DMA, loader."""
READY = 3
"""Fill words behind the gearbox: its own, and two in a buffer."""
WRITTEN = 8
"""Port words that the model writes at a time."""
CHUNK = 32
"""Fill words that the model moves at a time."""
FULL = 1024
"""Port words per 1024 cycles of a memory that is never the bottleneck."""
REQUESTS = 16
"""Read requests that the memory, and the arbiter, have under way at most."""

Routes = Mapping[str, ArrayLike]
"""Experts by rank, (tokens, top_k), of every mixture block: ``l{L}_topk``."""


# -- results ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one descriptor costs, in cycles and bytes.

    Attributes:
        image, number, op, name: which it is, and the tensor that it writes.
        finish: cycle of its last write.
        cycles: from the last write of the descriptor before; the sum over all is that of the run.
        bytes: read or written in external memory, the descriptor itself included.
        busy: cycles of the array for multiplications that count, as if it were always full.
        padding: the array's other cycles: zeros in rows, words and tokens, second digits, the pace of the writer.
        weights: it waited for operand B. activations: it waited for operand A.
        drain: the rest of ``cycles``: pipelines that run empty, and all that the array does not do. Negative
            where a descriptor's own work lies in the time of the one before.
    """

    image: int
    number: int
    op: str
    name: str
    finish: int
    cycles: int
    bytes: int
    busy: float
    padding: float
    weights: int
    activations: int
    drain: float


@dataclass(frozen=True)
class Prediction:
    """What a run costs.

    Attributes:
        cycles: from start to done, as the control port counts them.
        mac_utilisation: useful multiply-accumulates per multiplier and cycle.
        external_bytes: read and written.
        mac_cycles, weight_stalls, activation_stalls: as the control port counts them.
        descriptors: the parts, in the order of execution.
    """

    cycles: int
    mac_utilisation: float
    external_bytes: int
    mac_cycles: int
    weight_stalls: int
    activation_stalls: int
    descriptors: list[Cost]


def predict(
    program: Program, routes: Routes | Sequence[Routes] | None = None, task: int = 0, *, images: int = 1,
    bandwidth: int = FULL, latency: int = 30,
) -> Prediction:  # fmt: skip
    """Predict a run of ``program`` over ``images`` images.

    Args:
        routes: of every image, or one for all; None is `routing` ``balanced``.
        task: index. All tasks cost the same but for their routes, and a few cycles for the address of their gates and heads.
        bandwidth: of the external memory, in port words per 1024 cycles, reads and writes together.
        latency: cycles from a request to its first word.

    Raises:
        BadInput: routes or a task that are not the model's, a bandwidth or latency that no memory has, or a program
            in which a descriptor waits for what never comes.
    """
    if not 0 <= task < len(program.model.tasks):
        raise BadInput(f"task must be 0..{len(program.model.tasks) - 1}, found {task}")
    if not 1 <= bandwidth <= FULL:
        raise BadInput(f"bandwidth must be 1..{FULL} port words per {FULL} cycles, found {bandwidth}")
    if latency < 1:
        raise BadInput(f"latency must be at least 1 cycle, found {latency}")
    if routes is None:
        routes = routing("balanced", program.model)
    each = [routes] * images if isinstance(routes, Mapping) else list(routes)
    if len(each) != images:
        raise BadInput(f"routes are for {len(each)} images, {images} are predicted")
    visits = [tokens_per_expert(program, r) for r in each]
    return predict_visits(program, visits, task, bandwidth=bandwidth, latency=latency)


def predict_visits(
    program: Program, visits: Sequence[Mapping[int, ArrayLike]], task: int = 0, *,
    bandwidth: int = FULL, latency: int = 30,
) -> Prediction:  # fmt: skip
    """Predict a run from the tokens of every visit of an expert, by number of the routed EXPERTS, image by image."""
    return _Run(program, visits, task, bandwidth, latency).predict()


def routing(kind: str, model: ModelConfig, seed: int = 0) -> dict[str, IntArray]:
    """Experts of every token of every mixture block, by rank.

    Args:
        kind: ``balanced`` (all experts equally often), ``skewed`` (expert i about 1 / (i + 1) as often as the
            most frequent one) or ``one`` (all tokens to the same ``top_k`` experts).
        seed: which experts those are.

    Raises:
        BadInput: another ``kind``.
    """
    if kind not in ("balanced", "skewed", "one"):
        raise BadInput(f"routing must be balanced, skewed or one, found {kind!r}")
    rng = np.random.default_rng(seed)
    tokens, experts, k = model.tokens, model.experts, model.top_k
    routes = {}
    for block in model.moe_blocks:
        names = rng.permutation(experts)
        if kind == "balanced":
            chosen = np.arange(tokens * k).reshape(tokens, k) % experts
        elif kind == "one":
            chosen = np.tile(np.arange(k), (tokens, 1))
        else:  # the k largest of perturbed log frequencies are k draws without repetition
            chosen = np.argsort(
                np.log(1 + np.arange(experts)) + np.log(rng.exponential(size=(tokens, experts)))
            )[:, :k]
        routes[f"l{block}_topk"] = names[chosen]
    return routes


def tokens_per_expert(program: Program, routes: Routes) -> dict[int, IntArray]:
    """Tokens of every expert, by number of the routed EXPERTS.

    Raises:
        BadInput: a block is missing, or its array has a wrong shape or names no expert.
    """
    model, found = program.model, {}
    descriptors = program.descriptors()
    for symbol in program.symbols:
        if descriptors[symbol.number].op != Op.ROUTE:
            continue
        name = symbol.tensors[0].name
        if name not in routes:
            raise BadInput(f"routes: {name} is missing")
        chosen = np.asarray(routes[name])
        if chosen.shape != (model.tokens, model.top_k) or chosen.dtype.kind not in "iu":
            raise BadInput(
                f"routes: {name} must be integers of shape {[model.tokens, model.top_k]}, "
                f"found {chosen.dtype} {list(chosen.shape)}"
            )
        if chosen.min() < 0 or chosen.max() >= model.experts:
            raise BadInput(
                f"routes: {name} must name experts 0..{model.experts - 1}, found {chosen.min()}..{chosen.max()}"
            )
        found[symbol.number + 1] = np.bincount(chosen.ravel(), minlength=model.experts)
    return found


# -- latencies ----------------------------------------------------------------------------------


class Timing:
    """Cycles between events of the gateware; a *register* is 1, a *state* of a machine, too."""

    def __init__(self, hardware: HardwareConfig) -> None:
        register = state = 1
        self.interval = writer.interval(hardware)
        """Cycles that the results of a step take."""
        array = MatmulSpec(hardware.in_lanes, hardware.out_lanes, hardware.b_bits, hardware.acc_bits)
        softmax = SoftmaxSpec(b_bits=hardware.b_bits)
        requantised = requantise.cycles(RequantiseSpec(hardware.acc_bits), 0)
        reciprocal = reciprocal_cycles(softmax, 0)

        # reader: job, tokens, queue, the token whose words are read; then a word's way to the array
        tokens = 4 * register
        self.first_word = register + tokens + Fifo.LATENCY + register
        self.permission = register
        """From the cycle in which a row may be read to that in which the reader does."""
        fetched = register + READ_LATENCY
        annotated = register
        to_weigher = fetched + annotated
        self.to_array = to_weigher + Weigher.latency + Fifo.LATENCY + register
        """From the issue of a word to the beat that takes it."""
        self.to_fork = to_weigher + Weigher.latency - 1
        """From the issue of a word to where its weight and its part of the sum separate."""
        levels = max((hardware.in_lanes - 1).bit_length(), 1)
        self.sum_to_factor = levels + register + reciprocal + register
        """From the last word of a weighted row at the fork to its 1/d, for which it waits."""

        # array and writer
        reorder = 2 * register
        self.to_take = reorder + array.latency
        """From the last beat of a step to the writer."""
        held, parameters = 2 * register, 2 * register
        to_requantise = self.to_take + held + parameters
        self.to_write = to_requantise + requantised + Gelu.latency + Residual.latency + 2 * register
        """From the last beat of a step to its first write."""
        self.to_residual = to_requantise + requantised + Gelu.latency - READ_LATENCY - 2 * register
        """From the last beat of a step to the first cycle in which x is not read for layer norm."""
        self.settle = writer.SETTLE + register
        """From the last write of a product to its descriptor's completion."""

        # filler
        self.page = state + register + READ_LATENCY + Fifo.LATENCY + 6 * register
        """From the state PAGE to the first word of a row of K or V."""

        self.written = register
        """From a row's last word at the reorder unit to the cycle in which it is in its slot."""

        # layer norm
        self.norm = layernorm.LayerNormSpec(hardware.in_lanes, hardware.norm_lanes, hardware.dim)
        self.to_norm = 2 * register + READ_LATENCY + Fifo.LATENCY
        self.norm_row = layernorm.latency(self.norm)

        # routing
        spec = router.RouterSpec(
            hardware.gate_lanes, hardware.tokens, hardware.experts, min(hardware.top_k, hardware.experts)
        )
        response = 2 * register + READ_LATENCY + Fifo.LATENCY
        self.route = partial(router.cycles, spec, response=response, divide=reciprocal)

        # loading: queue; gearbox if widths differ, packed, ring, two of the aligner
        gearbox = register if hardware.port_bytes != 2 * hardware.in_lanes else 0
        self.from_queue = gearbox + 4 * register
        self.to_store = 2 * state + register + READ_LATENCY + Fifo.LATENCY + gearbox + register
        gearbox = register if hardware.port_bytes != hardware.fill_bytes else 0
        self.weights = Fifo.LATENCY + gearbox + register
        """From the last port word of a fill word to the filler."""
        self.fetched = Fifo.LATENCY + 2 * register
        """From the last word of a descriptor to the cycle in which the fetch lets it go."""


# -- events -------------------------------------------------------------------------------------

Process = Iterator[Any]
"""Yields the cycle until which it sleeps, or the condition that it waits for."""


class _Clock:
    """Runs processes; conditions are looked at after every event."""

    def __init__(self) -> None:
        self.now = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._waiting: list[tuple[Callable[[], bool], Process]] = []
        self._count = 0

    def at(self, cycle: int, action: Callable[[], None]) -> None:
        """Let something happen."""
        self._count += 1
        heapq.heappush(self._due, (max(cycle, self.now), self._count, action))

    def start(self, process: Process) -> None:
        """Begin a process now."""
        self.at(self.now, partial(self._step, process))

    def _step(self, process: Process) -> None:
        wanted = next(process, None)
        if callable(wanted):
            self._waiting.append((wanted, process))
        elif wanted is not None:
            self.at(wanted, partial(self._step, process))

    def run(self) -> None:
        """Until nothing happens any more."""
        while self._due:
            self.now, _, action = heapq.heappop(self._due)
            action()
            still = []
            for condition, process in self._waiting:
                if condition():
                    self.start(process)
                else:
                    still.append((condition, process))
            self._waiting = still


@dataclass
class _Burst:
    """Words of the memory; once data come, the first and the last cycle in which they do, evenly in between."""

    words: int
    accepted: int
    first: int = 0
    last: int = 0

    def known(self) -> bool:
        """Whether data come."""
        return self.last > 0

    def word(self, index: int) -> int:
        """Cycle of a word."""
        return self.first + (self.last - self.first) * index // max(self.words - 1, 1)


class _Port:
    """The memory port: clients in rotation, data in the order of the requests.

    ``bandwidth`` words per 1024 cycles may pass, in either direction. Where both want to, they take turns.
    """

    def __init__(self, clock: _Clock, bandwidth: int, latency: int) -> None:
        self.clock, self.bandwidth, self.latency = clock, bandwidth, latency
        self.wanted: dict[int, int] = {}
        """Words that each client asks for."""
        self.given: dict[int, _Burst] = {}
        self.coming: deque[_Burst] = deque()
        self.free = 0
        """Cycle from which the read data are free."""
        self.credit, self.credit_at = 2 * FULL, 0
        clock.start(self._arbitrate())
        clock.start(self._deliver())

    def read(self, client: int, words: int) -> Process:
        """Ask for ``words`` words from the next cycle on; returns the burst, in the cycle that grants it."""
        yield self.clock.now + 1
        self.wanted[client] = words
        yield lambda: client in self.given
        return self.given.pop(client)

    def write(self, words: int) -> Process:
        """Write ``words`` words from now on; ends in the cycle after the last one."""
        while words and self.bandwidth < FULL:
            part = min(words, WRITTEN)
            share = 2 if self.free > self.clock.now else 1
            self.credit -= FULL * part
            yield self.clock.now + max(part, ceil_div(FULL * part * share, self.bandwidth))
            words -= part
        yield self.clock.now + words

    def _arbitrate(self) -> Process:
        turn = 0
        while True:
            yield lambda: self.wanted
            yield self.clock.now  # all that ask in this cycle have done so
            client = min(self.wanted, key=lambda c: (c - turn) % CLIENTS)
            words, turn = self.wanted.pop(client), client + 1
            self.given[client] = burst = _Burst(words, self.clock.now + 1)
            yield burst.accepted
            yield lambda: len(self.coming) < REQUESTS
            burst.accepted = self.clock.now
            self.coming.append(burst)

    def _deliver(self) -> Process:
        while True:
            yield lambda: self.coming
            burst = self.coming[0]
            yield max(burst.accepted + Guard.LATENCY + self.latency, self.free)
            burst.first, burst.last = self._move(burst.words)
            self.free = burst.last + 1
            yield self.free
            self.coming.popleft()

    def _move(self, words: int) -> tuple[int, int]:
        """First and last cycle of read data that could begin now."""
        now = self.clock.now
        if self.bandwidth == FULL:
            return now, now + words - 1
        credit = min(2 * FULL, self.credit + (now - self.credit_at) * self.bandwidth)
        begin, end = (
            now + max(word - 1, ceil_div(FULL * word - credit, self.bandwidth)) for word in (1, words)
        )
        self.credit, self.credit_at = credit + (end - now) * self.bandwidth - FULL * words, end
        return begin, end


class _Stream:
    """The weight stream: bursts under way or in the queue, taken as fill words."""

    def __init__(self, hardware: HardwareConfig, latency: int) -> None:
        self.latency, self.places = latency, hardware.prefetch_bytes // hardware.port_bytes
        self.burst = min(MAX_BURST, self.places // 4)
        self.per_word = max(1, hardware.fill_bytes // hardware.port_bytes)
        self.per_port = max(1, hardware.port_bytes // hardware.fill_bytes)
        self.bursts: deque[_Burst] = deque()
        self.taken = 0
        """Fill words of the first burst that have been taken."""
        self.assembled = 0
        """Cycle in which the next fill word can be put together at the earliest."""

    @property
    def left(self) -> int:
        """Fill words that the first burst still has."""
        return self.bursts[0].words * self.per_port // self.per_word - self.taken

    def arrival(self, ahead: int) -> int:
        """Cycle of the fill word that is ``ahead`` behind the next one, within the first burst."""
        index = self.taken + ahead
        word = self.bursts[0].word(((index + 1) * self.per_word - 1) // self.per_port)
        return word + self.latency + index % self.per_port

    def take(self, now: int, words: int) -> int:
        """Take fill words of the first burst from cycle ``now`` on; the cycle of the last one.

        Where a fill word is several port words, `READY` of them are put together while nobody takes any.
        """
        last = words - 1
        begin = max(now, self.arrival(0))
        self.assembled = max(self.assembled, begin - (READY - 1) * self.per_word)
        end = max(begin + last, self.arrival(last), self.assembled + last * self.per_word)
        self.assembled = max(self.assembled + words * self.per_word, self.arrival(last) + self.per_word)
        return end

    def remove(self, words: int) -> None:
        """Free the places of fill words that have been taken."""
        before, self.taken = self.taken, self.taken + words
        self.places += (self.taken * self.per_word) // self.per_port - (
            before * self.per_word
        ) // self.per_port
        if not self.left:
            self.bursts.popleft()
            self.taken = 0


@dataclass
class _Item:
    """A descriptor of one image, and what is noted about it; ``visits`` are (expert, tokens) of each visit of EXPERTS.

    ``multiples`` is how often its ``stride`` is added to its address: the task or the image.
    """

    image: int
    number: int
    sequence: int
    descriptor: Descriptor
    visits: list[tuple[int, int]]
    multiples: int
    finish: int = 0
    bytes: int = 0
    beats: int = 0
    weights: int = 0
    activations: int = 0
    pace: int = 0

    @property
    def products(self) -> list[tuple[int, int]]:
        """Rows, and words of a row of operand B, of the products of a visit."""
        d = self.descriptor
        first = (d.rows, d.words << d.double)
        return [first, (d.rows2, d.words2)] if d.op == Op.EXPERTS else [first]


class _Queue:
    """`edgemoe.core.fifo.Fifo` of descriptors: a memory, and two registers that stand still while the output waits."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock
        self.memory: deque[tuple[int, _Item]] = deque()
        """What it holds, and the cycles from which it can be read."""
        self.middle: _Item | None = None
        self.output: _Item | None = None
        self.at = 0
        """The cycle whose state is known."""
        self.left_at = -1
        """The cycle in which one left the memory last: its place is free from the next on."""

    @property
    def room(self) -> bool:
        """Whether it takes another one."""
        self._advance()
        return len(self.memory) + (self.left_at == self.clock.now) < sequencer.QUEUE_DEPTH

    def push(self, item: _Item) -> None:
        """Put one in."""
        self._advance()
        self.memory.append((self.clock.now + 1, item))
        self.clock.at(self.clock.now + Fifo.LATENCY, self._advance)

    def head(self) -> Process:
        """Wait for the first one, and return it."""
        yield lambda: self._advance() or self.output
        return self.output

    def pop(self) -> None:
        """Take it out; another one may follow in the next cycle."""
        self._advance()
        self._move()
        for later in (1, 2):
            self.clock.at(self.clock.now + later, self._advance)

    def _advance(self) -> None:
        """Bring the state up to the present cycle."""
        while self.at < self.clock.now:
            if self.output or not (self.middle or self.memory):
                self.at = self.clock.now
            else:
                self._move()

    def _move(self) -> None:
        """Both registers take what is behind them."""
        self.output = self.middle
        self.middle = None
        if self.memory and self.memory[0][0] <= self.at:
            self.middle, self.left_at = self.memory.popleft()[1], self.at
        self.at += 1


@dataclass
class _Phase:
    """A product or a layer norm: ``count`` rows of ``words`` words of operand A, ``rows`` of B.

    Attributes:
        issued: cycle in which it was started.
        follows: the phase whose rows it reads as they are written.
        readable: cycles from which its own rows can be read, once they are known.
        reads: cycles in which it reads x of its last block, once they are known.
    """

    item: _Item
    issued: int
    follows: _Phase | None
    count: int
    words: int
    rows: int
    completes: bool = True
    residual: bool = False
    readable: IntArray | None = None
    reads: IntArray | None = None

    def known(self) -> bool:
        """Whether it is known when its operand A can be read."""
        return self.follows is None or self.follows.readable is not None

    def gates(self) -> IntArray:
        """Cycles from which each row of operand A can be read."""
        if self.follows is None or self.follows.readable is None:
            return np.zeros(self.count, np.int64)
        readable = self.follows.readable
        permission = 1  # a register
        return readable[np.minimum(np.arange(self.count), len(readable) - 1)] + permission


def _paced(earliest: ArrayLike, pace: int) -> IntArray:
    """Times that are at least ``earliest``, and ``pace`` after the one before."""
    earliest = np.asarray(earliest, np.int64)
    slope = pace * np.arange(len(earliest))
    return np.maximum.accumulate(earliest - slope) + slope


# -- the machine --------------------------------------------------------------------------------


class _Run:
    """One run: the processes and what they share. A value changes in the cycle in which the others see it."""

    def __init__(
        self,
        program: Program,
        visits: Sequence[Mapping[int, ArrayLike]],
        task: int,
        bandwidth: int,
        latency: int,
    ) -> None:
        self.program, self.hardware = program, program.hardware
        self.timing = Timing(self.hardware)
        self.clock = _Clock()
        self.port = _Port(self.clock, bandwidth, latency)
        descriptors = program.descriptors()
        self.images = [
            [
                _Item(
                    image,
                    number,
                    image * len(descriptors) + number,
                    d,
                    _visits(d, number, of_image),
                    image if d.op in (Op.IMAGE, Op.STORE) else task,
                )
                for number, d in enumerate(descriptors)
            ]
            for image, of_image in enumerate(visits)
        ]
        # program
        self.asking, self.owed, self.asked = False, 0, 0
        self.arriving: deque[_Burst] = deque()
        self.offered: _Item | None = None
        self.offered_at = 0
        self.regions, self.fills, self.executes = (_Queue(self.clock) for _ in range(3))
        self.completed = 0
        # operand B
        self.stream = _Stream(self.hardware, self.timing.weights)
        self.filled: list[int] = []
        """Cycles from which the blocks of rows are there (in the staircase, the rows)."""
        self.parameter_sets = 1 << attention.set_bits(self.hardware.slot_sets)
        self.blocks, self.used, self.newest = 0, 0, -1
        """Blocks whose filling has begun; that are needed no more; the newest one that the writer has seen."""
        self.product = self.limit = self.next_limit = 0
        """Staircase: the product at the array; its rows that may be filled, beyond the first block, and the next one's."""
        self.loaded = 0
        """Cycle from which layer norm has its parameters; 0: it has none."""
        # phases
        self.products: deque[_Phase] = deque()
        self.norms: deque[_Phase] = deque()
        self.pending = self.jobs = 0
        self.before: _Phase | None = None
        """The last one that was started."""
        self.norm_runs, self.array_runs = False, False
        self.beat = 0
        """The array's last beat."""
        self.fetched = self.loader_free = self.end = 0

    def predict(self) -> Prediction:
        """Run, and sum up."""
        array = self._array() if self.hardware.slot_sets > 1 else self._staircase()
        for process in (
            self._fetch(), self._dispatch(), self._weights(), self._fill(), self._execute(), array, self._norm()
        ):  # fmt: skip
            self.clock.start(process)
        self.clock.run()
        if not self.end:
            late = next(item for image in self.images for item in image if not item.finish)
            raise BadInput(
                f"the program never ends: descriptor {late.number} of image {late.image} waits for what does not come"
            )
        return self._summary()

    # -- program ------------------------------------------------------------------------------

    def _fetch(self) -> Process:
        """Hands out one descriptor after the other; what was read beyond an END is awaited and dropped."""
        words = max(1, DESCRIPTOR_BYTES // self.hardware.port_bytes)
        yield START
        for image in self.images:
            self.asking, self.asked = True, 0
            self.clock.start(self._ask())
            for item in image:
                yield lambda: self.arriving and self.arriving[0].known()
                yield max(self.arriving.popleft().last + self.timing.fetched, self.clock.now + words)
                yield lambda: self.offered is None
                self.asking = item is not image[-1]
                self.offered, self.offered_at = item, self.clock.now + 1
                item.bytes += DESCRIPTOR_BYTES
                yield self.clock.now + 1
                self.owed -= 1
            image[-1].bytes += self.asked * self.hardware.port_bytes - len(image) * DESCRIPTOR_BYTES
            if self.arriving:
                yield self.arriving[-1].known
                yield self.arriving[-1].last + self.timing.fetched
                self.arriving.clear()
            self.owed, self.fetched = 0, self.clock.now + 1
            yield self.clock.now + START

    def _ask(self) -> Process:
        """Requests of the fetch: a few descriptors ahead."""
        port = self.hardware.port_bytes
        words, each = max(1, DESCRIPTOR_BYTES // port), max(1, port // DESCRIPTOR_BYTES)
        while self.asking:
            self.asked += words
            self.owed += each
            burst = yield from self.port.read(0, words)
            self.arriving += [burst] * each
            yield self.clock.now + 1
            yield lambda: self.owed <= (fetch.AHEAD - 1) * each or not self.asking

    def _dispatch(self) -> Process:
        """Pushes descriptors into the queues of the engines."""
        for item in (item for image in self.images for item in image):
            yield lambda: self.offered is not None
            self.offered = None
            scaling = item.multiples.bit_length() if item.descriptor.stride else 0
            yield max(self.clock.now, self.offered_at) + DISPATCH + scaling - 1
            yield lambda: self.regions.room and self.fills.room and self.executes.room
            yield self.clock.now + 1
            self.executes.push(item)
            if item.descriptor.source:
                self.fills.push(item)
                if item.descriptor.length:
                    self.regions.push(item)
            yield self.clock.now + 1

    def _after(self, item: _Item) -> Process:
        """Wait for what ``after`` names."""
        needed = item.sequence - item.descriptor.after + 1
        if item.descriptor.after:
            yield lambda: self.completed >= needed

    # -- operand B ----------------------------------------------------------------------------

    def _weights(self) -> Process:
        """The weight DMA: bursts of all regions, as far as its queue has places."""
        while True:
            item = yield from self.regions.head()
            length = item.descriptor.length
            yield self.clock.now + 1
            offered, passed = self.clock.now, -1
            if item.descriptor.op == Op.EXPERTS:
                if item.descriptor.routed:
                    yield from self._after(item)
                offered = self.clock.now + SEEK + 1
            item.bytes += len(item.visits) * length * self.hardware.port_bytes
            for expert, _ in item.visits:
                yield max(self.clock.now, offered + expert - passed - 1)
                if expert == item.visits[-1][0]:
                    self.regions.pop()
                offered, passed = self.clock.now + SEEK + 1, expert
                yield self.clock.now + 1
                yield from self._read(length)

    def _read(self, length: int) -> Process:
        """One region."""
        stream = self.stream
        for at in range(0, length, stream.burst):
            yield self.clock.now + 1
            yield lambda: stream.places >= stream.burst
            words = min(stream.burst, length - at)
            stream.places -= words
            burst = yield from self.port.read(1, words)
            stream.bursts.append(burst)

    def _take(self, words: int) -> Process:
        """Take fill words, the first one now at the earliest; ends in the cycle after the last one."""
        stream = self.stream
        while words:
            yield lambda: stream.bursts and stream.bursts[0].known()
            part = min(words, stream.left, CHUNK)
            yield stream.take(self.clock.now, part) + 1
            stream.remove(part)
            words -= part

    def _fill(self) -> Process:
        """The filler: parameters and rows of all blocks, as far as slots and sets of parameters have room."""
        product, slots = -1, self.hardware.out_lanes
        while True:
            item = yield from self.fills.head()
            self.fills.pop()
            yield self.clock.now + 1
            yield from self._after(item)
            yield self.clock.now + 1
            if item.descriptor.source == Source.NORM:
                yield from self._norm_parameters(item)
                continue
            for _ in item.visits:
                words = 0
                for rows, row_words in item.products:
                    product += 1
                    yield self.clock.now + 1
                    for first in range(0, rows, slots):
                        block = min(rows - first, slots)
                        words += yield from self._block(item, product, first, block, row_words)
                    yield self.clock.now + 1
                yield from self._surplus(words)

    def _norm_parameters(self, item: _Item) -> Process:
        """Gamma and beta of a layer norm."""
        size = item.descriptor.rows * PARAMETER_BYTES
        words = ceil_div(size, self.hardware.fill_bytes)
        yield from self._take(words)
        self.loaded = self.clock.now
        yield from self._surplus(words)

    def _surplus(self, words: int) -> Process:
        """Drop what pads a region of ``words`` fill words to whole port words."""
        yield from self._take(-words % self.stream.per_port)
        yield self.clock.now + 1

    def _block(self, item: _Item, product: int, first: int, rows: int, words: int) -> Process:
        """Fill one block, row ``first`` and on of a product; returns the fill words that it took."""
        d, hardware = item.descriptor, self.hardware
        number, self.blocks = self.blocks, self.blocks + 1
        yield lambda: number - self.newest <= self.parameter_sets - 2
        yield self.clock.now + 1
        taken = 0
        if d.source != Source.KEYS:
            taken = parameter_block_bytes(hardware) // hardware.fill_bytes
            yield from self._take(taken)
        if d.source != Source.WEIGHTS:
            yield self.clock.now + self.timing.page
        group = 1 if d.source != Source.WEIGHTS else hardware.fill_rows
        if hardware.slot_sets > 1:
            yield lambda: number - self.used < hardware.slot_sets
            yield from self._rows(d, ceil_div(rows, group) * words)
            self.filled.append(self.clock.now + self.timing.written)
        else:
            for row in range(first, first + rows):
                yield partial(self._replaceable, product, row)
                yield from self._rows(d, words)
                self.filled.append(self.clock.now + self.timing.written)
        yield self.clock.now + 1
        return taken + (ceil_div(rows, group) * words if d.source == Source.WEIGHTS else 0)

    def _replaceable(self, product: int, row: int) -> bool:
        """Staircase: whether a row's slot is free, or is being read for the last time."""
        slots = self.hardware.out_lanes
        if product == self.product:
            return row < max(slots, self.limit)
        return product == self.product + 1 and row < min(slots, self.next_limit)

    def _rows(self, d: Descriptor, words: int) -> Process:
        """Words of rows, from the stream or from the activation memory."""
        if d.source == Source.WEIGHTS:
            yield from self._take(words)
        else:
            yield self.clock.now + words

    # -- phases -------------------------------------------------------------------------------

    def _execute(self) -> Process:
        """The executor: starts everything in order."""
        run = {
            Op.PRODUCT: self._product, Op.EXPERTS: self._experts, Op.NORM: self._start_norm, Op.ROUTE: self._route,
            Op.LOAD: self._load, Op.IMAGE: self._load, Op.STORE: self._store, Op.END: self._end,
        }  # fmt: skip
        while True:
            item = yield from self.executes.head()
            yield lambda: self.pending < MAX_PENDING
            self.executes.pop()
            yield self.clock.now + 1
            if item.descriptor.wait == Wait.ALL:
                yield lambda: not self.pending and not self.norm_runs
            yield self.clock.now + 1
            yield from run[Op(item.descriptor.op)](item)
            yield self.clock.now + 1

    def _issue(self, phase: _Phase) -> Process:
        """Start a product when the one before has left the array."""
        yield lambda: not self.array_runs and self.jobs < writer.JOBS - 1
        phase.issued = self.clock.now
        self.array_runs = True
        self.jobs += 1
        self.before = phase
        self.products.append(phase)

    def _product(self, item: _Item) -> Process:
        d = item.descriptor
        self.pending += 1
        (rows, words), follows = item.products[0], self.before if d.wait == Wait.ROWS else None
        yield from self._issue(
            _Phase(item, 0, follows, d.count, words, rows, residual=d.dest == Dest.RESIDUAL)
        )

    def _experts(self, item: _Item) -> Process:
        d = item.descriptor
        self.pending += 1
        follows = self.before if d.wait == Wait.ROWS else None
        for visit, (_, count) in enumerate(item.visits):
            yield self.clock.now + 1
            for second, (rows, words) in enumerate(item.products):
                if second:
                    yield self.clock.now + 2
                    follows = self.before if self.hardware.slot_sets > 1 else None
                    if follows is None:
                        yield lambda: not self.jobs
                last = bool(second) and visit == len(item.visits) - 1
                yield from self._issue(_Phase(item, 0, follows, count, words, rows, last, bool(second)))
                follows = None
            yield self.clock.now + 1

    def _start_norm(self, item: _Item) -> Process:
        d = item.descriptor
        yield lambda: not self.norm_runs
        follows = self.before if d.wait == Wait.ROWS else None
        self.before = _Phase(item, self.clock.now, follows, d.count, d.words, d.rows)
        self.norm_runs = True
        self.norms.append(self.before)

    def _done(self, item: _Item, finish: int, seen: int = 1) -> Process:
        """End of what runs alone, at its last write; the executor sees it ``seen`` cycles later."""
        item.finish = finish
        yield finish + seen
        self.completed += 1

    def _route(self, item: _Item) -> Process:
        d = item.descriptor
        done = self.clock.now + self.timing.route(tokens=d.count, experts=d.experts, top_k=d.top_k) - 1
        yield from self._done(item, done)
        item.finish += 1

    def _load(self, item: _Item) -> Process:
        """LOAD or IMAGE: bursts through a small queue, then words or pieces one after the other."""
        d, hardware = item.descriptor, self.hardware
        yield max(self.clock.now, self.loader_free)
        pixels = hardware.port_bytes // (d.pixel_bytes or 2) / hardware.in_lanes
        pieces = (
            d.channels * d.grid_y * d.patch_y * d.grid_x * ceil_div(d.patch_x, hardware.in_lanes) / d.length
        )
        if d.op == Op.IMAGE:
            pieces *= loader.piece_cycles(d.patch_x, hardware.in_lanes)
        pace = max(1, pixels, pieces if d.op == Op.IMAGE else 0)
        tail = pace - 1
        if d.op == Op.IMAGE:  # cut from the words of the activation memory that port words are gathered to
            tail = max(1, 2 * hardware.in_lanes // hardware.port_bytes) * pieces - 1
        item.bytes += d.length * hardware.port_bytes
        ahead = 4
        burst = loader.QUEUE_WORDS // ahead
        asked: deque[_Burst] = deque()
        left = 0.0
        """Cycle in which the last word so far leaves the queue."""
        yield self.clock.now + 2
        for at in range(0, d.length + ahead * burst, burst):
            if at >= ahead * burst and asked:
                yield asked[0].known
                come = asked.popleft()
                begin = max(left, come.first + Fifo.LATENCY - 1)
                left = max(begin + come.words * pace, come.last + Fifo.LATENCY + tail)
            if at < d.length:
                yield max(self.clock.now + 1, round(left) + 1)
                asked.append((yield from self.port.read(2, min(burst, d.length - at))))
        yield from self._done(item, round(left) + self.timing.from_queue + (d.pixel_bytes == 1))
        self.loader_free = item.finish + 3

    def _store(self, item: _Item) -> Process:
        d, hardware = item.descriptor, self.hardware
        size = rows_bytes(hardware, d.count, d.words)
        item.bytes += size
        yield self.clock.now + self.timing.to_store
        read = self.clock.now + d.count * d.words
        yield from self.port.write(size // hardware.port_bytes)
        yield from self._done(item, max(self.clock.now, read))

    def _end(self, item: _Item) -> Process:
        yield from self._done(item, self.clock.now, 0)
        if item is self.images[-1][-1]:
            yield max(self.clock.now + 1, self.fetched)
            self.end = item.finish = self.clock.now + STOP

    def _norm(self) -> Process:
        """Layer norm: words as far as x is not read by the writer, rows at the pace of the unit."""
        timing, spec = self.timing, self.timing.norm
        while True:
            yield lambda: self.norms
            phase = self.norms.popleft()
            yield lambda phase=phase: self.loaded and phase.known()
            groups = phase.words * spec.ratio
            issued = _words_between(phase, max(self.loaded, phase.issued + 1))
            last = issued + spec.ratio - 1
            arrived = _paced(np.maximum(last, issued - phase.words + groups) + timing.to_norm, groups)
            first = _paced(arrived + timing.norm_row, max(groups, layernorm.SCALAR_INTERVAL))
            phase.readable = first + groups
            phase.item.finish = done = int(phase.readable[-1])
            yield done + 1
            self.norm_runs, self.loaded = False, 0
            self.completed += 1

    def _array(self) -> Process:
        """Products with two slot sets or more, block by block: fill some, use another."""
        slots = self.hardware.out_lanes
        while True:
            yield lambda: self.products
            phase = self.products.popleft()
            yield phase.known
            pace, arrivals = self._pace(phase)
            free = self.beat + 1
            for first in range(0, phase.rows, slots):
                number = self.used
                yield lambda number=number: len(self.filled) > number
                ready = self.filled[number]
                earliest = arrivals if first == 0 else np.full(phase.count, 0)
                earliest[0] = max(earliest[0], max(ready, free) + phase.words - 1, self.beat + pace)
                beats = _paced(earliest, pace)
                self._note(phase, max(free, phase.issued + 1), ready, beats)
                self.beat, free = int(beats[-1]), int(beats[-1]) + 1
                self._see(int(beats[0]), number)
                yield free
                self.used += 1
            self._leave(phase, beats, self.beat)

    def _staircase(self) -> Process:
        """Products with one slot set, step by step: slot o is replaced when the stream reaches token o."""
        slots, first = self.hardware.out_lanes, 0
        while True:
            yield lambda: self.products
            phase = self.products.popleft()
            pace, arrivals = self._pace(phase)
            pace = max(pace, 2)
            self.beat = max(self.beat, phase.issued)
            for block in range(ceil_div(phase.rows, slots)):
                for token in range(min(phase.count, slots)):
                    needed = first + min(block * slots + token, phase.rows - 1)
                    yield lambda needed=needed: len(self.filled) > needed
                    self._step(phase, pace, 0 if block else int(arrivals[token]), self.filled[needed])
                    if not token:
                        self._see(self.beat, self.used)
                        self.used += 1
                    yield self.beat - phase.words + 2
                    self.limit = block * slots + token + 2
                self.beat += pace * max(phase.count - slots, 0)
                written = self.beat
                self.beat += max(slots - phase.count, 0)
                yield self.beat - phase.words + 2
                self.limit = (block + 1) * slots + 1
            first += phase.rows
            yield lambda first=first: len(self.filled) >= first
            ramp = min(slots - 1, phase.count)
            last_row = (phase.rows - 1) % slots
            self.beat = end = max(self.beat, self.filled[first - 1] - 1)
            for token in range(ramp):
                self.beat = end = self.beat + pace
                if token < last_row:
                    written = self.beat + 1
                yield self.beat - phase.words + 2
                self.next_limit = token + 1
            steps = ceil_div(phase.rows, slots) * phase.count + ramp
            self._spend(phase, steps, pace)
            self.beat += slots - 1 - ramp
            yield self.beat + 1
            self.product, self.limit, self.next_limit = self.product + 1, 0, 0
            self._leave(phase, np.array([end]), written)

    def _step(self, phase: _Phase, pace: int, arrival: int, ready: int) -> None:
        """The array's next step, whose operands A and B come in these cycles at the earliest."""
        free = self.beat + pace
        self.beat = max(free, arrival, ready)
        waited = self.beat - max(free, arrival)
        phase.item.weights += waited
        phase.item.activations += self.beat - waited - free

    def _pace(self, phase: _Phase) -> tuple[int, IntArray]:
        """Cycles of a step, and when the last word of each row of A can be taken in the first block."""
        timing, words = self.timing, phase.words
        pace = max(words, timing.interval)
        start = np.maximum(phase.gates() + timing.permission, phase.issued + timing.first_word)
        issued = _paced(start, words) + words - 1
        if not phase.item.descriptor.weigh:
            return pace, issued + timing.to_array
        return pace, issued + timing.to_fork + timing.sum_to_factor + 1

    def _see(self, beat: int, block: int) -> None:
        """The writer sees the first results of a block."""
        self.clock.at(beat + self.timing.to_take + 1, partial(setattr, self, "newest", block))

    def _spend(self, phase: _Phase, steps: int, pace: int) -> None:
        """Account for steps of the array at this pace."""
        phase.item.beats += steps * phase.words
        if pace > max(phase.words, self.timing.interval, 2):
            phase.item.activations += steps * (pace - phase.words)
        else:
            phase.item.pace += steps * (pace - phase.words)

    def _note(self, phase: _Phase, start: int, ready: int, beats: IntArray) -> None:
        """Account for a block that could have begun in cycle ``start``, and whose rows came in cycle ``ready``."""
        steps = np.diff(beats)
        waits = steps > max(phase.words, self.timing.interval)
        weights = max(0, ready - start)
        first = int(beats[0]) - phase.words + 1
        phase.item.beats += phase.count * phase.words
        phase.item.weights += weights
        phase.item.activations += max(0, first - start - weights) + int((steps - phase.words)[waits].sum())
        phase.item.pace += int((steps - phase.words)[~waits].sum())

    def _leave(self, phase: _Phase, beats: IntArray, written: int) -> None:
        """A product has left the array with these beats, the last one of which ``written`` has a result."""
        timing, slots, lanes = self.timing, self.hardware.out_lanes, self.hardware.post_lanes
        self.array_runs = False
        phase.readable = beats + timing.to_write + timing.interval - 1
        phase.item.finish = written + timing.to_write + (phase.rows - 1) % slots // lanes
        if phase.residual:
            phase.reads = (beats[:, None] + timing.to_residual + np.arange(timing.interval)).ravel()
        self.clock.at(int(phase.readable[-1]) + timing.settle, partial(self._written, phase))

    def _written(self, phase: _Phase) -> None:
        self.jobs -= 1
        if phase.completes:
            self.pending -= 1
            self.completed += 1

    # -- results ------------------------------------------------------------------------------

    def _summary(self) -> Prediction:
        """Costs of all descriptors."""
        hardware, costs, before = self.hardware, [], 0
        useful = useful_macs(self.program)
        for item in (item for image in self.images for item in image):
            finish = max(item.finish, before)
            busy = useful[item.number] / hardware.macs
            cycles, padding = finish - before, item.beats - busy + item.pace
            costs.append(
                Cost(
                    item.image, item.number, Op(item.descriptor.op).name, _name(self.program, item.number), finish,
                    cycles, item.bytes, busy, padding, item.weights, item.activations,
                    cycles - busy - padding - item.weights - item.activations,
                )
            )  # fmt: skip
            before = finish
        work = sum(useful) * len(self.images)
        return Prediction(
            cycles=self.end, mac_utilisation=work / (self.end * hardware.macs),
            external_bytes=sum(c.bytes for c in costs),
            mac_cycles=sum(item.beats for image in self.images for item in image),
            weight_stalls=sum(c.weights for c in costs), activation_stalls=sum(c.activations for c in costs),
            descriptors=costs,
        )  # fmt: skip


def _visits(d: Descriptor, number: int, tokens: Mapping[int, ArrayLike]) -> list[tuple[int, int]]:
    """Expert and tokens of each visit of a descriptor."""
    if d.op != Op.EXPERTS:
        return [(0, d.count)]
    counts = np.asarray(tokens[number]) if d.routed else np.full(d.experts, d.count)
    return [(int(expert), int(counts[expert])) for expert in np.flatnonzero(counts)]


def _words_between(phase: _Phase, start: int) -> IntArray:
    """Cycles in which layer norm issues the last word of each row: one a cycle, but while the writer reads x."""
    gates = np.maximum(phase.gates(), start)
    reads = phase.follows.reads if phase.follows is not None else None
    if reads is None:
        return _paced(gates, phase.words) + phase.words - 1
    free = np.arange(start, int(max(reads[-1], gates[-1])) + phase.count * phase.words + 1)
    free = np.setdiff1d(free, reads, assume_unique=True)
    last = _paced(np.searchsorted(free, gates), phase.words) + phase.words - 1
    return free[last]


def _name(program: Program, number: int) -> str:
    """Tensors that a descriptor writes."""
    return " ".join(t.name.replace("_e{e}", "") for t in program.symbols[number].tensors)


def useful_macs(program: Program) -> list[int]:
    """Multiply-accumulates of each descriptor that count: no padding of any kind."""
    c = program.model
    tokens, dim = c.tokens, c.dim

    def useful(number: int, d: Descriptor) -> int:
        if d.op == Op.EXPERTS:
            return 2 * tokens * dim * (c.top_k * c.expert_dim if d.routed else c.mlp_dim)
        if d.op != Op.PRODUCT:
            return 0
        if d.source in (Source.KEYS, Source.VALUES):
            return tokens * tokens * c.head_dim
        if d.dest in (Dest.KEYS, Dest.VALUES):
            return tokens * dim * c.head_dim
        name = program.symbols[number].tensors[0].name
        special = {
            "embed": (tokens - 1) * dim * c.channels * c.patch[0] * c.patch[1],
            "head": dim * max(c.classes, default=0),
        }
        return special.get(name, tokens * dim * (c.experts if d.dest == Dest.SCORES else dim))

    return [useful(number, d) for number, d in enumerate(program.descriptors())]
