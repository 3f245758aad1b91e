"""Panoptic quality: how well segments match, over all categories, things and stuff.

The rule is that of panopticapi, crowds and void included.

Source: Kirillov et al. 2019 (arXiv:1801.00868); github.com/cocodataset/panopticapi.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

VOID = 0
NONE = -1  # no segment's id
OFFSET = 2**24  # above every id: they are three bytes


@dataclass(frozen=True)
class Segment:
    """One segment of an image.

    Args:
        id: its value in the map of ids.
        category: the category's id.
        area: in pixels, as annotated; None to count.
        crowd: a region of many things, which need not be found.
    """

    id: int
    category: int
    area: float | None = None
    crowd: bool = False


@dataclass
class Counts:
    """Of one category: matched segments and the sum of their overlaps, wrong segments, missed segments."""

    overlap: float = 0.0
    right: int = 0
    wrong: int = 0
    missed: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        self.overlap += other.overlap
        self.right += other.right
        self.wrong += other.wrong
        self.missed += other.missed
        return self


@dataclass(frozen=True)
class Quality:
    """Panoptic, segmentation and recognition quality in 0..1, averaged over `categories` categories."""

    pq: float
    sq: float
    rq: float
    categories: int


def compare(truth: Ids, segments: Sequence[Segment], found: Ids, guesses: Sequence[Segment]) -> dict[int, Counts]:
    """Match the segments of one image: equal category, and intersection over union above one half.

    Args:
        truth: (H, W) annotated ids; 0 is void, and so is an id without a segment.
        found: (H, W) predicted ids; 0 is no prediction.

    Returns:
        Counts by category id.
    """
    shared = _intersections(truth, found)
    annotated = {segment.id: segment for segment in segments}
    guessed = {segment.id: segment for segment in guesses}
    overlaps = _overlaps(shared, annotated, guessed)
    counts: dict[int, Counts] = defaultdict(Counts)
    for (one, _), overlap in overlaps.items():
        counts[annotated[one].category] += Counts(overlap, right=1)
    hit, right = {one for one, _ in overlaps}, {other for _, other in overlaps}
    for segment in annotated.values():
        if not segment.crowd and segment.id not in hit:
            counts[segment.category] += Counts(missed=1)
    crowds = {segment.category: segment.id for segment in annotated.values() if segment.crowd}
    sizes = _sizes(shared, 1)
    for guess in guessed.values():
        excused = shared.get((VOID, guess.id), 0) + shared.get((crowds.get(guess.category, NONE), guess.id), 0)
        if guess.id not in right and excused / sizes[guess.id] <= 0.5:
            counts[guess.category] += Counts(wrong=1)
    return dict(counts)


def _overlaps(
    shared: Mapping[tuple[int, int], int], annotated: Mapping[int, Segment], guessed: Mapping[int, Segment]
) -> dict[tuple[int, int], float]:
    """Intersection over union of each pair that matches; a guess's void pixels are in no union."""
    sizes = _sizes(shared, 0), _sizes(shared, 1)
    matched = {}
    for (one, other), pixels in shared.items():
        segment, guess = annotated.get(one), guessed.get(other)
        if segment is None or guess is None or segment.crowd or segment.category != guess.category:
            continue
        area = sizes[0][one] if segment.area is None else segment.area
        overlap = pixels / (sizes[1][other] + area - pixels - shared.get((VOID, other), 0))
        if overlap > 0.5:
            matched[one, other] = overlap
    return matched


def average(counts: Mapping[int, Counts], categories: Sequence[int]) -> Quality | None:
    """Average over those categories that occur in the annotations or the predictions; None where none does."""
    there = [counts[k] for k in categories if k in counts and counts[k].right + counts[k].wrong + counts[k].missed]
    if not there:
        return None
    pq = sum(c.overlap / _weight(c) for c in there) / len(there)
    sq = sum(c.overlap / c.right if c.right else 0.0 for c in there) / len(there)
    rq = sum(c.right / _weight(c) for c in there) / len(there)
    return Quality(pq, sq, rq, len(there))


def pixel_counts(ids: Ids) -> dict[int, int]:
    """Return the number of pixels of each id."""
    return _sizes(_intersections(ids, np.zeros_like(ids)), 0)


def _weight(counts: Counts) -> float:
    return counts.right + 0.5 * counts.wrong + 0.5 * counts.missed


def _intersections(truth: Ids, found: Ids) -> dict[tuple[int, int], int]:
    """The number of pixels that each annotated and each predicted id share, in the order of the ids."""
    pairs = (truth.astype(np.int64) * OFFSET + found).ravel()
    # Maps hold long runs of one value: counting these is ten times as fast as sorting pixels.
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    values, places = np.unique(pairs[starts], return_inverse=True)
    sums = np.bincount(places, weights=np.diff(starts, append=len(pairs))).astype(np.int64)
    return {(v // OFFSET, v % OFFSET): n for v, n in zip(values.tolist(), sums.tolist(), strict=True)}


def _sizes(shared: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    sizes: dict[int, int] = defaultdict(int)
    for pair, pixels in shared.items():
        sizes[pair[side]] += pixels
    return sizes
