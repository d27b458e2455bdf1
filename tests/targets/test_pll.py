"""The PLL: dividers are found, limits hold, and the primitive gets what was found."""

from fractions import Fraction

import pytest
from amaranth.back import rtlil

from edgemoe.errors import BadInput
from edgemoe.targets import pll
from edgemoe.targets.pll import MHZ, Pll, PllSpec, Wish, loops, phase, search, within


def test_clocks_that_divide_one_oscillator_are_exact():
    spec = search(25 * MHZ, (within("core", 80 * MHZ), Wish("memory", 133 * MHZ, 90 * MHZ, 134 * MHZ)))
    assert spec.output_hz(0) == 80 * MHZ
    assert spec.output_hz(1) == Fraction(400 * MHZ, 3)


@pytest.mark.parametrize("mhz", [20, 36, 50, 62.5, 66.6, 75, 80, 96, 100, 120])
def test_the_first_wish_comes_first_and_every_wish_is_kept(mhz):
    core, memory = within("core", round(mhz * MHZ)), Wish("memory", 133 * MHZ, 90 * MHZ, 134 * MHZ)
    spec = search(25 * MHZ, (core, memory))
    for index, wish in enumerate((core, memory)):
        assert wish.low <= spec.output_hz(index) <= wish.high
    nearest = min(
        abs(Fraction(25 * MHZ, i) * f * d / divider - core.best)
        for i, f, d in loops(25 * MHZ)
        for divider in range(1, 129)
        if any(memory.low <= Fraction(25 * MHZ, i) * f * d / other <= memory.high for other in range(3, 10))
    )
    assert abs(spec.output_hz(0) - core.best) == nearest


@pytest.mark.parametrize("reference", [12 * MHZ, 25 * MHZ, 48 * MHZ, 100 * MHZ])
def test_loops_are_within_the_limits_and_unlike(reference):
    found = list(loops(reference))
    assert found
    vcos = set()
    for loop in found:
        spec = PllSpec(reference, *loop, (8,))  # checks itself
        vcos.add(spec.vco_hz)
        assert spec.vco_hz / spec.feedback_divider <= pll.OUTPUT[1]
    assert len(vcos) == len(found)


@pytest.mark.parametrize(("values", "message"), [
    ((25 * MHZ, 1, 4, 2, (8,)), r"oscillator must run at 400..800 MHz, found 200 MHz"),
    ((25 * MHZ, 4, 32, 2, (8,)), r"phase detector must run at 10..400 MHz, found 6.25 MHz"),
    ((5 * MHZ, 1, 40, 2, (8,)), r"reference must run at 8..400 MHz, found 5 MHz"),
    ((25 * MHZ, 1, 8, 2, (128, 1, 1, 1)), r"1 to 3 outputs are possible, found 4"),
    ((25 * MHZ, 1, 8, 2, (129,)), r"divider of output 0 must be 1..128, found 129"),
    ((25 * MHZ, 1, 8, 4, (1,)), r"output 0 must run at 3.125..400 MHz, found 800 MHz"),
    ((25 * MHZ, 0, 8, 4, (1,)), r"input_divider must be 1..128, found 0"),
])  # fmt: skip
def test_what_the_pll_cannot_do_is_named(values, message):
    with pytest.raises(BadInput, match=message):
        PllSpec(*values)


def test_wishes_that_cannot_be_are_named():
    with pytest.raises(BadInput, match=r"core clock must run at 3.125..400 MHz, found 401 MHz"):
        search(25 * MHZ, (within("core", 401 * MHZ),))
    with pytest.raises(BadInput, match=r"no dividers make core 80..80, memory 81..81 MHz of 25 MHz"):
        search(25 * MHZ, (within("core", 80 * MHZ, 0), within("memory", 81 * MHZ, 0)))
    with pytest.raises(BadInput, match=r"reference must run at 8..400 MHz, found 1 MHz"):
        search(MHZ, (within("core", 80 * MHZ),))
    with pytest.raises(BadInput, match="2 outputs, but 1 phases"):
        Pll(PllSpec(25 * MHZ, 1, 8, 2, (5, 3)), (0,))


def test_phases_are_in_eighths_of_the_oscillator():
    assert phase(0, 5) == (4, 0)
    assert phase(180, 4) == (3 + 2, 0)
    assert phase(90, 3) == (2, 6)
    assert phase(360 + 90, 3) == (2, 6)
    assert phase(359.9, 3) == (5, 0)


def test_the_primitive_has_the_dividers_and_phases():
    text = rtlil.convert(Pll(PllSpec(25 * MHZ, 1, 8, 2, (5, 3, 3)), (0, 0, 120)), name="top")
    for line in (
        "parameter \\CLKI_DIV 1", "parameter \\CLKFB_DIV 8", "parameter \\CLKOP_DIV 5", "parameter \\CLKOS_DIV 3",
        "parameter \\CLKOS3_DIV 2", "parameter \\CLKOS2_CPHASE 3", "parameter \\CLKOS2_FPHASE 0",
        "parameter \\CLKOP_CPHASE 4", 'parameter \\FEEDBK_PATH "INT_OS3"', "attribute \\ICP_CURRENT \"6\"",
    ):  # fmt: skip
        assert line in text, line
