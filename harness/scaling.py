"""How a cost grows: a power law fitted by least squares on logarithms, and from where on it is below another's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

from harness.errors import BenchError
from harness.statistics import LEAST_EFFECT, t_quantile

CONFIDENCE = 0.95
RESAMPLES = 1000
THRESHOLD = 1 / (1 + LEAST_EFFECT)


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


def crossing(x: Sequence[float], ratios: Sequence[float]) -> float:
    """Return from which x on the ratios stay below 1 by the least effect that is worth a report.

    Between two points the logarithms are joined by a line. It is infinite where the last ratio is not below, and the
    first x where all are.

    Args:
        x: rising.
    """
    above = [index for index, ratio in enumerate(ratios) if ratio >= THRESHOLD]
    if not above:
        return x[0]
    last = above[-1]
    if last == len(x) - 1:
        return math.inf
    left, right = (math.log(ratio / THRESHOLD) for ratio in ratios[last : last + 2])
    return math.exp(math.log(x[last]) + left / (left - right) * math.log(x[last + 1] / x[last]))


def crossing_interval(x: Sequence[float], ratios: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the crossing of medians, by a bootstrap that draws each point's ratios anew.

    Its upper end is infinite where a share of the draws that cannot be neglected never crosses.

    Args:
        ratios: the samples at each x.
    """
    generator = numpy.random.default_rng(seed)
    drawn = [
        numpy.median(generator.choice(numpy.asarray(samples), size=(RESAMPLES, len(samples))), axis=1)
        for samples in ratios
    ]
    found = sorted(crossing(x, list(draw)) for draw in zip(*drawn, strict=True))
    tail = round((1 - CONFIDENCE) / 2 * RESAMPLES)
    return found[tail], found[-1 - tail]


def forecast(known: Mapping[int, float], tokens: int) -> float | None:
    """Return what a cost that is known at smaller sizes may come to; None where it is known at fewer than two.

    It is extrapolated by the slope of the last two, which counts as 1 at least and 2 at most: what attends grows no
    faster than the square.
    """
    below = sorted(size for size in known if size < tokens)[-2:]
    if len(below) < 2:
        return None
    slope = math.log(known[below[1]] / known[below[0]]) / math.log(below[1] / below[0])
    return float(known[below[1]] * (tokens / below[1]) ** min(2.0, max(1.0, slope)))
