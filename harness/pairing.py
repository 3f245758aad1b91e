"""What a record did on each image, kept so that many records can be compared in pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import numpy

from harness.cache import cache_folder
from harness.leaderboard import by_seed
from harness.metric import Outcomes
from harness.record import Record, digest
from harness.resampling import AGREE, LEAST_ITEMS, RESAMPLES, SEED, replicates, statistic_of, whole
from harness.significance import (
    Hits,
    PairedDifference,
    Resampled,
    hits,
    paired_difference,
    resampled_difference,
    seed_differences,
)
from harness.store import write_atomically


class Source(Protocol):
    """Where the outcomes of records are read from."""

    def read_outcomes(self, record: Record) -> Outcomes:
        """Return the outcome of every item of a record."""


@dataclass(frozen=True)
class Answers:
    """Which items a record got right, and a hash of their names in order."""

    right: Hits
    items: int


def answers_of(source: Source, record: Record, metric: str) -> Answers | None:
    """Return which items a record got right; None where its value of the metric is no share of right items.

    Kept as bits in the cache: reading outcomes takes a hundred times longer.
    """

    def find() -> Any:
        outcomes = source.read_outcomes(record)
        found = hits(outcomes, metric)
        if found is None:
            return numpy.zeros(0, numpy.uint8)
        mark = hashlib.sha256("\n".join(str(row[0]) for row in outcomes.rows).encode()).digest()[:8]
        head = numpy.array([len(found)], "<u8").tobytes() + mark
        return numpy.concatenate([numpy.frombuffer(head, numpy.uint8), numpy.packbits(found)])

    packed = _kept(f"answers/{record.outcomes_sha256}-{digest(metric)}", find)
    if not len(packed):
        return None
    count, items = packed[:16].view("<u8").tolist()
    right: Hits = numpy.unpackbits(packed[16:], count=count).astype(bool)
    return Answers(right, items) if _is(record, metric, 100 * float(right.mean())) else None


def resampled_of(source: Source, record: Record, metric: str) -> Resampled | None:
    """Return what a record's metric is on resampled images; None where its outcomes do not give its value.

    Kept in the cache: of five thousand images with their detections it takes seconds.
    """

    def find() -> Any:
        statistic = statistic_of(source.read_outcomes(record))
        if statistic is None or metric not in statistic.metrics or len(statistic.items) < LEAST_ITEMS:
            return None
        value = whole(statistic, [metric])[metric]
        return numpy.array([value, len(statistic.items), *replicates(statistic, [metric])[metric]])

    found = _kept(f"resampled/{record.outcomes_sha256}-{digest(metric)}-{RESAMPLES}-{SEED}", find)
    if found is None or not _is(record, metric, float(found[0])):
        return None
    return Resampled(float(found[0]), int(found[1]), found[2:])


def difference_of(
    sources: tuple[Source, Source], records: tuple[Record, Record], metric: str
) -> PairedDifference | None:
    """Compare two records on the same images, or means over the same seeds by these; None where neither tells."""
    if series := equally_seeded(records, metric):
        return seed_differences(series, first=0)[1]
    if not all(record.outcomes_sha256 for record in records):
        return None
    pairs = list(zip(sources, records, strict=True))
    known = [answers_of(source, record, metric) for source, record in pairs]
    if known[0] is not None and known[1] is not None:
        return paired_difference(known[0].right, known[1].right) if known[0].items == known[1].items else None
    drawn = [resampled_of(source, record, metric) for source, record in pairs]
    if drawn[0] is not None and drawn[1] is not None:
        return resampled_difference(drawn[0], drawn[1])
    return None


def equally_seeded(records: Sequence[Record], metric: str) -> list[tuple[float, ...]]:
    """Return the values of records by seed; empty unless all were trained with one recipe on the same batches."""
    first = records[0].details.get("equal")
    if not first or any(record.details.get("equal") != first for record in records):
        return []
    series = [by_seed(record, metric) for record in records]
    return series if all(series) else []


def _is(record: Record, metric: str, value: float) -> bool:
    """Whether outcomes give the value that is recorded; a mean over seeds is that of no one's outcomes."""
    recorded = record.values().get(metric)
    return recorded is not None and abs(recorded - value) < AGREE


def _kept(name: str, find: Callable[[], Any]) -> Any:
    """What was found before under a name, else what is found now; nothing found is not kept."""
    path = cache_folder() / f"{name}.npy"
    if path.is_file():
        return numpy.load(path, allow_pickle=False)
    found = find()
    if found is not None:
        file = BytesIO()
        numpy.save(file, found, allow_pickle=False)
        write_atomically(path, file.getvalue())
    return found
