"""Ranks from intervals, against every pair computed one by one."""

from __future__ import annotations

import math
import random

import numpy
import pytest

from harness.interval_ranks import AT_ONCE, interval_ranks, p_matrix, spread_of
from harness.significance import holm, rank_intervals
from harness.statistics import LEAST_EFFECT

Interval = tuple[float, float]
Values = list[float]


def some(numbers: random.Random, count: int, wide: float) -> tuple[Values, list[Interval | None]]:
    """Return values, best first, some of them equal, and intervals: narrow and wide ones, of no width, and none."""
    values = sorted((round(numbers.uniform(1, 50), numbers.choice((0, 6))) for _ in range(count)), reverse=True)
    reaches = [wide * numbers.random() * numbers.choice((0, 1, 1, 1, 1, 1, 30)) for _ in values]
    return values, [
        None if numbers.random() < 0.1 else (v - reach, v + reach) for v, reach in zip(values, reaches, strict=True)
    ]


def by_hand(values: Values, intervals: list[Interval | None], cost: bool) -> list[tuple[int, int]]:
    """Each pair by a normal test, and Holm's correction of all of them."""
    pairs = [(i, j) for i in range(len(values)) for j in range(i + 1, len(values))]
    found = []
    for i, j in pairs:
        if (one := known(values[i], intervals[i], cost)) and (other := known(values[j], intervals[j], cost)):
            distance, error = abs(one[0] - other[0]), math.hypot(one[1], other[1])
            alike = distance == 0 or (cost and distance < math.log1p(LEAST_EFFECT))
            found.append(1.0 if alike else math.erfc(distance / error / math.sqrt(2)) if error else 0.0)
        else:
            found.append(1.0)
    ranks = [[1, len(values)] for _ in values]
    for (i, j), p in zip(pairs, holm(found), strict=True):
        if p < 0.05:
            ranks[j][0] += 1
            ranks[i][1] -= 1
    return [(low, high) for low, high in ranks]


def known(value: float, interval: Interval | None, cost: bool) -> tuple[float, float] | None:
    """What is compared, and its standard error; None where nothing is known."""
    if interval is None or (cost and interval[0] <= 0):
        return None
    value, low, high = map(math.log, (value, *interval)) if cost else (value, *interval)
    return value, (high - low) / (2 * 1.959964)


@pytest.mark.parametrize("wide", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("cost", [False, True], ids=["accuracy", "cost"])
@pytest.mark.parametrize("count", [2, 3, AT_ONCE, 2 * AT_ONCE + 5])
def test_ranks_are_those_of_every_pair(count: int, cost: bool, wide: float) -> None:
    numbers = random.Random(count + wide)
    for _ in range(3):
        values, intervals = some(numbers, count, wide)
        if cost:
            values, intervals = values[::-1], intervals[::-1]
        spread = spread_of(values, intervals, cost)
        if spread is None:
            continue
        expected = by_hand(values, intervals, cost)
        assert interval_ranks(spread, 0.05) == expected
        assert rank_intervals([-v if cost else v for v in values], p_matrix(spread, 0.05), 0.05) == expected


def test_values_without_any_interval_tell_nothing() -> None:
    assert spread_of([2.0, 1.0], [None, None], cost=False) is None


def test_costs_that_may_all_be_nought_may_have_any_rank() -> None:
    spread = spread_of([1.0, 2.0], [(-1.0, 3.0), (0.0, 4.0)], cost=True)
    assert spread is not None
    assert interval_ranks(spread, 0.05) == [(1, 2), (1, 2)]
    assert numpy.array_equal(p_matrix(spread, 0.05), numpy.ones((2, 2)))
