"""A stand-in with the accelerator's ports: copies each image to the output, adding one to every 16-bit lane."""

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from edgemoe.config import HardwareConfig
from edgemoe.core.interface import MAX_BURST, ControlPort, MemoryPort, MonitorPort
from edgemoe.isa import Descriptor, Op
from edgemoe.simulation.records import Records

HARDWARE = HardwareConfig(
    name="toy", in_lanes=8, out_lanes=8, port_bytes=16, tokens=8, dim=16, row=16, hidden=16, image=64,
    post_lanes=4, memory_bytes=1 << 16,
)  # fmt: skip
WORDS = 100
"""Port words of an image."""


class Toy(wiring.Component):
    """Reads `WORDS` port words of each image and stores them plus one per lane.

    Every word gives one record of each kind: product (descriptor 2, row = word, lanes 0..3 as values, -1 - row as
    addends), norm (3, all lanes), load (0, all lanes) and route (1, token = word, expert = task).

    Parameters
    ----------
    fault : str
        ``hang`` (never done), ``range`` (reads beyond the memory), ``error`` (ends with error code 2), ``rule`` (a
        request that changes while it waits), ``unread`` (a request whose data are not taken), ``twice`` (done) or none.
    """

    def __init__(self, hardware=HARDWARE, fault=""):
        super().__init__(
            {
                "control": Out(ControlPort()),
                "memory": Out(MemoryPort(hardware.port_bytes)),
                "monitor": Out(MonitorPort(hardware)),
            }
        )
        self.hardware, self.fault = hardware, fault

    def elaborate(self, platform):
        m = Module()
        control, memory, monitor = self.control, self.memory, self.monitor
        index, image, burst = Signal(16), Signal(16), Signal(8)
        lanes = [
            (memory.read_data.payload.word_select(i, 16) + 1)[:16]
            for i in range(self.hardware.port_bytes // 2)
        ]
        done = Signal()
        m.d.comb += control.done.eq(done)
        m.d.sync += done.eq(0)
        with m.If(control.busy & ~done):
            m.d.sync += control.cycles.eq(control.cycles + 1)
        position = image * WORDS + index
        with m.FSM():
            with m.State("IDLE"):
                with m.If(control.start):
                    m.d.sync += [control.busy.eq(1), index.eq(0), image.eq(0), control.error.eq(0)]
                    m.d.sync += [control.cycles.eq(2), control.read_words.eq(0), control.write_words.eq(0)]
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                rest = WORDS - index
                length = Mux(rest > MAX_BURST, MAX_BURST, rest)
                start = control.image + position + (1 << 20 if self.fault == "range" else 0)
                if self.fault == "rule":
                    changing = Signal(16)
                    m.d.sync += changing.eq(changing + 1)
                    start = start + (changing & 1)
                m.d.comb += [
                    memory.read_request.valid.eq(1),
                    memory.read_request.payload.address.eq(start),
                    memory.read_request.payload.length.eq(length - 1),
                ]
                with m.If(memory.read_request.ready):
                    m.d.sync += burst.eq(length)
                    m.next = "COPY"
            with m.State("COPY"):
                m.d.comb += [
                    memory.write.valid.eq(memory.read_data.valid),
                    memory.read_data.ready.eq(memory.write.ready),
                    memory.write.payload.address.eq(control.output + position),
                    memory.write.payload.data.eq(Cat(lanes)),
                ]
                with m.If(memory.read_data.valid & memory.write.ready):
                    m.d.comb += self.record(monitor, index, lanes)
                    m.d.sync += [
                        index.eq(index + 1), burst.eq(burst - 1),
                        control.read_words.eq(control.read_words + 1),
                        control.write_words.eq(control.write_words + 1),
                    ]  # fmt: skip
                    with m.If(burst == 1):
                        m.next = "REQUEST"
                    with m.If(index == WORDS - 1):
                        m.d.sync += [index.eq(0), image.eq(image + 1)]
                        with m.If(image == control.images - 1):
                            m.next = "DONE"
            with m.State("DONE"):
                last = Signal()
                m.d.sync += last.eq(1)
                if self.fault == "unread":
                    m.d.comb += memory.read_request.valid.eq(~last)
                if self.fault == "twice":
                    m.d.sync += done.eq(1)
                    with m.If(last):
                        m.d.sync += control.busy.eq(0)
                        m.next = "IDLE"
                elif self.fault != "hang":
                    m.d.sync += [
                        done.eq(1),
                        control.busy.eq(0),
                        control.error.eq(2 if self.fault == "error" else 0),
                    ]
                    m.next = "IDLE"
        return m

    def record(self, monitor, index, lanes):
        """One record of each kind."""
        return [
            monitor.product_valid.eq(1),
            monitor.product.number.eq(2),
            monitor.product.row.eq(index),
            monitor.product.mask.eq(0b1011),
            monitor.product.address.eq(index + 7),
            *[monitor.product.value[i].eq(lanes[i].as_signed()) for i in range(4)],
            *[monitor.product.addend[i].eq(-1 - index) for i in range(4)],
            monitor.norm_valid.eq(1),
            monitor.norm.number.eq(3),
            *[monitor.norm.value[i].eq(lanes[i].as_signed()) for i in range(8)],
            monitor.load_valid.eq(1),
            monitor.load.mask.eq(0x81),
            monitor.load.address.eq(index),
            *[monitor.load.value[i].eq(lanes[i].as_signed()) for i in range(8)],
            monitor.route_valid.eq(1),
            monitor.route.number.eq(1),
            monitor.route.token.eq(index),
            monitor.route.expert.eq(self.control.task),
            monitor.route.score.eq(index << 8),
        ]


def program():
    """A memory image with descriptors that imply the toy's sizes."""
    descriptors = [
        Descriptor(op=Op.LOAD),
        Descriptor(op=Op.IMAGE, stride=WORDS, pixel_bytes=2),
        Descriptor(op=Op.PRODUCT),
        Descriptor(op=Op.STORE, count=WORDS, words=1, stride=WORDS),
        Descriptor(op=Op.END),
    ]
    return b"".join(d.pack() for d in descriptors)


def images(count, seed=0):
    """Random int16 images of the toy's size."""
    return np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, (count, 1, WORDS, 8)).astype(np.int16)


def golden_records(result, hardware):
    """The monitor's records of a gateware that does exactly what the golden machine's trace says."""
    n, lanes = hardware.post_lanes, hardware.in_lanes
    tables = {"product": [], "norm": [], "load": [], "route": []}
    cycle = 0
    for writes, routes in zip(result.trace, result.routes, strict=True):
        for write in sorted([*writes, *routes.values()], key=lambda w: (w.number, getattr(w, "visit", 0))):
            if not hasattr(write, "visit"):
                for token, rank in np.ndindex(write.experts.shape):
                    row = (
                        cycle,
                        write.number,
                        token,
                        rank,
                        write.experts[token, rank],
                        write.scores[token, rank],
                    )
                    tables["route"].append(row)
                    cycle += 1
                continue
            step = lanes if write.addends is None else n
            addresses = write.addresses()
            for r in range(len(write.rows)):
                for c in range(0, write.values.shape[1], step):
                    part = slice(c, c + step)
                    value = np.zeros(step, int)
                    value[: len(write.values[r, part])] = write.values[r, part]
                    mask = np.arange(c, c + step) < write.values.shape[1]
                    if write.mask is not None:
                        mask &= write.mask[part]
                    row = {"cycle": cycle, "number": write.number, "address": addresses[r, c], "value": value}
                    if write.addends is None:
                        kind = "load" if write.number < 2 else "norm"
                        if kind == "load":
                            row["mask"] = mask
                    else:
                        kind = "product"
                        addend = np.zeros(step, int)
                        addend[: len(write.addends[r, part])] = write.addends[r, part]
                        row |= {"visit": write.visit, "row": write.rows[r], "channel": c, "mask": mask}
                        row["addend"] = addend
                    if kind == "norm" or mask.any():
                        tables[kind].append(row)
                    cycle += 1
    names = ("cycle", "number", "token", "rank", "expert", "score")
    tables["route"] = [dict(zip(names, row, strict=True)) for row in tables["route"]]
    return Records(
        **{k: {name: np.array([row[name] for row in v]) for name in v[0]} for k, v in tables.items()}
    )
