"""Registered multiplications: one product, and the sum of two; explicit cells of an ECP5, inferred elsewhere.

::

    a, b ----> [register] ----> x ----> [register] ----> product            multiply
    a, b ----> [register] ----> x ----> [register] --+
                                                     +--> [register] ----> sum      multiply_add
    c, d ----> [register] ----> x ----> [register] --+

On an ECP5 a product takes one MULT18X18D with its registers at operands and product. The sum of two takes the ALU54B that lies beside
each pair of multipliers, fixed wires between them: neither adder nor product crosses the fabric. yosys packs none of this.

Source: Lattice FPGA-TN-02205 (ECP5 sysDSP), ALU54B: operand multiplexers and operation; nextpnr, ecp5/pack.cc (placement as one group).
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Const, Instance, Module, Signal, Value, ValueLike, signed

from edgemoe.numeric import register

MULTIPLIER_LATENCY = 2
"""Registers of a multiplication: operands, product."""
WIDTH, PRODUCT = 18, 36
"""Bits of an operand and of a product in the cells of an ECP5."""
ADD_PRODUCTS = 0b0100_000_01_01
"""Operation of ALU54B, OP10 to OP0: A + B + C, where C is 0 and A and B are the two products."""


def multiply(m: Module, a: Value, b: Value, enable: Value, platform) -> Value:
    """``a * b``, signed, latency `MULTIPLIER_LATENCY` enabled cycles, one DSP for up to 18 x 18 bits.

    The product register is kept, because ``synth_ice40 -dsp`` miscompiles sums of merged ones.
    """
    product = Signal(signed(len(a) + len(b)), attrs={"keep": 1})
    if _is_ecp5(platform):
        registers = _registers("INPUTA", "INPUTB", "OUTPUT")
        outputs = _bits("o_P", product, len(product))
        m.submodules += Instance("MULT18X18D", **_multiplier(a, b, enable), **registers, **outputs)
        return product
    a_register, b_register = Signal(signed(len(a))), Signal(signed(len(b)))
    with m.If(enable):
        m.d.sync += [a_register.eq(a), b_register.eq(b), product.eq(a_register * b_register)]
    return product


def multiply_add(m: Module, a: Value, b: Value, c: Value, d: Value, enable: Value, platform) -> Value:
    """``a * b + c * d``, signed, latency `MULTIPLIER_LATENCY` + 1 enabled cycles, two DSPs for up to 18 x 18 bits."""
    if not _is_ecp5(platform):
        return register(m, enable, multiply(m, a, b, enable, platform) + multiply(m, c, d, enable, platform))
    total = Signal(signed(max(len(a) + len(b), len(c) + len(d)) + 1), attrs={"keep": 1})
    registers = _registers("INPUTA", "INPUTB", "PIPELINE")
    wires: dict[str, Value] = {}
    for product, x, y in (("A", a, b), ("B", c, d)):
        outputs = {pin: Signal(width) for pin, width in (("P", PRODUCT), ("ROA", WIDTH), ("ROB", WIDTH))}
        sign = Signal()
        pins = {
            name: pin for port, at in outputs.items() for name, pin in _bits(f"o_{port}", at, len(at)).items()
        }
        m.submodules += Instance(
            "MULT18X18D", **_multiplier(x, y, enable), **registers, **pins, o_SIGNEDP=sign
        )
        # Wires that lie fixed beside each other. The operands, which the sum does not use, must be connected as well.
        wires |= _bits(f"i_M{product}", outputs["P"], PRODUCT) | {f"i_SIGNEDI{product}": sign}
        wires |= _bits(f"i_{product}", outputs["ROA"], WIDTH)
        wires |= {f"i_{product}{WIDTH + i}": outputs["ROB"][i] for i in range(WIDTH)}
    m.submodules += Instance(
        "ALU54B",
        p_CLK0_DIV="ENABLED", p_GSR="DISABLED", p_RESETMODE="SYNC", p_LEGACY="DISABLED", p_MULT9_MODE="DISABLED",
        i_CLK0=ClockSignal(), i_CE0=enable, i_RST0=Const(0, 1),
        **_registers("OUTPUT0", "OUTPUT1"), **_bits("i_OP", Const(ADD_PRODUCTS, 11), 11), **wires, **_bits("o_R", total, len(total)),
    )  # fmt: skip
    return total


def _is_ecp5(platform) -> bool:
    return getattr(platform, "device", "").startswith("LFE5U") or str(platform).startswith("ecp5")


def _multiplier(a: Value, b: Value, enable: ValueLike) -> dict:
    """A MULT18X18D but for its registers and outputs."""
    return {
        "p_CLK0_DIV": "ENABLED", "p_GSR": "DISABLED", "p_RESETMODE": "SYNC", "p_MULT_BYPASS": "DISABLED",
        "i_CLK0": ClockSignal(), "i_CE0": enable, "i_RST0": Const(0, 1),
        "i_SIGNEDA": Const(1, 1), "i_SIGNEDB": Const(1, 1),
        **_bits("i_A", a, WIDTH), **_bits("i_B", b, WIDTH),
    }  # fmt: skip


def _registers(*names: str) -> dict[str, str]:
    """Parameters of a DSP cell that put these registers to use."""
    return {f"p_REG_{n}_{pin}": f"{pin}0" for n in names for pin in ("CLK", "CE", "RST")}


def _bits(port: str, value: Value, width: int) -> dict[str, Value]:
    """The pins of a port, by name; the sign fills what is above the value."""
    return {f"{port}{i}": value[min(i, len(value) - 1)] for i in range(width)}
