"""`compare_run` finds every kind of difference, and nothing in what the golden machine itself wrote."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from edgemoe import api, inputs
from edgemoe.compare import accuracy, compare_run, compare_trace, decibels
from edgemoe.golden import Golden
from edgemoe.isa import Error, Op
from edgemoe.simulation.placement import place, unpack_store
from edgemoe.simulation.runner import SimulationResult
from toy import golden_records

IMAGES = 2


@pytest.fixture(scope="module")
def program():
    model = api.load_model("nano")
    return api.compile(model, "nano")


@pytest.fixture(scope="module")
def expected(program):
    return Golden(program).execute(list(inputs.test_images()[0][:IMAGES]), 0, trace=True)


@pytest.fixture(scope="module")
def pristine(program, expected):
    return golden_records(expected, program.hardware)


@pytest.fixture
def records(pristine):
    return deepcopy(pristine)


def number_of(program, **fields):
    """First descriptor with these fields."""
    matches = [
        n for n, d in enumerate(program.descriptors()) if all(getattr(d, k) == v for k, v in fields.items())
    ]
    return matches[0]


def simulated(program, expected, records):
    """A result as the runner gives it, with the golden outputs."""
    placement = place(program.memory, program.hardware, IMAGES)
    outputs = {
        n: unpack_store(expected.output, d, placement, program.hardware).copy()
        for n, d in placement.stores.items()
    }
    return SimulationResult(outputs, {}, Error.NONE, "done", 1, 1.0, placement, [], records)


def test_golden_records_are_equal(program, expected, records):
    result = compare_run(program, expected, simulated(program, expected, records))
    assert result.equal and result.first is None
    written = sum(
        w.values.size if w.mask is None else len(w.rows) * w.mask.sum()
        for writes in expected.trace
        for w in writes
    )
    decisions = sum(2 * r.experts.size for routes in expected.routes for r in routes.values())
    assert result.elements == written + decisions + len(expected.output) // 2
    names = {n.format(e=0) for s in program.symbols for n in [t.name for t in s.tensors]}
    assert len(names) * IMAGES <= result.tensors_compared
    for block in range(program.model.depth):
        for tensor in ("q", "k_h0", "v_h0", "scores_h0", "attention_h0", "norm1", "norm2", "post_attn"):
            assert f"l{block}_{tensor}" in result.tensors
    for image in range(IMAGES):
        for made, wanted in zip(result.gateware[image], expected.trace[image], strict=True):
            mask = np.broadcast_to(True if wanted.mask is None else wanted.mask, wanted.values.shape)
            assert (made.values[mask] == wanted.values[mask]).all()
        for number, wanted in expected.routes[image].items():
            assert (result.routes[image][number].experts == wanted.experts).all()


@pytest.mark.parametrize("field", ["value", "addend", "address"])
@pytest.mark.parametrize("dest", range(5))
def test_one_wrong_product(program, expected, records, field, dest):
    number = number_of(program, op=Op.PRODUCT, dest=dest)
    hits = np.flatnonzero(records.product["number"] == number)
    index = hits[len(hits) * 3 // 4]  # in the second image
    if field == "address":
        records.product["address"][index] += 1
        wanted = records.product["address"][index] - 1
    else:
        wanted = records.product[field][index, 0]
        records.product[field][index, 0] ^= 1
    result = compare_trace(program, expected, records)
    assert result.mismatches == 1
    first = result.first
    assert (first.image, first.number, first.kind) == (1, number, field)
    assert (first.row, first.channel) == (records.product["row"][index], records.product["channel"][index])
    assert first.expected == wanted != first.found
    assert first.tensor == program.symbols[number].tensors[0].name
    assert f"descriptor {number} (PRODUCT), {first.tensor}[{first.row}, {first.channel}]: {field}" in str(
        first
    )


@pytest.mark.parametrize("visit", [0, 1, 4])
def test_wrong_value_of_an_expert_names_visit_and_tensor(program, expected, records, visit):
    number = number_of(program, op=Op.EXPERTS, routed=1)
    index = np.flatnonzero((records.product["number"] == number) & (records.product["visit"] == visit))[0]
    records.product["value"][index, 1] += 1
    first = compare_trace(program, expected, records).first
    assert (first.number, first.visit, first.op) == (number, visit, "EXPERTS")
    assert ("hidden" if visit % 2 == 0 else "post_mlp") in first.tensor


@pytest.mark.parametrize(("kind", "op"), [("norm", Op.NORM), ("load", Op.LOAD), ("load", Op.IMAGE)])
def test_one_wrong_word(program, expected, records, kind, op):
    number = number_of(program, op=op)
    columns = getattr(records, kind)
    index = np.flatnonzero(columns["number"] == number)[3]
    columns["value"][index, 2] -= 1
    result = compare_trace(program, expected, records)
    assert result.mismatches == 1 and result.first.kind == "value" and result.first.number == number
    assert result.first.expected == result.first.found + 1


@pytest.mark.parametrize("column", ["expert", "score"])
def test_one_wrong_decision(program, expected, records, column):
    records.route[column][5] += 1
    result = compare_trace(program, expected, records)
    assert result.mismatches == 1
    assert (result.first.row, result.first.channel) == (records.route["token"][5], records.route["rank"][5])


def rows(columns, index):
    return {name: values[index] for name, values in columns.items()}


@pytest.mark.parametrize("kind", ["product", "norm", "load", "route"])
def test_missing_and_repeated_writes(program, expected, records, kind):
    columns = records.kinds()[kind]
    count = len(columns["cycle"])
    middle = count // 3
    lanes = columns["mask"][middle].sum() if "mask" in columns else {"norm": 8, "route": 2}[kind]

    missing = replace(records, **{kind: rows(columns, np.delete(np.arange(count), middle))})
    result = compare_trace(program, expected, missing)
    assert result.mismatches == lanes
    assert result.first.kind == "missing" and result.first.found is None and result.first.cycle is None

    repeated = replace(records, **{kind: rows(columns, np.insert(np.arange(count), middle, middle))})
    result = compare_trace(program, expected, repeated)
    assert result.mismatches == lanes and result.first.kind == "repeated"


@pytest.mark.parametrize("field", ["row", "channel", "visit", "number"])
def test_a_write_to_the_wrong_place_is_surplus_there_and_missing_here(program, expected, records, field):
    number = number_of(program, op=Op.PRODUCT, dest=0)
    index = np.flatnonzero(records.product["number"] == number)[7]
    records.product[field][index] += 4000
    result = compare_trace(program, expected, records)
    lanes = records.product["mask"][index].sum()
    assert result.mismatches == 2 * lanes
    assert {d.kind for d in result.differences} <= {"surplus", "missing"}


def test_a_run_that_stopped_early(program, expected, records):
    keep = np.arange(len(records.product["cycle"]) // 4)
    stopped = replace(records, product=rows(records.product, keep))
    result = compare_trace(program, expected, stopped)
    assert result.mismatches > 0 and result.first.kind == "missing" and result.first.image == 0
    assert result.first.number >= records.product["number"][keep[-1]]


def test_no_records_at_all(program, expected, records):
    empty = {k: rows(v, slice(0, 0)) for k, v in records.kinds().items()}
    result = compare_trace(program, expected, replace(records, **empty))
    assert result.mismatches == result.elements > 0


def test_wrong_output(program, expected, records):
    run = simulated(program, expected, records)
    number = max(run.outputs)
    run.outputs[number][1, 3, 2] += 1
    result = compare_run(program, expected, run)
    assert result.mismatches == 1
    assert (result.first.kind, result.first.image, result.first.row, result.first.channel) == (
        "output",
        1,
        3,
        2,
    )


def test_without_records(program, expected):
    with pytest.raises(ValueError, match="without records"):
        compare_run(program, expected, simulated(program, expected, None))


def test_decibels():
    assert decibels(np.ones(4), np.ones(4)) == np.inf
    assert decibels(np.full(10, 1.01), np.ones(10)) == pytest.approx(40)


def test_accuracy_rows():
    wanted = {"x": np.ones((3, 2)), "l1_topk": np.array([[0, 1], [2, 3]]), "other": np.ones(2)}
    have = {"x": np.full((3, 2), 1.1), "l1_topk": np.array([[1, 0], [2, 4]]), "other": np.ones(3)}
    x, topk = accuracy(have, wanted)
    assert x.tensor == "x" and x.db == pytest.approx(20) and x.max_error == pytest.approx(0.1)
    assert topk.agreement == 0.5 and topk.db is None
