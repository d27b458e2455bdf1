"""The gateware of the link answers byte for byte as its golden twin, whatever comes on the line."""

import random
import zlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.memory import simulate
from edgemoe.host.virtual import Start, VirtualDevice
from edgemoe.periph.link import HostLink
from edgemoe.periph.uart import UartSpec, receive, transmit
from edgemoe.protocol import (
    DATA_BYTES,
    HEADER,
    MAX_PAYLOAD,
    REQUEST,
    RESPONSE,
    Command,
    Frame,
    Identity,
    Status,
)
from periph.link_bench import (
    HARDWARE,
    PATIENCE,
    Bench,
    checksum,
    identity,
    plain,
    read,
    start,
    write,
)

each_port = pytest.mark.parametrize("port", [2, 8, 32])
each_stall = pytest.mark.parametrize("stall", [False, True], ids=["none", "both"])


def encoded(*frames):
    return b"".join(frame.encode() for frame in frames)


@each_stall
@each_port
def test_every_command(port, stall):
    rng, bench = random.Random(port), Bench(identity(port), stall)
    words = bench.about.memory_words
    count = (DATA_BYTES if port == 8 else 160) // port  # the longest frame, or more than a burst's words
    data, longest = rng.randbytes(6 * port), rng.randbytes(count * port)
    bench.play(
        encoded(plain(Command.IDENTIFY, 500)),
        encoded(
            write(501, 3, data), read(502, 2, 8), plain(Command.STATUS, 503), checksum(504, 0, 20),
            start(505, 7, 8, words - 1, 300, 200),
        ),
        encoded(write(506, words - count, longest)),
        encoded(read(507, words - count, count), checksum(508, 0, 1400 // port), plain(Command.RESET, 509)),
    )  # fmt: skip
    assert bench.memory() == bench.twin.memory and data in bench.memory()
    assert bench.starts == bench.twin.starts and bench.starts[0].task == 200 and bench.resets == 1
    answers = bench.answered(RESPONSE)
    assert [a.status for a in answers] == [Status.OK] * 10
    assert Identity.unpack(answers[0].payload) == bench.about
    assert answers[7].payload == longest
    assert int.from_bytes(answers[4].payload, "little") == zlib.crc32(bench.memory()[: 20 * port])


def test_errors_change_nothing():
    bench, words = Bench(identity()), HARDWARE.memory_words
    cases = [
        (Status.COMMAND, lambda n: Frame(n, 7)),
        (Status.COMMAND, lambda n: Frame(n, 255, b"abc")),
        (Status.ARGUMENT, lambda n: Frame(n, Command.IDENTIFY, b"a")),
        (Status.ARGUMENT, lambda n: write(n, 0, b"")),
        (Status.ARGUMENT, lambda n: write(n, 0, b"1234567")),
        (Status.ARGUMENT, lambda n: Frame(n, Command.WRITE, b"abc")),
        (Status.ARGUMENT, lambda n: read(n, 0, 0)),
        (Status.ARGUMENT, lambda n: read(n, 0, DATA_BYTES // 8 + 1)),
        (Status.ARGUMENT, lambda n: Frame(n, Command.READ, b"1234567")),
        (Status.ARGUMENT, lambda n: checksum(n, 0, 0)),
        (Status.ARGUMENT, lambda n: start(n, images=0)),
        (Status.ARGUMENT, lambda n: Frame(n, Command.STATUS, b"x" * 20)),
        (Status.ARGUMENT, lambda n: Frame(n, Command.RESET, b"x")),
        (Status.ADDRESS, lambda n: write(n, words - 1, b"x" * 16)),
        (Status.ADDRESS, lambda n: write(n, 0xFFFFFFFF, b"x" * 8)),
        (Status.ADDRESS, lambda n: read(n, words, 1)),
        (Status.ADDRESS, lambda n: checksum(n, 1, words)),
        (Status.ADDRESS, lambda n: checksum(n, 1, 0xFFFFFFFF)),
        (Status.ADDRESS, lambda n: checksum(n, 2, 0xFFFFFFFF)),
        *((Status.ADDRESS, lambda n, k=k: start(n, **{k: words})) for k in ("program", "image", "output")),
    ]
    before = bench.memory()
    frames, number = [], 0
    for _, make in cases:
        frames.append(make(number))
        number += frames[-1].command != Command.IDENTIFY
    bench.play(
        encoded(plain(Command.IDENTIFY, 0xFFFF)),
        *(encoded(frame) for frame in frames),
        encoded(write(number, words - 1, b"fine now")),
    )
    assert [a.status for a in bench.answered(RESPONSE)] == [0, *(status for status, _ in cases), 0]
    assert bench.memory() == before[:-8] + b"fine now" == bench.twin.memory
    assert not bench.starts and not bench.resets


def test_a_busy_accelerator_has_the_memory_for_itself():
    bench = Bench(identity())
    bench.play(
        encoded(plain(Command.IDENTIFY, 9), start(10)),
        ("busy", 1),
        encoded(
            write(11, 0, b"x" * 8), read(12, 0, 1), checksum(13, 0, 1), start(14), plain(Command.STATUS, 15)
        ),
        encoded(write(16, 1 << 20, b"x" * 8)),
        ("busy", 0),
        encoded(write(17, 0, b"x" * 8), plain(Command.STATUS, 18)),
    )
    status = [a.status for a in bench.answered(RESPONSE)]
    assert status == [0, 0, *[Status.BUSY] * 4, 0, Status.BUSY, 0, 0]
    assert len(bench.starts) == 1 and bench.memory() == bench.twin.memory


def test_duplicates_are_answered_and_not_carried_out_again():
    """Also after the memory has changed, and with a number as old as the record goes."""
    bench = Bench(identity())
    first, second = write(0, 0, b"11111111"), write(1, 0, b"22222222")
    bad = write(2, 1 << 30, b"3" * 8)
    more = [plain(Command.STATUS, n) for n in range(4, 16)]
    bench.play(
        encoded(plain(Command.IDENTIFY, 0xFFFF), first, second, bad, start(3)),
        encoded(first, bad, read(0, 0, 1), start(3)),
        encoded(*more, first, start(3)),
        encoded(plain(Command.RESET, 16), first, plain(Command.RESET, 16)),  # 17 numbers ago: forgotten
        encoded(plain(Command.IDENTIFY, 1), second, first, write(2, 1, b"44444444")),  # a new session
    )
    assert bench.memory()[:16] == b"2222222244444444" and len(bench.starts) == 1 and bench.resets == 1
    answers = bench.answered(RESPONSE)
    assert [a.status for a in answers[5:9]] == [Status.OK, Status.ADDRESS, Status.OK, Status.OK]
    assert answers[7].payload == b"22222222"
    assert [a.status for a in answers[-6:]] == [Status.SEQUENCE, 0, 0, Status.SEQUENCE, Status.SEQUENCE, 0]


def test_nothing_is_carried_out_before_a_session_or_out_of_order():
    bench = Bench(identity())
    before = bench.memory()
    bench.play(
        encoded(write(0, 0, b"x" * 8), start(0), plain(Command.STATUS, 0)),
        encoded(plain(Command.IDENTIFY, 4), write(6, 0, b"x" * 8), write(4, 0, b"x" * 8), start(0x8005)),
        encoded(plain(Command.STATUS, 5)),
    )
    answers = bench.answered(RESPONSE)
    assert [a.status for a in answers] == [*[Status.SEQUENCE] * 3, 0, *[Status.SEQUENCE] * 3, 0]
    assert [int.from_bytes(a.payload, "little") for a in answers[4:7]] == [5] * 3
    assert bench.memory() == before and not bench.starts


def corrupted(rng, raw):
    """A frame with one to three bits flipped, bytes lost, or bytes added."""
    raw = bytearray(raw)
    kind = rng.randrange(3)
    at = rng.randrange(len(raw))
    if kind == 0:
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del raw[at : at + rng.randrange(1, 4)]
    else:
        raw[at:at] = rng.randbytes(rng.randrange(1, 4))
    return bytes(raw)


def some_frame(rng, number, words):
    """A request, most of the time a good one."""
    return rng.choice([
        lambda: write(number, rng.randrange(words), rng.randbytes(8 * rng.randrange(1, 5))),
        lambda: read(number, rng.randrange(words), rng.randrange(6)),
        lambda: checksum(number, rng.randrange(words), rng.randrange(6)),
        lambda: start(number, *(rng.randrange(words + 1) for _ in range(3)), rng.randrange(3), rng.randrange(256)),
        lambda: plain(Command.STATUS, number),
        lambda: Frame(number, rng.randrange(256), rng.randbytes(rng.randrange(5))),
        lambda: plain(Command.IDENTIFY, number),
    ])()  # fmt: skip


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.booleans())
@example(2193094976, True)
@example(403123852, True)
def test_any_mixture_of_frames_is_answered_as_the_golden_twin_does(seed, stall):
    """Corrupted, truncated, duplicated, reordered frames and garbage between them."""
    rng = random.Random(seed)
    bench = Bench(identity(), stall, seed, early=True)
    number, events, sent = 1, [encoded(plain(Command.IDENTIFY, 0))], []
    for _ in range(6):
        part = []
        for _ in range(rng.randrange(1, 5)):
            frame = some_frame(rng, number, HARDWARE.memory_words)
            sent.append(frame.encode())
            number += 1
            kind = rng.randrange(8)
            if kind == 0:
                part.append(corrupted(rng, sent[-1]))
                number -= rng.randrange(2)
            elif kind == 1:
                part += [rng.choice(sent), sent[-1]]
            elif kind == 2:
                part.insert(0, sent[-1])
            elif kind == 3:
                part += [rng.choice([b"\xe5", b"\xe5\x4d", rng.randbytes(rng.randrange(9))]), sent[-1]]
            else:
                part.append(sent[-1])
        events.append(b"".join(part))
        if rng.random() < 0.4:
            events[-1] = events[-1][: -rng.randrange(1, 20)]
        events.append(("silence",))
        if rng.random() < 0.3:
            events.append(("busy", rng.randrange(2)))
    bench.play(*events, ("busy", 0), encoded(plain(Command.IDENTIFY, 77), plain(Command.STATUS, 78)))
    assert bench.memory() == bench.twin.memory and bench.starts == bench.twin.starts
    last = bench.answered(RESPONSE)[-2:]
    assert [a.status for a in last] == [0, 0]
    assert int.from_bytes(last[1].payload[2:4], "little") == bench.twin.decoder.dropped


def test_what_is_no_frame_is_skipped():
    """A repeated first byte, an answer, wrong checks, and a length that no frame has."""
    good = plain(Command.STATUS, 1).encode()
    header = HEADER.pack(MAX_PAYLOAD + 1, 1, Command.WRITE, 0)
    too_long = REQUEST + header + (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    garbage = [
        b"\xe5", b"\xe5\xe5\xe5", b"\x4d", b"\xe5\x00", plain(Command.STATUS, 1).encode(RESPONSE), too_long,
        *(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))),
    ]  # fmt: skip
    bench = Bench(identity())
    bench.play(encoded(plain(Command.IDENTIFY, 0)), *(part + good for part in garbage))
    assert [a.status for a in bench.answered(RESPONSE)] == [Status.OK] * (1 + len(garbage))
    assert bench.twin.decoder.dropped == 1 + len(good) - 2


def test_a_frame_that_is_cut_off_ends_by_silence():
    bench = Bench(identity())
    whole = write(1, 0, b"x" * 8).encode()
    cuts = [whole[:n] for n in (1, 2, 3, 9, 10, 15, len(whole) - 1)]
    parts = [event for cut in cuts for event in (cut, ("silence",))]
    bench.play(
        encoded(plain(Command.IDENTIFY, 0)), *parts, encoded(plain(Command.STATUS, 1)),
        encoded(write(2, 0, b"y" * 8)),
    )  # fmt: skip
    dropped = int.from_bytes(bench.answered(RESPONSE)[1].payload[2:4], "little")
    assert dropped == bench.twin.decoder.dropped == len(cuts) - 1  # one byte is no frame
    assert bench.memory()[:8] == b"y" * 8


def test_frames_without_room_are_dropped_whole():
    """While answers are not taken the queue fills; what it has taken is carried out, and the next request too."""
    bench = Bench(identity())
    sent = 60
    flood = encoded(*(write(n, n, bytes([n]) * 64) for n in range(1, 1 + sent)))

    async def hold(ctx):
        bench.take = False

    async def release(ctx):
        """The twin has no queue: it answers what the gateware answered."""
        await ctx.tick().repeat(200)
        bench.take = True
        before = -1
        while len(bench.got) != before:
            before = len(bench.got)
            await ctx.tick().repeat(300)
        bench.expected = bytearray(bench.got)
        bench.twin.decoder.dropped = sent + 1 - len(bench.answered(RESPONSE))

    bench.play(encoded(plain(Command.IDENTIFY, 0)), hold, flood, release, encoded(plain(Command.IDENTIFY, 5)),
               encoded(write(6, 500, b"x" * 8), plain(Command.STATUS, 7)))  # fmt: skip
    answers = bench.answered(RESPONSE)
    done = [a for a in answers[1:-3] if a.status == Status.OK]
    assert len(answers) - 4 < sent and len(done) >= 20
    assert [a.sequence for a in done] == list(range(1, 1 + len(done)))
    assert bench.memory()[8 * len(done) :][:64] == bytes([len(done)]) * 64  # the next one was not carried out
    assert bench.memory()[4000:4008] == b"x" * 8


@pytest.mark.parametrize("command", ["write", "read", "checksum"])
def test_a_memory_that_does_not_answer_ends_the_session_not_the_link(command):
    bench = Bench(identity())
    frame = {"write": write(1, 0, b"x" * 8), "read": read(1, 0, 3), "checksum": checksum(1, 0, 3)}[command]

    async def die(ctx):
        bench.dead = True

    async def wait(ctx):
        await ctx.tick().repeat(PATIENCE + 300)
        assert bench.resets == 1
        bench.dead = False
        bench.twin = type(bench.twin)(bench.about)
        bench.twin.counters = counters
        bench.twin.memory[:] = bench.memory()
        bench.got.clear()
        bench.expected.clear()

    counters = bench.twin.counters
    bench.play(
        encoded(plain(Command.IDENTIFY, 0)), die, encoded(frame), wait,
        encoded(plain(Command.STATUS, 2)), encoded(plain(Command.IDENTIFY, 7)),
        encoded(write(8, 0, b"z" * 8), read(9, 0, 2), plain(Command.STATUS, 10)),
    )  # fmt: skip
    assert [a.status for a in bench.answered(RESPONSE)] == [Status.SEQUENCE, 0, 0, 0, 0]
    assert bench.memory()[:8] == b"z" * 8


@pytest.mark.parametrize("cycles", [4, 5.3])
def test_the_pins(cycles):
    """`HostLink` on its line: the golden twin's answers come back, without a gap between their bytes."""
    spec = UartSpec(8_000_000, round(8_000_000 / cycles))
    dut = HostLink(HARDWARE, spec.clock_hz, spec.baud, b"pins", frame_silence=1e-3)
    twin = VirtualDevice(dut.identity)
    requests = encoded(plain(Command.IDENTIFY, 3), plain(Command.STATUS, 4), start(5, 6, 7, 8, 9, 10))
    answers, line, starts = twin.feed(requests), [], []

    async def host(ctx):
        for value in transmit(requests, spec):
            ctx.set(dut.rx, value)
            _, _, tx, started, *run = await ctx.tick().sample(
                dut.tx, dut.start, dut.program, dut.image, dut.output, dut.images, dut.task
            )
            line.append(tx)
            starts.extend([Start(*map(int, run))] if started else [])
        for _ in range(round((len(answers) + 4) * 10 * cycles) + 300):
            _, _, tx, started, *run = await ctx.tick().sample(
                dut.tx, dut.start, dut.program, dut.image, dut.output, dut.images, dut.task
            )
            line.append(tx)
            starts.extend([Start(*map(int, run))] if started else [])

    simulate(dut, [host])
    assert receive(line, spec).data == answers
    assert starts == twin.starts == [Start(6, 7, 8, 9, 10)]
