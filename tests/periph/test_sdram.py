"""`SdramController` on the behavioural SDRAM: equal to the golden memory, no rule broken, and as fast as stated."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench import STALLS
from edgemoe.errors import BadInput
from edgemoe.periph.sdram import DEVICES, SdramSpec, check_port, cycles, locate, serve
from edgemoe.simulation.sdram import SdramSystem, model_parameters
from periph.memory_bench import DATA, REQUEST, WRITE, build, run

SHORT = replace(DEVICES["ulx3s"], name="short", row_bits=6, refresh_ms=0.5, power_up_us=2)
"""Few rows: the time in which all of them are refreshed can be simulated, the initialisation is short."""
SYSTEMS = {
    "2": (SdramSpec(SHORT, 133, 3), 2),
    "4": (SdramSpec(replace(DEVICES["mt48lc16m16a2-7e"], power_up_us=2), 143, 3, round_trip=1), 4),
    "32": (SdramSpec(DEVICES["ulx3s"], 133, 3), 32),
    "64": (SdramSpec(replace(DEVICES["is42s16160g-7"], power_up_us=2), 50, 2, round_trip=2), 64),
}
BURST = 64


@cache
def executable(name: str) -> Path:
    return build(SdramSystem(*SYSTEMS[name]))


def simulate(name: str, directory: Path, **others):
    return run(executable(name), SYSTEMS[name][1], directory, **others)


def contents(directory: Path, size: int, rng: random.Random) -> tuple[np.ndarray, Path]:
    """Random columns at the start of the memory, as an array and as a file for the model."""
    memory = np.zeros(size, np.uint16)
    memory[: 1 << 14] = np.frombuffer(rng.randbytes(2 << 14), "<u2")
    path = directory / "load.hex"
    path.write_text("\n".join(f"{value:04x}" for value in memory[: 1 << 14]) + "\n")
    return memory, path


def replay(result, requests, writes) -> list[tuple]:
    """Operations in the order in which the port accepted them."""
    asked, stored = iter(requests), iter(writes)
    operations = []
    for kind in result.kind:
        if kind == REQUEST:
            operations.append(("read", *next(asked)[1:]))
        elif kind == WRITE:
            operations.append(("write", *next(stored)[1:]))
    both = np.concatenate([result.cycles(REQUEST), result.cycles(WRITE)])
    assert len(set(both)) == len(both), "two operations accepted in one cycle have no order"
    return operations


def check(name: str, directory: Path, requests, writes, gaps=(0,), seed=0):
    """Run, and compare every word read and every column left behind with the golden memory."""
    spec, port_bytes = SYSTEMS[name]
    memory, path = contents(directory, spec.device.bytes // 2, random.Random(seed))
    dump = directory / "dump.hex"
    result = simulate(
        name, directory, requests=requests, writes=writes, gaps=gaps, load=path, dump=dump, dump_last=(1 << 14) - 1
    )  # fmt: skip
    assert result.messages == [] and result.violations == 0
    assert result.words == serve(memory, replay(result, requests, writes), port_bytes)
    left = [int(text, 16) for text in dump.read_text().split() if not text.startswith(("/", "@"))]
    assert left == memory[: 1 << 14].tolist()
    return result


# -- equality -----------------------------------------------------------------------------------


def addresses(rng, spec, port_bytes):
    """Port words in few lines: the same rows and banks again and again, and often across the end of a line."""
    line = 1024 // port_bytes
    lines = [*range(6), 8, 12, -1]
    while True:
        at = rng.choice(lines) * line + rng.choice(
            [0, rng.randrange(line), line - 1 - rng.randrange(min(4, line))]
        )
        yield at % (spec.device.bytes // port_bytes)


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_reads_and_writes_equal_the_golden_memory(name, stall, tmp_path):
    spec, port_bytes = SYSTEMS[name]
    rng = random.Random(STALLS.index(stall))
    address = addresses(rng, spec, port_bytes)

    def gap():
        return rng.choice([0, 0, 1, 2, 5, rng.randrange(80)]) if stall in ("source", "both") else 0

    def spread():  # else all writes would go first
        return rng.choice([0, 0, 0, rng.randrange(600)])

    lengths = [1, 1, 2, 3, BURST - 1, BURST]
    requests = [
        (gap(), next(address), rng.choice([rng.choice(lengths), rng.randint(1, BURST)])) for _ in range(250)
    ]
    writes = [(gap() + spread(), next(address), rng.getrandbits(8 * port_bytes)) for _ in range(500)]
    gaps = [0]
    if stall in ("sink", "both"):
        gaps = [rng.choice([0, 0, 1, 3, rng.randrange(40)]) for _ in range(997)]
        gaps[500] = 3000  # longer than a refresh waits
    check(name, tmp_path, requests, writes, gaps, seed=STALLS.index(stall))


@pytest.mark.parametrize("name", ["2", "32"])
def test_addresses_wrap_at_the_size_of_the_chip(name, tmp_path):
    spec, port_bytes = SYSTEMS[name]
    words = spec.device.bytes // port_bytes
    result = check(name, tmp_path, [(99, words - 3, 6), (0, words + 5, 1)], [(0, words + 1, 0x1234)])
    assert result.words[4] == 0x1234


def test_columns_banks_and_rows():
    device = DEVICES["ulx3s"]
    assert locate(0, 32, device) == (0, 0, 0)
    assert locate(33, 32, device) == (0, 1, 16)
    assert locate(4 * 32 + 1, 32, device) == (1, 0, 16)
    assert locate(device.bytes // 32 + 1, 32, device) == (0, 0, 16)
    order = [locate(at, 2, SHORT) for at in range(SHORT.bytes // 2)]
    assert order == sorted(order) and len(set(order)) == len(order)


# -- refresh ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", ["none", "sink"])
def test_no_refresh_is_late_under_continuous_traffic(stall, tmp_path):
    """The chip's 64 rows three times over; the model holds every row's time and every interval's."""
    spec, port_bytes = SYSTEMS["2"]
    amount = 3 * (1 << spec.device.row_bits) * spec.refresh_period * 2 // port_bytes
    if stall == "sink":
        amount //= 4
    requests = [(0, at, BURST) for at in range(0, amount, BURST)]
    gaps = [0] * 64 + [400] if stall == "sink" else [0]
    result = simulate("2", tmp_path, requests=requests, gaps=gaps)
    assert result.messages == [] and result.violations == 0
    assert result.cycle[-1] > 3 * (1 << spec.device.row_bits) * spec.refresh_period


def test_a_row_waits_for_less_than_the_refresh_time():
    for spec, _ in SYSTEMS.values():
        rows = 1 << spec.device.row_bits
        assert rows * spec.refresh_period + 64 <= spec.device.refresh_ms * 1000 * spec.clock_mhz


# -- speed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [BURST, 32, 8])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_linear_read_stream_has_97_per_cent_of_the_peak(name, words, tmp_path):
    spec, port_bytes = SYSTEMS[name]
    total = (1 << 17) // port_bytes
    result = simulate(name, tmp_path, requests=[(0, at, words) for at in range(0, total, words)])
    cycle = result.cycles(DATA)
    assert result.violations == 0 and cycle[-1] - cycle[0] > 10 * spec.refresh_period
    rate = (total - 1) * port_bytes / 2 / (cycle[-1] - cycle[0])
    print(f"{port_bytes} bytes, bursts of {words}: {rate:.4f} of the peak")
    assert rate >= 0.97


@pytest.mark.parametrize(("name", "least"), [("2", 0.48), ("4", 0.97), ("32", 0.97), ("64", 0.97)])
def test_a_linear_upload(name, least, tmp_path):
    _, port_bytes = SYSTEMS[name]
    total = (1 << 16) // port_bytes
    result = simulate(name, tmp_path, writes=[(0, at, at) for at in range(total)])
    cycle = result.cycles(WRITE)[8:]  # the first ones wait for the initialisation
    rate = (total - 9) * port_bytes / 2 / (cycle[-1] - cycle[0])
    print(f"{port_bytes} bytes, writes: {rate:.4f} of the peak")
    assert result.violations == 0 and rate >= least


def quiet_start(spec) -> int:
    """A cycle after the initialisation and shortly behind a refresh."""
    return (spec.power_up_ticks + 2) * spec.refresh_period + 80


@pytest.mark.parametrize("bursts", [
    [(0, 1)], [(5, 7)], [(0, 64)], [(500, 64)], [(0, 1), (1, 1), (2, 1), (9, 1)],
    [(0, 2), (2048, 2), (4096, 2)], [(0, 1), (512, 1), (1024, 3), (1536, 1), (2048, 1)],
    [(0, 16), (16, 16), (32, 1), (33, 31)], [(511, 3), (514, 3), (1023, 9)],
])  # fmt: skip
@pytest.mark.parametrize("name", SYSTEMS)
def test_cycles(name, bursts, tmp_path):
    """Addresses are columns here, so that all ports see the same rows and banks."""
    spec, port_bytes = SYSTEMS[name]
    bursts = [(address * 2 // port_bytes, max(1, words * 2 // port_bytes)) for address, words in bursts]
    requests = [(quiet_start(spec) if i == 0 else 0, *burst) for i, burst in enumerate(bursts)]
    result = simulate(name, tmp_path, requests=requests)
    assert result.cycles(DATA)[-1] - result.cycles(REQUEST)[0] + 1 == cycles(bursts, spec, port_bytes)


@pytest.mark.parametrize("name", SYSTEMS)
def test_cycles_with_refreshes(name, tmp_path):
    spec, port_bytes = SYSTEMS[name]
    bursts = [(at, BURST) for at in range(0, (1 << 17) // port_bytes, BURST)]
    requests = [(quiet_start(spec) if i == 0 else 0, *burst) for i, burst in enumerate(bursts)]
    result = simulate(name, tmp_path, requests=requests)
    measured = result.cycles(DATA)[-1] - result.cycles(REQUEST)[0] + 1
    refreshes = measured // spec.refresh_period
    extra = measured - cycles(bursts, spec, port_bytes)
    assert (refreshes - 1) * (spec.refresh_cycles - 1) <= extra <= (refreshes + 1) * (spec.refresh_cycles + 1)


# -- rules --------------------------------------------------------------------------------------

HELD = {"tRCD": "t_rcd", "tRP": "t_rp", "tRAS": "t_ras", "tRC": "t_rc", "tRFC": "t_rfc", "tWR": "t_wr"}


def conflicts(port_bytes):
    """Reads and writes of single words that all open another row of the same bank."""
    step = 4 * 1024 // port_bytes
    reads = [(0, (i % 7) * step, 1) for i in range(60)]
    return reads, [(40 * (i % 2), (i % 5) * step, i) for i in range(60)]


@pytest.mark.parametrize("rule", HELD)
def test_the_chip_of_the_bench_notices_a_time_that_is_too_short(rule, tmp_path):
    """Each time is kept to the cycle: a chip that needs 1 ps more than these cycles complains of just that."""
    spec, port_bytes = SYSTEMS["2"]
    reads, writes = conflicts(port_bytes)
    period = model_parameters(spec)["CLOCK_PS"]
    kept = {
        "t_rcd": spec.rcd,
        "t_rp": spec.rp,
        "t_ras": spec.ras,
        "t_rc": spec.ras + spec.rp,
        "t_rfc": spec.rfc,
        "t_wr": spec.wr,
    }[HELD[rule]]
    for more in (0, 1):
        result = simulate("2", tmp_path, requests=reads, writes=writes, **{HELD[rule]: kept * period + more})
        assert {message.split(": ")[-1] for message in result.messages} == ({rule} if more else set())
        assert bool(result.violations) == bool(more)


@pytest.mark.parametrize(("rule", "option", "value"), [
    ("tRRD", "t_rrd", 500_000), ("tMRD", "mrd_clocks", 50), ("tREFI", "refresh_us", 200), ("tREF", "refresh_us", 495),
    ("tCK", "t_ck3", 9000), ("power-up", "power_up_us", 200), ("initialisation", "init_refreshes", 9),
])  # fmt: skip
def test_the_chip_of_the_bench_notices_other_rules(rule, option, value, tmp_path):
    spec, port_bytes = SYSTEMS["2"]
    reads, writes = conflicts(port_bytes)
    requests = [(0, 1024 * (i % 3), 64) for i in range(2000)] if rule == "tREF" else reads
    result = simulate("2", tmp_path, requests=requests, writes=writes, **{option: value})
    assert rule in {message.split(": ")[-1] for message in result.messages}


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"cas": 4}, "cas must be 2 or 3, found 4"),
    ({"clock_mhz": 200}, "clock_mhz must be 10..143 with cas 3, found 200; lower the clock"),
    ({"cas": 2, "clock_mhz": 133}, r"clock_mhz must be 10..100 with cas 2, found 133"),
    ({"round_trip": 9}, "round_trip must be 0..8, found 9"),
    ({"queue": 12}, "queue must be a power of two from 4 to 512, found 12"),
    ({"device": replace(SHORT, t_rp=0)}, "sdram short: t_rp must be positive, found 0"),
    ({"device": replace(SHORT, t_rc=30)}, "t_rc must be at least t_ras, found 30 and 44"),
    ({"device": replace(SHORT, refresh_ms=0.03)}, "refresh_ms 0.03 asks for a refresh every"),
    ({"device": replace(SHORT, row_bits=14)}, "row_bits must be 1..13, found 14"),
    ({"device": replace(SHORT, column_bits=11)}, "column_bits must be 8..10, found 11"),
])  # fmt: skip
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        SdramSpec(**changes)


@pytest.mark.parametrize("port_bytes", [1, 3, 128])
def test_the_port_has_2_to_64_bytes(port_bytes):
    with pytest.raises(BadInput, match=f"port_bytes must be a power of two from 2 to 64, found {port_bytes}"):
        check_port(port_bytes)


def test_the_board_has_the_slowest_time_of_every_chip():
    board, chips = DEVICES["ulx3s"], [device for name, device in DEVICES.items() if name != "ulx3s"]
    assert len(chips) >= 4
    for time in ("t_rcd", "t_rp", "t_ras", "t_rc", "t_rrd", "t_rfc", "t_wr", "mrd_clocks"):
        assert getattr(board, time) >= max(getattr(chip, time) for chip in chips), time


@pytest.mark.parametrize("mhz", [10, 48, 66.7, 100, 120, 133])
@pytest.mark.parametrize("name", DEVICES)
def test_cycles_cover_the_times_of_the_data_sheet(name, mhz):
    device = DEVICES[name]
    spec = SdramSpec(device, mhz)
    ns = 1000 / mhz * 1.001
    for own, times in (
        (spec.rcd, (device.t_rcd, device.t_rrd)),
        (spec.rp, (device.t_rp,)),
        (spec.ras, (device.t_ras, device.t_rc - spec.rp * ns)),
        (spec.rfc, (device.t_rfc,)),
        (spec.wr, (device.t_wr,)),
    ):
        assert own * ns >= max(times)
