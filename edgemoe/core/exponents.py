"""Block exponents of K and V: noted while their rows are written, used when the slots are filled."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from edgemoe.config import HardwareConfig

EXPONENT_BITS = 4


class ExponentTable(wiring.Component):
    """One exponent per head and token, and the largest of every head.

    Parameters
    ----------
    hardware : HardwareConfig
    readers : int

    Members
    -------
    valid, head, row, exponent : In
        Raise the entry of token ``row`` to ``exponent``; taken every cycle, done 2 cycles later.
    first : In(1)
        The entry's old value belongs to an earlier matrix: replace it.
    first_row : In(1)
        So does the head's maximum.
    head_{i}, word_{i} : In
        Read ports: tokens ``word * in_lanes ...`` of a head.
    exponents_{i} : Out(ArrayLayout(4, in_lanes)), maximum_{i} : Out(4)
        Combinational.

    Cost: distributed memory, heads * tokens * 4 bits for each reader and one for the update.
    """

    def __init__(self, hardware: HardwareConfig, readers: int):
        self.hardware, self.readers = hardware, readers
        lanes = hardware.in_lanes
        self.head_bits = max(1, (hardware.heads - 1).bit_length())
        self.word_bits = max(1, (hardware.token_words - 1).bit_length())
        word = data.ArrayLayout(unsigned(EXPONENT_BITS), lanes)
        reads = {}
        for i in range(readers):
            reads[f"head_{i}"] = In(self.head_bits)
            reads[f"word_{i}"] = In(self.word_bits)
            reads[f"exponents_{i}"] = Out(word)
            reads[f"maximum_{i}"] = Out(EXPONENT_BITS)
        super().__init__(
            {
                "valid": In(1),
                "head": In(self.head_bits),
                "row": In(12),
                "exponent": In(EXPONENT_BITS),
                "first": In(1),
                "first_row": In(1),
                **reads,
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes = self.hardware.in_lanes
        lane_bits = (lanes - 1).bit_length()
        depth = ((self.hardware.token_words - 1) << self.head_bits) + self.hardware.heads
        update = {
            name: Signal(getattr(self, name).shape(), name=f"{name}_in")
            for name in ("valid", "head", "row", "exponent", "first", "first_row")
        }
        m.d.sync += [held.eq(getattr(self, name)) for name, held in update.items()]
        valid, head, row, exponent, first, first_row = update.values()
        row_address = Cat(head, row[lane_bits:][: self.word_bits])
        for lane in range(lanes):
            memory = Memory(shape=EXPONENT_BITS, depth=depth, init=[])
            m.submodules[f"lane{lane}"] = memory
            old, write = memory.read_port(domain="comb"), memory.write_port()
            raises = first | (old.data <= exponent)
            m.d.comb += [
                old.addr.eq(row_address),
                write.addr.eq(row_address),
                write.en.eq(valid & (row[:lane_bits] == lane) & raises),
                write.data.eq(exponent),
            ]
            for i in range(self.readers):
                read = memory.read_port(domain="comb")
                m.d.comb += [
                    read.addr.eq(Cat(getattr(self, f"head_{i}"), getattr(self, f"word_{i}"))),
                    getattr(self, f"exponents_{i}")[lane].eq(read.data),
                ]
        largest = Array(Signal(EXPONENT_BITS, name=f"maximum_{h}") for h in range(1 << self.head_bits))
        with m.If(valid & (first_row | (exponent > largest[head]))):
            m.d.sync += largest[head].eq(exponent)
        for i in range(self.readers):
            m.d.comb += getattr(self, f"maximum_{i}").eq(largest[getattr(self, f"head_{i}")])
        return m
