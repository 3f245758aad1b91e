"""Ranks from values and their 95 % intervals: values are in order, so each is compared with those near it only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy
from numpy.typing import NDArray

from harness.leaderboard import Interval
from harness.statistics import LEAST_EFFECT

Floats = NDArray[numpy.float64]
Places = NDArray[numpy.intp]

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

    @property
    def pairs(self) -> int:
        """How many pairs all values make."""
        return self.count * (self.count - 1) // 2


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

    size, possible, certain = len(spread.known), _squared(level), _squared(level / spread.pairs)
    found = numpy.zeros((size, size))
    for part, near, squares in _near(spread, certain):
        doubtful = 2 * ndtr(-numpy.sqrt(squares))
        found[part, near] = numpy.select([squares > certain, squares > possible], [0.0, doubtful], 1.0)
    upper = numpy.triu(found, 1)
    p = numpy.ones((spread.count, spread.count))
    p[numpy.ix_(spread.known, spread.known)] = upper + upper.T + numpy.eye(size)
    return p


def interval_ranks(spread: Spread, level: float) -> list[tuple[int, int]]:
    """Return the best and the worst rank that the intervals allow each value, as `rank_intervals` of `p_matrix` does.

    Far values are told apart without looking at each pair, so that time grows with the near ones only.
    """
    limit, size = _limit(spread, level), len(spread.known)
    above, below = numpy.zeros((2, size), int)
    for part, near, squares in _near(spread, limit):
        apart = squares > limit
        below[part] += numpy.count_nonzero(apart, axis=1) + size - near.stop
        above[near] += numpy.count_nonzero(apart, axis=0)
        above[near.stop :] += len(squares)
    best, worst = numpy.ones(spread.count, int), numpy.full(spread.count, spread.count)
    best[spread.known] += above
    worst[spread.known] -= below
    return list(zip(best.tolist(), worst.tolist(), strict=True))


def _limit(spread: Spread, level: float) -> float:
    """The squared standard errors beyond which two values differ by Holm's correction of all pairs.

    What differs at the level over the number of pairs is rejected; that leaves fewer, and so a lower limit, until
    nothing more is.
    """
    possible, certain = _squared(level), _squared(level / spread.pairs)
    rejected, doubtful = 0, [numpy.zeros(0)]
    for _, near, squares in _near(spread, certain):
        apart = squares > certain
        rejected += int(numpy.count_nonzero(apart)) + len(squares) * (len(spread.known) - near.stop)
        doubtful.append(squares[(squares > possible) & ~apart])
    open_, limit, certainly = numpy.concatenate(doubtful), certain, rejected
    while rejected < spread.pairs:
        limit = _squared(level / (spread.pairs - rejected))
        now = certainly + int(numpy.count_nonzero(open_ > limit))
        if now == rejected:
            break
        rejected = now
    return limit


def _squared(p: float) -> float:
    """The squared standard errors between two values whose two-sided p this is."""
    return NormalDist().inv_cdf(p / 2) ** 2


def _near(spread: Spread, limit: float) -> Iterator[tuple[slice, slice, Floats]]:
    """Some values, those from the first of them on that are not all beyond the limit, and the squared errors between.

    Nothing lies between a value and itself or one above it, nor between two that are closer than the least distance.
    """
    values, variances = spread.values, spread.errors**2
    falling = values if not len(values) or values[0] >= values[-1] else -values
    reach = max(spread.least, math.sqrt(limit * 2 * float(variances.max(initial=0.0))))
    for start in range(0, len(values), AT_ONCE):
        stop = min(start + AT_ONCE, len(values))
        last = len(values) - int(numpy.searchsorted(falling[::-1], falling[stop - 1] - reach, "left"))
        part, near = slice(start, stop), slice(start, last)
        distance = falling[part, None] - falling[near]
        distance[distance < spread.least] = 0.0
        with numpy.errstate(divide="ignore", invalid="ignore"):
            squares = distance**2 / (variances[part, None] + variances[near])
        yield part, near, squares
