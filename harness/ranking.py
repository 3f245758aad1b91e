"""Ranks that mean something: which neighbours the data tell apart, and the ranks that each model may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy
from numpy.typing import NDArray

from harness.cache import cache_folder
from harness.leaderboard import Board, Row, by_seed
from harness.metric import Metric
from harness.record import Record
from harness.significance import Hits, all_pairs, all_seed_pairs, hits, rank_intervals
from harness.statistics import LEAST_EFFECT
from harness.store import Store, write_atomically

LEVEL = 0.05
# All pairs of more would take minutes; such a board shows plain ranks.
MOST_ROWS = 3000


def with_ranks(board: Board, store: Store) -> Board:
    """Return a board whose rows know the ranks that the data allow, where anything tells.

    Accuracy is compared on the same images by exact McNemar tests where the outcomes of both are there, trainings with
    several seeds by t-tests that pair the seeds; any two values with intervals by a normal test. All pairs are
    corrected together (Holm), at a joint level of 95 %.
    """
    metric, rows = board.metrics[0], board.rows
    if not 1 < len(rows) <= MOST_ROWS or any(row.values[metric.name] is None for row in rows):
        return board
    p = _p_values(rows, metric, store)
    if p is None:
        return board
    scores = [(1 if metric.higher_is_better else -1) * float(row.values[metric.name] or 0) for row in rows]
    ranks = rank_intervals(scores, p, LEVEL)
    apart = [_apart(first, second) for first, second in pairwise(ranks)]
    tied = [not (before and after) for before, after in zip([True, *apart], [*apart, True], strict=True)]
    return replace(
        board,
        rows=tuple(replace(row, ranks=r, tied=t) for row, r, t in zip(rows, ranks, tied, strict=True)),
    )


def _apart(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the rank intervals of neighbours do not overlap."""
    return first[1] < second[0]


def _p_values(rows: Sequence[Row], metric: Metric, store: Store) -> NDArray[numpy.float64] | None:
    """The p of every pair; None where nothing tells.

    Means over the same seeds are paired seed by seed: the outcomes are of one seed only. Else items are paired where
    both have outcomes, and the intervals decide elsewhere.
    """
    if all(values := [by_seed(row.record, metric.name) for row in rows]):
        return all_seed_pairs(values)
    unpaired = _by_intervals(rows, metric)
    correct = [_hits(store, row.record, metric.name) for row in rows]
    lengths = {len(one) for one in correct if one is not None}
    known = [index for index, one in enumerate(correct) if one is not None]
    if len(known) < 2 or len(lengths) != 1:
        return unpaired
    p = numpy.ones((len(rows), len(rows))) if unpaired is None else unpaired
    p[numpy.ix_(known, known)] = all_pairs([one for one in correct if one is not None])
    return p


def _by_intervals(rows: Sequence[Row], metric: Metric) -> NDArray[numpy.float64] | None:
    """Two-sided p of a normal test for every pair, from 95 % intervals; values without one differ from none.

    Of a cost the logarithm is compared, and what differs by less than the least effect does not differ: from process to
    process times change by more than their intervals tell.
    """
    from scipy.special import ndtr

    if not any(metric.name in row.intervals for row in rows):
        return None
    cost = rows[0].record.machine_bound
    place: Any = numpy.log if cost else numpy.asarray
    ends = [row.intervals.get(metric.name, (numpy.nan, numpy.nan)) for row in rows]
    if cost and any(low <= 0 for low, _ in ends):
        return None
    values = place(numpy.array([row.values[metric.name] for row in rows], dtype=float))
    spread = numpy.array([float(place(high)) - float(place(low)) for low, high in ends]) / (2 * 1.959964)
    distance = numpy.abs(values[:, None] - values[None, :])
    with numpy.errstate(divide="ignore", invalid="ignore"):
        z = distance / numpy.hypot(spread[:, None], spread[None, :])
    p: NDArray[numpy.float64] = numpy.nan_to_num(2 * ndtr(-z), nan=1.0)
    if cost:
        p[distance < numpy.log1p(LEAST_EFFECT)] = 1.0
    return p


def _hits(store: Store, record: Record, metric: str) -> Hits | None:
    """Which items a record got right, kept as bits in the cache: reading outcomes takes a hundred times longer.

    Outcomes that are not there are not taken from the cache either, so that a board depends on its folder alone.
    """
    if not record.outcomes_sha256 or not store.has_outcomes(record):
        return None
    path = cache_folder() / "hits" / f"{record.outcomes_sha256}-{metric}.npy"
    if path.is_file():
        packed = numpy.load(path, allow_pickle=False)
        return numpy.unpackbits(packed[8:], count=int(packed[:8].view(numpy.uint64)[0])).astype(bool)
    found = hits(store.read_outcomes(record), metric)
    if found is not None:
        count = numpy.array([len(found)], dtype=numpy.uint64).view(numpy.uint8)
        write_atomically(path, _bytes(numpy.concatenate([count, numpy.packbits(found)])))
    return found


def _bytes(values: NDArray[numpy.uint8]) -> bytes:
    file = BytesIO()
    numpy.save(file, values, allow_pickle=False)
    return file.getvalue()
