"""The behavioural SDRAM notices every broken rule, and only those: scripts of commands, legal and one cycle short."""

import subprocess
from functools import cache
from pathlib import Path

import pytest

from edgemoe.simulation.cocotb_build import missing
from edgemoe.simulation.sdram import model_source
from periph.memory_bench import HERE, compile_verilog

INHIBIT, NOP, ACTIVATE, READ, WRITE, STOP, PRECHARGE, REFRESH, MODE = 15, 7, 3, 5, 4, 6, 2, 1, 0
ALL = 1 << 10
POWER_UP, INTERVAL, RFC, ROWS = 100, 100, 7, 64
SCRIPT = HERE / "script.v"


@cache
def executable() -> Path:
    return compile_verilog(SCRIPT.read_text() + model_source(), HERE / "clock.cpp")


@cache
def icarus(directory: Path) -> Path:
    path = directory / "script.vvp"
    (directory / "top.v").write_text(SCRIPT.read_text() + model_source())
    subprocess.run(["iverilog", "-g2012", "-s", "top", "-o", path, directory / "top.v"], check=True)
    return path


def line(command=NOP, ba=0, a=0, dqm=0, oe=0, dq=0, cke=1):
    return f"{cke:x} {command:x} {ba:x} {a:x} {dqm:x} {oe:x} {dq:x}\n"


def wait(cycles):
    return line() * cycles


def activate(bank=0, row=0):
    return line(ACTIVATE, bank, row)


def precharge(bank=0, a=0):
    return line(PRECHARGE, bank, a)


def read(bank=0, column=0):
    return line(READ, bank, column)


def write(*data, bank=0, column=0):
    first, *others = data
    return line(WRITE, bank, column, oe=1, dq=first) + "".join(line(oe=1, dq=word) for word in others)


def refresh():
    return line(REFRESH)


def initialise(power_up=POWER_UP, closes=True, refreshes=2, mode=0x31, wait_mode=1):
    """Bursts of 2 columns, CAS latency 3."""
    text = line(INHIBIT, dqm=3) * power_up
    text += precharge(a=ALL) + wait(1) if closes else ""
    text += (refresh() + wait(RFC - 1)) * refreshes
    return text + (line(MODE, a=mode) + wait(wait_mode) if mode is not None else "")


def run(script, directory, simulator="verilator"):
    """The names of the violations in their order, and the data that the memory drove (None: never written)."""
    path = directory / "script.txt"
    path.write_text(script)
    if simulator == "verilator":
        command = [executable()]
    else:
        command = ["vvp", icarus(directory)]
    done = subprocess.run(
        [*command, f"+script={path}"], cwd=directory, text=True, capture_output=True, check=True
    )
    lines = done.stdout.splitlines()
    names = [text.split(": ")[2] for text in lines if text.startswith("sdram:")]
    assert f"violations {len(names)}" in lines
    data = [text.split()[1] for text in lines if text.startswith("data")]
    return names, [None if "x" in text else int(text, 16) for text in data]


START = initialise()
OPEN = START + activate() + wait(2)

# name: what breaks the rule in its last steps, and the same with one more cycle or a command more.
TIMES = {
    "tRCD": lambda gap: START + activate() + wait(gap) + read(),
    "tRP": lambda gap: OPEN + wait(9) + precharge() + wait(gap) + activate(),
    "tRAS": lambda gap: START + activate() + wait(gap) + precharge(),
    "tRC": lambda gap: START + activate() + wait(4) + precharge() + wait(gap) + activate(row=1),
    "tRRD": lambda gap: START + activate() + wait(gap) + activate(1),
    "tRFC": lambda gap: START + refresh() + wait(gap) + activate(),
    "tWR": lambda gap: OPEN + wait(9) + write(1, 2) + wait(gap) + precharge(),
    "tMRD": lambda gap: initialise(wait_mode=gap) + activate(),
    "power-up": lambda gap: initialise(power_up=gap) + activate(),
    "turnaround": lambda gap: OPEN + read() + wait(3 + gap) + write(1, 2),
}
ENOUGH = {"tRCD": 2, "tRP": 1, "tRAS": 4, "tRC": 2, "tRRD": 1, "tRFC": 6, "tWR": 1, "tMRD": 1,
          "power-up": 98, "turnaround": 2}  # fmt: skip

STATES = {
    "initialisation": [
        initialise(closes=False) + activate(),
        initialise(refreshes=1) + activate(),
        initialise(mode=None) + activate(),
    ],
    "open-row": [OPEN + wait(9) + activate()],
    "closed-row": [
        START + read(),
        OPEN + read(bank=1),
        OPEN + wait(9) + precharge() + wait(9) + write(1, 2),
        OPEN + wait(9) + precharge(3, ALL) + wait(9) + read(),
    ],
    "open-banks": [OPEN + wait(9) + refresh(), OPEN + wait(9) + line(MODE, a=0x31)],
    "cut-read": [OPEN + wait(9) + read() + precharge()],
    "contention": [OPEN + read() + wait(2) + write(1)],
    "undriven": [OPEN + line(WRITE)],
    "auto-precharge": [OPEN + read(column=ALL)],
    "mode": [initialise(mode=0x11), initialise(mode=0x37), initialise(mode=0x39)],
    "cke": [START + line(ACTIVATE, cke=0)],
    "tREFI": [START + wait(3 * INTERVAL + 2), START + (refresh() + wait(RFC)) * 9 + wait(3 * INTERVAL)],
    "tREF": [START + (refresh() + wait(INTERVAL)) * (ROWS + 2)],
}
LEGAL = {
    "nothing": START,
    "conflict": OPEN + read() + wait(9) + precharge() + wait(1) + activate(row=1) + wait(2) + write(1, 2) + wait(1) + precharge(),
    "four banks": START + "".join(activate(b) + wait(1) for b in range(4)) + wait(9) + precharge(a=ALL) + wait(1) + refresh(),
    "regular refresh": START + (refresh() + wait(INTERVAL - 2)) * (2 * ROWS),
    "late refresh": START + wait(2 * INTERVAL + 90) + (refresh() + wait(INTERVAL - 1)) * 9,
    "interrupted": OPEN + read() + read(column=8) + wait(6) + write(1) + write(2, 3, column=7),
    "masked": OPEN + line(WRITE, dqm=3) + line(dqm=3) + wait(9),
}  # fmt: skip


@pytest.fixture(params=["verilator", "icarus"])
def simulator(request):
    if request.param == "icarus" and missing("icarus"):
        pytest.skip(missing("icarus"))
    return request.param


@pytest.mark.parametrize("rule", TIMES)
def test_a_cycle_too_early_is_noticed(rule, simulator, tmp_path):
    assert run(TIMES[rule](ENOUGH[rule]), tmp_path, simulator)[0] == []
    assert run(TIMES[rule](ENOUGH[rule] - 1), tmp_path, simulator)[0] == [rule]


@pytest.mark.parametrize("rule", STATES)
def test_a_wrong_command_is_noticed(rule, simulator, tmp_path):
    for script in STATES[rule]:
        names = run(script, tmp_path, simulator)[0]
        assert set(names) == {rule}, names


def test_a_clock_too_fast_for_the_latency(tmp_path):
    script = initialise(mode=0x21)
    assert run(script, tmp_path)[0] == []
    (tmp_path / "script.txt").write_text(script)
    command = [executable(), f"+script={tmp_path / 'script.txt'}", "+sdram_clock_ps=9000"]
    text = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert "tCK" in text


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_allowed_is_no_violation(name, simulator, tmp_path):
    assert run(LEGAL[name], tmp_path, simulator)[0] == []


@pytest.mark.parametrize(("mode", "latency"), [(0x21, 2), (0x31, 3), (0x32, 3), (0x33, 3)])
def test_data_come_after_the_cas_latency_and_wrap_in_their_block(mode, latency, simulator, tmp_path):
    length = 1 << (mode & 7)
    data = [0x1000 + i for i in range(length)]
    start = length + 1  # the second column of a block
    script = initialise(mode=mode) + activate(2, 5) + wait(2) + write(*data, bank=2, column=start) + wait(1)
    script += read(2, start) + wait(latency + length + 2)
    names, got = run(script, tmp_path, simulator)
    assert names == [] and got == data
    early = script[: script.rindex(line(READ, 2, start))] + read(2, start) + wait(latency - 1)
    assert run(early, tmp_path, simulator)[1] == []
    assert run(early + line(), tmp_path, simulator)[1] == data[:1]
    block = initialise(mode=mode) + activate(2, 5) + wait(2) + write(*data, bank=2, column=start) + wait(1)
    block += read(2, length) + wait(latency + length + 2)
    assert run(block, tmp_path, simulator)[1] == data[-1:] + data[:-1]


def test_masked_bytes_stay(simulator, tmp_path):
    script = initialise(mode=0x30) + activate() + wait(2) + write(0x1234)
    script += line(WRITE, dqm=1, oe=1, dq=0xABCD) + read() + wait(9)
    assert run(script, tmp_path, simulator) == ([], [0xAB34])
