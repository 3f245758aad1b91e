"""Ranks that mean something: which neighbours the data tell apart, and the ranks that each model may have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy
from numpy.typing import NDArray

from harness.leaderboard import Board, Row
from harness.metric import Metric
from harness.pairing import answers_of, equally_seeded, resampled_of
from harness.record import Record
from harness.significance import all_pairs, all_seed_pairs, rank_intervals, resampled_pairs
from harness.statistics import LEAST_EFFECT
from harness.store import Store

Floats = NDArray[numpy.float64]
Pairs = tuple[list[int], Floats]  # the rows, and the p of every two of them

LEVEL = 0.05
# Pairs grow with the square of the rows: a larger board shows plain ranks, and says so.
MOST_ROWS = 3000
# Rows whose distances to all others stay in the processor's cache.
AT_ONCE = 64
# Standard errors: up to the first no level rejects, and beyond the second every correction does.
POSSIBLE, CERTAIN = 1.9, 9.0


def with_ranks(board: Board, store: Store) -> Board:
    """Return a board whose rows know the ranks that the data allow, where anything tells.

    Models are compared on the same images where the outcomes of both are there: shares by exact McNemar tests, other
    metrics by the paired bootstrap. Trainings with the same seeds are compared by t-tests that pair these, any two
    values with intervals by a normal test. All pairs are corrected together (Holm), at a joint level of 95 %.
    """
    metric, rows = board.metrics[0], board.rows
    if len(rows) < 2 or any(row.value(metric) is None for row in rows):
        return board
    if len(rows) > MOST_ROWS:
        return replace(board, untested=f"more than {MOST_ROWS:,} rows")
    p = _p_values(rows, metric, store)
    if p is None:
        # A cost without an interval is a count, and its ranks are certain.
        return board if rows[0].record.machine_bound else replace(board, untested="no intervals and no outcomes")
    scores = [(1 if metric.higher_is_better else -1) * float(row.value(metric) or 0) for row in rows]
    ranks = rank_intervals(scores, p, LEVEL)
    apart = [_apart(first, second) for first, second in pairwise(ranks)]
    tied = [not (before and after) for before, after in zip([True, *apart], [*apart, True], strict=True)]
    return replace(
        board,
        rows=tuple(msgspec.structs.replace(row, ranks=r, tied=t) for row, r, t in zip(rows, ranks, tied, strict=True)),
    )


def _apart(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the rank intervals of neighbours do not overlap."""
    return first[1] < second[0]


def _p_values(rows: Sequence[Row], metric: Metric, store: Store) -> Floats | None:
    """The p of every pair; None where nothing tells.

    Means over the same seeds are paired by these. Else items are paired where both have outcomes, and the intervals
    decide elsewhere.
    """
    if series := equally_seeded([row.record for row in rows], metric.name):
        return all_seed_pairs(series)
    unpaired = _by_intervals(rows, metric)
    # Outcomes that are not there are not taken from the cache either, so that a board depends on its folder alone.
    there = {n: r.record for n, r in enumerate(rows) if r.record.outcomes_sha256 and store.has_outcomes(r.record)}
    paired = _by_answers(there, metric, store) or _by_resamples(there, metric, store)
    if paired is None:
        return unpaired
    known, found = paired
    p = numpy.ones((len(rows), len(rows))) if unpaired is None else unpaired
    p[numpy.ix_(known, known)] = found
    return p


def _by_answers(records: Mapping[int, Record], metric: Metric, store: Store) -> Pairs | None:
    """The p of exact McNemar tests; None where fewer than two records, or other items, have answers."""
    found = {n: one for n, record in records.items() if (one := answers_of(store, record, metric.name)) is not None}
    if len(found) < 2 or len({one.items for one in found.values()}) != 1:
        return None
    return list(found), all_pairs([one.right for one in found.values()])


def _by_resamples(records: Mapping[int, Record], metric: Metric, store: Store) -> Pairs | None:
    """The p of the paired bootstrap; None where fewer than two records have outcomes that give their values."""
    found = {n: one for n, record in records.items() if (one := resampled_of(store, record, metric.name)) is not None}
    return (list(found), resampled_pairs(list(found.values()))) if len(found) > 1 else None


def _by_intervals(rows: Sequence[Row], metric: Metric) -> Floats | None:
    """Two-sided p of a normal test for every pair, from 95 % intervals; values without one differ from none.

    Only p that decide something are computed: above any level they are 1, and below any correction 0.

    Of a cost the logarithm is compared, and what differs by less than the least effect does not differ: from process to
    process times change by more than their intervals tell.
    """
    from scipy.special import ndtr

    intervals = [row.interval(metric) for row in rows]
    if not any(intervals):
        return None
    cost = rows[0].record.machine_bound
    values = numpy.array([row.value(metric) for row in rows], dtype=float)
    ends = numpy.array([interval or (numpy.nan, numpy.nan) for interval in intervals])
    if cost:
        with numpy.errstate(divide="ignore", invalid="ignore"):
            values, ends = numpy.log(values), numpy.log(numpy.maximum(ends, 0.0))
    # What may be nought differs from nothing by any factor that one could name.
    spread = (ends[:, 1] - ends[:, 0]) / (2 * 1.959964)
    p, least = numpy.zeros((len(rows), len(rows))), numpy.log1p(LEAST_EFFECT) if cost else 0.0
    for part, near in _near(values, spread, least):
        with numpy.errstate(divide="ignore", invalid="ignore"):
            distance = numpy.abs(values[part, None] - values[near])
            z = distance / numpy.sqrt(spread[part, None] ** 2 + spread[near] ** 2)
        z[~(distance >= least)] = 0.0
        doubtful = (z > POSSIBLE) & (z <= CERTAIN)
        p[part, near][~(z > POSSIBLE)] = 1.0
        p[part, near][doubtful] = 2 * ndtr(-z[doubtful])
    unknown = ~numpy.isfinite(spread)
    p[unknown], p[:, unknown] = 1.0, 1.0
    return p


def _near(values: Floats, spread: Floats, least: float) -> Iterator[tuple[slice, slice]]:
    """Some rows, and the rows that do not certainly differ from any of these: values are in order, up or down."""
    rising = values if values[0] <= values[-1] else -values
    reach = max(least, CERTAIN * math.sqrt(2) * float(spread[numpy.isfinite(spread)].max(initial=0.0)))
    for start in range(0, len(values), AT_ONCE):
        part = slice(start, min(start + AT_ONCE, len(values)))
        first = numpy.searchsorted(rising, rising[part.start] - reach, "left")
        last = numpy.searchsorted(rising, rising[part.stop - 1] + reach, "right")
        yield part, slice(int(first), int(last))
