"""The PLL of an ECP5 (EHXPLLL): dividers for wanted clocks, and the primitive with them.

One oscillator runs at ``vco = reference / input_divider * feedback * feedback_divider``; every output divides it::

    reference --/input--> phase detector --> VCO --+--/divider--> output 0, 1, 2 (each with its phase)
                               ^                   |
                               +----/feedback------+/feedback_divider   (the fourth output, inside the PLL)

Source: Lattice FPGA-TN-02200 (ECP5 sysCLOCK PLL), and the limits of FPGA-DS-02012, table "sysCLOCK PLL timing".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from amaranth.hdl import Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from edgemoe.errors import BadInput

MHZ = 1_000_000
REFERENCE = (8 * MHZ, 400 * MHZ)
DETECTOR = (10 * MHZ, 400 * MHZ)
VCO = (400 * MHZ, 800 * MHZ)
OUTPUT = (3_125_000, 400 * MHZ)
"""Lowest and highest frequency in Hz: of the reference, at the phase detector, of the oscillator, of an output."""
DIVIDERS = 128
"""All dividers are 1..128."""
OUTPUTS = ("CLKOP", "CLKOS", "CLKOS2")
"""The fourth output, CLKOS3, closes the loop, so that no wanted clock has to divide the oscillator evenly for it."""
PHASE_STEPS = 8
"""Steps of a phase in a period of the oscillator."""


@dataclass(frozen=True)
class Wish:
    """A clock that is wanted: ``low <= frequency <= high`` in Hz, as near to ``best`` as can be."""

    name: str
    best: int
    low: int
    high: int


def within(name: str, hz: int, tolerance: float = 0.005) -> Wish:
    """A wish for ``hz``, give or take a fraction of it."""
    return Wish(name, hz, round(hz * (1 - tolerance)), round(hz * (1 + tolerance)))


@dataclass(frozen=True)
class PllSpec:
    """Dividers of a PLL; `check` holds them to the limits of the device.

    Attributes:
        reference_hz: of the pin.
        input_divider, feedback, feedback_divider: see the picture above.
        dividers: of up to three outputs.
    """

    reference_hz: int
    input_divider: int
    feedback: int
    feedback_divider: int
    dividers: tuple[int, ...]

    def __post_init__(self) -> None:
        self.check()

    @property
    def detector_hz(self) -> Fraction:
        """Frequency at the phase detector."""
        return Fraction(self.reference_hz, self.input_divider)

    @property
    def vco_hz(self) -> Fraction:
        """Frequency of the oscillator."""
        return self.detector_hz * self.feedback * self.feedback_divider

    def output_hz(self, index: int) -> Fraction:
        """Frequency of an output."""
        return self.vco_hz / self.dividers[index]

    def check(self) -> None:
        """Raise BadInput for what the PLL cannot do."""
        if not 1 <= len(self.dividers) <= len(OUTPUTS):
            raise BadInput(f"pll: 1 to {len(OUTPUTS)} outputs are possible, found {len(self.dividers)}")
        for name, value in (
            ("input_divider", self.input_divider),
            ("feedback", self.feedback),
            ("feedback_divider", self.feedback_divider),
            *((f"divider of output {k}", value) for k, value in enumerate(self.dividers)),
        ):
            if not 1 <= value <= DIVIDERS:
                raise BadInput(f"pll: {name} must be 1..{DIVIDERS}, found {value}")
        for name, value, (low, high) in (
            ("reference", Fraction(self.reference_hz), REFERENCE),
            ("phase detector", self.detector_hz, DETECTOR),
            ("oscillator", self.vco_hz, VCO),
            *((f"output {k}", self.output_hz(k), OUTPUT) for k in range(len(self.dividers))),
        ):
            if not low <= value <= high:
                raise BadInput(
                    f"pll: the {name} must run at {low / MHZ:g}..{high / MHZ:g} MHz, found {float(value) / MHZ:g} MHz"
                )


def loops(reference_hz: int) -> Iterator[tuple[int, int, int]]:
    """All ``(input_divider, feedback, feedback_divider)`` within the limits, one for each frequency of the oscillator.

    The clock that is fed back is divided at least by two, which keeps it below the fastest output.
    """
    seen = set()
    for divider in range(1, DIVIDERS + 1):
        detector = Fraction(reference_hz, divider)
        if not DETECTOR[0] <= detector <= DETECTOR[1]:
            continue
        for ratio in range(int(VCO[0] // detector), int(VCO[1] // detector) + 1):
            vco = detector * ratio
            if vco in seen or not VCO[0] <= vco <= VCO[1]:
                continue
            for feedback_divider in range(2, DIVIDERS + 1):
                feedback, rest = divmod(ratio, feedback_divider)
                if not rest and 1 <= feedback <= DIVIDERS:
                    seen.add(vco)
                    yield divider, feedback, feedback_divider
                    break


def search(reference_hz: int, wishes: Sequence[Wish]) -> PllSpec:
    """The PLL that comes nearest to the wishes: to the first one first, then to the second, ...

    Raises:
        BadInput: the reference is out of range, or no dividers satisfy all wishes.
    """
    if not REFERENCE[0] <= reference_hz <= REFERENCE[1]:
        raise BadInput(
            f"pll: the reference must run at {REFERENCE[0] / MHZ:g}..{REFERENCE[1] / MHZ:g} MHz, "
            f"found {reference_hz / MHZ:g} MHz"
        )
    for wish in wishes:
        if not OUTPUT[0] <= wish.best <= OUTPUT[1]:
            raise BadInput(
                f"pll: the {wish.name} clock must run at {OUTPUT[0] / MHZ:g}..{OUTPUT[1] / MHZ:g} MHz, "
                f"found {wish.best / MHZ:g} MHz"
            )
    best: tuple[list[Fraction], PllSpec] | None = None
    for loop in loops(reference_hz):
        vco = Fraction(reference_hz, loop[0]) * loop[1] * loop[2]
        dividers, errors = [], []
        for wish in wishes:
            near = {int(vco // wish.best), int(vco // wish.best) + 1}
            fitting = [d for d in near if 1 <= d <= DIVIDERS and wish.low <= vco / d <= wish.high]
            if not fitting:
                break
            dividers.append(min(fitting, key=lambda d: abs(vco / d - wish.best)))
            errors.append(abs(vco / dividers[-1] - wish.best))
        else:
            if best is None or errors < best[0]:
                best = errors, PllSpec(reference_hz, *loop, tuple(dividers))
    if best is None:
        wanted = ", ".join(f"{w.name} {w.low / MHZ:g}..{w.high / MHZ:g}" for w in wishes)
        raise BadInput(
            f"pll: no dividers make {wanted} MHz of {reference_hz / MHZ:g} MHz; choose other clocks"
        )
    return best[1]


def phase(degrees: float, divider: int) -> tuple[int, int]:
    """Coarse and fine phase of an output with ``divider``: periods of the oscillator, and eighths of one."""
    steps = round(degrees % 360 / 360 * divider * PHASE_STEPS)
    return divider - 1 + steps // PHASE_STEPS, steps % PHASE_STEPS


class Pll(wiring.Component):
    """An EHXPLLL.

    Parameters
    ----------
    spec : PllSpec
    degrees : sequence of float
        Phase of each output, later for larger values, to an eighth of the oscillator's period.

    Members
    -------
    reference : In(1)
    clocks : Out(1) for every output
    locked : Out(1)
        Asynchronous.
    """

    def __init__(self, spec: PllSpec, degrees: Sequence[float]):
        if len(degrees) != len(spec.dividers):
            raise BadInput(f"pll: {len(spec.dividers)} outputs, but {len(degrees)} phases")
        self.spec, self.degrees = spec, tuple(degrees)
        super().__init__({"reference": In(1), "clocks": Out(1).array(len(spec.dividers)), "locked": Out(1)})

    def elaborate(self, platform) -> Module:
        """The primitive; its loop filter is set as Project Trellis sets it."""
        m = Module()
        spec = self.spec
        options: dict[str, object] = {}
        for index, (name, divider) in enumerate(zip(OUTPUTS, spec.dividers)):
            coarse, fine = phase(self.degrees[index], divider)
            clock = Signal(name=f"clock{index}")
            m.d.comb += self.clocks[index].eq(clock)
            options |= {
                f"p_{name}_ENABLE": "ENABLED",
                f"p_{name}_DIV": divider,
                f"p_{name}_CPHASE": coarse,
                f"p_{name}_FPHASE": fine,
                f"o_{name}": clock,
            }
        coarse, _ = phase(0, spec.feedback_divider)
        m.submodules.primitive = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{spec.reference_hz / MHZ:g}",
            a_ICP_CURRENT="6",
            a_LPF_RESISTOR="16",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_FEEDBK_PATH="INT_OS3",
            p_CLKOS3_ENABLE="ENABLED",
            p_CLKOS3_DIV=spec.feedback_divider,
            p_CLKOS3_CPHASE=coarse,
            p_CLKOS3_FPHASE=0,
            p_CLKI_DIV=spec.input_divider,
            p_CLKFB_DIV=spec.feedback,
            i_RST=0,
            i_STDBY=0,
            i_CLKI=self.reference,
            o_LOCK=self.locked,
            **options,
        )
        return m
