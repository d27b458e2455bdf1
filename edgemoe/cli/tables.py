"""The tables of demo, compare and perf."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgemoe.cli import show

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
