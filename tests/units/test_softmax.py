"""Softmax: accuracy against float, and each Component against its golden function."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from bench import STALLS, run
from edgemoe.numeric import rounding_shift, saturate
from edgemoe.units.softmax import (
    Exponential,
    Reciprocal,
    RowMaximum,
    SoftmaxSpec,
    Weigher,
    attention_weights,
    exponent,
    exponential_cycles,
    fraction,
    reciprocal,
    reciprocal_cycles,
    row_factor,
    row_maximum,
    row_sum,
    score_code,
    softmax,
    weigher_cycles,
    wide_weights,
)

SPEC = SoftmaxSpec()
ONE = 1 << SPEC.score_frac
LOW, HIGH = -(1 << (SPEC.score_bits - 1)), (1 << (SPEC.score_bits - 1)) - 1
LENGTHS = (1, 2, 3, 7, 16, 37, 129, 197, 512, 1023, 1024)


def exact_softmax(y, scale=1.0):
    """Base 2, along the last axis."""
    y = y * scale
    power = np.exp2(y - y.max(axis=-1, keepdims=True))
    return power / power.sum(axis=-1, keepdims=True)


def rows_of(keys, count, rng):
    """Float rows of scores, by kind; the worst cases of every error source are among them."""
    shape = (count, keys)
    first = np.arange(keys) == 0
    level = rng.uniform(-128, 127.9, (count, 1))
    return {
        "full range": rng.uniform(-128, 128, shape),
        "normal": rng.normal(0, 4, shape),
        "narrow": rng.uniform(-3, 1, shape),
        "peaked": np.where(first, rng.uniform(0, 1, shape), rng.uniform(-20, 0, shape)),
        "flat": np.broadcast_to(level, shape),
        "ties at an integer": np.where(rng.random(shape) < 0.5, np.floor(level), np.floor(level) - 1 / ONE),
        # All others round up from just above half an ulp of weight, or down from just below it.
        "half an ulp": np.where(
            first, rng.uniform(0, 1, (count, 1)), rng.uniform(-15.02, -14.98, (count, 1))
        ),
        "one above, the others together as much": np.where(
            first, rng.uniform(0, 1, (count, 1)), rng.uniform(-1, 1, (count, 1)) - np.log2(keys)
        ),
        "extremes": np.where(rng.random(shape) < 0.5, -128.0, HIGH / ONE),
        "lowest": np.full(shape, -128.0),
    }


@pytest.mark.parametrize("keys", LENGTHS)
def test_error_against_float(keys):
    rng = np.random.default_rng(keys)
    worst_code, worst_float, worst_sum = 0.0, 0.0, 0.0
    for kind, scores in rows_of(keys, 2000 if keys < 64 else 200, rng).items():
        y = np.clip(np.floor(scores * ONE + 0.5), LOW, HIGH).astype(np.int64)
        p = softmax(y, SPEC)
        from_codes = np.abs(p - exact_softmax(y, 1 / ONE)).max()
        from_scores = np.abs(p - exact_softmax(np.minimum(scores, HIGH / ONE))).max()
        assert from_codes <= 5e-5 and from_scores <= 1e-4, kind
        worst_code, worst_float = max(worst_code, from_codes), max(worst_float, from_scores)
        worst_sum = max(worst_sum, np.abs(p.sum(axis=-1) - 1).max() / (keys + 1))
    print(
        f"{keys} keys: from codes {worst_code:.2e}, from scores {worst_float:.2e}, sum {worst_sum:.2e} a key"
    )
    # Each weight is rounded by half of 2^-14 and d is at least 1; 1/d has a relative error of 2e-5.
    assert worst_sum <= 2**-15 * 1.05


def test_two_keys_at_every_distance():
    """The error of a mantissa counts most where p = 1/2: every fraction against every other, coarsely."""
    y = np.stack(np.meshgrid(np.arange(ONE), np.arange(-ONE, ONE, 37)), axis=-1).reshape(-1, 2)
    error = np.abs(softmax(y, SPEC) - exact_softmax(y, 1 / ONE)).max()
    print(f"two keys: {error:.2e}")
    assert error <= 4e-5


def test_masked_lanes_do_not_count():
    """A row of 37 keys in lanes for 48 has the sum and the weights of the 37."""
    rng = np.random.default_rng(5)
    codes = score_code(rng.integers(LOW, HIGH, 48), SPEC)
    mask = np.arange(48) < 37
    maximum = row_maximum(codes[mask], SPEC)
    lanes = 8
    sent = [
        {"lane": codes[k : k + lanes].tolist(), "mask": bits(mask[k : k + lanes]), "maximum": int(maximum),
         "active": 1, "last": k + lanes == 48}
        for k in range(0, 48, lanes)
    ]  # fmt: skip
    result = run(Weigher(SPEC, lanes), {"i": sent}, {"o": 6, "sum": 1})
    assert result.values["sum"] == [row_sum(codes[mask], maximum, SPEC)]
    weights = np.concatenate([v["a"] for v in result.values["o"]])
    assert np.array_equal(weights[:37], attention_weights(codes[mask], maximum, 0, SPEC))
    assert not weights[37:].any()


def test_codes_are_monotone_over_all_scores():
    codes = score_code(np.arange(LOW, HIGH + 1), SPEC)
    assert np.all(np.diff(codes) > 0)
    assert np.array_equal(exponent(codes, SPEC) * 2**14 + fraction(codes, SPEC), codes)
    assert -(1 << (SPEC.code_bits - 1)) <= codes[0] and codes[-1] < 1 << (SPEC.code_bits - 1)


def test_mantissa_error():
    f = np.arange(ONE)
    m = 1 + fraction(score_code(f, SPEC), SPEC) / 2**14
    assert np.abs(m / np.exp2(f / ONE) - 1).max() <= 3.8e-5
    assert fraction(score_code(0, SPEC), SPEC) == 0


def test_wide_weights_and_weights_are_the_shifted_mantissas():
    rng = np.random.default_rng(6)
    codes = score_code(rng.integers(LOW, HIGH, (50, 20)), SPEC)
    maximum = row_maximum(codes, SPEC)[:, None]
    m, gap = fraction(codes, SPEC) / 2**14 + 1, maximum - exponent(codes, SPEC)
    assert np.array_equal(wide_weights(codes, maximum, SPEC), np.floor(m * 2.0 ** (26 - gap)))
    v = rng.integers(0, 9, codes.shape)
    assert np.array_equal(
        attention_weights(codes, maximum, v, SPEC), np.floor(m * 2.0 ** (14 - gap - v) + 0.5)
    )


def test_sum_does_not_depend_on_the_order():
    rng = np.random.default_rng(7)
    codes = score_code(rng.integers(-20 * ONE, 0, (50, 300)), SPEC)
    shuffled = rng.permuted(codes, axis=1)
    maximum = row_maximum(codes, SPEC)
    assert np.array_equal(maximum, row_maximum(shuffled, SPEC))
    assert np.array_equal(row_sum(codes, maximum[:, None], SPEC), row_sum(shuffled, maximum[:, None], SPEC))


def sums(count, rng):
    """Sums of every magnitude, and those beside the powers of two."""
    powers = [1 << k for k in range(SPEC.sum_bits)]
    edges = [p + e for p in powers for e in (-1, 0, 1) if p + e > 0] + [(1 << SPEC.sum_bits) - 1]
    values = rng.integers(0, 1 << SPEC.sum_bits, count) >> rng.integers(0, SPEC.sum_bits, count)
    return np.concatenate([edges, np.maximum(values, 1)])


def test_reciprocal_error():
    d = sums(200_000, np.random.default_rng(8))
    r, position = reciprocal(d, SPEC)
    assert np.array_equal(position, [int(v).bit_length() - 1 for v in d])
    exact = 65536 / (d / 2.0**position)
    print(f"reciprocal: {np.abs(r - exact).max():.3f} ulp, relative {np.abs(r / exact - 1).max():.2e}")
    assert np.abs(r - np.minimum(np.rint(exact), 65535)).max() <= 1
    assert np.abs(r / exact - 1).max() <= 2.05e-5


@pytest.mark.parametrize("b_bits", [8, 16])
def test_row_factor_scales_a_row(b_bits):
    """acc * multiplier >> shift is the weighted mean of B with mid_frac fraction bits, and fits in mid."""
    spec = SoftmaxSpec(b_bits)
    rng = np.random.default_rng(9)
    y = rng.integers(-6 * ONE, 6 * ONE, (100, 129))
    b = rng.integers(-(1 << (b_bits - 1)), 1 << (b_bits - 1), 129)
    codes = score_code(y, spec)
    maximum = row_maximum(codes, spec)[:, None]
    multiplier, shift = row_factor(row_sum(codes, maximum, spec), spec)
    assert shift.min() >= 1 and shift.max() <= 63
    mid = rounding_shift((attention_weights(codes, maximum, 0, spec) * b).sum(axis=1) * multiplier, shift)
    exact = (exact_softmax(y, 1 / ONE) * b).sum(axis=1)
    assert np.abs(mid / 2**spec.mid_frac - exact).max() <= 2e-4 * 2 ** (b_bits - 1)
    assert np.array_equal(mid, saturate(mid, spec.mid_bits - 1))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SoftmaxSpec(17), "b_bits is 17; operand B has 2 to 16 bits"),
        (lambda: SoftmaxSpec(keys=0), "keys is 0; a row has at least one key"),
        (lambda: SoftmaxSpec(score_bits=22), "a score of 22 bits .* does not fit"),
        (lambda: SoftmaxSpec(guard=17), r"mantissa_frac \+ guard is 31; .* at most 30"),
        (lambda: reciprocal(0, SPEC), "d is 0; a row needs at least one key"),
        (lambda: wide_weights(1 << 14, 0, SPEC), "an exponent is 1 above the row's maximum"),
    ],
)
def test_values_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- gateware -----------------------------------------------------------------------------------


def bits(mask):
    return sum(int(b) << k for k, b in enumerate(mask))


def measured(result, o="o"):
    return result.cycles_out[o][-1] - result.cycles_in["i"][0] + 1


@pytest.mark.parametrize("stall", STALLS)
def test_exponential_equals_golden(stall):
    rng, n, lanes = np.random.default_rng(10), 300, 4
    mid = rng.integers(-(1 << 21), 1 << 21, (n, lanes))
    edges = [-(1 << 21), (1 << 21) - 1, LOW, LOW - 1, HIGH, HIGH + 1, 0, -1, 1, ONE - 1, ONE, -ONE, -ONE - 1]
    mid[::3] = rng.choice(edges, mid[::3].shape)
    y = saturate(mid, SPEC.score_bits)
    sent = [{"mid": mid[k].tolist(), "tag": k} for k in range(n)]
    result = run(Exponential(SPEC, lanes, tag=9), {"i": sent}, {"o": n}, stall=stall)
    codes = score_code(y, SPEC).tolist()
    saturated = [bits(row) for row in y != mid]
    assert result.values["o"] == [{"code": codes[k], "saturated": saturated[k], "tag": k} for k in range(n)]
    if stall == "none":
        assert measured(result) == exponential_cycles(n)


def weigher_beats(rows, lanes, rng, longest=5):
    """Rows of several beats: ragged, inactive, with gaps of all sizes, keys in any order."""
    sent, weights, totals = [], [], []
    for _ in range(rows):
        beats = int(rng.integers(1, longest + 1))
        spread = int(rng.choice([1, 3, 12, 30, 128]))
        top = int(rng.integers(-128 + spread, 128)) * ONE
        codes = score_code(rng.integers(top - spread * ONE, top + ONE - 1, (beats, lanes)), SPEC)
        mask = rng.random((beats, lanes)) < 0.8
        mask[rng.integers(beats), rng.integers(lanes)] = True
        active = rng.random() < 0.8
        v = rng.integers(0, 9, (beats, lanes)) * int(rng.integers(0, 2))
        maximum = int(exponent(codes[mask], SPEC).max())
        codes = np.where(mask | active, codes, rng.integers(-(1 << 21), 1 << 21, codes.shape))
        if active:
            low = np.where(mask, codes, maximum << 14)
            weights += np.where(mask, attention_weights(low, maximum, v, SPEC), 0).tolist()
            totals.append(int(np.where(mask, wide_weights(low, maximum, SPEC), 0).sum()))
        else:
            low = codes & 0xFFFF
            weights += (low - ((low >> 15) << 16)).tolist()
        sent += [
            {"lane": codes[b].tolist(), "mask": bits(mask[b]), "maximum": maximum, "relative": v[b].tolist(),
             "active": int(active), "last": int(b == beats - 1), "tag": len(sent) + b}
            for b in range(beats)
        ]  # fmt: skip
    return sent, weights, totals


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
@pytest.mark.parametrize("stall", STALLS)
def test_weigher_equals_golden(stall, lanes):
    sent, weights, totals = weigher_beats(60, lanes, np.random.default_rng(11))
    dut = Weigher(SPEC, lanes, tag=10)
    result = run(dut, {"i": sent}, {"o": len(sent), "sum": len(totals)}, stall=stall)
    assert [v["a"] for v in result.values["o"]] == weights
    assert [(v["last"], v["tag"]) for v in result.values["o"]] == [(s["last"], s["tag"]) for s in sent]
    assert result.values["sum"] == totals
    if stall == "none":
        assert measured(result) == weigher_cycles(len(sent))
        ends = [c for c, s in zip(result.cycles_in["i"], sent, strict=True) if s["last"] and s["active"]]
        delays = {b - a for a, b in zip(ends, result.cycles_out["sum"], strict=True)}
        assert delays == {dut.sum_latency}


@pytest.mark.parametrize("stall", ["sink", "both"])
def test_weigher_waits_for_its_sums(stall):
    """Rows of one or two beats: the sums are due faster than they are taken."""
    sent, weights, totals = weigher_beats(200, 2, np.random.default_rng(14), longest=2)
    result = run(Weigher(SPEC, 2, tag=10), {"i": sent}, {"o": len(sent), "sum": len(totals)}, stall=stall)
    assert [v["a"] for v in result.values["o"]] == weights
    assert result.values["sum"] == totals


@pytest.mark.parametrize("late", [0, 1])
def test_weigher_streams_stall_separately(late):
    """Both orders pass: a row's sum before any weight of the next row, and a row's sum one row late."""
    lanes, rows, beats = 2, 4, 3
    dut = Weigher(SPEC, lanes)
    sent = [{"mask": 3, "active": 1, "last": k % beats == beats - 1} for k in range(rows * beats)]
    order = ["o"] * (beats * late)
    for row in range(rows):
        order += ["o"] * (beats if row + late < rows else 0) + ["sum"]
    taken = []

    async def source(ctx):
        for payload in sent:
            ctx.set(dut.i.payload, payload)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def sink(ctx):
        for name in order:
            port = getattr(dut, name)
            ctx.set(port.ready, 1)
            for _ in range(100):
                done = ctx.get(port.valid)
                await ctx.tick()
                if done:
                    break
            else:
                raise AssertionError(f"deadlock after {taken}")
            ctx.set(port.ready, 0)
            taken.append(name)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(source, background=True)
    simulator.add_testbench(sink)
    simulator.run()
    assert taken == order


@pytest.mark.parametrize("stall", STALLS)
def test_reciprocal_equals_golden(stall):
    d = sums(200, np.random.default_rng(12))
    r, position = reciprocal(d, SPEC)
    _, shift = row_factor(d, SPEC)
    sent = [{"d": int(v), "tag": k} for k, v in enumerate(d)]
    result = run(Reciprocal(SPEC, tag=10), {"i": sent}, {"o": len(d)}, stall=stall)
    wanted = [{"multiplier": int(a), "shift": int(b) % 64, "position": int(c), "tag": k}
              for k, (a, b, c) in enumerate(zip(r, shift, position, strict=True))]  # fmt: skip
    assert result.values["o"] == wanted
    if stall == "none":
        assert measured(result) == reciprocal_cycles(SPEC, len(d))


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_row_maximum_equals_golden(lanes):
    """Updates of random rows, with idle cycles; every row is read after the latency, in any order of keys."""
    rows, rng = 9, random.Random(13)
    dut = RowMaximum(rows, lanes)
    model, updates = {}, []
    for k in range(400):
        row = rng.randrange(rows) if k % 3 else 4
        first = row not in model or rng.random() < 0.1
        n, mask = [rng.randint(-128, 127) for _ in range(lanes)], rng.randrange(1 << lanes)
        best = max([v for b, v in enumerate(n) if mask >> b & 1], default=-128)
        model[row] = best if first else max(best, model[row])
        updates.append((row, n, mask, first, model[row], rng.random() < 0.3))

    async def bench(ctx):
        due = []
        for cycle in range(10_000):
            if cycle >= dut.latency and due and due[0][0] == cycle:
                _, row, value = due.pop(0)
                ctx.set(dut.row_read, row)
                assert ctx.get(dut.maximum) == value
            if not updates and not due:
                return
            idle = not updates or updates[0][5] and rng.random() < 0.5
            if idle:  # whatever lies at the inputs does not count
                row, n, mask, first = rng.choice((4, rng.randrange(rows))), [127] * lanes, 1, 0
            else:
                row, n, mask, first, value, _ = updates.pop(0)
                due.append((cycle + dut.latency, row, value))
            ctx.set(dut.valid, not idle)
            ctx.set(dut.row, row)
            ctx.set(dut.n, n)
            ctx.set(dut.mask, mask)
            ctx.set(dut.first, first)
            await ctx.tick()
        raise AssertionError("updates are left")

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
