"""Tables and progress on the terminal: results to stdout, progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


class Tick:
    """Reports a long step: what is being done, and which part of it is done (None: unknown).

    Here every step is one line; `_Live` is for terminals.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, what: str, part: float | None = None) -> None:
        if what not in self.seen:
            self.seen.add(what)
            print(f"{what} ...", file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Where exactly the step is; only on a terminal."""


class _Live(Tick):
    """The same as a bar that is drawn again."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.what: str | None = None
        self.task = TaskID(0)

    def __call__(self, what: str, part: float | None = None) -> None:
        if self.what != what:
            if self.what is not None:
                self.bar.remove_task(self.task)
            self.what = what
            self.task = self.bar.add_task(what, total=None if part is None else 1.0, detail="")
        if part is not None:
            self.bar.update(self.task, total=1.0, completed=part)

    def detail(self, text: str) -> None:
        if self.what is not None:
            self.bar.update(self.task, detail=text)


def console() -> Console:
    """The console of results; wide where the output goes to a file, so that no table is cut."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)


def say(text: str) -> None:
    """A line of prose, with rich's markup; never broken, so that a script can read it."""
    console().print(text, soft_wrap=True)


def table(*columns: str) -> Table:
    """An empty table; columns that start with ``>`` are aligned to the right. Without names no header."""
    made = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(c.strip(">") for c in columns)
    )
    for name in columns:
        right = name.startswith(">")
        made.add_column(
            name.lstrip(">"), justify="right" if right else "left", header_style="dim", no_wrap=True
        )
    return made


def heading(text: str) -> Text:
    """The line above a table."""
    return Text(text, style="bold")


@contextmanager
def progress() -> Iterator[Tick]:
    """A live line on stderr while a verb works; plain lines where stderr is no terminal."""
    out = Console(file=sys.stderr, highlight=False)
    if not out.is_terminal:
        yield Tick()
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim"), console=out, transient=True,
    ) as bar:  # fmt: skip
        yield _Live(bar)


def count(value: float) -> str:
    """An integer with thousands separators."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes as B, kB or MB."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:,.1f} {unit}"
    return f"{value:,.0f} B"


def percent(part: float) -> str:
    """A fraction as per cent."""
    return f"{part:.1%}"
