"""Activation memory: five pages of on-chip words behind one linear address (docs/architecture.md).

    cycle | read                                     | write
    0     | en, address                              | en, address, mask, value
    1     | bank and address, registers per client   | the same
    2     | bank and row, registers of the page      | the same
    3     | block RAM has read                       | written
    4     | output of every bank                     |
    5     | output of the page                       |
    6     | data                                     |

The block RAMs of a page lie far apart (24 to 32 of them on 16 lanes), and theirs is the slowest output of the device: there
is nothing but wire from the registers of cycle 2 to them, and from them to those of cycle 4.

**Ordering.** A read that is presented in a later cycle than a write sees what was written; a read
presented in an earlier cycle does not. Of a word that is read and written *in the same cycle* the lanes that are
written are undefined on a device (old in simulation) and the others are what they were: the residual is read by a group of
lanes while another group of its word is written. The schedule keeps the same lanes apart (tests/core/test_collisions.py).

**Banks.** The low bits of the linear address are the address in a page, whatever the page's first word is: any
neighbours differ in them, so nothing is subtracted. A page that fills little more than three quarters of
that range is built of quarters; of the one that it only touches, at its start or end, there is no more than the words
that it touches, in distributed memory (M3ViT-tiny on 16 lanes: 1548 words = 3 x 512 in block RAM + 12). The first page
starts where these are few (`HardwareConfig.first_word`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, Signature
from numpy.typing import ArrayLike, NDArray

from edgemoe.config import HardwareConfig
from edgemoe.numeric import register

READ_LATENCY = 6
"""Cycles from ``en`` and ``address`` of a read port to its ``data``."""

ADDRESS_BITS = 16
VALUE_BITS = 22
TRANSPOSED_PAGE = 4
"""The page whose lanes have addresses of their own."""
SPLIT_WORDS = 2048
"""Address range from which on a page may be built of quarters: those of less are below a block RAM of 512 words."""
DISTRIBUTED_WORDS = 64
"""A bank of at most so many words is distributed memory."""


def code_words(hardware: HardwareConfig) -> dict[int, int]:
    """Words at the start of a page, by page, whose lanes have `VALUE_BITS` bits: scores in norm, the gate's in k."""
    return {1: hardware.tokens * hardware.token_words, 3: hardware.tokens * hardware.gate_words}


def page_size(hardware: HardwareConfig, page: int) -> int:
    """Words of ``page``."""
    return hardware.last_page_words if page == hardware.pages - 1 else hardware.page_words


class Bank(NamedTuple):
    """One memory of a page: its words, and whether it holds the end of its range, last word first."""

    depth: int
    falling: bool = False


@dataclass(frozen=True)
class Banks:
    """How ``words`` words from linear address ``base`` on are built: memories chosen by the upper bits of a row."""

    base: int
    words: int
    split: bool = True
    """Whether they may be quarters; the page whose lanes have addresses of their own is whole."""

    @property
    def row_bits(self) -> int:
        """Bits of an address within the page."""
        return max(1, (self.words - 1).bit_length())

    @property
    def banks(self) -> tuple[Bank, ...]:
        """One bank for the whole range, or four of which some may have few words or none."""
        window = 1 << self.row_bits
        if not self.split or window < SPLIT_WORDS or 4 * self.words > 3 * window + 4 * DISTRIBUTED_WORDS:
            return (Bank(window),)
        return self.quarters(self.row_bits)

    def quarters(self, row_bits: int) -> tuple[Bank, ...]:
        """The quarters of a range of ``row_bits``: from its first word to the last that is used, or from its end down."""
        size = 1 << (row_bits - 2)
        rows = (np.arange(self.words) + self.base) % (4 * size)
        banks = []
        for quarter in range(4):
            used = rows[rows // size == quarter] % size
            up, down = int(used.max(initial=-1)) + 1, size - int(used.min(initial=size))
            banks.append(Bank(down, True) if down < up else Bank(up))
        return tuple(banks)


def page_banks(hardware: HardwareConfig, page: int) -> Banks:
    """Banks of ``page``."""
    return Banks(hardware.page_base(page), page_size(hardware, page), page != TRANSPOSED_PAGE)


class ReadPort(Signature):
    """Read access, seen from the client; ``data`` follows `READ_LATENCY` cycles later.

    Bits above the 16th are those of a score in the words of `code_words`, and undefined in others of these pages.
    """

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
        self.bits = np.full(hardware.activation_end, 16)
        for page, words in code_words(hardware).items():
            self.bits[hardware.page_base(page) :][:words] = VALUE_BITS
        self.words = np.zeros((hardware.activation_end, hardware.in_lanes), np.int64)

    def read(self, address: int) -> NDArray[np.int64]:
        """The lanes of one word."""
        return self.words[address].copy()

    def write(self, address: ArrayLike, mask: ArrayLike, value: ArrayLike) -> None:
        """Write the lanes in ``mask``; ``address`` is one word, or one per lane."""
        mask, value = np.asarray(mask, bool), np.asarray(value, np.int64)
        address = np.broadcast_to(address, mask.shape)
        bits = self.bits[address]
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
        fewer pages save wires and multiplexers).
    read_ways, write_ways : list of lists of str
        Clients that share their registers and wires, as only one of them is active in a cycle; others have their own.
    lanes : str
        The writer with ``transposed`` and ``lane_address``.

    Members
    -------
    read_<name> : In(ReadPort(hardware))
    write_<name> : In(WritePort(hardware)); that of ``lanes`` with ``lanes=True``
    collision : Out(1)
        Sticky, for simulation: two readers, or two writers, met on a page or on a way in the same cycle, or
        a client touched a page that it was not given. What is read or written then is undefined.

    Throughput: one read and one write per page and cycle. Latency of a read: `READ_LATENCY`; a write
    is seen by every read that is presented after it. Clients drive their ports from registers.

    Cost: the words of `Banks` x lanes x 16 bits; the 6 more bits of the words of `code_words` have memories of
    their own, as block RAM with write enables comes in bytes of 9 bits.
    """

    def __init__(
        self,
        hardware: HardwareConfig,
        readers: Iterable[str] | Mapping[str, Iterable[int]] = ("a", "b", "residual", "norm", "store"),
        writers: Iterable[str] | Mapping[str, Iterable[int]] = ("product", "norm", "load"),
        lanes: str = "product",
        read_ways: Iterable[Iterable[str]] = (),
        write_ways: Iterable[Iterable[str]] = (),
    ):
        self.hardware = hardware
        self.readers, self.writers = self._pages(readers), self._pages(writers)
        if lanes not in self.writers:
            raise ValueError(f"lanes is {lanes!r}; the writers are {', '.join(self.writers)}")
        self.lanes = lanes
        self.read_ways = self._ways(self.readers, read_ways)
        self.write_ways = self._ways(self.writers, write_ways)
        self.banks = [page_banks(hardware, page) for page in range(hardware.pages)]
        super().__init__(
            {f"read_{name}": In(ReadPort(hardware)) for name in self.readers}
            | {f"write_{name}": In(WritePort(hardware, lanes=name == lanes)) for name in self.writers}
            | {"collision": Out(1)}
        )

    def _pages(self, clients) -> dict[str, tuple[int, ...]]:
        everything = tuple(range(self.hardware.pages))
        if isinstance(clients, Mapping):
            return {name: tuple(pages) for name, pages in clients.items()}
        return dict.fromkeys(clients, everything)

    @staticmethod
    def _ways(clients: dict[str, tuple[int, ...]], shared: Iterable[Iterable[str]]) -> list[_Way]:
        """The shared ways, and one for every other client."""
        ways = [tuple(way) for way in shared]
        taken = {name for way in ways for name in way}
        if unknown := taken - set(clients):
            raise ValueError(
                f"a way names {', '.join(sorted(unknown))}; the clients are {', '.join(clients)}"
            )
        ways += [(name,) for name in clients if name not in taken]
        return [_Way(way, tuple(sorted({page for name in way for page in clients[name]}))) for way in ways]

    def _decode(self, en: Value, address: Value) -> list[Value]:
        """For every page its banks, one-hot: that of ``address``; none without ``en``."""
        pages = self.hardware.pages
        above = (
            [Const(1)] + [address >= self.hardware.page_base(page) for page in range(1, pages)] + [Const(0)]
        )
        selects = []
        for page, banks in enumerate(self.banks):
            count = len(banks.banks)
            here = en & above[page] & ~above[page + 1]
            bank = Value.cast(address)[: banks.row_bits].shift_right(banks.row_bits - 2)
            selects.append(Cat(here & (bank == i) for i in range(count)) if count > 1 else here)
        return selects

    def _enter(self, m: Module, way: _Way, kind: str, ports: dict[str, Any], fields: dict[str, int]):
        """Registers of a way: the banks that its clients select, by page, and ``fields`` of the one that is active.

        Also returns what must not be: two clients at once, or pages that a client was not given.
        """
        clients = self.readers if kind == "read" else self.writers
        decoded = {name: self._decode(port.en, port.address) for name, port in ports.items()}
        problem = pairs([port.en for port in ports.values()])
        if kind == "write" and self.lanes in ports:
            port = ports[self.lanes]
            decoded[self.lanes] = [
                Mux(port.transposed, port.en if page == TRANSPOSED_PAGE else 0, select)
                for page, select in enumerate(decoded[self.lanes])
            ]
        for name, selects in decoded.items():
            problem += [s.any() for page, s in enumerate(selects) if page not in clients[name]]
        stage = {}
        for key, bits in fields.items():
            stage[key] = Signal(bits, name=f"{kind}_{way.name}_{key}", reset_less=True)
            having = [port for port in ports.values() if hasattr(port, key)]
            m.d.sync += stage[key].eq(any_of([(port.en, Value.cast(getattr(port, key))) for port in having]))
        selected = []
        for page, banks in enumerate(self.banks):
            select = Signal(len(banks.banks), name=f"{kind}_{way.name}_bank{page}")
            m.d.sync += select.eq(choose([(Const(1), selects[page]) for selects in decoded.values()]))
            selected.append(select)
        return selected, stage, problem

    def elaborate(self, platform) -> Module:
        """Stage 1 decodes pages and banks; 2: each page chooses among the ways; the last, each way among pages."""
        m = Module()
        n = self.hardware.in_lanes
        codes = code_words(self.hardware)
        problem = []

        reads, writes = [], []
        for way in self.read_ways:
            ports = {name: getattr(self, f"read_{name}") for name in way.clients}
            selects, stage, wrong = self._enter(m, way, "read", ports, {"address": ADDRESS_BITS})
            reads.append((way, selects, stage))
            problem += wrong
        for way in self.write_ways:
            ports = {name: getattr(self, f"write_{name}") for name in way.clients}
            fields = {"address": ADDRESS_BITS, "mask": n, "value": n * VALUE_BITS}
            if self.lanes in way.clients:
                fields |= {"lane_address": n * ADDRESS_BITS}
            selects, stage, wrong = self._enter(m, way, "write", ports, fields)
            if self.lanes in way.clients:
                stage["transposed"] = register(m, 1, ports[self.lanes].en & ports[self.lanes].transposed)
            writes.append((way, selects, stage))
            problem += wrong

        outputs, high = [], {}
        for page, banks in enumerate(self.banks):
            readers = [(selects[page], stage) for way, selects, stage in reads if page in way.pages]
            writers = [(selects[page], stage) for way, selects, stage in writes if page in way.pages]
            row_bits, count = banks.row_bits, len(banks.banks)
            access = _Access(
                read_en=Signal(count, name=f"page{page}_read_en"),
                read_row=Signal(row_bits, name=f"page{page}_read_row", reset_less=True),
                write_en=[Signal(n, name=f"page{page}_write_en{i}") for i in range(count)],
                write_row=Signal(row_bits, name=f"page{page}_write_row", reset_less=True),
            )
            value = Signal(n * VALUE_BITS, name=f"page{page}_value", reset_less=True)
            write_row = any_of([(select.any(), stage["address"][:row_bits]) for select, stage in writers])
            m.d.sync += [
                access.read_en.eq(choose([(Const(1), select) for select, _ in readers], count)),
                access.read_row.eq(
                    any_of([(select.any(), s["address"][:row_bits]) for select, s in readers])
                ),
                access.write_row.eq(write_row),
                value.eq(any_of([(select.any(), stage["value"]) for select, stage in writers])),
            ]
            m.d.sync += [
                en.eq(choose([(select[i], stage["mask"]) for select, stage in writers]))
                for i, en in enumerate(access.write_en)
            ]
            low = Cat(value.word_select(i, VALUE_BITS)[:16] for i in range(n))
            if page == TRANSPOSED_PAGE:
                select, stage = next((select, s) for select, s in writers if "transposed" in s)
                lane_rows = [stage["lane_address"].word_select(i, ADDRESS_BITS)[:row_bits] for i in range(n)]
                transposed = select.any() & stage["transposed"]
                rows = [register(m, 1, Mux(transposed, row, write_row)) for row in lane_rows]
                out = self._lane_memories(m, f"page{page}", access, rows, low)
            else:
                out = self._memories(m, f"page{page}", access, banks.banks, low, 16)
            if page in codes:
                upper = Cat(value.word_select(i, VALUE_BITS)[16:] for i in range(n))
                parts = Banks(banks.base, codes[page]).quarters(row_bits) if count > 1 else banks.banks
                high[page] = self._memories(m, f"page{page}_code", access, parts, upper, VALUE_BITS - 16)
            outputs.append(out)
            problem += pairs([select.any() for select, _ in readers])
            problem += pairs([select.any() for select, _ in writers])

        for way, selects, _ in reads:
            select = register(m, 1, Cat(bank.any() for bank in selects), READ_LATENCY - 2)
            word = any_of([(select[page], outputs[page]) for page in way.pages])
            lanes = [word.word_select(i, 16) for i in range(n)]
            if coded := [page for page in way.pages if page in high]:
                upper = choose([(select[page], high[page]) for page in coded])
                lanes = [Cat(x, upper.word_select(i, VALUE_BITS - 16)) for i, x in enumerate(lanes)]
            else:
                lanes = [Cat(x, x[-1].replicate(VALUE_BITS - 16)) for x in lanes]
            result = register(m, 1, Cat(lanes))
            m.d.comb += [Value.cast(getattr(self, f"read_{name}").data).eq(result) for name in way.clients]

        with m.If(Cat(problem).any()):
            m.d.sync += self.collision.eq(1)
        return m

    def _lane_memories(
        self, m: Module, name: str, access: _Access, rows: list[Value], value: Value
    ) -> Signal:
        """A memory for each lane, written at its own row; returns the second register of the output."""
        raw, out = (Signal(len(value), name=f"{name}_{stage}", reset_less=True) for stage in ("raw", "out"))
        m.d.sync += out.eq(raw)
        for i, row in enumerate(rows):
            memory = Memory(shape=unsigned(16), depth=1 << len(access.read_row), init=[])
            m.submodules[f"{name}_lane{i}"] = memory
            read, write = memory.read_port(), memory.write_port()
            m.d.comb += [
                read.en.eq(access.read_en), read.addr.eq(access.read_row),
                write.en.eq(access.write_en[0][i]), write.addr.eq(row), write.data.eq(value.word_select(i, 16)),
            ]  # fmt: skip
            m.d.sync += raw.word_select(i, 16).eq(read.data)
        return out

    def _memories(
        self, m: Module, name: str, access: _Access, banks: tuple[Bank, ...], value: Value, bits: int
    ) -> Value:
        """The banks of a page, or of its codes; returns the output of the page, behind the choice of the bank."""
        row_bits = len(access.read_row) - (2 if len(banks) > 1 else 0)
        data = []
        for i, (depth, falling) in enumerate(banks):
            if not depth:
                data.append(Const(0, len(value)))
                continue
            attrs = {"ram_style": "distributed"} if len(banks) > 1 and depth <= DISTRIBUTED_WORDS else {}
            memory = Memory(shape=unsigned(len(value)), depth=depth, init=[], attrs=attrs)
            m.submodules[f"{name}_bank{i}"] = memory
            read, write = memory.read_port(), memory.write_port(granularity=bits)
            m.d.comb += [
                read.en.eq(access.read_en[i]), read.addr.eq(access.read_row[:row_bits] ^ -falling),
                write.en.eq(access.write_en[i]), write.addr.eq(access.write_row[:row_bits] ^ -falling),
                write.data.eq(value),
            ]  # fmt: skip
            data.append(register(m, 1, read.data))
        bank = register(m, 1, access.read_row[-2:], 2)
        return register(m, 1, Array(data)[bank] if len(banks) > 1 else data[0])


@dataclass(frozen=True)
class _Way:
    """Clients that share registers and wires, and the pages of any of them."""

    clients: tuple[str, ...]
    pages: tuple[int, ...]

    @property
    def name(self) -> str:
        """For names of signals."""
        return "_".join(self.clients)


@dataclass(frozen=True)
class _Access:
    """One read and one write of a page in a cycle; enables by bank, those of the write by lane."""

    read_en: Signal
    read_row: Signal
    write_en: list[Signal]
    write_row: Signal


def choose(options: list[tuple[Value, Value]], width: int = 0) -> Value:
    """The value whose condition holds (one at most), or 0."""
    result: Value = Const(0, width)
    for select, value in options:
        result = result | Mux(select, value, 0)
    return result


def any_of(options: list[tuple[Value, Value]]) -> Value:
    """The value whose condition holds, or any: for what does not matter then."""
    return options[0][1] if len(options) == 1 else choose(options)


def pairs(selects: list[Value]) -> list[Value]:
    """Two at once, for each two."""
    return [a & b for i, a in enumerate(selects) for b in selects[:i]]
