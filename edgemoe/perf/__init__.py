"""Cycles and bytes of a program, predicted from its descriptors without running it.

The model has the processes of the gateware, with their queues between them: fetch, dispatcher, weight DMA, filler,
executor, array and writer, layer norm. It moves from event to event, not from cycle to cycle: a burst of the memory,
a block of slots, a product. Within a block the beats of all tokens follow from one running maximum, so that a product
that reads the rows of the phase before as they are written is timed row by row. Data never matter, but for the
tokens of each expert (`routing`, or the decisions of the golden machine).

Latencies are sums over the components' own constants (`Timing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from numpy.typing import ArrayLike

from edgemoe.errors import BadInput
from edgemoe.perf.machine import Run
from edgemoe.perf.memory import FULL
from edgemoe.perf.results import Cost, Prediction, useful_macs
from edgemoe.perf.routes import Routes, routing, tokens_per_expert
from edgemoe.program import Program

__all__ = [
    "FULL",
    "Cost",
    "Prediction",
    "Routes",
    "predict",
    "predict_visits",
    "routing",
    "tokens_per_expert",
    "useful_macs",
]


def predict(
    program: Program, routes: Routes | Sequence[Routes] | None = None, task: int = 0, *, images: int = 1,
    bandwidth: int = FULL, latency: int = 30,
) -> Prediction:  # fmt: skip
    """Predict a run of ``program`` over ``images`` images.

    Args:
        routes: of every image, or one for all; None is `routing` ``balanced``.
        task: index. All tasks cost the same but for their routes, and a few cycles for the address of their gates and heads.
        bandwidth: of the external memory, in port words per 1024 cycles, reads and writes together.
        latency: cycles from a request to its first word.

    Raises:
        BadInput: routes or a task that are not the model's, a bandwidth or latency that no memory has, or a program
            in which a descriptor waits for what never comes.
    """
    if not 0 <= task < len(program.model.tasks):
        raise BadInput(f"task must be 0..{len(program.model.tasks) - 1}, found {task}")
    if not 1 <= bandwidth <= FULL:
        raise BadInput(f"bandwidth must be 1..{FULL} port words per {FULL} cycles, found {bandwidth}")
    if latency < 1:
        raise BadInput(f"latency must be at least 1 cycle, found {latency}")
    if routes is None:
        routes = routing("balanced", program.model)
    each = [routes] * images if isinstance(routes, Mapping) else list(routes)
    if len(each) != images:
        raise BadInput(f"routes are for {len(each)} images, {images} are predicted")
    visits = [tokens_per_expert(program, r) for r in each]
    return predict_visits(program, visits, task, bandwidth=bandwidth, latency=latency)


def predict_visits(
    program: Program, visits: Sequence[Mapping[int, ArrayLike]], task: int = 0, *,
    bandwidth: int = FULL, latency: int = 30,
) -> Prediction:  # fmt: skip
    """Predict a run from the tokens of every visit of an expert, by number of the routed EXPERTS, image by image."""
    return Run(program, visits, task, bandwidth, latency).predict()
