"""Streams with checked payloads, and the elastic pipeline that all units are built on.

The rules are those of `amaranth.lib.stream`: a transfer happens in a cycle in which both ``valid``
and ``ready`` are high; ``valid`` does not wait for ``ready``, and once high it stays, with the same
payload, until the transfer. ``valid`` and ``payload`` leave from registers; ``ready`` may be
combinational through one unit, so a `Buffer` stands at every seam of the core.
"""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from edgemoe.numeric import unreset


def connect(m: Module, source: wiring.FlippedInterface, sink: wiring.PureInterface) -> None:
    """Connect two streams whose payloads have the *same layout*, not merely the same width.

    Raises:
        TypeError: the payload shapes differ; the message has both.
    """
    a, b = source.payload, sink.payload
    shape_a = getattr(a, "shape", lambda: Shape.cast(a))()
    shape_b = getattr(b, "shape", lambda: Shape.cast(b))()
    if shape_a != shape_b:
        raise TypeError(f"stream payloads differ: {shape_a!r} drives {shape_b!r}; give both ends one layout")
    m.d.comb += [
        Value.cast(b).eq(Value.cast(a)),
        sink.valid.eq(source.valid),
        source.ready.eq(sink.ready),
    ]


def pipeline(m: Module, i_valid: Value, o_ready: Value, latency: int) -> tuple[Value, Value]:
    """Control of an elastic pipeline with ``latency`` register stages and initiation interval 1.

    The whole pipeline stands still while its last stage holds a result that is not taken.

    Returns:
        ``(enable, o_valid)``. Every data register of the pipeline is assigned under
        ``with m.If(enable)``, memory read ports get ``en = enable``, and the unit's ``i.ready`` is
        ``enable``. ``o_valid`` is the register of the last stage.
    """
    valid = Signal(latency, name="stage_valid")
    enable = Signal(name="stage_enable")
    m.d.comb += enable.eq(o_ready | ~valid[-1])
    with m.If(enable):
        m.d.sync += valid.eq((valid << 1) | i_valid)
    return enable, valid[-1]


class Buffer(wiring.Component):
    """Skid buffer: cuts ``valid``, ``payload`` and ``ready`` with registers at full throughput.

    Parameters
    ----------
    shape : shape-like
        Payload of both streams.

    Members
    -------
    i : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))

    Throughput 1 per cycle, latency 1 cycle; two payload registers. The spare one follows the input until it is
    needed: ``o.ready``, whose way is long, enables only the other.
    """

    def __init__(self, shape):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})
        self.shape = shape

    def elaborate(self, platform) -> Module:
        m = Module()
        spare, payload = Signal(self.shape, reset_less=True), unreset(m, self.o.payload)
        full = Signal()
        m.d.comb += self.i.ready.eq(~full)
        with m.If(~full):
            m.d.sync += Value.cast(spare).eq(Value.cast(self.i.payload))
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += [
                self.o.valid.eq(self.i.valid | full),
                Value.cast(payload).eq(Value.cast(spare)),
                full.eq(0),
            ]
            with m.If(~full):
                m.d.sync += Value.cast(payload).eq(Value.cast(self.i.payload))
        with m.Elif(self.i.valid):
            m.d.sync += full.eq(1)
        return m
