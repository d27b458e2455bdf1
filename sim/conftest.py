"""The table at the end of a session: what ran on which simulator."""

COLUMNS = ("bench", "simulator", "cases", "cycles", "tests")


def pytest_terminal_summary(terminalreporter):
    rows = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            found = dict(getattr(report, "user_properties", ()))
            if "bench" in found:
                rows.append(
                    [*(str(found.get(name, "-")) for name in COLUMNS), f"{report.duration:.1f} s", outcome]
                )
    if not rows:
        return
    table = [[*COLUMNS, "time", "result"], *sorted(rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    terminalreporter.section("simulations")
    for row in table:
        terminalreporter.write_line(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        )
