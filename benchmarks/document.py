"""Markdown: tables and sections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; columns whose heads start with ``>`` are aligned to the right."""
    lines = [
        "| " + " | ".join(h.lstrip(">") for h in head) + " |",
        "|" + "|".join("--:" if h.startswith(">") else "---" for h in head) + "|",
    ]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def section(title: str, *parts: str) -> str:
    """A heading and its paragraphs and tables."""
    return "\n\n".join([f"## {title}", *(part.strip("\n") for part in parts)])


def count(value: float) -> str:
    """Thousands separated."""
    return f"{value:,.0f}"


def percent(value: float, digits: int = 1) -> str:
    """A fraction as per cent, without the sign."""
    return f"{100 * value:.{digits}f}"


def megabytes(value: float) -> str:
    """Bytes in MB."""
    return f"{value / 1e6:.2f}"
