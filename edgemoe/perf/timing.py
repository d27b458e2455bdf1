"""Latencies of the gateware, as sums over its components' own constants."""

from __future__ import annotations

from functools import partial

from edgemoe.config import HardwareConfig
from edgemoe.core import writer
from edgemoe.core.activation import READ_LATENCY
from edgemoe.core.fifo import Fifo
from edgemoe.units import layernorm, requantise, router
from edgemoe.units.gelu import Gelu
from edgemoe.units.matmul import MatmulSpec
from edgemoe.units.requantise import RequantiseSpec
from edgemoe.units.residual import Residual
from edgemoe.units.softmax import SoftmaxSpec, Weigher, reciprocal_cycles


class Timing:
    """Cycles between events of the gateware; a *register* is 1, a *state* of a machine, too."""

    def __init__(self, hardware: HardwareConfig) -> None:
        register = state = 1
        self.interval = writer.interval(hardware)
        """Cycles that the results of a step take."""
        array = MatmulSpec(hardware.in_lanes, hardware.out_lanes, hardware.b_bits, hardware.acc_bits)
        softmax = SoftmaxSpec(b_bits=hardware.b_bits)
        requantised = requantise.cycles(RequantiseSpec(hardware.acc_bits), 0)
        reciprocal = reciprocal_cycles(softmax, 0)

        # reader: job, tokens, queue, the token whose words are read; then a word's way to the array
        tokens = 4 * register
        self.first_word = register + tokens + Fifo.LATENCY + register
        self.permission = register
        """From the cycle in which a row may be read to that in which the reader does."""
        fetched = register + READ_LATENCY
        annotated = register
        to_weigher = fetched + annotated
        self.to_array = to_weigher + Weigher.latency + Fifo.LATENCY + register
        """From the issue of a word to the beat that takes it."""
        self.to_fork = to_weigher + Weigher.latency - 1
        """From the issue of a word to where its weight and its part of the sum separate."""
        levels = max((hardware.in_lanes - 1).bit_length(), 1)
        self.sum_to_factor = levels + register + reciprocal + register
        """From the last word of a weighted row at the fork to its 1/d, for which it waits."""

        # array and writer
        reorder = 2 * register
        self.to_take = reorder + array.latency
        """From the last beat of a step to the writer."""
        held, parameters = 2 * register, 2 * register
        to_requantise = self.to_take + held + parameters
        self.to_write = to_requantise + requantised + Gelu.latency + Residual.latency + 2 * register
        """From the last beat of a step to its first write."""
        self.to_residual = to_requantise + requantised + Gelu.latency - READ_LATENCY - 2 * register
        """From the last beat of a step to the first cycle in which x is not read for layer norm."""
        self.settle = writer.SETTLE + register
        """From the last write of a product to its descriptor's completion."""

        # filler
        self.page = state + register + READ_LATENCY + Fifo.LATENCY + 6 * register
        """From the state PAGE to the first word of a row of K or V."""

        self.written = register
        """From a row's last word at the reorder unit to the cycle in which it is in its slot."""

        # layer norm
        self.norm = layernorm.LayerNormSpec(hardware.in_lanes, hardware.norm_lanes, hardware.dim)
        self.to_norm = 2 * register + READ_LATENCY + Fifo.LATENCY
        self.norm_row = layernorm.latency(self.norm)

        # routing
        spec = router.RouterSpec(
            hardware.gate_lanes, hardware.tokens, hardware.experts, min(hardware.top_k, hardware.experts)
        )
        response = 2 * register + READ_LATENCY + Fifo.LATENCY
        self.route = partial(router.cycles, spec, response=response, divide=reciprocal)

        # loading: queue; gearbox if widths differ, packed, ring, two of the aligner
        gearbox = register if hardware.port_bytes != 2 * hardware.in_lanes else 0
        self.from_queue = gearbox + 4 * register
        self.to_store = 2 * state + register + READ_LATENCY + Fifo.LATENCY + gearbox + register
        gearbox = register if hardware.port_bytes != hardware.fill_bytes else 0
        self.weights = Fifo.LATENCY + gearbox + register
        """From the last port word of a fill word to the filler."""
        self.fetched = Fifo.LATENCY + 2 * register
        """From the last word of a descriptor to the cycle in which the fetch lets it go."""
