"""Gateware against golden machine, element by element; golden machine against reference, in dB.

`compare_run` checks one start of the accelerator: every element of every tensor that was written, the
overwritten ones too, and what was stored. Each element must be written exactly once per image, descriptor
and visit, to the right word, with the golden value; a missing or a surplus write is a mismatch as a wrong
value is. Nothing is rounded or sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemoe import golden
from edgemoe.isa import Op
from edgemoe.numeric import IntArray
from edgemoe.program import Program

if TYPE_CHECKING:
    from edgemoe.quantize import TensorReport
    from edgemoe.simulation.records import Columns, Records
    from edgemoe.simulation.runner import SimulationResult

ROWS = 1 << 16
"""Row numbers of a product's records are below this."""
LOADS = (Op.LOAD, Op.IMAGE)


@dataclass(frozen=True)
class Difference:
    """One element that is not as it must be.

    Attributes:
        kind: ``value``, ``addend`` (the value before GELU, residual or saturation), ``address``, ``missing``,
            ``repeated``, ``surplus`` (a write that the golden machine does not make), ``output`` (stored).
        row, channel: of the tensor; word and lane for LOAD; token and rank for decisions of a router.
        expected, found: codes; None where there is none.
        cycle: of the write, from the start pulse; None if it is missing.
    """

    image: int
    number: int
    visit: int
    op: str
    tensor: str
    kind: str
    row: int
    channel: int
    expected: int | None
    found: int | None
    cycle: int | None = None

    def __str__(self) -> str:
        visit = f" visit {self.visit}" if self.visit else ""
        when = "" if self.cycle is None else f", cycle {self.cycle}"
        return (
            f"image {self.image}, descriptor {self.number} ({self.op}){visit}, {self.tensor}[{self.row}, {self.channel}]: "
            f"{self.kind}: golden {_code(self.expected)}, gateware {_code(self.found)}{when}"
        )


@dataclass(frozen=True)
class Comparison:
    """Outcome of a comparison; equal if ``mismatches`` is 0.

    Attributes:
        mismatches: elements that differ, are missing or are surplus.
        elements: elements that the golden machine wrote.
        first: the earliest difference, in the order of the program.
        differences: the first difference of each tensor of each image.
        tensors: by name, ``[elements, mismatches]`` over all images.
        tensors_compared: tensors times images.
        gateware: per image, what the gateware wrote, in the form of the golden trace (missing elements are 0).
        routes: per image, the gateware's decisions by number of the ROUTE.
    """

    mismatches: int = 0
    elements: int = 0
    first: Difference | None = None
    differences: tuple[Difference, ...] = ()
    tensors: dict[str, list[int]] = field(default_factory=dict)
    tensors_compared: int = 0
    gateware: list[list[golden.Write]] = field(default_factory=list)
    routes: list[dict[int, golden.Routes]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether there is no mismatch."""
        return self.mismatches == 0


def compare_run(program: Program, expected: golden.Result, run: SimulationResult) -> Comparison:
    """Compare everything that one start wrote: the monitor's records and the stored outputs.

    Args:
        expected: of `edgemoe.golden` with ``trace``, for the same images and task.
        run: with records.
    """
    if run.records is None:
        raise ValueError("the simulation was run without records; there is nothing to compare")
    tally = _Tally(program)
    gateware, routes = _compare_records(tally, expected, run.records)
    _compare_outputs(tally, expected, run)
    return tally.result(gateware, routes)


def compare_trace(program: Program, expected: golden.Result, records: Records) -> Comparison:
    """The same without the stored outputs."""
    tally = _Tally(program)
    return tally.result(*_compare_records(tally, expected, records))


# -- records ------------------------------------------------------------------------------------


class _Tally:
    """Collects differences by tensor."""

    def __init__(self, program: Program) -> None:
        self.program, self.descriptors = program, program.descriptors()
        self.tensors: dict[str, list[int]] = {}
        self.seen: dict[tuple[int, str], Difference | None] = {}
        self.elements = 0

    def name(self, number: int, visit: int = 0, expert: int = 0) -> str:
        """Tensor that a descriptor writes in a visit."""
        tensors = self.program.symbols[number].tensors if number < len(self.program.symbols) else ()
        if not tensors:
            return f"descriptor {number}"
        return tensors[min(visit % 2, len(tensors) - 1)].name.format(e=expert)

    def op(self, number: int) -> str:
        """Name of an operation."""
        return Op(self.descriptors[number].op).name if number < len(self.descriptors) else "none"

    def add(self, image: int, name: str, elements: int, mismatches: int, first: Difference | None) -> None:
        """Count one tensor of one write."""
        self.elements += elements
        counts = self.tensors.setdefault(name, [0, 0])
        counts[0] += elements
        counts[1] += mismatches
        if self.seen.get((image, name)) is None:
            self.seen[image, name] = first

    def result(self, gateware: list, routes: list) -> Comparison:
        """The comparison."""
        found = [d for d in self.seen.values() if d is not None]
        order = sorted(found, key=lambda d: (d.image, d.number, d.visit))
        return Comparison(
            sum(m for _, m in self.tensors.values()), self.elements, order[0] if order else None, tuple(order),
            self.tensors, len(self.seen), gateware, routes,
        )  # fmt: skip


@dataclass(frozen=True)
class _Elements:
    """Elements of one write as the gateware made them, flat: indices into the tensor, and what was written."""

    row: IntArray
    channel: IntArray
    value: IntArray
    cycle: IntArray
    addend: IntArray | None = None
    address_row: IntArray | None = None
    address_channel: IntArray | None = None
    address: IntArray | None = None
    address_cycle: IntArray | None = None


def _compare_records(tally: _Tally, expected: golden.Result, records: Records) -> tuple[list, list]:
    images = len(expected.trace)
    groups = {
        kind: _group(columns, _image(records, kind, images)) for kind, columns in records.kinds().items()
    }
    gateware, routes = [], []
    for image, (writes, decisions) in enumerate(zip(expected.trace, expected.routes)):
        made, taken = [], {}
        for step in _in_order(writes, decisions):
            if isinstance(step, golden.Routes):
                taken[step.number] = _compare_routes(
                    tally, image, step, groups["route"].pop(image, step.number)
                )
            else:
                made.append(_compare_write(tally, image, step, groups))
        gateware.append(made)
        routes.append(taken)
    for kind, group in groups.items():
        for (image, number, visit), columns in group.rest():
            lanes = columns["mask"].sum() if "mask" in columns else columns["cycle"].size
            value = columns["expert" if kind == "route" else "value"].ravel()
            first = Difference(
                image, number, visit, tally.op(number), tally.name(number, visit), "surplus",
                int(columns["row"][0]) if "row" in columns else 0, 0, None, int(value[0]), int(columns["cycle"][0]),
            )  # fmt: skip
            tally.add(image, first.tensor, 0, int(lanes), first)
    return gateware, routes


def _in_order(writes: Sequence[golden.Write], decisions: Mapping[int, golden.Routes]) -> list:
    """Writes and decisions in the order of the program."""
    steps = [((w.number, w.visit), w) for w in writes] + [((n, 0), r) for n, r in decisions.items()]
    return [step for _, step in sorted(steps, key=lambda item: item[0])]


class _Group:
    """Records of one kind by image, number and visit."""

    def __init__(self, columns: Columns, image: IntArray) -> None:
        visit = columns.get("visit", np.zeros(len(image), np.int64)).astype(np.int64)
        key = (image << 48) | (columns["number"].astype(np.int64) << 16) | visit
        order = np.argsort(key, kind="stable")
        self.columns = {name: values[order] for name, values in columns.items()}
        keys, first = np.unique(key[order], return_index=True)
        ends = np.append(first[1:], len(key))
        self.slices = {int(k): slice(a, b) for k, a, b in zip(keys, first.tolist(), ends.tolist())}

    def pop(self, image: int, number: int, visit: int = 0) -> Columns:
        """Take out the records of one write."""
        part = self.slices.pop((image << 48) | (number << 16) | visit, slice(0, 0))
        return {name: values[part] for name, values in self.columns.items()}

    def rest(self) -> list[tuple[tuple[int, int, int], Columns]]:
        """What was not taken."""
        return [
            ((k >> 48, (k >> 16) & 0xFFFFFFFF, k & 0xFFFF), {n: v[part] for n, v in self.columns.items()})
            for k, part in sorted(self.slices.items())
        ]


_group = _Group


def _image(records: Records, kind: str, images: int) -> IntArray:
    """Image of every record of a kind: descriptor numbers start again with each image."""
    columns = records.kinds()[kind]
    if images == 1:
        return np.zeros(len(columns["cycle"]), np.int64)
    restarts = (
        np.concatenate([[0], np.cumsum(np.diff(columns["number"]) < 0)]) if len(columns["number"]) else []
    )
    if len(restarts) and restarts[-1] == images - 1:
        return np.asarray(restarts, np.int64)
    load = records.load
    if not len(load["cycle"]):
        return np.zeros(len(columns["cycle"]), np.int64)
    starts = load["cycle"][(load["number"] == load["number"][0]) & (load["address"] == load["address"][0])]
    return np.maximum(np.searchsorted(starts, columns["cycle"], "right") - 1, 0)


def _compare_write(tally: _Tally, image: int, write: golden.Write, groups: dict[str, _Group]) -> golden.Write:
    op = tally.descriptors[write.number].op
    if op in LOADS:
        found = _words(write, groups["load"].pop(image, write.number))
    elif op == Op.NORM:
        found = _words(write, groups["norm"].pop(image, write.number))
    else:
        found = _product(write, groups["product"].pop(image, write.number, write.visit))
    name = tally.name(write.number, write.visit, write.expert)
    wanted = np.broadcast_to(True if write.mask is None else write.mask, write.values.shape)
    mismatches, first, values, addends = _check(write.values, write.addends, wanted, found, write)
    difference = first and Difference(
        image, write.number, write.visit, tally.op(write.number), name,
        first[0], int(write.rows[first[1]]) if 0 <= first[1] < len(write.rows) else first[1], *first[2:],
    )  # fmt: skip
    tally.add(image, name, int(wanted.sum()), mismatches, difference)
    return replace(write, values=values, addends=addends)


def _product(write: golden.Write, columns: Columns) -> _Elements:
    """Elements of product records; rows that the write does not have get an index outside of it."""
    index = np.full(ROWS, -1)
    index[write.rows] = np.arange(len(write.rows))
    row = index[columns["row"]]
    record, lane = np.nonzero(columns["mask"])
    return _Elements(
        row[record], columns["channel"][record] + lane, columns["value"][record, lane], columns["cycle"][record],
        columns["addend"][record, lane], row, columns["channel"], columns["address"], columns["cycle"],
    )  # fmt: skip


def _words(write: golden.Write, columns: Columns) -> _Elements:
    """Elements of records that are whole words: the address gives row and channel."""
    offset = columns["address"].astype(np.int64) - write.base
    row, word = offset // write.stride, offset % write.stride
    lanes = columns["value"].shape[1]
    record, lane = np.nonzero(columns.get("mask", np.ones((len(row), lanes), bool)))
    return _Elements(
        row[record], word[record] * lanes + lane, columns["value"][record, lane], columns["cycle"][record]
    )


def _check(values: IntArray, addends: IntArray | None, wanted: NDArray[np.bool_], found: _Elements,
           write: golden.Write | None = None):  # fmt: skip
    """Compare the elements of a tensor.

    Returns:
        Number of mismatches; the first one as ``(kind, row index, channel, expected, found, cycle)`` or None; what was
        found, as arrays like ``values`` and ``addends``.
    """
    rows, channels = values.shape
    inside = (found.row >= 0) & (found.row < rows) & (found.channel < channels)
    inside[inside] = wanted[found.row[inside], found.channel[inside]]
    at = (found.row[inside], found.channel[inside])
    seen = np.zeros(values.shape, np.int64)
    np.add.at(seen, at, 1)
    wrong_value = values[at] != found.value[inside]
    wrong_addend = np.zeros_like(wrong_value)
    if addends is not None and found.addend is not None:
        wrong_addend = addends[at] != found.addend[inside]
    wrong = np.zeros(values.shape, bool)
    wrong[at] |= wrong_value | wrong_addend
    missing = wanted & (seen == 0)
    mismatches = int(missing.sum() + wrong.sum() + np.maximum(seen - 1, 0).sum() + (~inside).sum())

    candidates = []  # (cycle, order, difference)
    cycle = found.cycle[inside]

    def add(kind: str, where: NDArray[np.bool_], expected, got) -> None:
        hits = np.flatnonzero(where)
        if len(hits):
            i = hits[np.argmin(cycle[hits])]
            r, c = int(at[0][i]), int(at[1][i])
            candidates.append((int(cycle[i]), (kind, r, c, int(expected[r, c]), int(got[i]), int(cycle[i]))))

    add("value", wrong_value, values, found.value[inside])
    if addends is not None and found.addend is not None:
        add("addend", wrong_addend & ~wrong_value, addends, found.addend[inside])
    add("repeated", seen[at] > 1, values, found.value[inside])
    hits = np.flatnonzero(~inside)
    if len(hits):
        i = hits[0]
        surplus = (
            "surplus",
            int(found.row[i]),
            int(found.channel[i]),
            None,
            int(found.value[i]),
            int(found.cycle[i]),
        )
        candidates.append((int(found.cycle[i]), surplus))
    astray = _check_addresses(found, write, values.shape)
    if astray is not None:
        mismatches += astray[0]
        candidates.append((astray[1][-1], astray[1]))
    if missing.any():
        r, c = np.argwhere(missing)[0].tolist()
        candidates.append((1 << 62, ("missing", r, c, int(values[r, c]), None, None)))
    first = min(candidates, key=lambda item: item[0])[1] if candidates else None

    out = np.zeros_like(values)
    out[at] = found.value[inside]
    out_addends = None
    if addends is not None:
        out_addends = np.zeros_like(addends)
        if found.addend is not None:
            out_addends[at] = found.addend[inside]
    return mismatches, first, out, out_addends


def _check_addresses(found: _Elements, write: golden.Write | None, shape: tuple[int, ...]):
    """``(count, first)`` of the product records that went to a wrong word, or None."""
    if write is None or found.address is None:
        return None
    row, channel, cycles = found.address_row, found.address_channel, found.address_cycle
    assert row is not None and channel is not None and cycles is not None
    valid = (row >= 0) & (channel < shape[1])
    row, channel = row[valid], channel[valid]
    if write.transposed:
        right = write.base + channel * write.stride + write.rows[row] // write.lanes
    else:
        right = write.base + write.rows[row] * write.stride + channel // write.lanes
    hits = np.flatnonzero(right != found.address[valid])
    if not len(hits):
        return None
    i = hits[0]
    cycle = int(cycles[valid][i])
    return len(hits), (
        "address",
        int(row[i]),
        int(channel[i]),
        int(right[i]),
        int(found.address[valid][i]),
        cycle,
    )


def _compare_routes(tally: _Tally, image: int, routes: golden.Routes, columns: Columns) -> golden.Routes:
    """Experts and scores of a router's decisions."""
    tensors = tally.program.symbols[routes.number].tensors
    made = {}
    for which, (key, wanted) in enumerate((("expert", routes.experts), ("score", routes.scores))):
        wanted = np.asarray(wanted, np.int64)
        found = _Elements(columns["token"], columns["rank"], columns[key], columns["cycle"])
        mismatches, first, made[key], _ = _check(wanted, None, np.ones(wanted.shape, bool), found)
        name = tensors[which].name if which < len(tensors) else f"{tally.name(routes.number)} {key}"
        difference = first and Difference(
            image, routes.number, 0, tally.op(routes.number), name, first[0], *first[1:]
        )
        tally.add(image, name, wanted.size, mismatches, difference)
    return golden.Routes(routes.number, made["expert"], made["score"])


def _compare_outputs(tally: _Tally, expected: golden.Result, run: SimulationResult) -> None:
    """What STORE left in the external memory."""
    from edgemoe.simulation.placement import unpack_store

    place, hardware = run.placement, tally.program.hardware
    raw = expected.output.ljust(place.output_words * hardware.port_bytes, b"\0")
    for number, descriptor in place.stores.items():
        wanted = unpack_store(raw, descriptor, place, hardware)
        wrong = wanted != run.outputs[number]
        for image in range(len(wanted)):
            first = None
            if wrong[image].any():
                r, c = np.argwhere(wrong[image])[0].tolist()
                codes = int(wanted[image, r, c]), int(run.outputs[number][image, r, c])
                first = Difference(image, number, 0, "STORE", tally.name(number), "output", r, c, *codes)
            name = f"stored {tally.name(number)}"
            tally.add(image, name, wrong[image].size, int(wrong[image].sum()), first)


def _code(value: int | None) -> str:
    return "nothing" if value is None else str(value)


# -- reference ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """How well one tensor agrees with the float reference.

    Attributes:
        db: signal to error, 20 log10; inf if equal. None for decisions.
        max_error: largest absolute difference. None for decisions.
        agreement: fraction of equal sets of experts per token; None for values.
    """

    tensor: str
    db: float | None
    max_error: float | None
    agreement: float | None = None


def accuracy(values: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]]) -> list[Accuracy]:
    """Rows for all tensors that both have with the same shape, in the order of ``reference``."""
    rows = []
    for name, wanted in reference.items():
        if name not in values or np.shape(values[name]) != np.shape(wanted):
            continue
        have = np.asarray(values[name])
        if name.endswith("_topk"):
            equal = (np.sort(have, axis=-1) == np.sort(wanted, axis=-1)).all(axis=-1)
            rows.append(Accuracy(name, None, None, float(equal.mean())))
        else:
            rows.append(Accuracy(name, decibels(have, wanted), float(np.abs(have - wanted).max(initial=0))))
    return rows


def decibels(values: NDArray[Any], wanted: NDArray[Any]) -> float:
    """20 log10 of the RMS of ``wanted`` over that of the error; inf if equal."""
    error, signal = np.sum((values - wanted) ** 2.0), np.sum(np.asarray(wanted, float) ** 2)
    if error == 0:
        return float("inf")
    return float(10 * np.log10(signal / error)) if signal else float("-inf")


def accuracy_report(program: Program, model, image: NDArray[Any], task: int) -> list[dict[str, Any]]:
    """Golden machine against reference by tensor, with its own routes and with the reference's.

    Returns:
        Data rows with ``tensor``, ``db``, ``db_forced``, ``max_error``, ``max_error_forced``, ``agreement``.
    """
    from edgemoe import reference

    wanted = reference.run(model, image, task)
    machine = golden.Golden(program)
    free = {row.tensor: row for row in accuracy(machine.run(image, task, trace=True), wanted)}
    routes = {name: values for name, values in wanted.items() if name.endswith("_topk")}
    forced = free
    if routes:
        forced = {r.tensor: r for r in accuracy(machine.run(image, task, True, routes), wanted)}
    return [
        {
            "tensor": name, "db": row.db, "db_forced": forced[name].db, "max_error": row.max_error,
            "max_error_forced": forced[name].max_error, "agreement": row.agreement,
        }
        for name, row in free.items()
    ]  # fmt: skip


def format_report(
    program: Program, model, rows: Sequence[TensorReport], image: NDArray[Any], task: int = 0
) -> list[dict[str, Any]]:  # fmt: skip
    """What compiling chose for every tensor, and what it costs on one image.

    Args:
        rows: `edgemoe.quantize.QuantizedModel.report`.

    Returns:
        Data rows with ``tensor``, ``low``, ``high``, ``frac``, ``clipped``, ``headroom``, and ``db``, the golden
        machine against the reference with the reference's routes; None for what the golden machine does not keep.
    """
    from edgemoe import reference

    wanted = reference.run(model, image, task)
    routes = {name: values for name, values in wanted.items() if name.endswith("_topk")}
    exact = golden.Golden(program).run(image, task, True, routes or None)
    found = {row.tensor: row.db for row in accuracy(exact, wanted)}
    return [
        {
            "tensor": row.name, "low": row.low, "high": row.high, "frac": row.frac, "clipped": row.clipped,
            "headroom": row.headroom, "db": found.get(row.name),
        }
        for row in rows
    ]  # fmt: skip
