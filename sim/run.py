"""Builds a design, runs a bench on it, and hands its numbers to the table at the end of the session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from harness import SUMMARY

from edgemoe import api
from edgemoe.simulation.cocotb_build import build, run


def simulate(
    module: str, text: str, simulator: str, directory: Path, record_property: Callable, top: str = "top"
) -> None:
    """Run all cocotb tests of a module.

    Raises:
        AssertionError: a test failed, with what it said.
    """
    record_property("bench", module.removeprefix("bench_"))
    record_property("simulator", simulator)
    design = build(text, simulator, api.cache(), top)
    outcomes = run(design, module, directory, {"PYTHONWARNINGS": "error::DeprecationWarning"})
    summary = directory / SUMMARY
    lines = [json.loads(line) for line in summary.read_text().splitlines()] if summary.is_file() else []
    for key in ("cases", "cycles"):
        record_property(key, sum(line[key] for line in lines))
    failed = [outcome for outcome in outcomes if outcome.failure]
    record_property("tests", f"{len(outcomes) - len(failed)} of {len(outcomes)} pass")
    if failed:  # the first in full; the others fail for the same reason more often than not
        others = [f"{outcome.name}: {outcome.failure.splitlines()[0]}" for outcome in failed[1:]]
        raise AssertionError("\n".join([f"{failed[0].name}: {failed[0].failure}", *others]))
