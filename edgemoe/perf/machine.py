"""The processes of the gateware, and what they share: one run of a program."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from edgemoe.core import fetch, loader, writer
from edgemoe.core.fifo import Fifo
from edgemoe.errors import BadInput
from edgemoe.isa import DESCRIPTOR_BYTES, Descriptor, Dest, Op, Source, Wait
from edgemoe.memmap import PARAMETER_BYTES, parameter_block_bytes, rows_bytes
from edgemoe.numeric import IntArray, ceil_div
from edgemoe.perf.clock import Clock, Process
from edgemoe.perf.memory import Burst, Port, Stream
from edgemoe.perf.results import Cost, Prediction, tensor_names, useful_macs
from edgemoe.perf.timing import Timing
from edgemoe.perf.work import Item, Phase, Queue, paced, visits_of, words_between
from edgemoe.program import Program
from edgemoe.units import attention, layernorm

START, STOP = 3, 2
"""Cycles from the start pulse, or from an image's END, to the fetch's first request; from the last END to done."""
DISPATCH = 5
"""Cycles from a descriptor to the dispatcher's state PUSH."""
SEEK = 2
"""Cycles of the weight DMA's sequencer between two regions of EXPERTS, if no expert lies between them."""
MAX_PENDING = 4
"""Descriptors of products under way at most."""
CHUNK = 32
"""Fill words that the model moves at a time."""


class Run:
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
        self.clock = Clock()
        self.port = Port(self.clock, bandwidth, latency)
        descriptors = program.descriptors()
        self.images = [
            [
                Item(
                    image,
                    number,
                    image * len(descriptors) + number,
                    d,
                    visits_of(d, number, of_image),
                    image if d.op in (Op.IMAGE, Op.STORE) else task,
                )
                for number, d in enumerate(descriptors)
            ]
            for image, of_image in enumerate(visits)
        ]
        # program
        self.asking, self.owed, self.asked = False, 0, 0
        self.arriving: deque[Burst] = deque()
        self.offered: Item | None = None
        self.offered_at = 0
        self.regions, self.fills, self.executes = (Queue(self.clock) for _ in range(3))
        self.completed = 0
        # operand B
        self.stream = Stream(self.hardware, self.timing.weights)
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
        self.products: deque[Phase] = deque()
        self.norms: deque[Phase] = deque()
        self.pending = self.jobs = 0
        self.before: Phase | None = None
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

    def _after(self, item: Item) -> Process:
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

    def _norm_parameters(self, item: Item) -> Process:
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

    def _block(self, item: Item, product: int, first: int, rows: int, words: int) -> Process:
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

    def _issue(self, phase: Phase) -> Process:
        """Start a product when the one before has left the array."""
        yield lambda: not self.array_runs and self.jobs < writer.JOBS - 1
        phase.issued = self.clock.now
        self.array_runs = True
        self.jobs += 1
        self.before = phase
        self.products.append(phase)

    def _product(self, item: Item) -> Process:
        d = item.descriptor
        self.pending += 1
        (rows, words), follows = item.products[0], self.before if d.wait == Wait.ROWS else None
        yield from self._issue(
            Phase(item, 0, follows, d.count, words, rows, residual=d.dest == Dest.RESIDUAL)
        )

    def _experts(self, item: Item) -> Process:
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
                yield from self._issue(Phase(item, 0, follows, count, words, rows, last, bool(second)))
                follows = None
            yield self.clock.now + 1

    def _start_norm(self, item: Item) -> Process:
        d = item.descriptor
        yield lambda: not self.norm_runs
        follows = self.before if d.wait == Wait.ROWS else None
        self.before = Phase(item, self.clock.now, follows, d.count, d.words, d.rows)
        self.norm_runs = True
        self.norms.append(self.before)

    def _done(self, item: Item, finish: int, seen: int = 1) -> Process:
        """End of what runs alone, at its last write; the executor sees it ``seen`` cycles later."""
        item.finish = finish
        yield finish + seen
        self.completed += 1

    def _route(self, item: Item) -> Process:
        d = item.descriptor
        done = self.clock.now + self.timing.route(tokens=d.count, experts=d.experts, top_k=d.top_k) - 1
        yield from self._done(item, done)
        item.finish += 1

    def _load(self, item: Item) -> Process:
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
        asked: deque[Burst] = deque()
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

    def _store(self, item: Item) -> Process:
        d, hardware = item.descriptor, self.hardware
        size = rows_bytes(hardware, d.count, d.words)
        item.bytes += size
        yield self.clock.now + self.timing.to_store
        read = self.clock.now + d.count * d.words
        yield from self.port.write(size // hardware.port_bytes)
        yield from self._done(item, max(self.clock.now, read))

    def _end(self, item: Item) -> Process:
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
            issued = words_between(phase, max(self.loaded, phase.issued + 1))
            last = issued + spec.ratio - 1
            arrived = paced(np.maximum(last, issued - phase.words + groups) + timing.to_norm, groups)
            first = paced(arrived + timing.norm_row, max(groups, layernorm.SCALAR_INTERVAL))
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
                beats = paced(earliest, pace)
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

    def _step(self, phase: Phase, pace: int, arrival: int, ready: int) -> None:
        """The array's next step, whose operands A and B come in these cycles at the earliest."""
        free = self.beat + pace
        self.beat = max(free, arrival, ready)
        waited = self.beat - max(free, arrival)
        phase.item.weights += waited
        phase.item.activations += self.beat - waited - free

    def _pace(self, phase: Phase) -> tuple[int, IntArray]:
        """Cycles of a step, and when the last word of each row of A can be taken in the first block."""
        timing, words = self.timing, phase.words
        pace = max(words, timing.interval)
        start = np.maximum(phase.gates() + timing.permission, phase.issued + timing.first_word)
        issued = paced(start, words) + words - 1
        if not phase.item.descriptor.weigh:
            return pace, issued + timing.to_array
        return pace, issued + timing.to_fork + timing.sum_to_factor + 1

    def _see(self, beat: int, block: int) -> None:
        """The writer sees the first results of a block."""
        self.clock.at(beat + self.timing.to_take + 1, partial(setattr, self, "newest", block))

    def _spend(self, phase: Phase, steps: int, pace: int) -> None:
        """Account for steps of the array at this pace."""
        phase.item.beats += steps * phase.words
        if pace > max(phase.words, self.timing.interval, 2):
            phase.item.activations += steps * (pace - phase.words)
        else:
            phase.item.pace += steps * (pace - phase.words)

    def _note(self, phase: Phase, start: int, ready: int, beats: IntArray) -> None:
        """Account for a block that could have begun in cycle ``start``, and whose rows came in cycle ``ready``."""
        steps = np.diff(beats)
        waits = steps > max(phase.words, self.timing.interval)
        weights = max(0, ready - start)
        first = int(beats[0]) - phase.words + 1
        phase.item.beats += phase.count * phase.words
        phase.item.weights += weights
        phase.item.activations += max(0, first - start - weights) + int((steps - phase.words)[waits].sum())
        phase.item.pace += int((steps - phase.words)[~waits].sum())

    def _leave(self, phase: Phase, beats: IntArray, written: int) -> None:
        """A product has left the array with these beats, the last one of which ``written`` has a result."""
        timing, slots, lanes = self.timing, self.hardware.out_lanes, self.hardware.post_lanes
        self.array_runs = False
        phase.readable = beats + timing.to_write + timing.interval - 1
        phase.item.finish = written + timing.to_write + (phase.rows - 1) % slots // lanes
        if phase.residual:
            phase.reads = (beats[:, None] + timing.to_residual + np.arange(timing.interval)).ravel()
        self.clock.at(int(phase.readable[-1]) + timing.settle, partial(self._written, phase))

    def _written(self, phase: Phase) -> None:
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
                    item.image, item.number, Op(item.descriptor.op).name, tensor_names(self.program, item.number), finish,
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
