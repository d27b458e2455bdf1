"""No result depends on a registered read that meets a write of its word: block RAM may return anything then.

Synthesis relies on it (`edgemoe.synthesis.PREPARE`). Yosys can mark such a read in the Verilog as undefined; here it
returns garbage.
"""

import random
import re

import pytest
from amaranth.back import rtlil

from edgemoe.compile import compile_model
from edgemoe.verilog import FILE, accelerator, convert
from gateware import check, stalled
from models import CONFIG, hardware, random_image, random_model

HARDWARE = {
    "two sets": hardware(in_lanes=8, out_lanes=4, port_bytes=8),
    "staircase": hardware(in_lanes=8, out_lanes=4, port_bytes=32, slot_sets=1, norm_lanes=2),
}
REGISTERED_READ = re.compile(
    r"(parameter \\COLLISION_X_MASK) (\d+)'0+(?=\n(?: +parameter [^\n]*\n)* +parameter \\CLK_ENABLE 1\n)"
)
UNDEFINED = re.compile(r"(\d+)'hx+;")


def garbage_on_collision(component, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> str:
    """Verilog of ``component``, whose registered reads return garbage where they meet a write."""
    original, random_bits = rtlil.convert_fragment, random.Random(seed).getrandbits

    def marked(*args, **kwargs):
        text, names = original(*args, **kwargs)
        return REGISTERED_READ.sub(lambda m: f"{m[1]} {m[2]}'{'1' * int(m[2])}", text), names

    monkeypatch.setattr(rtlil, "convert_fragment", marked)
    text, count = UNDEFINED.subn(lambda m: f"{m[1]}'h{random_bits(int(m[1])):x};", convert(component))
    assert count > 80  # a word of 8 lanes counts as 8
    return text


@pytest.mark.long
@pytest.mark.parametrize("name", ["two sets", pytest.param("staircase", marks=pytest.mark.slow)])
def test_collisions_do_not_matter(name, monkeypatch, tmp_path):
    hw = HARDWARE[name]
    program = compile_model(random_model(CONFIG, hw.profile), hw, pixel_bytes=1)
    (tmp_path / FILE).write_text(garbage_on_collision(accelerator(hw), monkeypatch))
    images = [random_image(CONFIG, s) for s in (1, 2)]
    check(program, images, (0, 1), verilog_dir=tmp_path / FILE)
    check(program, images, (1, 0), verilog_dir=tmp_path / FILE, memory=stalled(7))
