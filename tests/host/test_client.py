"""The client against a device in software: nothing is lost, and nothing is done twice, whatever the line does."""

import random
import time
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.errors import DeviceError
from edgemoe.host.client import Client
from edgemoe.host.virtual import Start, VirtualDevice
from edgemoe.protocol import REQUEST, RESPONSE, Command, Decoder, Frame, Identity, Status
from host.pipes import Pipe
from periph.link_bench import HARDWARE

IDENTITY = Identity.of(HARDWARE, 80_000_000)
PORT = HARDWARE.port_bytes
QUICK = {"patience": 0.01, "tries": 30}


def device(**options):
    made = VirtualDevice(replace(IDENTITY, memory_words=1 << 13), **options)
    made.memory[:] = random.Random(1).randbytes(len(made.memory))
    return made


def frames(magic, data):
    """The frames that ``data`` are made of, as bytes."""
    return [frame.encode(magic) for frame in Decoder(magic).feed(data)]


class Bad:
    """A direction of a line with faults: each frame may be corrupted, cut, doubled, delayed behind the next, or lost."""

    KINDS = ("flip", "cut", "double", "late", "lose", "noise")

    def __init__(self, magic, seed, rate, kinds=KINDS):
        self.magic, self.rng, self.rate, self.kinds = magic, random.Random(seed), rate, kinds
        self.faults = 0

    def __call__(self, data):
        out, held = [], b""
        for raw in frames(self.magic, data):
            kind = self.rng.choice(self.kinds) if self.rng.random() < self.rate else ""
            self.faults += bool(kind)
            at = self.rng.randrange(len(raw))
            if kind == "flip":
                raw = raw[:at] + bytes([raw[at] ^ (1 << self.rng.randrange(8))]) + raw[at + 1 :]
            elif kind == "cut":
                raw = raw[:at]
            elif kind == "double":
                raw = raw + raw
            elif kind == "lose":
                raw = b""
            elif kind == "noise":
                raw = self.rng.randbytes(at % 9) + raw
            elif kind == "late":
                held, raw = raw, held
                out.append(raw)
                continue
            out += [raw, held]
            held = b""
        return b"".join([*out, held])


def test_every_command_without_faults():
    there = device()
    line = Pipe(there)
    client = Client(line)
    data = random.Random(2).randbytes(5000 // PORT * PORT)
    told = []
    client.write(7, data, told.append)
    assert there.memory[7 * PORT :][: len(data)] == data and told[-1] == len(data) and told == sorted(told)
    assert client.read(7, len(data) // PORT) == data
    assert client.checksum(7, len(data) // PORT) == zlib.crc32(data)
    there.polls = 3
    client.start(1, 2, 3, 4, 5)
    assert client.wait().busy is False and there.starts == [Start(1, 2, 3, 4, 5)]
    client.reset()
    assert there.resets == 1 and client.resent == 0
    overhead = line.sent / len(data)
    assert overhead < 1.1


def test_a_window_is_on_its_way_and_not_more():
    there, line = device(), None
    most = []

    class Slow(Pipe):
        """Answers come only when the host waits."""

        held = b""

        def write(self, data):
            self.held += data
            most.append(len(frames(REQUEST, self.held)))

        def read(self, seconds):
            super().write(self.held)
            self.held = b""
            return super().read(seconds)

    line = Slow(there)
    client = Client(line)
    client.write(0, bytes(40 * 1024))
    assert max(most) == IDENTITY.window and client.resent == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(["up", "down", "both"]), st.sampled_from([*Bad.KINDS, "all"]))
def test_faults_are_healed_and_nothing_is_done_twice(seed, where, kind):
    kinds = Bad.KINDS if kind == "all" else (kind,)
    up = Bad(REQUEST, seed, 0.15 if where != "down" else 0, kinds)
    down = Bad(RESPONSE, seed + 1, 0.15 if where != "up" else 0, kinds)
    there = device()
    client = Client(Pipe(there, up, down, most=1 + seed % 300), **QUICK)
    data = random.Random(seed).randbytes(20 * 1024)
    client.write(100, data)
    assert there.memory[100 * PORT :][: len(data)] == data
    assert client.read(100, len(data) // PORT) == data
    for number in range(4):
        client.start(number, 0, 0, 1, 0)
        client.status()
    assert [start.program for start in there.starts] == [0, 1, 2, 3]


def test_a_line_that_stays_bad_ends_with_one_error_and_the_next_command_works():
    there = device()
    line = Pipe(there)
    client = Client(line, patience=0.005, tries=4)
    client.write(0, bytes(PORT))
    for direction in ("up", "down"):
        setattr(line, direction, lambda data: b"\xe5\x4d" + data[4:])
        with pytest.raises(DeviceError, match="pipe: no good answer to WRITE after 4 tries; check the cable"):
            client.write(0, b"x" * 4 * 1024)
        setattr(line, direction, bytes)
        client.write(0, b"y" * 4 * 1024)
        assert there.memory[: 4 * 1024] == b"y" * 4 * 1024
    with pytest.raises(DeviceError, match="refused WRITE with status ADDRESS"):
        client.write(1 << 20, bytes(5 * 1024))
    client.write(3, b"z" * 1024)
    assert there.memory[3 * PORT :][:1024] == b"z" * 1024


def test_patience_is_for_silence():
    """An answer that takes ten times the patience, but comes all the time, is not asked for again."""
    there = device()

    class Dripping(Pipe):
        def read(self, seconds):
            pause = 0.035
            time.sleep(min(pause, seconds))
            if seconds < pause:
                return b""
            data, self.waiting = self.waiting[:16], self.waiting[16:]
            return data

    line = Dripping(there)
    client = Client(line, patience=0.2, tries=1)
    client.open()
    before = time.monotonic()
    assert client.read(0, 128) == there.memory[: 128 * PORT]
    assert time.monotonic() - before > 10 * 0.2 and client.resent == 0


def test_silence_is_noticed_in_time():
    client = Client(Pipe(device(), up=lambda data: b""), patience=0.02, tries=5)
    before = time.monotonic()
    with pytest.raises(
        DeviceError, match="no edgemoe device answers at 3000000 baud after 5 tries; write a bitstream"
    ):
        client.open()
    assert time.monotonic() - before < 1


def test_a_half_sent_frame_of_an_earlier_program_does_no_harm():
    there = device()
    there.feed(Frame(5, Command.WRITE, bytes(1028)).encode()[:300])
    client = Client(Pipe(there), **QUICK)
    client.write(0, b"w" * PORT)
    assert there.memory[:PORT] == b"w" * PORT


def test_a_device_that_begins_anew_in_the_middle_is_noticed():
    there = device()
    line = Pipe(there)
    client = Client(line, **QUICK)
    client.open()
    count = 0

    def power_loss(data):
        nonlocal count
        count += 1
        if count == 3:
            line.device = device()
        return data

    line.up = power_loss
    with pytest.raises(DeviceError, match="the device began anew in the middle of a transfer"):
        client.write(0, bytes(60 * 1024))
    client.write(0, b"again---" * 3)
    assert line.device.memory[:24] == b"again---" * 3


def test_a_late_request_for_an_earlier_sequence_is_no_restart():
    """The device missed a request and said so, got it again and answered, and only then its complaint arrives."""
    there = device()
    line = Pipe(there)
    client = Client(line, **QUICK)
    client.open()
    first, late = client._next, []

    def complain(data):
        if not late and client._next != first + 1:
            missed = (first - 1) % (1 << 16)
            status = Frame(
                (first + 1) % (1 << 16), Command.WRITE, missed.to_bytes(2, "little"), Status.SEQUENCE
            )
            late.append(status.encode(RESPONSE))
            return late[0] + data
        return data

    line.down = complain
    client.write(0, bytes(range(256)) * 100)
    assert late and there.memory[: 256 * 100] == bytes(range(256)) * 100


@pytest.mark.parametrize(("payload", "spoken"), [
    (b"\x02\x00" + bytes(200), "version 2"),
    (replace(IDENTITY, version=9).pack(), "version 9"),
    (b"\x01\x00" + bytes(7), "a variant"),
])  # fmt: skip
def test_another_version_of_the_protocol(payload, spoken, monkeypatch):
    monkeypatch.setattr(Identity, "pack", lambda self: payload)
    with pytest.raises(DeviceError, match=f"speaks {spoken} of the protocol, this edgemoe version 1; write"):
        Client(Pipe(device()), **QUICK).open()


def test_an_echo_is_no_device():
    class Echo(Pipe):
        def write(self, data):
            self.waiting += data

    with pytest.raises(DeviceError, match="no edgemoe device answers"):
        Client(Echo(device()), patience=0.01, tries=3).open()
