"""Router in cocotb: jobs one after the other; the bench answers its requests for codes and for reciprocals."""

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly
from harness import examples, many
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench import STALLS
from edgemoe.units.router import Router, RouterSpec, cycles, queues, route
from units.test_router import KINDS, codes_of, reciprocal

SPEC = RouterSpec(in_lanes=4, tokens=5, experts=7, top_k=3)
VALID = SPEC.decision["valid"].offset


def component() -> Router:
    return Router(SPEC)


@st.composite
def job(draw):
    """Codes (tokens x experts) and top_k."""
    tokens, experts = draw(st.integers(1, SPEC.tokens)), draw(st.integers(1, SPEC.experts))
    top_k = draw(st.integers(1, min(experts, SPEC.top_k)))
    kind = draw(st.sampled_from([*KINDS, "drawn"]))
    if kind == "drawn":
        elements = st.integers(-(1 << 21), (1 << 21) - 1) | st.integers(-3, 3).map(lambda n: n << 14)
        return draw(arrays(np.int64, (tokens, experts), elements=elements)), top_k
    return codes_of(np.random.default_rng(draw(st.integers(0, 99))), tokens, experts, kind), top_k


async def results(driver):
    """What the router holds after a job: visits, and entries of the queues."""
    visits, entries = [], []
    for n in range(driver.get("visits")):
        reader = n % driver.component.readers
        driver.set(**{f"visit_index_{reader}": n})
        await ReadOnly()
        visits.append(tuple(driver.get(f"visit_{reader}").values()))
        await driver.falling()
    for n in range(sum(count for _, _, count in visits)):
        driver.set(entry_index=n, entry_en=1)
        await driver.falling()
        entries.append(tuple(driver.get("entry").values()))
    return visits, entries


@cocotb.test()
@cocotb.parametrize(stall=STALLS)
async def equals_golden(dut, stall):
    async def check(driver, jobs, gaps):
        for codes, top_k in jobs:
            tokens, experts = codes.shape
            chosen, ends = [], []

            def word(request, codes=codes):
                part = codes[request["row"], request["word"] * SPEC.in_lanes :][: SPEC.in_lanes].tolist()
                return {"code": part + [(1 << 21) - 1] * (SPEC.in_lanes - len(part))}

            def quotient(request):
                r, position = reciprocal(request["d"])
                return {"multiplier": int(r), "position": int(position)}

            def watch(now, chosen=chosen, ends=ends):
                if driver.handle.chosen.value[VALID] == 1:  # the other fields are undefined until then
                    chosen.append(driver.get("chosen"))
                ends += [now] if driver.get("done") else []
                return bool(ends)

            work = {"tokens": tokens, "experts": experts, "top_k": top_k}
            answers = {"request": ("response", word), "divide": ("quotient", quotient)}
            result = await driver.run({"job": [work]}, {}, gaps, answers=answers, watch=watch)
            topk, scores = route(codes, top_k, reciprocal, SPEC)
            visits, token, score = queues(topk, scores, experts)
            assert chosen == [
                {"valid": 1, "token": t, "rank": j, "expert": topk[t, j], "score": scores[t, j]}
                for t in range(tokens)
                for j in range(top_k)
            ]
            expected = (
                list(map(tuple, visits.tolist())),
                list(zip(token.tolist(), score.tolist(), strict=True)),
            )
            assert await results(driver) == expected
            assert len(ends) == 1
            if stall == "none":
                assert ends[0] - result.cycles_in["job"][0] + 1 == cycles(SPEC, tokens, experts, top_k, 1, 1)

    await examples(dut, component(), stall, many(job(), 3), check)
