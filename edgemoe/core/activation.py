"""Activation memory: six pages of on-chip words behind one linear address (docs/architecture.md).

    client   | cycle 0      | cycle 1            | cycle 2      | cycle 3         | cycle 4
    read     | en, address  | page, address      | block RAM    | output register | data
             |              | (registers)        | has read     |                 |
    write    | en, ...      | page, value, mask  | written      |                 |

**Ordering.** A read that is presented in a later cycle than a write sees what was written; a read
presented in an earlier cycle does not. A read and a write of the same word *in the same cycle* are
undefined on a device (old word in simulation): the schedule keeps them apart, and ``overlap``
remembers that it did not. There is no exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, Signature
from numpy.typing import ArrayLike, NDArray

from edgemoe.config import HardwareConfig

READ_LATENCY = 4
"""Cycles from ``en`` and ``address`` of a read port to its ``data``."""

ADDRESS_BITS = 16
VALUE_BITS = 22
TRANSPOSED_PAGE = 4
"""The page whose lanes have addresses of their own."""
SCORE_PAGE = 5
"""The page whose lanes have `VALUE_BITS` bits."""


def lane_bits(page: int) -> int:
    """Bits of a lane of ``page``."""
    return VALUE_BITS if page == SCORE_PAGE else 16


def row_bits(hardware: HardwareConfig) -> int:
    """Bits of an address within a page."""
    return max(1, (hardware.page_words - 1).bit_length())


def page_depth(hardware: HardwareConfig) -> int:
    """Words of the memory of a page: ``page_words``, or the power of two above if it is close."""
    window = 1 << row_bits(hardware)
    return window if 4 * hardware.page_words > 3 * window else hardware.page_words


class ReadPort(Signature):
    """Read access, seen from the client; ``data`` follows `READ_LATENCY` cycles later."""

    def __init__(self, hardware: HardwareConfig):
        super().__init__(
            {
                "en": Out(1),
                "address": Out(ADDRESS_BITS),
                "data": In(data.ArrayLayout(signed(VALUE_BITS), hardware.in_lanes)),
            }
        )


class WritePort(Signature):
    """Write access to the lanes in ``mask``, seen from the client; it is always accepted.

    With ``lanes`` the client may set ``transposed``: then lane i goes to word ``lane_address[i]``
    instead of ``address``, all of them in page `TRANSPOSED_PAGE`.
    """

    def __init__(self, hardware: HardwareConfig, bits: int = VALUE_BITS, lanes: bool = False):
        n = hardware.in_lanes
        members = {
            "en": Out(1),
            "address": Out(ADDRESS_BITS),
            "mask": Out(n),
            "value": Out(data.ArrayLayout(signed(bits), n)),
        }
        if lanes:
            members["transposed"] = Out(1)
            members["lane_address"] = Out(data.ArrayLayout(unsigned(ADDRESS_BITS), n))
        super().__init__(members)


class ActivationModel:
    """Golden twin of `ActivationMemory`: one numpy array and the widths of its pages."""

    def __init__(self, hardware: HardwareConfig):
        self.page_words = hardware.page_words
        self.words = np.zeros((hardware.pages * hardware.page_words, hardware.in_lanes), np.int64)

    def read(self, address: int) -> NDArray[np.int64]:
        """The lanes of one word."""
        return self.words[address].copy()

    def write(self, address: ArrayLike, mask: ArrayLike, value: ArrayLike) -> None:
        """Write the lanes in ``mask``; ``address`` is one word, or one per lane."""
        mask, value = np.asarray(mask, bool), np.asarray(value, np.int64)
        address = np.broadcast_to(address, mask.shape)
        bits = np.where(address // self.page_words == SCORE_PAGE, VALUE_BITS, 16)
        wrapped = ((value + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))
        lanes = np.flatnonzero(mask)
        self.words[address[lanes], lanes] = wrapped[lanes]


class ActivationMemory(wiring.Component):
    """Pages with one read and one write port each, shared by named clients.

    Parameters
    ----------
    hardware : HardwareConfig
        Lanes and words of a page.
    readers, writers : list of str, or mapping of str to pages
        Names of the clients, and the pages that each may touch (all of them where it is a list;
        fewer pages save the multiplexers).
    lanes : str
        The writer with ``transposed`` and ``lane_address``.

    Members
    -------
    read_<name> : In(ReadPort(hardware))
    write_<name> : In(WritePort(hardware)); that of ``lanes`` with ``lanes=True``
    collision : Out(1)
        Sticky, for simulation: two readers, or two writers, met on a page in the same cycle, or a
        client touched a page that it was not given. What is read or written then is undefined.
    overlap : Out(1)
        Sticky, for simulation: a word was read and written in the same cycle.

    Throughput: one read and one write per page and cycle. Latency of a read: `READ_LATENCY`; a write
    is seen by every read that is presented after it. Clients drive their ports from registers.

    Cost: ``page_words`` x lanes x 16 bits in five pages, x 22 in one; a page is addressed by the low bits
    of the linear address where this does not waste a quarter of it (no subtraction).
    """

    def __init__(
        self,
        hardware: HardwareConfig,
        readers: Iterable[str] | Mapping[str, Iterable[int]] = ("a", "b", "residual", "norm", "store"),
        writers: Iterable[str] | Mapping[str, Iterable[int]] = ("product", "norm", "load"),
        lanes: str = "product",
    ):
        self.hardware = hardware
        self.readers, self.writers = self._pages(readers), self._pages(writers)
        if lanes not in self.writers:
            raise ValueError(f"lanes is {lanes!r}; the writers are {', '.join(self.writers)}")
        self.lanes = lanes
        self.row_bits, self.depth = row_bits(hardware), page_depth(hardware)
        super().__init__(
            {f"read_{name}": In(ReadPort(hardware)) for name in self.readers}
            | {f"write_{name}": In(WritePort(hardware, lanes=name == lanes)) for name in self.writers}
            | {"collision": Out(1), "overlap": Out(1)}
        )

    def _pages(self, clients) -> dict[str, tuple[int, ...]]:
        everything = tuple(range(self.hardware.pages))
        if isinstance(clients, Mapping):
            return {name: tuple(pages) for name, pages in clients.items()}
        return dict.fromkeys(clients, everything)

    def _row(self, page: int, address: Value) -> Value:
        """Address within the memory of ``page``: any page_words neighbours differ in the low bits."""
        low = Value.cast(address)[: self.row_bits]
        base = page * self.hardware.page_words & ((1 << self.row_bits) - 1)
        return low if self.depth == 1 << self.row_bits or not base else (low - base)[: self.row_bits]

    def _select(self, m: Module, name: str, en: Value, address: Value) -> Signal:
        """Page of ``address``, one-hot and registered; 0 without ``en``."""
        pages, words = self.hardware.pages, self.hardware.page_words
        above = [Const(1)] + [address >= page * words for page in range(1, pages)] + [Const(0)]
        select = Signal(pages, name=f"{name}_page")
        m.d.sync += select.eq(Cat(en & above[i] & ~above[i + 1] for i in range(pages)))
        return select

    def elaborate(self, platform) -> Module:
        """Stage 1 decodes pages; each page chooses among its clients; each reader among the pages."""
        m = Module()
        n, pages = self.hardware.in_lanes, self.hardware.pages
        problem, meeting = [], []

        reads: dict[str, tuple[Signal, Signal]] = {}
        for name in self.readers:
            port = getattr(self, f"read_{name}")
            address = Signal(ADDRESS_BITS, name=f"read_{name}_address", reset_less=True)
            m.d.sync += address.eq(port.address)
            reads[name] = self._select(m, f"read_{name}", port.en, port.address), address

        writes: dict[str, dict[str, Signal]] = {}
        for name in self.writers:
            port = getattr(self, f"write_{name}")
            stage = {
                "address": Signal(ADDRESS_BITS, name=f"write_{name}_address", reset_less=True),
                "mask": Signal(n, name=f"write_{name}_mask", reset_less=True),
                "value": Signal(n * VALUE_BITS, name=f"write_{name}_value", reset_less=True),
            }
            if name == self.lanes:
                stage["lane_address"] = Signal(
                    n * ADDRESS_BITS, name=f"write_{name}_lane_address", reset_less=True
                )
                stage["transposed"] = Signal(name=f"write_{name}_transposed")
            for key, register in stage.items():
                m.d.sync += register.eq(Value.cast(getattr(port, key)))
            stage["page"] = select = self._select(m, f"write_{name}", port.en, port.address)
            if name == self.lanes:
                with m.If(port.en & port.transposed):
                    m.d.sync += select.eq(1 << TRANSPOSED_PAGE)
            writes[name] = stage

        def choose(options: list[tuple[Value, Value]], width: int) -> Value:
            result: Value = Const(0, width)
            for select, value in options:
                result = result | (value & select.replicate(width))
            return result

        outputs = []
        for page in range(pages):
            bits = lane_bits(page)
            selects = [
                (reads[name][0][page], reads[name][1]) for name in self.readers if page in self.readers[name]
            ]
            stages = [writes[name] for name in self.writers if page in self.writers[name]]
            read_en = Signal(name=f"page{page}_read_en")
            read_row = Signal(self.row_bits, name=f"page{page}_read_row")
            write_en = Signal(n, name=f"page{page}_write_en")
            write_row = Signal(self.row_bits, name=f"page{page}_write_row")
            value = Signal(n * bits, name=f"page{page}_value")
            out = Signal(n * bits, name=f"page{page}_out", reset_less=True)
            m.d.comb += [
                read_en.eq(Cat(select for select, _ in selects).any()),
                read_row.eq(self._row(page, choose(selects, ADDRESS_BITS))),
                write_en.eq(choose([(s["page"][page], s["mask"]) for s in stages], n)),
                write_row.eq(
                    self._row(page, choose([(s["page"][page], s["address"]) for s in stages], ADDRESS_BITS))
                ),
                value.eq(
                    choose([(s["page"][page], self._narrow(s["value"], bits)) for s in stages], n * bits)
                ),
            ]
            rows = [write_row] * n
            if page == TRANSPOSED_PAGE and page in self.writers[self.lanes]:
                stage = writes[self.lanes]
                transposed = stage["page"][page] & stage["transposed"]
                rows = [
                    Mux(
                        transposed,
                        self._row(page, stage["lane_address"].word_select(i, ADDRESS_BITS)),
                        write_row,
                    )
                    for i in range(n)
                ]
                for i in range(n):
                    memory = Memory(shape=unsigned(bits), depth=self.depth, init=[])
                    m.submodules[f"page{page}_lane{i}"] = memory
                    self._connect(m, memory, read_en, read_row, write_en[i], rows[i], value.word_select(i, bits),
                                  out.word_select(i, bits), None)  # fmt: skip
            else:
                memory = Memory(shape=unsigned(n * bits), depth=self.depth, init=[])
                m.submodules[f"page{page}"] = memory
                self._connect(m, memory, read_en, read_row, write_en, write_row, value, out, bits)
            outputs.append(out)
            problem += self._pairs([s for s, _ in selects]) + self._pairs([s["page"][page] for s in stages])
            meeting += [read_en & write_en[i] & (rows[i] == read_row) for i in range(n)]

        for name, allowed in self.readers.items():
            select = reads[name][0]
            problem += [select[page] for page in range(pages) if page not in allowed]
            for _ in range(READ_LATENCY - 2):
                following = Signal(pages, name=f"read_{name}_page_later")
                m.d.sync += following.eq(select)
                select = following
            word = choose(
                [(select[page], self._widen(outputs[page], lane_bits(page))) for page in allowed],
                n * VALUE_BITS,
            )
            result = Signal(n * VALUE_BITS, name=f"read_{name}_result", reset_less=True)
            m.d.sync += result.eq(word)
            m.d.comb += Value.cast(getattr(self, f"read_{name}").data).eq(result)
        for name, allowed in self.writers.items():
            problem += [writes[name]["page"][page] for page in range(pages) if page not in allowed]

        with m.If(Cat(problem).any()):
            m.d.sync += self.collision.eq(1)
        with m.If(Cat(meeting).any()):
            m.d.sync += self.overlap.eq(1)
        return m

    def _connect(self, m, memory, read_en, read_row, write_en, write_row, value, out, granularity) -> None:
        read, write = memory.read_port(), memory.write_port(granularity=granularity)
        m.d.comb += [
            read.en.eq(read_en), read.addr.eq(read_row),
            write.en.eq(write_en), write.addr.eq(write_row), write.data.eq(value),
        ]  # fmt: skip
        m.d.sync += out.eq(read.data)

    def _narrow(self, value: Value, bits: int) -> Value:
        return Cat(value.word_select(i, VALUE_BITS)[:bits] for i in range(self.hardware.in_lanes))

    def _widen(self, value: Value, bits: int) -> Value:
        lanes = [value.word_select(i, bits) for i in range(self.hardware.in_lanes)]
        return Cat(Cat(lane, lane[-1].replicate(VALUE_BITS - bits)) for lane in lanes)

    @staticmethod
    def _pairs(selects: list[Value]) -> list[Value]:
        return [a & b for i, a in enumerate(selects) for b in selects[:i]]
