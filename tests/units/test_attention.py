"""The reorder unit: order and contents of all beats, steps by formula, bandwidth that does not grow."""

import numpy as np
import pytest

from bench import STALLS, run
from edgemoe.numeric import ceil_div
from edgemoe.units.attention import ReorderSpec, ReorderUnit, cycles, schedule, steps

JOBS = [(5, 9, 3), (1, 4, 2), (3, 8, 1), (2, 3, 4), (6, 17, 2)]


def spec_for(slots: int, sets: int, fill_rows: int = 1, interval: int = 1) -> ReorderSpec:
    return ReorderSpec(8, slots, 8, slot_words=4, slot_sets=sets, fill_rows=fill_rows, interval=interval)


def stimulus(spec: ReorderSpec, jobs, seed=0, single=()):
    """Rows of B per job, and what goes into the ports: fills in row groups, A numbered by job and token."""
    rng = np.random.default_rng(seed)
    rows_of, fills, fill_jobs, stream, a_jobs = [], [], [], [], []
    for number, (tokens, rows, words) in enumerate(jobs):
        b = rng.integers(-128, 128, (ceil_div(rows, spec.fill_rows) * spec.fill_rows, words, 8))
        rows_of.append(b)
        alone = number in single
        group = 1 if alone else spec.fill_rows
        for first in range(0, rows, group):
            for w in range(words):
                together = [b[first + r if r < group else first, w].tolist() for r in range(spec.fill_rows)]
                fills.append({"b": together})
        fill_jobs.append({"words": words, "rows": rows, "single": int(alone)})
        a_jobs.append(
            {"count": tokens, "words": words, "rows": rows, "half": words // 2 if number == 3 else 0}
        )
        for token, _ in schedule(spec, tokens, rows):
            stream += [
                {"a": [number, token, w, 0, 0, 0, 0, 0], "tag": number * 16 + token} for w in range(words)
            ]
    return rows_of, {"job": a_jobs, "fill_job": fill_jobs, "fill": fills, "a": stream}


def check(spec: ReorderSpec, jobs, rows_of, beats):
    """Every beat carries the token, word and rows that the golden schedule says."""
    position, blocks_before, sets = 0, 0, 1 << spec.set_bits
    for number, (tokens, rows, words) in enumerate(jobs):
        order = list(schedule(spec, tokens, rows))
        for at, (token, held) in enumerate(order):
            for w in range(words):
                beat = beats[position]
                position += 1
                assert beat["a"][:3] == [number, token, w]
                assert (beat["first"], beat["last"]) == (int(w == 0), int(w == words - 1))
                assert beat["shift"] == int(number == 3 and w == words // 2)
                for slot, row in enumerate(held):
                    if row is not None:
                        assert beat["b"][slot] == rows_of[number][row, w].tolist(), (number, token, w, slot)
            tag = beat["tag"]
            for slot, row in enumerate(held):
                newest = slot <= tag["boundary"]
                exists = tag["new"] if newest else tag["old"]
                block = tag["block"] - (0 if newest else 1)
                if row is not None:
                    assert exists and block * spec.out_lanes + slot == row
                    wanted = (blocks_before + block) % sets
                    assert (tag["set"] - (0 if newest else 1)) % sets == wanted
                elif exists:
                    assert block * spec.out_lanes + slot >= rows
            assert tag["token"] == number * 16 + token
            assert tag["end"] == int(at == len(order) - 1)
        blocks_before += ceil_div(rows, spec.out_lanes)
    assert position == len(beats)


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(
    ("slots", "sets", "fill_rows", "interval"),
    [
        (4, 1, 1, 1),
        (4, 2, 1, 1),
        (4, 2, 2, 3),
        (1, 1, 1, 1),
        (1, 2, 1, 1),
        (8, 1, 1, 2),
        (2, 1, 1, 1),
        (8, 2, 4, 1),
        (4, 3, 2, 1),
        (2, 6, 1, 2),
        (1, 14, 1, 1),
    ],
)
def test_beats_follow_the_schedule(slots, sets, fill_rows, interval, stall):
    spec = spec_for(slots, sets, fill_rows, interval)
    rows_of, sources = stimulus(spec, JOBS, single=(1, 4))
    result = run(ReorderUnit(spec, tag=8), sources, {"o": len(sources["a"])}, stall=stall, seed=slots)
    check(spec, JOBS, rows_of, result.values["o"])


@pytest.mark.parametrize("sets", [1, 2, 5])
@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16])
def test_steps_and_bandwidth(slots, sets):
    """Steps are the formula; one word of A per beat and one row of B per step, for any number of slots."""
    spec = spec_for(slots, sets)
    tokens, rows, words = 20, 33, 4
    unit = ReorderUnit(spec, tag=8)
    _, sources = stimulus(spec, [(tokens, rows, words)])
    count = {"steps": 0}

    async def counter(ctx):
        async for _, _, step in ctx.tick().sample(unit.step):
            count["steps"] += step

    result = run(unit, sources, {"o": len(sources["a"])}, processes=[counter])
    assert count["steps"] == steps(spec, tokens, rows)
    blocks = ceil_div(rows, slots)
    assert steps(spec, tokens, rows) == (
        blocks * max(tokens, slots) + slots - 1 if sets == 1 else blocks * tokens
    )
    first, last = result.cycles_out["o"][0], result.cycles_out["o"][-1]
    assert last - first + 1 == cycles(spec, tokens, rows, words)
    reads_of_a = len(result.cycles_in["a"]) / (last - first + 1)
    assert reads_of_a == 1  # one word of A per cycle however many slots use it
    inside = [c for c in result.cycles_in["fill"] if first <= c <= last]
    assert len(inside) <= last - first + 1
    for start in inside:  # never more than one row of words per step
        assert sum(start <= c < start + words for c in inside) <= words


def test_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match=r"slot_sets must be 1\.\.14, found 15"):
        spec_for(4, 15)
    with pytest.raises(ValueError, match="fill_rows must be 1 with slot_sets = 1, found 2"):
        spec_for(4, 1, 2)
    with pytest.raises(ValueError, match="fill_rows 8 must divide out_lanes 4"):
        spec_for(4, 2, 8)
