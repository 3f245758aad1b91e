"""Ranks from values and their 95 % intervals: values are in order, so each is compared with those near it only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from harness.significance import holm_threshold
from harness.statistics import LEAST_EFFECT

Floats = NDArray[numpy.float64]
Places = NDArray[numpy.intp]
Interval = tuple[float, float]

# Values whose distances to all near ones stay in the processor's cache.
AT_ONCE = 64


@dataclass(frozen=True)
class Spread:
    """Values in order, best first, with their standard errors.

    Args:
        count: of all values, also of those without an interval.
        known: the places of the values that have one.
        values: of these; of a cost the logarithms.
        errors: their standard errors.
        least: the distance below which two values do not differ.
    """

    count: int
    known: Places
    values: Floats
    errors: Floats
    least: float


def spread_of(values: Sequence[float], intervals: Sequence[Interval | None], cost: bool) -> Spread | None:
    """Return what a normal test compares of values that are in order; None where no value has an interval.

    Of a cost the logarithm is compared, and what differs by less than the least effect does not differ: from process to
    process times change by more than their intervals tell. A cost that may be nought differs from nothing by any factor
    that one could name, as if it had no interval.
    """
    if not any(intervals):
        return None
    found = numpy.array(values, dtype=float)
    ends = numpy.array([interval or (numpy.nan, numpy.nan) for interval in intervals])
    with numpy.errstate(divide="ignore", invalid="ignore"):
        if cost:
            found, ends = numpy.log(found), numpy.log(numpy.maximum(ends, 0.0))
        errors = (ends[:, 1] - ends[:, 0]) / (2 * 1.959964)
    known = numpy.flatnonzero(numpy.isfinite(found) & numpy.isfinite(errors))
    least = float(numpy.log1p(LEAST_EFFECT)) if cost else 0.0
    return Spread(len(found), known, found[known], errors[known], least)


def p_matrix(spread: Spread, level: float) -> Floats:
    """Return the two-sided p (M, M) between every two values; those without an interval differ from none.

    Only p that decide something at a level are computed: those above it are 1, and what every correction rejects is 0.
    """
    from scipy.special import ndtr

    size, (possible, certain) = len(spread.known), _limits(spread.count, level)
    found = numpy.zeros((size, size))
    for part, near, squares in _near(spread, certain):
        doubtful = 2 * ndtr(-numpy.sqrt(squares))
        found[part, near] = numpy.select([squares > certain**2, squares > possible**2], [0.0, doubtful], 1.0)
    upper = numpy.triu(found, 1)
    p = numpy.ones((spread.count, spread.count))
    p[numpy.ix_(spread.known, spread.known)] = upper + upper.T + numpy.eye(size)
    return p


def interval_ranks(spread: Spread, level: float) -> list[tuple[int, int]]:
    """Return the best and the worst rank that the intervals allow each value, as `rank_intervals` of `p_matrix` does.

    Far values are told apart without looking at each pair, so that time grows with the near ones only.
    """
    above, below, (first, second, p) = _counts(spread, level)
    tests = spread.count * (spread.count - 1) // 2
    rejected = p < holm_threshold(p, tests, int(below.sum()), level)
    above += numpy.bincount(second[rejected], minlength=len(above))
    below += numpy.bincount(first[rejected], minlength=len(below))
    best, worst = numpy.ones(spread.count, int), numpy.full(spread.count, spread.count)
    best[spread.known] += above
    worst[spread.known] -= below
    return list(zip(best.tolist(), worst.tolist(), strict=True))


def _limits(count: int, level: float) -> tuple[float, float]:
    """Standard errors: up to the first no correction rejects a pair of so many, and beyond the second every one does.

    Holm's rejects whatever is below the level over the number of pairs, and nothing that is above the level.
    """
    from scipy.special import ndtri

    pairs = count * (count - 1) / 2
    return -float(ndtri(level / 2)), -float(ndtri(level / pairs / 2))


def _counts(spread: Spread, level: float) -> tuple[Places, Places, tuple[Places, Places, Floats]]:
    """How many values are certainly better and certainly worse than each; and the pairs in doubt, with their p."""
    from scipy.special import ndtr

    possible, certain = _limits(spread.count, level)
    above, below = numpy.zeros((2, len(spread.known)), numpy.intp)
    doubtful: list[tuple[Places, Places, Floats]] = [(above[:0], below[:0], numpy.zeros(0))]
    for part, near, squares in _near(spread, certain):
        apart = squares > certain**2
        below[part] += numpy.count_nonzero(apart, axis=1) + len(below) - near.stop
        above[near] += numpy.count_nonzero(apart, axis=0)
        above[near.stop :] += len(squares)
        first, second = numpy.nonzero((squares > possible**2) & ~apart)
        p = 2 * ndtr(-numpy.sqrt(squares[first, second]))
        doubtful.append((first + part.start, second + near.start, p))
    first, second, p = map(numpy.concatenate, zip(*doubtful, strict=True))
    return above, below, (first, second, p)


def _near(spread: Spread, certain: float) -> Iterator[tuple[slice, slice, Floats]]:
    """Some values, those from the first of them on that are not apart from all, and the squared errors between them.

    Nothing lies between a value and itself or one above it, nor between two that are closer than the least distance.
    """
    values, variances = spread.values, spread.errors**2
    falling = values if not len(values) or values[0] >= values[-1] else -values
    reach = max(spread.least, certain * math.sqrt(2 * float(variances.max(initial=0.0))))
    for start in range(0, len(values), AT_ONCE):
        stop = min(start + AT_ONCE, len(values))
        last = len(values) - int(numpy.searchsorted(falling[::-1], falling[stop - 1] - reach, "left"))
        part, near = slice(start, stop), slice(start, last)
        distance = falling[part, None] - falling[near]
        distance[distance < spread.least] = 0.0
        with numpy.errstate(divide="ignore", invalid="ignore"):
            squares = distance**2 / (variances[part, None] + variances[near])
        yield part, near, squares
