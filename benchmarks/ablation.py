"""The techniques, each one off where that is possible: as a run of the cycle model, or as a formula over descriptors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.document import count, megabytes, section, table
from benchmarks.workload import BASE, Workload, zeros
from edgemoe import perf
from edgemoe.compile import compile_model
from edgemoe.config import NAMED
from edgemoe.isa import DESCRIPTOR_BYTES, Source, Wait
from edgemoe.program import Program
from edgemoe.units.gelu import GeluSpec

MODEL, FORMULA = "model", "formula"


def measure(work: Workload) -> dict[str, Any]:
    """Cycles and bytes with everything on, and with one thing off."""
    program, routes = work.program(BASE), work.routes[work.first]
    base = perf.predict(program, routes)
    rows = [
        _row("everything on", MODEL, "", base.cycles, base.external_bytes),
        *_attention(program, base),
        _softmax(program, base),
        _gelu(base),
        _separate_arrays(work, base),
        _token_by_token(program),
        *_loading(work, program, routes, base),
        _layer_norm(program, routes),
        _wide_weights(work, routes),
    ]
    return {"hardware": BASE, "routing": work.first, "rows": rows}


def _row(off: str, by: str, how: str, cycles: float, external_bytes: float) -> dict[str, Any]:
    return {"off": off, "by": by, "how": how, "cycles": round(cycles), "external_bytes": external_bytes}


def _attention(program: Program, base: perf.Prediction) -> list[dict[str, Any]]:
    """Technique 1, in two steps: no overlap of filling, and no reuse at all."""
    slots = program.hardware.out_lanes
    products = [d for d in program.descriptors() if d.source in (Source.KEYS, Source.VALUES)]
    filling = sum(d.rows * d.words for d in products)
    beats = sum(math.ceil(d.rows / slots) * d.count * d.words for d in products)
    alone = sum(d.rows * d.count * d.words for d in products)
    return [
        _row(
            "1 attention reordering: filling stalls", FORMULA,
            "the array waits while rows of K and V are filled: + rows x words of every QK and AV",
            base.cycles + filling, base.external_bytes,
        ),
        _row(
            "1 attention reordering: no reuse", FORMULA,
            "each query reads all of K and V for itself, so one slot works: queries x rows x words of every QK and AV",
            base.cycles - beats + alone, base.external_bytes,
        ),
    ]  # fmt: skip


def _softmax(program: Program, base: perf.Prediction) -> dict[str, Any]:
    """Technique 2: the maximum and the sum each read the row again."""
    passes = sum(2 * d.count * d.words for d in program.descriptors() if d.weigh)
    return _row(
        "2 single-pass softmax: three passes", FORMULA,
        "each row of scores is read twice more, for its maximum and its sum, a word per cycle: + 2 x queries x words of every AV",
        base.cycles + passes, base.external_bytes,
    )  # fmt: skip


def _gelu(base: perf.Prediction) -> dict[str, Any]:
    """Technique 3 costs area, not cycles."""
    spec = GeluSpec()
    segments = round(spec.end * 2**spec.step_bits)
    wider = math.ceil(math.log2(spec.end / 0.17))
    return _row(
        "3 GELU as a corrected ReLU", FORMULA,
        f"no cycles: a table of GELU itself with the same step has {2 * segments} segments, not {segments} (delta is even), of values "
        f"{wider} bits wider (up to {spec.end}, not 0.17)",
        base.cycles, base.external_bytes,
    )  # fmt: skip


def _separate_arrays(work: Workload, base: perf.Prediction) -> dict[str, Any]:
    """Technique 4: two arrays, of which one waits for the other."""
    macs = work.model.config.macs()
    attention = macs["QK"] + macs["AV"]
    linear = sum(macs.values()) - attention
    factor = (math.sqrt(linear) + math.sqrt(attention)) ** 2 / (linear + attention)
    return _row(
        "4 shared unit: an array for attention, one for the rest", FORMULA,
        "the same multipliers in their best split, one array after the other: x (sqrt L + sqrt A)^2 / (L + A), "
        f"L = {linear / 1e6:.1f} M, A = {attention / 1e6:.1f} M multiply-accumulates",
        base.cycles * factor, base.external_bytes,
    )  # fmt: skip


def _token_by_token(program: Program) -> dict[str, Any]:
    """Technique 5: an expert's weights are loaded for every token that visits it."""
    visits = {
        n: np.ones(d.count * program.model.top_k, np.int64)
        for n, d in enumerate(program.descriptors()) if d.routed
    }  # fmt: skip
    found = perf.predict_visits(program, [visits])
    return _row(
        "5 expert by expert: token by token", MODEL, "a visit, and a load of the weights, for every token and expert",
        found.cycles, found.external_bytes,
    )  # fmt: skip


def _loading(work: Workload, program: Program, routes, base: perf.Prediction) -> list[dict[str, Any]]:
    """Weights that are not loaded ahead, and slots that are not double."""
    port = program.hardware.port_bytes
    serial = sum(c.cycles - c.weights + c.bytes / port for c in base.descriptors)
    single = perf.predict(work.program(BASE, slot_sets=1), routes)
    return [
        _row(
            "loading of weights ahead", FORMULA,
            "nothing is loaded while the array works: the sum over descriptors of cycles - waiting for weights + bytes / port",
            serial, base.external_bytes,
        ),
        _row(
            "second slot set (the paper's staircase)", MODEL, "hardware with slot_sets = 1",
            single.cycles, single.external_bytes,
        ),
    ]  # fmt: skip


def _layer_norm(program: Program, routes: perf.Routes) -> dict[str, Any]:
    """Phases that wait for whole tensors, not for rows."""
    memory = bytearray(program.memory)
    for number, d in enumerate(program.descriptors()):
        if d.wait == Wait.ROWS:
            at = number * DESCRIPTOR_BYTES
            memory[at : at + DESCRIPTOR_BYTES] = replace(d, wait=Wait.ALL).pack()
    found = perf.predict(replace(program, memory=bytes(memory)), routes)
    return _row(
        "phases that follow row by row", MODEL,
        "the same program with wait ALL for ROWS: LayerNorm, AV and what reads them wait for the whole tensor",
        found.cycles, found.external_bytes,
    )  # fmt: skip


def _wide_weights(work: Workload, routes: perf.Routes) -> dict[str, Any]:
    """The profile w16a16 on the same port."""
    hardware = replace(NAMED[BASE], profile="w16a16", acc_bits=0)
    found = perf.predict(compile_model(zeros(work.model.config, "w16a16"), hardware), routes)
    return _row(
        "8-bit weights", MODEL, "profile w16a16, same port", found.cycles, found.external_bytes
    )  # fmt: skip


def section_text(values: dict[str, Any]) -> str:
    """The table, relative to everything on."""
    base = values["rows"][0]["cycles"]
    lines = [
        [
            r["off"], count(r["cycles"]), f"{r['cycles'] / base:.3f}", megabytes(r["external_bytes"]),
            f"{r['by']}{': ' if r['how'] else ''}{r['how']}",
        ]
        for r in values["rows"]
    ]  # fmt: skip
    return section(
        "What each technique buys",
        f"`{values['hardware']}`, routing: {values['routing']}. Numbers are those of the paper's five techniques. None of these "
        "machines is built: *model* is the event model of this one with a change that it can express; *formula* adds or removes the "
        "stated work and hides nothing behind anything else, so it is an upper bound of the loss.",
        table(("off", ">cycles", ">factor", ">external MB", "measured by"), lines),
    )
