"""The board's design, from the pins of its serial line to the pins of its memory chip: bit-exact, and no rule broken."""

import fcntl
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from edgemoe import api, inputs
from edgemoe.config import NAMED
from edgemoe.errors import DeviceError
from edgemoe.golden import Golden
from edgemoe.host import accelerator
from edgemoe.host.accelerator import SerialAccelerator
from edgemoe.host.client import Client
from edgemoe.protocol import Identity
from edgemoe.simulation import board as simulated
from edgemoe.simulation.placement import pack_images, place
from edgemoe.targets import ulx3s
from edgemoe.targets.top import BAUD, identity

HARDWARE = replace(NAMED["nano"], name="board")
PORT = HARDWARE.port_bytes
FAST = 20_000_000
"""Bits per second: as few cycles of a bit as the receiver takes."""
PATIENCE = 600.0
"""Of the host, in its own seconds; the simulated line counts its own."""
UPLOAD = 1 << 13


@cache
def executable(baud):
    """A board with the clocks of a ULX3S; built by whoever comes first."""
    spec = replace(ulx3s.specification(HARDWARE, 80).board, baud=baud)
    folder = api.cache()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"lock-board-{baud}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return simulated.build(spec, folder)


def line(baud, *arguments):
    return simulated.SimulatedLine(executable(baud), baud, *arguments)


@pytest.fixture(scope="module")
def program():
    return api.compile(inputs.model("nano"), HARDWARE, pixel_bytes=1)


@pytest.fixture
def loaded(program, tmp_path):
    """The option with which the memory holds the model at first, but for its first bytes."""

    def option(missing=0):
        data = bytes(missing) + program.memory[missing:] + bytes(len(program.memory) % 2)
        path = tmp_path / "memory.hex"
        path.write_text("\n".join(f"{value:04x}" for value in np.frombuffer(data, "<u2")))
        return f"+sdram_load={path}"

    return option


def whole_output(client, program, images, task):
    """Start a run, and read all that it wrote: logits and x of every image."""
    placement = place(program.memory, HARDWARE, len(images))
    client.write(placement.image, pack_images(images, placement, PORT))
    client.start(placement.program, placement.image, placement.output, len(images), task)
    state = client.wait()
    assert not state.error and state.counters["cycles"] > 0
    return client.read(placement.output, placement.output_words)


@pytest.mark.long
def test_the_nano_model_through_the_serial_line(program, loaded, monkeypatch):
    """An image of each task in a run of its own, bit-exact. 8 kB with the program come over the line, the rest was in the memory."""
    monkeypatch.setattr(accelerator, "CHUNK", UPLOAD)
    images, machine = inputs.test_images()[0], Golden(program)
    with line(FAST, loaded(UPLOAD)) as wire:
        board = SerialAccelerator(wire, patience=PATIENCE)
        assert board.client.identity == Identity.of(HARDWARE, 80_000_000, identity(HARDWARE))
        sent = []
        board.load(program, lambda what, part: sent.append(what))
        assert wire.state().cycles < 2_000_000  # most of the model was not sent
        assert "uploading the model" in sent and "checking the model in the board's memory" in sent
        for task, some in enumerate((images[:1], images[1:2])):
            expected = machine.execute(list(some), task).output
            assert whole_output(board.client, program, some, task)[: len(expected)] == expected
        assert board.client.resent == 0
        state = wire.state()
        assert state.violations == 0, wire.log
        assert state.activity and not state.error


@pytest.mark.slow
def test_the_whole_model_is_uploaded_and_classifies(program):
    images, _ = inputs.test_images()
    with line(FAST) as wire:
        board = SerialAccelerator(wire, patience=PATIENCE)
        board.load(program)
        found = [board.run(images[:2], task=task) for task in range(2)]
        assert wire.state().violations == 0, wire.log
    for task in range(2):
        for image, answer in zip(images[:2], found[task], strict=True):
            np.testing.assert_array_equal(answer["logits"], api.golden(program, image, task)["logits"])


@pytest.mark.slow
def test_one_image_at_the_speed_of_the_board(program, loaded):
    """3 Mbaud; the model lies in the memory already."""
    images = inputs.test_images()[0][2:3]
    with line(BAUD, loaded(1024)) as wire:
        board = SerialAccelerator(wire, patience=PATIENCE)
        board.load(program)
        expected = Golden(program).execute(list(images), 1).output
        assert whole_output(board.client, program, images, 1)[: len(expected)] == expected
        assert wire.state().violations == 0, wire.log


def test_lights_errors_and_a_reset_of_all_but_the_link(program, loaded):
    placement = place(program.memory, HARDWARE, 1)
    with line(FAST, loaded()) as wire:
        client = Client(wire, patience=PATIENCE)
        client.open()
        client.start(placement.image, placement.image, placement.output, 1, 0)  # there is no program
        assert client.wait().error and wire.state().error
        client.start(placement.program, placement.image, placement.output, 1000, 0)
        state = wire.state()
        assert state.busy and not state.error
        client.reset()
        images = np.zeros((1, 1, 36, 36), np.uint8)
        expected = Golden(program).execute(list(images), 0).output
        assert whole_output(client, program, images, 0)[: len(expected)] == expected
        # A reset leaves out the refreshes of 0.2 ms, far less than what a row may wait for.
        assert wire.state().violations == 26
        assert {text.split(": ")[-1] for text in wire.log} == {"tREFI"}


def test_a_memory_that_is_too_slow_for_the_design_is_noticed(loaded):
    """The chip of this bench complains: with a longer tRCD than the controller was built for."""
    with line(FAST, loaded(), "+sdram_t_rcd=60000") as wire:
        client = Client(wire, patience=PATIENCE)
        client.open()
        client.checksum(0, 256)
        assert wire.state().violations > 0
        assert any("tRCD" in text for text in wire.log)


def test_a_simulation_that_ends_is_a_device_error():
    wire = line(FAST)
    assert wire.read(0.0001) == b""  # nothing comes within the time-out
    wire.close()
    with pytest.raises(DeviceError, match="the simulated board has ended"):
        wire.write(b"x")
