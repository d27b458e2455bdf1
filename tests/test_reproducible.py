"""The same design gives the same netlist in every process: place and route, whose result is a matter of chance, starts from one point."""

import os
import subprocess
import sys

SCRIPT = """
import hashlib
from amaranth.back import rtlil
from edgemoe.config import NAMED
from edgemoe.core.accelerator import Accelerator
text = rtlil.convert(Accelerator(NAMED["ulx3s-25f"]), name="top", platform="ecp5-25k", emit_src=False)
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_gateware_does_not_depend_on_the_order_of_sets():
    def digest(seed):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert len({digest(seed) for seed in (1, 2, 3)}) == 1
