"""COCO's twelve numbers for boxes or masks: average precision and recall over ten overlap thresholds.

The rule is that of pycocotools, whose loops take a hundred times as long: all images and categories are matched at
once, one rank of detections after the other. `tasks.metrics.detection_reference` runs pycocotools on the same arrays.

Source: cocodataset.org/#detection-eval; Lin et al. 2014 (arXiv:1405.0312).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.metrics.overlap import Overlaps, box_overlaps, mask_overlaps

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0, 1, 101)
# In pixels of the original image, both ends included.
AREAS = {"all": (0.0, 1e5**2), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
MOST_DETECTIONS = (1, 10, 100)
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
         "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
ABSENT = -1.0  # in the place of a number about objects that there are none of


@dataclass(frozen=True)
class Objects:
    """Annotated objects, one row each, in the order of the annotation file.

    Args:
        image: index of the image; images are numbered in the order of their sorted ids.
        category: contiguous index of the category.
        boxes: (N, 4) left, top, width, height in pixels of the original image.
        area: of the mask, as annotated.
        crowd: regions of many objects, which any number of detections may match and none must.
        masks: run-length codes as pycocotools takes them; empty where nobody asks for them.
    """

    image: Integers
    category: Integers
    boxes: Floats
    area: Floats
    crowd: Flags
    masks: Sequence[Any] = ()


@dataclass(frozen=True)
class Detections:
    """Detected objects, one row each, in the order of the result file, with the fields of `Objects`."""

    image: Integers
    category: Integers
    boxes: Floats
    area: Floats
    scores: Floats
    masks: Sequence[Any] = ()


@dataclass(frozen=True)
class Summary:
    """What came of an evaluation.

    Args:
        values: the twelve numbers by their names in `NAMES`; -1 where there are no such objects.
        by_category: average precision of each category; -1 where it has no objects.
        rows: the detections that were evaluated: the 100 best of each image and category.
        right: for each of them the thresholds at which it took an object, the lowest as the lowest bit; any area.
        ignored: likewise, the thresholds at which it counts neither as right nor as wrong.
    """

    values: Mapping[str, float]
    by_category: Floats
    rows: Integers
    right: Integers
    ignored: Integers


def evaluate(objects: Objects, detections: Detections, categories: int, kind: str = "boxes") -> Summary:
    """Return the twelve numbers.

    Args:
        categories: how many there are, present or not.
        kind: `boxes` or `masks`, what overlaps are taken of.
    """
    rows, rank = _best(detections)
    overlaps = (mask_overlaps if kind == "masks" else box_overlaps)(objects, detections, rows)
    hit, ignored = _match(objects, overlaps, rank)
    area = detections.area[rows]
    for column, (low, high) in enumerate(AREAS.values()):
        outside = (area < low) | (area > high)
        ignored[:, column] |= ~hit[:, column] & outside[:, None]
    precision, recall = _accumulate(objects, detections, categories, rows, rank, hit, ignored)
    by_category = np.array([_mean(precision[:, :, k, 0]) for k in range(categories)])
    bits = 2 ** np.arange(len(THRESHOLDS))
    return Summary(summarize(precision, recall), by_category, rows, hit[:, 0] @ bits, ignored[:, 0] @ bits)


def _best(detections: Detections) -> tuple[Integers, Integers]:
    """The best detections of each image and category, group by group, best first; and their ranks, from 0.

    Of equal scores the one that comes first in the file is better.
    """
    rows = np.lexsort((-detections.scores, detections.image, detections.category))
    group = detections.category[rows] * (detections.image.max(initial=0) + 1) + detections.image[rows]
    rank = _places(group)
    kept = rank < MOST_DETECTIONS[-1]
    return rows[kept], rank[kept]


def _places(group: Integers) -> Integers:
    """The place, from 0, of each element within its run of equal values."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    places: Integers = np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))
    return places


def _match(objects: Objects, overlaps: Overlaps, rank: Integers) -> tuple[Flags, Flags]:
    """Let each detection, best first, take the object that it overlaps most; an ignored one only for want of others.

    Returns:
        For each detection, area range and threshold: whether it took an object, and whether that is ignored.
    """
    limits = np.array(list(AREAS.values()))
    outside = (objects.area[:, None] < limits[:, 0]) | (objects.area[:, None] > limits[:, 1])
    ignore = (objects.crowd[:, None] | outside)[:, :, None]  # (objects, areas, 1)
    taken = np.zeros((len(objects.area), len(AREAS), len(THRESHOLDS)), bool)
    hit = np.zeros((len(rank), len(AREAS), len(THRESHOLDS)), bool)
    ignored = np.zeros_like(hit)
    # Within a detection by overlap, then by place: what comes last among those that may be taken is taken.
    order = np.lexsort((overlaps.object, overlaps.value, overlaps.detection, rank[overlaps.detection]))
    detection, target, value = (part[order] for part in (overlaps.detection, overlaps.object, overlaps.value))
    enough = value[:, None] >= np.minimum(THRESHOLDS, 1 - 1e-10)
    for start, stop in _runs(rank[detection]):
        one, them, these = detection[start:stop], target[start:stop], enough[start:stop, None]
        free = these & (~taken[them] | objects.crowd[them, None, None])
        size = stop - start
        keys = np.where(free, np.arange(1, size + 1)[:, None, None] + np.where(ignore[them], 0, size), 0)
        firsts = np.flatnonzero(np.diff(one, prepend=-1))
        best = np.maximum.reduceat(keys, firsts, axis=0)  # (detections, areas, thresholds)
        found = best > 0
        _, area, threshold = np.nonzero(found)
        chosen = them[(best[found] - 1) % size]
        taken[chosen, area, threshold] = True
        hit[one[firsts]] = found
        ignored[one[firsts]] = found & (best <= size)
    return hit, ignored


def _runs(values: Integers) -> list[tuple[int, int]]:
    """Start and stop of each run of equal values."""
    bounds = [*np.flatnonzero(np.diff(values, prepend=-1)).tolist(), len(values)]
    return list(pairwise(bounds))


def _accumulate(
    objects: Objects,
    detections: Detections,
    categories: int,
    rows: Integers,
    rank: Integers,
    hit: Flags,
    ignored: Flags,
) -> tuple[Floats, Floats]:
    """Precision (thresholds, recalls, categories, areas) and recall (thresholds, categories, limits, areas)."""
    precision = np.full((len(THRESHOLDS), len(RECALLS), categories, len(AREAS)), ABSENT)
    recall = np.full((len(THRESHOLDS), categories, len(MOST_DETECTIONS), len(AREAS)), ABSENT)
    # Over all images by score; of equal scores the earlier image and the earlier row first.
    order = np.lexsort((-detections.scores[rows], detections.category[rows]))
    bounds = np.searchsorted(detections.category[rows][order], np.arange(categories + 1))
    counted = count_wanted(objects, categories)
    for k in range(categories):
        chosen = order[bounds[k] : bounds[k + 1]]
        for a, wanted in enumerate(counted[k].tolist()):
            if not wanted:
                continue
            counts = ~ignored[chosen, a]
            right = (hit[chosen, a] & counts).T  # (thresholds, detections)
            wrong = (~hit[chosen, a] & counts).T
            for m, most in enumerate(MOST_DETECTIONS):
                recall[:, k, m, a] = right[:, rank[chosen] < most].sum(axis=1) / wanted
            precision[:, :, k, a] = _curve(right, wrong, wanted)
    return precision, recall


def count_wanted(objects: Objects, categories: int) -> Integers:
    """Return how many objects of each category and area range (categories, areas) are to be found, crowds aside."""
    area, category = objects.area[~objects.crowd], objects.category[~objects.crowd]
    within = [category[(area >= low) & (area <= high)] for low, high in AREAS.values()]
    return np.stack([np.bincount(them, minlength=categories) for them in within], axis=1)


def _curve(right: Flags, wrong: Flags, wanted: int) -> Floats:
    """Precision (thresholds, recalls): at each recall the best precision at that recall or a higher one."""
    found, false = right.cumsum(axis=1).astype(float), wrong.cumsum(axis=1).astype(float)
    share = found / (false + found + np.spacing(1))
    envelope = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]
    padded = np.hstack([envelope, np.zeros((len(envelope), 1))])
    places = np.array([np.searchsorted(line / wanted, RECALLS, side="left") for line in found])
    curve: Floats = np.take_along_axis(padded, places, axis=1)
    return curve


def summarize(precision: Floats, recall: Floats) -> dict[str, float]:
    """Return the twelve numbers by name.

    Args:
        precision: (thresholds, recalls, categories, areas); -1 where there are no objects.
        recall: (thresholds, categories, limits, areas); likewise.
    """
    numbers = [_mean(precision[..., 0]), _mean(precision[0, ..., 0]), _mean(precision[5, ..., 0])]
    numbers += [_mean(precision[..., area]) for area in (1, 2, 3)]
    numbers += [_mean(recall[:, :, most, 0]) for most in range(len(MOST_DETECTIONS))]
    numbers += [_mean(recall[:, :, -1, area]) for area in (1, 2, 3)]
    return dict(zip(NAMES, numbers, strict=True))


def _mean(values: Floats) -> float:
    """The mean of what is there; -1 where nothing is."""
    there = values[values > ABSENT]
    return float(np.mean(there)) if there.size else ABSENT
