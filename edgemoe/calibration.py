"""What the quantiser knows about the activations: ranges, and second moments of the inputs of linear layers.

Both come from the float reference on calibration images, over all tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemoe import reference
from edgemoe.checkpoint import Model, as_float
from edgemoe.config import ModelConfig
from edgemoe.errors import BadInput

Array = NDArray[Any]

LOG2E = math.log2(math.e)

FEW_IMAGES = 8
"""With fewer images than this, synthetic ones are added (`calibration_images`)."""

CONTRAST, VIVID_CONTRAST = 0.2, 0.3
"""Standard deviation of the pixels of synthetic images."""

BASE_2 = ("_scores", "_gate")
"""Tensors whose statistics are those of y = log2(e) * score, as the hardware keeps them."""

INPUTS = ("norm1", "attention", "norm2", "hidden")
"""Tensors that enter linear layers of a block: their moments are kept."""

UNUSED = ("topk", "margin", "score", "x")


@dataclass
class Statistics:
    """Range of one tensor over all images and tasks.

    Attributes:
        low, high: smallest and largest value.
        count: values seen.
        exponents: values with ``2^(e-1) <= |x| < 2^e``, at index ``e + 64``; zeros at 0.
        peak: (channels) largest magnitude.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    exponents: Array = field(default_factory=lambda: np.zeros(128, np.int64))
    peak: Array | None = None

    def update(self, values: Array) -> None:
        """Add a batch; channels are the last axis."""
        values = values.reshape(-1, values.shape[-1])
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        exponent = np.where(values == 0, -64, np.clip(np.frexp(values)[1], -64, 63))
        self.exponents += np.bincount(exponent.ravel() + 64, minlength=128)
        peak = np.abs(values).max(axis=0)
        self.peak = peak if self.peak is None else np.maximum(self.peak, peak)
        self.count += values.size

    @property
    def magnitude(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def beyond(self, exponent: int) -> float:
        """Fraction of the values with a magnitude of at least ``2^exponent``."""
        return float(self.exponents[max(exponent + 65, 0) :].sum() / max(self.count, 1))


@dataclass
class Moments:
    """First and second moments of the inputs of a linear layer.

    Attributes:
        rows: inputs seen. total: (channels) their sum. gram: (channels, channels) sum of their outer products.
    """

    rows: int = 0
    total: Array | float = 0.0
    gram: Array | float = 0.0

    def update(self, values: Array) -> None:
        """Add a batch; channels are the last axis."""
        values = values.reshape(-1, values.shape[-1])
        self.rows += len(values)
        self.total = self.total + values.sum(axis=0)
        self.gram = self.gram + values.T @ values

    @property
    def mean(self) -> Array:
        """(channels)."""
        return np.asarray(self.total) / self.rows

    @property
    def covariance(self) -> Array:
        """(channels, channels) of the deviations from the mean."""
        return np.asarray(self.gram) / self.rows - np.outer(self.mean, self.mean)


@dataclass
class Calibration:
    """Result of `calibrate`.

    Attributes:
        statistics: by tensor name of `edgemoe.reference.TRACE`; ``logits{task}`` per task.
        moments: ``l{L}_{input}`` for `INPUTS`; of expert e's own inputs ``l{L}_norm2.{e}``, ``l{L}_hidden.{e}``
            (absent if no token visited it).
    """

    statistics: dict[str, Statistics] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)


def calibrate(model: Model, images: Array, batch: int = 16) -> Calibration:
    """Run the reference on ``images`` (n, channels, height, width) for every task.

    Raises:
        BadInput: no images, or of another shape.
    """
    if not len(images):
        raise BadInput("calibration needs at least one image, found none")
    result = Calibration()
    for task in range(len(model.config.tasks)):
        for start in range(0, len(images), batch):
            observer = _Observer(result, model.config, task)
            reference.forward(model, images[start : start + batch], task, observe=observer)
    return result


class _Observer:
    """Adds the tensors of one batch to a `Calibration`."""

    def __init__(self, calibration: Calibration, config: ModelConfig, task: int) -> None:
        self.calibration, self.config, self.task = calibration, config, task
        self.recent: dict[str, Array] = {}

    def __call__(self, name: str, values: Array) -> None:
        short = name.split("_", 1)[-1]
        self.recent[short] = values
        if short in INPUTS:
            self._moments(name, short, values)
        if short in UNUSED:
            return
        name = f"{name}{self.task}" if name == "logits" else name
        values = values * LOG2E if name.endswith(BASE_2) else values
        self.calibration.statistics.setdefault(name, Statistics()).update(values)

    def _moments(self, name: str, short: str, values: Array) -> None:
        if short != "hidden" or values.ndim == 3:
            self._add(name, values)
            return
        # A mixture block: (images, tokens, top_k, expert_dim).
        inputs, chosen = name.replace("hidden", "norm2"), self.recent["topk"]
        for expert in range(self.config.experts):
            visits = chosen == expert
            if visits.any():
                self._add(f"{inputs}.{expert}", self.recent["norm2"][visits.any(axis=-1)])
                self._add(f"{name}.{expert}", values[visits])

    def _add(self, name: str, values: Array) -> None:
        self.calibration.moments.setdefault(name, Moments()).update(values)


# -- images -------------------------------------------------------------------------------------


def calibration_images(config: ModelConfig, images: Array | None = None, seed: int = 0) -> Array:
    """Images for a calibration that holds for unseen ones: float (n, channels, height, width) in [0, 1).

    From `FEW_IMAGES` on, ``images`` as they are. Fewer are completed to that number: first by mirrored
    copies, then by random images with the 1/f spectrum of photographs. Without any: those random images.
    """
    given = [] if images is None else list(as_float(images))
    if len(given) >= FEW_IMAGES:
        return np.stack(given)
    mirrored = [image[:, ::step, ::-1] for image in given for step in (1, -1)]
    natural = [natural_image(config, seed + i, vivid=i % 2 == 1) for i in range(FEW_IMAGES)]
    return np.stack((given + mirrored[: FEW_IMAGES // 2] + natural)[:FEW_IMAGES])


def natural_image(config: ModelConfig, seed: int, vivid: bool = False) -> NDArray[np.float64]:
    """A random image with the 1/f amplitude spectrum of photographs; the channels are correlated like those of
    photographs, or independent and of high contrast if ``vivid``, for large even areas of pure colours.

    Source: Field, Relations between the statistics of natural images, J. Opt. Soc. Am. A 4 (1987).
    """
    c, random = config, np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(c.height)[:, None], np.fft.fftfreq(c.width))
    frequency[0, 0] = 1.0
    noise = random.standard_normal((c.channels + 1, c.height, c.width))
    planes = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    image = planes[1:] if vivid else 0.8 * planes[:1] + 0.4 * planes[1:]
    contrast = VIVID_CONTRAST if vivid else CONTRAST
    image = 0.45 + contrast * (image - image.mean()) / max(image.std(), 1e-9)
    return np.clip(image, 0.0, 1 - 2.0**-15)
