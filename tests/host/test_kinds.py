"""One API over three transports: same calls, same results; what the board's transport refuses."""

import random
from dataclasses import replace

import numpy as np
import pytest

from cli import TINY
from edgemoe import api, checkpoint
from edgemoe.config import fit, load_hardware
from edgemoe.errors import BadInput, DeviceError, DoesNotFit
from edgemoe.host import GoldenAccelerator, SerialAccelerator, SimulatedAccelerator
from edgemoe.host.virtual import VirtualDevice, golden_run
from edgemoe.isa import Error
from edgemoe.protocol import REQUEST, RESPONSE, Identity
from edgemoe.simulation.placement import place
from host.pipes import Pipe
from host.test_client import Bad

QUICK = {"patience": 0.02, "tries": 30}


@pytest.fixture(scope="module")
def nano():
    """The packaged model, images, and the golden machine's own output for both tasks."""
    build = api.compile(api.load_model("nano"), "nano")
    images = [api.load_image(f"nano:{n}", build.model) for n in range(3)]
    return build, images, [[api.golden(build, image, task)["logits"] for image in images] for task in (0, 1)]


@pytest.fixture(scope="module")
def headless():
    """A model whose second task has no head."""
    config = replace(TINY, classes=(3, 0))
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)
    model = checkpoint.random_model(config, 1)
    hardware = fit(replace(load_hardware("nano"), tokens=8, memory_bytes=1 << 16), config)
    return api.compile(model, hardware, calibration=images), images


def board(hardware, **line):
    device = VirtualDevice(Identity.of(hardware, 80_000_000), golden_run(hardware))
    device.memory[:] = random.Random(3).randbytes(len(device.memory))
    return device, SerialAccelerator(Pipe(device, **line), **QUICK)


def same(found, expected):
    return all(
        set(f) == {"logits"} and np.array_equal(f["logits"], e) for f, e in zip(found, expected, strict=True)
    )


def test_golden(nano):
    build, images, expected = nano
    with GoldenAccelerator() as accelerator:
        accelerator.load(build)
        assert same(accelerator.run(images, 0), expected[0]) and same(
            accelerator.run(images, "right"), expected[1]
        )
        assert accelerator.run([], 0) == []


@pytest.mark.parametrize("faults", [False, True])
def test_serial(nano, faults):
    build, images, expected = nano
    rate = 0.05 if faults else 0
    device, accelerator = board(build.hardware, up=Bad(REQUEST, 1, rate), down=Bad(RESPONSE, 2, rate))
    with accelerator:
        told = []
        accelerator.load(build, lambda what, part: told.append((what, part)))
        assert device.memory[: len(build.memory)] == build.memory
        assert told[-1][0].startswith("checking") and ("uploading the model", 1.0) in told
        device.polls = 2
        assert same(accelerator.run(images, "left"), expected[0]) and same(
            accelerator.run(images, 1), expected[1]
        )
        assert len(device.starts) == 2 and device.starts[0].images == 3
    assert accelerator.line.closed and (accelerator.client.resent > 0) == faults


def test_simulated(nano):
    build, images, expected = nano
    with SimulatedAccelerator() as accelerator:
        accelerator.load(build)
        assert same(accelerator.run(images[:2], 0), expected[0][:2])
        assert accelerator.counters["cycles"] > 2 * 70_000


def test_a_task_without_a_head_answers_with_x(headless):
    build, images = headless
    _, accelerator = board(build.hardware)
    for one in (GoldenAccelerator(), accelerator):
        one.load(build)
        found = one.run(images, "b")
        for image, answer in zip(images, found, strict=True):
            assert set(answer) == {"x"}
            assert np.array_equal(answer["x"], api.golden(build, image, "b")["x"])
        assert one.run(images, "a")[2]["logits"].shape == (3,)


def test_only_what_differs_is_uploaded(nano, monkeypatch):
    from edgemoe.host import accelerator as module

    monkeypatch.setattr(module, "CHUNK", 1 << 15)
    build, images, expected = nano
    device, accelerator = board(build.hardware)
    accelerator.load(build)
    device.memory[40_000] ^= 1
    before = accelerator.line.sent
    accelerator.load(build)
    assert (1 << 15) < accelerator.line.sent - before < 1.2 * (1 << 15)
    before = accelerator.line.sent
    accelerator.load(build)
    assert accelerator.line.sent - before < 1000 and same(accelerator.run(images, 0), expected[0])


def test_as_many_images_at_once_as_the_memory_holds(nano, monkeypatch):
    from edgemoe.host import accelerator as module

    build, images, expected = nano
    small = replace(build.hardware, memory_bytes=1 << 19)
    most = 50
    place(build.memory, small, most)
    with pytest.raises(DoesNotFit):
        place(build.memory, small, most + 1)
    device, accelerator = board(small)
    device.run = golden_run(build.hardware)
    accelerator.load(build)
    for limit, starts in ((100, [most, 2]), (16, [16, 16, 16, 4])):
        monkeypatch.setattr(module, "BATCH", limit)
        device.starts.clear()
        found = accelerator.run([images[n % 3] for n in range(most + 2)], 0)
        assert same(found, [expected[0][n % 3] for n in range(most + 2)])
        assert [start.images for start in device.starts] == starts


def test_a_model_that_is_larger_than_the_memory(nano):
    build, *_ = nano
    device = VirtualDevice(Identity.of(replace(build.hardware, memory_bytes=1 << 17), 80_000_000))
    with pytest.raises(DoesNotFit, match="memory_bytes"):
        SerialAccelerator(Pipe(device), **QUICK).load(build)
    assert device.memory == bytes(1 << 17)


def test_a_model_for_other_hardware(nano):
    build, images, _ = nano
    other = replace(build.hardware, name="wide", out_lanes=16, post_lanes=0, acc_bits=0)
    device, accelerator = board(other)
    before = bytes(device.memory)
    message = "pipe: the board's bitstream is hardware wide .out_lanes 16, not 8.*compiled for nano; compile it for wide"
    with pytest.raises(DeviceError, match=message):
        accelerator.load(build)
    assert device.memory == before
    with pytest.raises(BadInput, match="no model is loaded"):
        accelerator.run(images, 0)


def test_memory_that_does_not_keep_what_is_written(nano):
    build, *_ = nano
    device, accelerator = board(build.hardware)

    class Forgetful(bytearray):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            super().__setitem__(5000, self[5000] & 0xFE)

    raw = bytearray(build.memory)
    raw[5000] |= 1
    device.memory = Forgetful(device.memory)
    with pytest.raises(DeviceError, match="has checksum [0-9a-f]{8} after the upload, must have [0-9a-f]{8}"):
        accelerator.load(replace(build, memory=bytes(raw)))


def test_a_run_that_ends_with_an_error(nano):
    build, images, expected = nano
    device, accelerator = board(build.hardware)
    accelerator.load(build)
    device.memory[0] ^= 0xFF
    device.memory[1] ^= 0xFF
    with pytest.raises(
        DeviceError, match=f"the run ended with error {int(Error.OPCODE)} .OPCODE.; load the model"
    ):
        accelerator.run(images, 0)
    accelerator.load(build)
    assert same(accelerator.run(images, 0), expected[0])


def test_a_run_of_an_earlier_program_is_awaited(nano):
    build, images, expected = nano
    device = VirtualDevice(Identity.of(build.hardware, 80_000_000), golden_run(build.hardware))
    device.busy, device.polls = True, 5
    accelerator = SerialAccelerator(Pipe(device), **QUICK)
    accelerator.load(build)
    assert same(accelerator.run(images, 0), expected[0])


def test_a_reset_forgets_the_model(nano):
    build, images, _ = nano
    device, accelerator = board(build.hardware)
    accelerator.load(build)
    accelerator.reset()
    assert device.resets == 1
    with pytest.raises(BadInput, match="no model is loaded; call load"):
        accelerator.run(images, 0)


def test_the_line_is_closed_if_nobody_answers():
    line = Pipe(VirtualDevice(Identity.of(load_hardware("nano"), 80_000_000)), up=lambda data: b"")
    with pytest.raises(DeviceError, match="no edgemoe device"):
        SerialAccelerator(line, patience=0.01, tries=2)
    assert line.closed
