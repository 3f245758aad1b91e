"""How a cost grows: a power law fitted by least squares on logarithms, and the interval of a median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import BenchError
from harness.statistics import t_quantile

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """y = factor * x ** slope, with the 95 % interval of the slope.

    Args:
        points: how many were fitted.
    """

    slope: float
    low: float
    high: float
    factor: float
    points: int

    def at(self, x: float) -> float:
        """Return y at x."""
        return float(self.factor * x**self.slope)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fit a line to the logarithms by ordinary least squares; the interval is by Student's t with n - 2 degrees.

    It holds for errors that are independent, alike on the log scale, and for a true power law; a curve that bends, as
    where a constant part dominates small images, widens it.

    Raises:
        BenchError: fewer than three points, equal x, or a value that has no logarithm.
    """
    if len(x) < 3 or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise BenchError(f"A slope needs three or more points above 0 that differ; there are {len(x)}.")
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = math.fsum(log_x) / len(x), math.fsum(log_y) / len(y)
    spread = math.fsum((value - mean_x) ** 2 for value in log_x)
    pairs = list(zip(log_x, log_y, strict=True))
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in pairs) / spread
    residual = math.fsum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in pairs)
    degrees = len(x) - 2
    margin = t_quantile(CONFIDENCE, degrees) * math.sqrt(residual / degrees / spread)
    return PowerLaw(slope, slope - margin, slope + margin, math.exp(mean_y - slope * mean_x), len(x))
