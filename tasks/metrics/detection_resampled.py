"""Average precision of resampled images, from the outcome of every detection.

Matching is done within an image, so a resample needs only the counts along the detections by score. Precision at a
recall is the best at that recall or a higher one, which a detection that takes an object always has: the others matter
by their number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.metric import Outcomes
from harness.registry import STATISTICS
from harness.resampling import Counts, Values
from tasks.metrics.detection import RECALLS, THRESHOLDS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

COLUMNS = ("item", "masks", "category", "place", "right", "ignored")
KINDS = ("box", "mask")
# Which thresholds each number averages.
NUMBERS = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}


@dataclass(frozen=True)
class Category:
    """The outcomes of boxes or of masks in one category.

    Args:
        image: of each detection, by falling score.
        right: the thresholds at which a detection took an object, the lowest as the lowest bit.
        ignored: likewise, those at which it does not count.
        annotated: images with objects.
        objects: how many each of these has.
    """

    image: Integers
    right: Integers
    ignored: Integers
    annotated: Integers
    objects: Integers


@STATISTICS.register("detection")
def detection(outcomes: Outcomes) -> Detection | None:
    """Return average precision of `coco`'s outcomes; None for others."""
    return Detection(outcomes) if outcomes.columns == COLUMNS else None


class Detection:
    """Average precision over ten thresholds, at 0.5 and at 0.75, of boxes and of masks, in 0..1."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.items: Sequence[str] = tuple(dict.fromkeys(str(row[0]) for row in outcomes.rows))
        places = {item: number for number, item in enumerate(self.items)}
        table = np.array([(places[str(row[0])], *row[1:]) for row in outcomes.rows], np.int64).reshape(-1, len(COLUMNS))
        self._categories = {kind: list(_categories(table[table[:, 1] == n])) for n, kind in enumerate(KINDS)}
        self.metrics = tuple(f"{kind}_{number}" for kind in KINDS if self._categories[kind] for number in NUMBERS)

    def values(self, counts: Counts, wanted: Sequence[str]) -> Values:
        """Return numbers (R,) for counts (items, R)."""
        found: dict[str, Floats] = {}
        for kind, categories in self._categories.items():
            numbers = [number for number in NUMBERS if f"{kind}_{number}" in wanted]
            if numbers:
                precision = np.stack([average_precision(one, counts) for one in categories])
                found |= {f"{kind}_{number}": _mean(precision[:, NUMBERS[number]]) for number in numbers}
        return found


def _categories(table: Integers) -> Iterator[Category]:
    """The categories that have objects, of rows of one kind."""
    table = table[np.lexsort((table[:, 3], table[:, 2]))]
    for rows in np.split(table, np.flatnonzero(np.diff(table[:, 2])) + 1):
        objects, detections = rows[rows[:, 3] < 0], rows[rows[:, 3] >= 0]
        if len(objects):
            yield Category(detections[:, 0], detections[:, 4], detections[:, 5], objects[:, 0], objects[:, 4])


def average_precision(one: Category, counts: Counts) -> Floats:
    """Return average precision (thresholds, R) of a category; NaN where no object is drawn."""
    wanted = one.objects @ counts[one.annotated].astype(np.int64)
    drawn = counts[one.image].astype(np.int32)
    seen = drawn.cumsum(axis=0, dtype=np.int32)
    found = np.zeros((len(THRESHOLDS), counts.shape[1]))
    for level in range(len(THRESHOLDS)):
        ignored = np.flatnonzero(one.ignored >> level & 1)
        hits = np.flatnonzero((one.right & ~one.ignored) >> level & 1)
        right, total = drawn[hits].cumsum(axis=0, dtype=np.int32), seen[hits]
        if len(ignored):
            passed = np.vstack([np.zeros_like(seen[:1]), drawn[ignored].cumsum(axis=0, dtype=np.int32)])
            total = total - passed[np.searchsorted(ignored, hits)]
        envelope = np.maximum.accumulate((right / (total + np.spacing(1)))[::-1], axis=0)[::-1]
        steps = np.diff(_levels(right / np.maximum(wanted, 1)), axis=0, prepend=0)
        found[level] = (envelope * steps).sum(axis=0) / len(RECALLS)
    return np.where(wanted > 0, found, np.nan)


def _levels(recall: Floats) -> Integers:
    """How many of the 101 levels each recall reaches."""
    nearest = np.rint(recall * (len(RECALLS) - 1)).astype(np.int64)
    reached: Integers = nearest + (RECALLS[nearest] <= recall)
    return reached


def _mean(precision: Floats) -> Floats:
    """The mean (R,) over the categories that are there, of (categories, thresholds, R)."""
    there = ~np.isnan(precision[:, 0])
    total = np.where(np.isnan(precision), 0, precision).mean(axis=1).sum(axis=0)
    mean: Floats = np.divide(total, there.sum(axis=0), out=np.full(total.shape, np.nan), where=there.any(axis=0))
    return mean
