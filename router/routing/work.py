"""How latency grows with the work asked for: size, number and quality of the pictures."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

EXPONENTS = (0.7, 0.42)  # of megapixels and of images, until learnt
CLASSES = 64  # work classes kept per law
MEMORY = 200.0  # samples behind a class's offset
SHRINK = 10.0  # samples after which a class counts for half of what it says


Kind = tuple[int, int, str | None]  # a class of work: size in half octaves, number of images, quality
HALF_OCTAVES = 2.0 / math.log(2.0)  # of a size, per unit of its logarithm


class Work(NamedTuple):
    """One request's work."""

    ln_megapixels: float
    ln_images: float
    kind: Kind

    @staticmethod
    @lru_cache(1024)  # most requests are like others before them
    def of(images: int, megapixels: float, quality: str | None) -> Work:
        ln_megapixels = math.log(max(megapixels, 1e-3))
        return Work(ln_megapixels, math.log(max(images, 1)), (round(ln_megapixels * HALF_OCTAVES), images, quality))

    @property
    def name(self) -> str:
        """Its class in words."""
        return kind_name(self.kind)


def kind_name(kind: Kind) -> str:
    """A class of work in words: ``1.4 MP x 4 high``."""
    half_octaves, images, quality = kind
    text = f"{2.0 ** (half_octaves / 2.0):.2g} MP x {images}"
    return f"{text} {quality}" if quality else text


class SizeLaw:
    """Log-seconds that work adds to a target's pace, learnt from all targets of one model and operation.

    It is the same model everywhere, so the law is shared: with one of its own for each target, targets would seem to
    differ that do not, on the few samples that most have. A power law in megapixels and in images, whose exponents
    are learnt; what it misses is learnt per class of work, as far as that class has samples.
    """

    __slots__ = ("_classes", "_cov", "_mean", "exponents")

    def __init__(self) -> None:
        self.exponents = EXPONENTS
        self._cov = (0.05, 0.0, 0.05)
        self._mean = (0.3, 0.2)
        self._classes: dict[Kind, tuple[float, float]] = {}

    def load(self, work: Work) -> float:
        a, b = self.exponents
        load = a * work[0] + b * work[1]
        known = self._classes.get(work[2])
        return load if known is None else load + known[1] / (known[0] + SHRINK)

    def kind_load(self, kind: Kind) -> float:
        """The same for a class of work, at the middle of its sizes."""
        return self.load(Work(kind[0] / HALF_OCTAVES, math.log(max(kind[1], 1)), kind))

    def learn(self, error: float, var: float, work: Work) -> None:
        """A Kalman step for the exponents, around the mean work so that size law and pace do not mix."""
        mx, my = self._mean
        x, y = work[0] - mx, work[1] - my
        self._mean = mx + 0.02 * x, my + 0.02 * y
        a, b, c = self._cov
        gx, gy = a * x + b * y, b * x + c * y
        noise = var + gx * x + gy * y
        kx, ky = gx / noise, gy / noise
        self._cov = a - kx * gx + 1e-6, b - kx * gy, c - ky * gy + 1e-6
        ex, ey = self.exponents
        ex, ey = ex + kx * error, ey + ky * error
        self.exponents = 0.0 if ex < 0.0 else ex if ex < 1.5 else 1.5, 0.0 if ey < 0.0 else ey if ey < 1.5 else 1.5
        n, total = self._classes.get(work[2], (0.0, 0.0))
        if n or len(self._classes) < CLASSES:
            keep = 1.0 - 1.0 / MEMORY
            self._classes[work[2]] = n * keep + 1.0, total * keep + error
