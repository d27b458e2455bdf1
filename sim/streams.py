"""Drives the ports of a Component in a cocotb simulation, with gaps, and checks the rules of streams.

All ports move in one loop of two steps per cycle. Inputs change at the falling edge, and everything is read when
the design has settled after that, still before the rising edge at which transfers happen: no result depends on
the order in which a simulator runs what belongs to one edge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

from amaranth.hdl import Const, Shape
from amaranth.lib import data
from amaranth.lib.wiring import In
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from bench import plain

QUIET = 24
"""Cycles after the last expected transfer in which no other may follow."""

Gaps = Mapping[str, Sequence[int]]
"""Idle cycles before the transfers of a port, by its name; repeated as often as needed."""


def pack(shape, value: Any) -> int:
    """The bits of a payload, given as int, list or dict, as they lie in a Verilog port."""
    if isinstance(shape, data.Layout):
        return shape.const(value).as_bits()
    return Const(value, Shape.cast(shape)).value & ((1 << Shape.cast(shape).width) - 1)


def unpack(shape, bits: int) -> Any:
    """The payload as int, list or dict."""
    if isinstance(shape, data.Layout):
        return plain(shape.from_bits(bits))
    return Const(bits, Shape.cast(shape)).value


@dataclass
class Result:
    """What left the sinks (``values``), and in which cycle every transfer happened."""

    values: dict[str, list[Any]] = field(default_factory=dict)
    cycles_in: dict[str, list[int]] = field(default_factory=dict)
    cycles_out: dict[str, list[int]] = field(default_factory=dict)


class Source:
    """Offers payloads; between them the port has no ``valid``, and bits that must not count."""

    def __init__(self, handle, name: str, shape, payloads: Iterable[Any], gaps: Sequence[int]):
        self.valid, self.payload, self.ready = _stream(handle, name)
        self.mask = (1 << Shape.cast(shape).width) - 1
        self.shape, self.left = shape, deque(pack(shape, payload) for payload in payloads)
        self.gaps, self.shown, self.cycles = cycle(gaps), (-1, 0), []
        self.wait = next(self.gaps)

    def drive(self) -> None:
        """Set the port for this cycle."""
        bits = self.left[0] if self.left else 0
        if self.left and not self.wait:
            show = 1, bits
        else:
            self.wait -= self.wait > 0
            show = 0, bits ^ self.mask
        if show != self.shown:
            self.valid.value, self.payload.value = self.shown = show

    def sample(self, now: int) -> None:
        """Note a transfer."""
        if self.shown[0] and int(self.ready.value):
            self.cycles.append(now)
            self.left.popleft()
            self.wait = next(self.gaps)

    @property
    def done(self) -> bool:
        """Whether all payloads were taken."""
        return not self.left


class Sink:
    """Takes payloads, and checks that an offer stays as it is until it is taken."""

    def __init__(self, handle, name: str, shape, amount: int | None, gaps: Sequence[int]):
        self.valid, self.payload, self.ready = _stream(handle, name)
        self.name, self.shape, self.amount = name, shape, amount
        self.gaps, self.takes, self.values, self.cycles = cycle(gaps), False, [], []
        self.wait = next(self.gaps)
        self.refused: int | None = None

    def drive(self) -> None:
        """Set the port for this cycle."""
        self.takes = not self.wait
        self.wait -= not self.takes
        self.ready.value = int(self.takes)

    def sample(self, now: int) -> None:
        """Take what is offered."""
        offered = int(self.payload.value) if int(self.valid.value) else None
        assert self.refused in (None, offered), (
            f"{self.name}: an offer that was refused has changed in cycle {now}"
        )
        self.refused = None if self.takes else offered
        if self.takes and offered is not None:
            self.values.append(unpack(self.shape, offered))
            self.cycles.append(now)
            self.wait = next(self.gaps)
            assert self.amount is None or len(self.values) <= self.amount, (
                f"{self.name}: a transfer more than expected in cycle {now}"
            )

    @property
    def done(self) -> bool:
        """Whether all payloads that are expected have come."""
        return self.amount in (None, len(self.values))


class Driver:
    """The ports of one Component; ``cycles`` counts all cycles since the start."""

    def __init__(self, handle, component):
        self.handle, self.component, self.cycles = handle, component, 0
        handle.clk.value = 0
        Clock(handle.clk, 10, unit="ns").start()

    def shape(self, name: str):
        """Payload of a stream of the component."""
        return self.component.signature.members[name].signature.members["payload"].shape

    def set(self, **constants: Any) -> None:
        """Set plain input ports."""
        for name, value in constants.items():
            shape = self.component.signature.members[name].shape
            getattr(self.handle, name).value = pack(shape, value)

    def get(self, name: str) -> Any:
        """A plain output port."""
        return unpack(self.component.signature.members[name].shape, int(getattr(self.handle, name).value))

    async def falling(self) -> None:
        """Go to where inputs may change."""
        await FallingEdge(self.handle.clk)
        self.cycles += 1

    async def reset(self) -> None:
        """Two cycles of reset, with all inputs at 0."""
        await self.falling()
        for name, member in self.component.signature.members.items():
            if member.is_signature:
                valid, payload, ready = _stream(self.handle, name)
                inward = [valid, payload] if member.flow == In else [ready]
                for port in inward:
                    port.value = 0
            elif member.flow == In:
                getattr(self.handle, name).value = 0
        self.handle.rst.value = 1
        await self.falling()
        await self.falling()
        self.handle.rst.value = 0

    async def run(self, sources: Mapping[str, Iterable[Any]], sinks: Mapping[str, int], gaps: Gaps, *,
                  answers: Mapping[str, tuple[str, Callable]] | None = None, watch: Callable[[int], bool] = lambda _: True,
                  patience: int = 1000) -> Result:  # fmt: skip
        """Send all payloads of ``sources``, and take the given number from each of ``sinks``, and no more.

        Args:
            answers: sink -> (source, function): what is taken there, any number, is answered here from the next cycle on.
            watch: called with the number of every cycle when all has settled; once it has returned True the run may end.

        Raises:
            AssertionError: a stream rule is broken, too much comes, or nothing has moved for ``patience`` cycles.
        """
        answers = answers or {}
        sources = {**sources, **{to: () for to, _ in answers.values()}}
        takers = {**dict.fromkeys(answers), **sinks}
        feeds = {n: Source(self.handle, n, self.shape(n), p, gaps.get(n, (0,))) for n, p in sources.items()}
        takes = {n: Sink(self.handle, n, self.shape(n), a, gaps.get(n, (0,))) for n, a in takers.items()}
        ports = [*feeds.values(), *takes.values()]
        watched, quiet, moved, answered = False, 0, 0, dict.fromkeys(answers, 0)
        for now in count():
            for port in ports:
                port.drive()
            await ReadOnly()
            for port in ports:
                port.sample(now)
            watched |= watch(now)
            for name, (to, function) in answers.items():
                for value in takes[name].values[answered[name] :]:
                    feeds[to].left.append(pack(feeds[to].shape, function(value)))
                answered[name] = len(takes[name].values)
            quiet += watched and all(port.done for port in ports)
            moved = max([moved, *(port.cycles[-1] for port in ports if port.cycles)])
            await self.falling()
            if quiet > QUIET:
                break
            if now - moved > patience:
                left = {n: len(f.left) for n, f in feeds.items()}
                left |= {n: amount - len(takes[n].values) for n, amount in sinks.items()}
                raise AssertionError(
                    f"deadlock: no transfer in {patience} cycles, and these are left: {left}"
                )
        return Result(
            {n: t.values for n, t in takes.items()},
            {n: f.cycles for n, f in feeds.items()},
            {n: t.cycles for n, t in takes.items()},
        )


def _stream(handle, name: str):
    return [getattr(handle, f"{name}__{part}") for part in ("valid", "payload", "ready")]
