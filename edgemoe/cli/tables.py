"""The tables of demo, compare, perf and synth."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgemoe.cli import show

if TYPE_CHECKING:
    from edgemoe.perf import Prediction

SOURCES = ("truth", "float", "golden", "gateware")


def demo(values: dict[str, Any]) -> RenderableType:
    """The answers to every image, and the summary below them."""
    heads = [
        f">{name if source == SOURCES[0] else ''}\n{source}"
        for name in values["task_names"]
        for source in SOURCES
    ]
    answers = show.table(">\nimage", *heads)
    for result in values["results"]:
        cells = [Text(str(result["image"]), style="dim")]
        for answer in result["answers"]:
            cells += [_digit(answer, source) for source in SOURCES]
        answers.add_row(*cells)
    return Group(answers, Text(), demo_summary(values))


def _digit(answer: dict[str, int], source: str) -> Text:
    """A class: green if the gateware is right, red where a source is wrong, inverted where the gateware is not golden."""
    if source == "truth":
        return Text(str(answer[source]), style="bold")
    style = "green" if answer[source] == answer["truth"] else "red"
    if source == "gateware" and answer["gateware"] != answer["golden"]:
        style = "reverse red"
    return Text(str(answer[source]), style=style)


def demo_summary(values: dict[str, Any]) -> Table:
    """The numbers of a demo."""
    summary = show.table("", "")
    for t, name in enumerate(values["task_names"]):
        summary.add_row(
            f"accuracy of task {name}",
            f"float {show.percent(values['accuracy_float'][t])}, golden {show.percent(values['accuracy_golden'][t])}"
            f" (all {values['accuracy_images']} test images)",
        )
    summary.add_row("cycles per image", show.count(values["cycles_per_image"]))
    macs = values["hardware"]["in_lanes"] * values["hardware"]["out_lanes"]
    summary.add_row("MAC utilisation", f"{show.percent(values['mac_utilisation'])} of {macs} multipliers")
    summary.add_row("external memory", f"{show.size(values['external_bytes_per_image'])} per image")
    summary.add_row("tensors compared", show.count(values["tensors_compared"]))
    wrong = values["mismatches"]
    summary.add_row("mismatches", Text(show.count(wrong), style="bold red" if wrong else "bold green"))
    return summary


def accuracy(rows: list[dict[str, Any]], gateware: dict[str, list[int]] | None) -> Table:
    """Golden machine against reference by tensor, and whether the gateware equals the golden machine.

    Args:
        rows: of `edgemoe.compare.accuracy_report`.
        gateware: ``[elements, mismatches]`` by tensor as the program writes it (a head or an expert at a time).
    """
    heads = ["\ntensor", ">own routes\ndB", ">\nerror", ">same routes\ndB", ">\nerror", ">\nroutes"]
    table = show.table(*heads, *([] if gateware is None else [">gateware\nvalues", ">\ndiffer"]))
    for row in rows:
        cells = [row["tensor"]]
        for suffix in ("", "_forced"):
            db, error = row[f"db{suffix}"], row[f"max_error{suffix}"]
            cells += ["" if db is None else f"{db:.1f}", "" if error is None else f"{error:.2g}"]
        cells.append("" if row["agreement"] is None else f"{row['agreement']:.1%} equal")
        if gateware is not None:
            counts = [c for name, c in gateware.items() if _whole(name) == row["tensor"]]
            elements, differ = sum(c[0] for c in counts), sum(c[1] for c in counts)
            mark = Text(show.count(differ), style="bold red" if differ else "green")
            cells += [show.count(elements), mark] if elements else ["", ""]
        table.add_row(*cells)
    return table


def formats(rows: list[dict[str, Any]]) -> Table:
    """Range and format of every tensor over the calibration images, and its error on the first of them.

    Args:
        rows: of `edgemoe.compare.format_report`.
    """
    table = show.table("\ntensor", ">\nlowest", ">\nhighest", ">fraction\nbits", ">\nheadroom", ">\nclipped",
                       ">same routes\ndB")  # fmt: skip
    for row in rows:
        clipped = f"{row['clipped']:.1e}" if row["clipped"] else ""
        table.add_row(
            row["tensor"], f"{row['low']:.3g}", f"{row['high']:.3g}", str(row["frac"]), f"{row['headroom']:.1f}",
            Text(clipped, style="yellow"), "" if row["db"] is None else f"{row['db']:.1f}",
        )  # fmt: skip
    return table


def _whole(name: str) -> str:
    """``l1_scores_h2`` and ``l1_hidden_e5`` are parts of ``l1_scores`` and ``l1_hidden``."""
    return re.sub(r"_[he]\d+$", "", name)


def perf(found: Prediction) -> Table:
    """Predicted cycles by descriptor, and where they go."""
    table = show.table(">", "descriptor", "writes", ">cycles", ">share", ">bytes", ">multiplying", ">padding",
                       ">weights late", ">operands late", ">other")  # fmt: skip
    for cost in found.descriptors:
        parts = (cost.busy, cost.padding, cost.weights, cost.activations, cost.drain)
        share = show.percent(cost.cycles / found.cycles)
        cells = [show.count(part) if round(part) else "" for part in parts]
        table.add_row(
            str(cost.number),
            cost.op,
            cost.name,
            show.count(cost.cycles),
            share,
            show.count(cost.bytes),
            *cells,
        )
    return table


def resources(values: dict[str, Any]) -> Table:
    """What a design takes of its device."""
    area = show.table("", ">used", ">there", ">share")
    kinds = {"ice40up5k": ("SB_MAC16", "SB_RAM40_4K (4 Kb)"), "xcup": ("DSP48E2", "RAMB18E2 (18 Kb)")}
    dsp, bram = kinds.get(values["target"], ("MULT18X18D", "DP16KD (18 Kb)"))
    names = {"lut": "lookup tables", "ff": "flip-flops", "dsp": dsp, "bram": bram}
    for key, name in names.items():
        used, there = values["resources"][key], values["capacity"][key]
        area.add_row(name, show.count(used), show.count(there), show.percent(used / there))
    return area


def build(values: dict[str, Any]) -> RenderableType:
    """Area of a board's design, its clocks, where its bitstream is and how fast it will be."""
    rest = show.table("", "")
    if values["fits"]:
        count = len(values["seeds"])
        seeds = "1 seed" if count == 1 else f"median of {count} seeds"
        for clock, key in (("core", ""), ("memory", "memory_")):
            reached, wanted = values[f"{key}fmax_mhz"], values[f"{key}target_mhz"]
            style = "bold green" if reached >= wanted else "bold red"
            rest.add_row(
                f"clock of the {clock}", Text(f"{reached:g} MHz ({seeds}), runs at {wanted:g} MHz", style)
            )
        if path := values["critical_path"]:
            rest.add_row("slowest path", Text(f"from {path['from']}"))
            rest.add_row("", Text(f"to {path['to']}"))
            rest.add_row("", f"{path['logic_ns']} ns of logic, {path['routing_ns']} ns of routing")
        rest.add_row("bitstream", Text(values["bitstream"]))
    else:
        rest.add_row("bitstream", Text("none: the design does not fit", style="bold red"))
    return Group(resources(values), Text(), rest)


def synth(values: dict[str, Any]) -> RenderableType:
    """Area of a unit or of the accelerator, its clock and its slowest path."""
    area = resources(values)
    rest = show.table("", "")
    if values["fmax_mhz"] is None:
        rest.add_row("clock", "unknown: synthesis only, not placed and routed")
        return Group(area, Text(), rest)
    count = len(values["seeds"])
    seeds = "1 seed" if count == 1 else f"median of {count} seeds"
    style = "bold green" if values["met"] else "bold red"
    rest.add_row("clock", Text(f"{values['fmax_mhz']} MHz ({seeds}), target {values['target_mhz']:g}", style))
    if path := values["critical_path"]:
        rest.add_row("slowest path", Text(f"from {path['from']}"))
        rest.add_row("", Text(f"to {path['to']}"))
        rest.add_row(
            "",
            f"{path['logic_ns']} ns of logic ({path['levels']} cells on the way), {path['routing_ns']} ns of routing",
        )
    return Group(area, Text(), rest)
