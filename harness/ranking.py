"""Ranks that mean something: which neighbours the data tell apart, and the ranks that each model may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy
from numpy.typing import NDArray

from harness.interval_ranks import Spread, interval_ranks, p_matrix, spread_of
from harness.leaderboard import Board, Row
from harness.metric import Metric
from harness.pairing import answers_of, equally_seeded, resampled_of
from harness.record import Record
from harness.significance import all_pairs, all_seed_pairs, rank_intervals, resampled_pairs
from harness.store import Store

Floats = NDArray[numpy.float64]
Pairs = tuple[list[int], Floats]  # the rows, and the p of every two of them

LEVEL = 0.05
# Pairs grow with the square of the rows: beyond the first, the intervals alone decide, and beyond the second nothing.
MOST_PAIRED, MOST_ROWS = 3000, 10_000


def with_ranks(board: Board, store: Store) -> Board:
    """Return a board whose rows know the ranks that the data allow, where anything tells.

    Models are compared on the same images where the outcomes of both are there: shares by exact McNemar tests, other
    metrics by the paired bootstrap. Trainings with the same seeds are compared by t-tests that pair these, any two
    values with intervals by a normal test. All pairs are corrected together (Holm), at a joint level of 95 %.
    """
    metric, rows = board.metrics[0], board.rows
    if len(rows) < 2 or any(row.values[0] is None for row in rows):
        return board
    if len(rows) > MOST_ROWS:
        return replace(board, about_ranks=f"not tested: more than {MOST_ROWS:,} rows")
    ranks = _ranks(rows, metric, store)
    if ranks is None:
        # A cost without an interval is a count, and its ranks are certain.
        reason = "" if rows[0].record.machine_bound else "not tested: no intervals and no outcomes"
        return replace(board, about_ranks=reason)
    apart = [_apart(first, second) for first, second in pairwise(ranks)]
    tied = [not (before and after) for before, after in zip([True, *apart], [*apart, True], strict=True)]
    alone = len(rows) > MOST_PAIRED and any(row.record.outcomes_sha256 for row in rows)
    return replace(
        board,
        rows=tuple(msgspec.structs.replace(row, ranks=r, tied=t) for row, r, t in zip(rows, ranks, tied, strict=True)),
        about_ranks=f"tested by intervals alone: more than {MOST_PAIRED:,} rows" if alone else "",
    )


def _apart(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the rank intervals of neighbours do not overlap."""
    return first[1] < second[0]


def _ranks(rows: Sequence[Row], metric: Metric, store: Store) -> list[tuple[int, int]] | None:
    """The best and the worst rank of each row; None where nothing tells."""
    values = [float(row.values[0] or 0) for row in rows]
    spread = spread_of(values, [row.intervals[0] for row in rows], rows[0].record.machine_bound)
    p = _paired(rows, metric, store, spread) if len(rows) <= MOST_PAIRED else None
    if p is not None:
        return rank_intervals(values if metric.higher_is_better else [-value for value in values], p, LEVEL)
    return None if spread is None else interval_ranks(spread, LEVEL)


def _paired(rows: Sequence[Row], metric: Metric, store: Store, spread: Spread | None) -> Floats | None:
    """The p of every pair; None where nothing can be paired.

    Means over the same seeds are paired by these. Else items are paired where both have outcomes, and the intervals
    decide elsewhere.
    """
    if series := equally_seeded([row.record for row in rows], metric.name):
        return all_seed_pairs(series)
    # Outcomes that are not there are not taken from the cache either, so that a board depends on its folder alone.
    there = {n: r.record for n, r in enumerate(rows) if r.record.outcomes_sha256 and store.has_outcomes(r.record)}
    paired = _by_answers(there, metric, store) or _by_resamples(there, metric, store)
    if paired is None:
        return None
    known, found = paired
    p = numpy.ones((len(rows), len(rows))) if spread is None else p_matrix(spread, LEVEL)
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
