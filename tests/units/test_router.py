"""Router: choices, scores and queues equal golden at the stated cycles, under every stall pattern."""

import random
import warnings
from collections import deque

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.hdl import Fragment
from amaranth.sim import Simulator
from hypothesis import given
from hypothesis import strategies as st

from bench import STALLS, plain
from edgemoe.units import softmax
from edgemoe.units.router import Router, RouterSpec, cycles, queues, route

SOFTMAX = softmax.SoftmaxSpec(keys=64)


def reciprocal(d):
    return softmax.reciprocal(d, SOFTMAX)


# -- bench --------------------------------------------------------------------------------------


def simulate(spec, jobs, stall="none", response=1, divide=1, seed=0):
    """Run (codes, top_k) jobs one after the other; a dictionary of all outputs for each.

    ``response`` and ``divide`` are the cycles that an answer takes; a stalled source answers late, and a
    stalled sink does not take requests in about half of the cycles.
    """
    dut = Router(spec)
    rng = random.Random(seed)
    state = {"now": 0, "codes": None}
    results = []
    events = []

    def stalled(side):
        return stall in (side, "both") and rng.random() < 0.5

    def responder(request, answer, delay, function):
        """Answers each transfer of ``request`` after ``delay`` cycles, or later where it stalls."""

        async def process(ctx):
            pending = deque()
            offered = False
            while True:
                ctx.set(request.ready, not stalled("sink"))
                if not offered and pending and pending[0][0] <= state["now"] and not stalled("source"):
                    ctx.set(answer.payload, pending[0][1])
                    ctx.set(answer.valid, 1)
                    offered = True
                *_, asked, payload, taking, takes = await ctx.tick().sample(
                    request.valid, request.payload, request.ready, answer.ready
                )
                if asked and taking:
                    pending.append((state["now"] + delay - 1, function(plain(payload))))
                if offered and takes:
                    pending.popleft()
                    ctx.set(answer.valid, 0)
                    offered = False

        return process

    def word(request):
        row = state["codes"][request["row"]]
        part = row[request["word"] * spec.in_lanes :][: spec.in_lanes].tolist()
        junk = [rng.choice([-(1 << 21), (1 << 21) - 1]) for _ in range(spec.in_lanes - len(part))]
        return {"code": part + junk}

    def quotient(request):
        r, p = reciprocal(request["d"])
        return {"multiplier": int(r), "position": int(p)}

    async def clock(ctx):
        async for _ in ctx.tick():
            state["now"] += 1

    async def monitor(ctx):
        async for _, _, chosen in ctx.tick().sample(dut.chosen):
            if chosen.valid:
                events.append(plain(chosen))

    async def main(ctx):
        for codes, top_k in jobs:
            state["codes"] = codes
            tokens, experts = codes.shape
            ctx.set(dut.job.payload, {"tokens": tokens, "experts": experts, "top_k": top_k})
            ctx.set(dut.job.valid, 1)
            await ctx.tick().until(dut.job.ready)
            begin = state["now"]
            ctx.set(dut.job.valid, 0)
            for _ in range(20_000):
                *_, done = await ctx.tick().sample(dut.done)
                if done:
                    break
            else:
                raise AssertionError("deadlock: no done after 20000 cycles")
            result = {"cycles": state["now"] - begin + 1, "visits": [], "entries": []}
            for n in range(ctx.get(dut.visits)):
                reader = n % dut.readers
                ctx.set(getattr(dut, f"visit_index_{reader}"), n)
                result["visits"].append(tuple(plain(ctx.get(getattr(dut, f"visit_{reader}"))).values()))
            ctx.set(dut.entry_en, 1)
            for n in range(tokens * top_k):
                ctx.set(dut.entry_index, n)
                await ctx.tick()
                result["entries"].append(tuple(plain(ctx.get(dut.entry)).values()))
            result["chosen"] = [{k: v for k, v in e.items() if k != "valid"} for e in events]
            events.clear()
            results.append(result)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulator = Simulator(Fragment.get(dut, None))
    simulator.add_clock(1e-6)
    simulator.add_process(clock)
    simulator.add_testbench(responder(dut.request, dut.response, response, word), background=True)
    simulator.add_testbench(responder(dut.divide, dut.quotient, divide, quotient), background=True)
    simulator.add_testbench(monitor, background=True)
    simulator.add_testbench(main)
    simulator.run()
    return results


def check(spec, jobs, stall="none", response=1, divide=1):
    results = simulate(spec, jobs, stall, response, divide)
    for (codes, top_k), result in zip(jobs, results, strict=True):
        tokens, experts = codes.shape
        topk, scores = route(codes, top_k, reciprocal, spec)
        visits, token, score = queues(topk, scores, experts)
        assert result["chosen"] == [
            {"token": t, "rank": j, "expert": topk[t, j], "score": scores[t, j]}
            for t in range(tokens)
            for j in range(top_k)
        ]
        assert result["visits"] == [tuple(v) for v in visits.tolist()]
        assert result["entries"] == list(zip(token.tolist(), score.tolist(), strict=True))
        if stall == "none":
            assert result["cycles"] == cycles(spec, tokens, experts, top_k, response, divide)


def codes_of(rng, tokens, experts, kind):
    low, high = -(1 << 21), (1 << 21) - 1
    match kind:
        case "uniform":
            return rng.integers(low, high + 1, (tokens, experts))
        case "near":
            return rng.integers(-3 << 14, 3 << 14, (tokens, experts))
        case "ties":
            return rng.integers(-1, 2, (tokens, experts)) << 14
        case "equal":
            return np.full((tokens, experts), int(rng.integers(low, high)))
        case "extreme":
            return rng.choice([low, high, 0, -1], (tokens, experts))
        case "one":
            codes = rng.integers(low, 0, (tokens, experts))
            codes[:, rng.integers(experts)] = high
            return codes
        case "each":
            codes = rng.integers(low, 0, (tokens, experts))
            codes[range(tokens), np.arange(tokens) % experts] = high - rng.integers(1 << 15, size=tokens)
            return codes
        case "adjacent":
            return rng.integers(-2, 3, (tokens, experts)) - (1 << 14)


KINDS = ("uniform", "near", "ties", "equal", "extreme", "one", "each", "adjacent")


# -- gateware -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        (RouterSpec(4, 7, 16, 2), [(7, 16, 2), (5, 13, 2), (1, 16, 1), (7, 3, 2)]),
        (RouterSpec(8, 6, 8, 8), [(6, 8, 8), (6, 5, 5), (2, 8, 1), (6, 7, 3)]),
        (RouterSpec(1, 4, 3, 3), [(4, 3, 3), (1, 1, 1), (4, 2, 2)]),
        (RouterSpec(16, 9, 5, 4), [(9, 5, 4), (9, 5, 2), (1, 5, 4)]),
        (RouterSpec(2, 3, 1, 1), [(3, 1, 1), (1, 1, 1)]),
    ],
)
def test_gateware_equals_golden(spec, shapes, stall):
    rng = np.random.default_rng(spec.in_lanes)
    jobs = [(codes_of(rng, t, e, KINDS[n % len(KINDS)]), k) for n, (t, e, k) in enumerate(shapes)]
    check(spec, jobs, stall)


@pytest.mark.parametrize("top_k", [1, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_codes(kind, top_k):
    rng = np.random.default_rng(top_k)
    check(RouterSpec(4, 12, 6, 6), [(codes_of(rng, 12, 6, kind), top_k)])


@pytest.mark.parametrize(("response", "divide"), [(1, 1), (3, 11), (9, 80)])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"), [(1, 16, 2), (20, 16, 2), (4, 16, 1), (4, 9, 4), (1, 3, 3)]
)
def test_cycles(tokens, experts, top_k, response, divide):
    rng = np.random.default_rng(tokens)
    spec = RouterSpec(8, 20, 16, 4)
    check(spec, [(codes_of(rng, tokens, experts, "near"), top_k)] * 2, "none", response, divide)


def test_score_of_a_single_expert_is_saturated():
    """Where the reciprocal is rounded up, the one weight times it is above 1."""
    mf = np.arange(1 << 14)
    d = (mf + (1 << 14)) << 12
    r, p = reciprocal(d)
    above = mf[(d * r + (1 << p)) >> (p + 1) > 1 << 15]
    codes = np.concatenate([above[:10], [0, 1, (1 << 14) - 1]])[:, None]
    check(RouterSpec(2, 16, 1, 1), [(codes, 1)])


def test_converts_to_verilog():
    assert "module top" in verilog.convert(Router(RouterSpec(16, 129, 16, 2)))


# -- golden -------------------------------------------------------------------------------------


@given(st.data())
def test_route_is_the_definition(data):
    """Against a plain restatement: repeated argmax with a strict comparison, and integer arithmetic."""
    experts = data.draw(st.integers(1, 9))
    top_k = data.draw(st.integers(1, experts))
    code = st.one_of(st.integers(-(1 << 21), (1 << 21) - 1), st.integers(-2, 2).map(lambda n: n << 14))
    row = data.draw(st.lists(code, min_size=experts, max_size=experts))
    spec = RouterSpec(4, 1, experts, top_k)
    topk, scores = route([row], top_k, reciprocal, spec)

    def wide(c):
        return (((1 << 14) + c % (1 << 14)) << 12) >> min(max(row) // (1 << 14) - c // (1 << 14), 31)

    r, p = reciprocal([sum(wide(c) for c in row)])
    left = list(range(experts))
    for j in range(top_k):
        best = left[0]
        for e in left[1:]:
            if row[e] > row[best]:
                best = e
        left.remove(best)
        assert topk[0, j] == best
        exact = (wide(row[best]) * int(r[0]) + (1 << int(p[0]))) >> int(p[0] + 1)
        assert scores[0, j] == min(exact, 32768)


@given(st.data())
def test_queues_are_a_stable_sort(data):
    tokens, experts = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(1, experts))
    topk = [data.draw(st.permutations(range(experts)))[:top_k] for _ in range(tokens)]
    scores = np.arange(tokens * top_k).reshape(tokens, top_k)
    visits, token, score = queues(topk, scores, experts)
    expected = [
        (e, t, scores[t, topk[t].index(e)]) for e in range(experts) for t in range(tokens) if e in topk[t]
    ]
    got = [(e, token[n], score[n]) for e, start, count in visits for n in range(start, start + count)]
    assert got == expected
    assert [e for e, _, _ in visits] == sorted({e for row in topk for e in row})


def test_scores_against_float():
    """Scores are softmax over all experts, within a few 2**-15."""
    rng = np.random.default_rng(3)
    y = np.rint(rng.normal(0, 3, (500, 16)) * 2**13).astype(np.int64)
    spec = RouterSpec(16, 500, 16, 16)
    topk, scores = route(softmax.score_code(y, SOFTMAX), 16, reciprocal, spec)
    p = np.exp2(y / 2**13)
    p /= p.sum(axis=1, keepdims=True)
    error = np.abs(scores / 2**15 - np.take_along_axis(p, topk, 1)).max()
    print(f"maximum error of a gate score {error:.2e}")
    assert error < 5e-5


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((3, 9, 4, 2), "in_lanes must be a power of two, not 3"),
        ((4, 0, 4, 2), "tokens must be at least 1, not 0"),
        ((4, 9, 0, 2), "experts must be at least 1, not 0"),
        ((4, 9, 4, 5), "top_k must be 1..experts, found top_k 5 with 4 experts"),
        ((4, 9, 4, 2, 17), "mantissa_frac [+] guard is 31; a shift of 31 must clear a weight, so at most 30"),
    ],
)
def test_spec_is_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        RouterSpec(*wrong)


def test_top_k_is_checked():
    with pytest.raises(ValueError, match="top_k must be 1..experts, found top_k 3 with 2 experts"):
        route(np.zeros((1, 2)), 3, reciprocal, RouterSpec(4, 1, 2, 2))
