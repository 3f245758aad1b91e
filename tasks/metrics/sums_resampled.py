"""Metrics of sums over images, of resampled images: segmentation, panoptic quality, the mean over classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.metric import Outcomes
from harness.registry import STATISTICS
from harness.resampling import Counts, Values

Floats = NDArray[np.float64]
Formula = Callable[..., Mapping[str, Floats]]

SEGMENTATION = ("item", "class", "right", "annotated", "predicted", "edge_right", "edge_annotated", "edge_predicted")
PANOPTIC = ("item", "category", "thing", "right", "wrong", "missed", "overlap_e9")


class Sums:
    """Metrics that are a formula of sums over images, one sum for each group.

    Args:
        items: the image of each row.
        groups: the group of each row, such as its class.
        columns: the numbers of each row; the formula gets one array (groups, R) of each.
        formula: from the sums to the metrics (R,).
    """

    def __init__(
        self, items: Sequence[str], groups: Sequence[int], columns: Sequence[Sequence[int]], formula: Formula,
        metrics: tuple[str, ...],
    ) -> None:  # fmt: skip
        from scipy.sparse import csr_array

        self.items: Sequence[str] = tuple(dict.fromkeys(items))
        self.metrics = metrics
        self._formula = formula
        places = {item: number for number, item in enumerate(self.items)}
        _, rows = np.unique(np.asarray(groups, np.int64), return_inverse=True)
        where = (rows, [places[item] for item in items])
        shape = (int(rows.max(initial=-1)) + 1, len(self.items))
        self._columns = [csr_array((np.asarray(column, float), where), shape=shape) for column in columns]

    def values(self, counts: Counts, wanted: Sequence[str]) -> Values:
        """Return metrics (R,) for counts (items, R)."""
        weights = counts.astype(float)
        found = self._formula(*(column @ weights for column in self._columns))
        return {name: found[name] for name in wanted}


@STATISTICS.register("segmentation")
def segmentation(outcomes: Outcomes) -> Sums | None:
    """Return the metrics of `ade20k`'s outcomes; None for others."""
    if outcomes.columns != SEGMENTATION or not outcomes.rows:
        return None
    items, classes, *columns = zip(*outcomes.rows, strict=True)
    return Sums(items, classes, columns, _segmentation, ("miou", "macc", "aacc", "fwiou", "boundary_iou"))


def _segmentation(right: Floats, annotated: Floats, predicted: Floats, *edges: Floats) -> Mapping[str, Floats]:
    iou = _ratio(right, annotated + predicted - right)
    pixels = annotated.sum(axis=0)
    return {
        "miou": _mean(iou),
        "macc": _mean(_ratio(right, annotated)),
        "aacc": _ratio(right.sum(axis=0), pixels),
        "fwiou": _ratio(np.nansum(annotated * iou, axis=0), pixels),
        "boundary_iou": _mean(_ratio(edges[0], edges[1] + edges[2] - edges[0])),
    }


@STATISTICS.register("panoptic")
def panoptic(outcomes: Outcomes) -> Sums | None:
    """Return the metrics of `coco_panoptic`'s outcomes; None for others."""
    if outcomes.columns != PANOPTIC or not outcomes.rows:
        return None
    items, categories, things, *columns = zip(*outcomes.rows, strict=True)
    kinds = dict(zip(categories, things, strict=True))
    thing = np.array([bool(kinds[category]) for category in sorted(kinds)])
    regions = {"": np.ones(len(thing), bool), "_things": thing, "_stuff": ~thing}

    def qualities(right: Floats, wrong: Floats, missed: Floats, overlap: Floats) -> Mapping[str, Floats]:
        overlap = overlap / 1e9
        weight = right + 0.5 * wrong + 0.5 * missed
        there = {"pq": _ratio(overlap, weight), "rq": _ratio(right, weight)}
        there["sq"] = np.where(weight > 0, np.nan_to_num(_ratio(overlap, right)), np.nan)
        return {name + region: _mean(part[rows]) for region, rows in regions.items() for name, part in there.items()}

    return Sums(
        items,
        categories,
        columns,
        qualities,
        tuple(f"{name}{region}" for region in regions for name in ("pq", "sq", "rq")),
    )


@STATISTICS.register("per_class")
def per_class(outcomes: Outcomes) -> Sums | None:
    """Return the mean of the classes' accuracies, in %, of outcomes of classification; None for others."""
    if outcomes.columns[:3] != ("item", "target", "top1") or not outcomes.rows:
        return None
    items, targets, best = list(zip(*outcomes.rows, strict=True))[:3]
    right = [int(target == found) for target, found in zip(targets, best, strict=True)]

    def mean(right: Floats, images: Floats) -> Mapping[str, Floats]:
        return {"mean_per_class": 100 * _mean(_ratio(right, images))}

    return Sums(items, targets, (right, [1] * len(right)), mean, ("mean_per_class",))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part over whole; NaN where there is no whole."""
    ratio: Floats = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
    return ratio


def _mean(values: Floats) -> Floats:
    """The mean (R,) over the groups of (groups, R) that are there; NaN where none is."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(axis=0), there.sum(axis=0).astype(float))
