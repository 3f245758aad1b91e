"""Semantic segmentation: one confusion matrix over the whole data set, at the size of the annotations.

Equal to mmsegmentation's `IoUMetric`, which sums in single precision; here counts are whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
BOUNDARY = 0.02  # width of a boundary region, in diagonals of the image

Labels = NDArray[np.uint8]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Shares in 0..1. Classes that occur in neither annotation nor prediction take no part in a mean.

    Args:
        miou: mean over classes of intersection over union.
        macc: mean over annotated classes of the share of their pixels that is right.
        aacc: share of all annotated pixels that is right.
        fwiou: mean of intersection over union, weighted by how often a class is annotated.
        iou: of each class, NaN for those that do not occur.
    """

    miou: float
    macc: float
    aacc: float
    fwiou: float
    iou: NDArray[np.float64]


class Confusion:
    """Counts how often each label was annotated where each was predicted.

    Args:
        classes: how many; labels from 1 to this number are classes, in annotations and predictions alike.
        ignore: annotated labels whose pixels do not count: 0, `other`, and 255 as a rule. A predicted 0 is no class,
            and wrong.
    """

    def __init__(self, classes: int, ignore: tuple[int, ...] = (0, 255)) -> None:
        self.classes = classes
        self._ignore = list(ignore)
        self.matrix: Counts = np.zeros((LEVELS, LEVELS), np.int64)  # (annotated, predicted)

    def count(self, prediction: Labels, annotation: Labels) -> Counts:
        """Return the matrix (256, 256) of one image, both (H, W), and leave the whole as it is."""
        pairs = np.empty((*annotation.shape, 2), np.uint8)
        pairs[..., 0], pairs[..., 1] = prediction, annotation
        codes = pairs.view("<u2").ravel()
        found: Counts = np.bincount(codes, minlength=LEVELS * LEVELS).reshape(LEVELS, LEVELS)
        found[self._ignore] = 0
        return found

    def update(self, prediction: Labels, annotation: Labels) -> Counts:
        """Count the pixels of one image, both (H, W), and return its own matrix (256, 256)."""
        found = self.count(prediction, annotation)
        self.matrix += found
        return found

    def areas(self, matrix: Counts | None = None) -> tuple[Counts, Counts, Counts]:
        """Return, for each class, the pixels that are right, annotated and predicted."""
        matrix = self.matrix if matrix is None else matrix
        chosen = slice(1, self.classes + 1)
        return matrix.diagonal()[chosen], matrix.sum(axis=1)[chosen], matrix.sum(axis=0)[chosen]

    def compute(self) -> Scores:
        """Return the scores of all that was counted; NaN where no pixel was."""
        right, annotated, predicted = self.areas()
        iou = _ratio(right, annotated + predicted - right)
        share = annotated / max(annotated.sum(), 1)
        return Scores(
            miou=_mean(iou),
            macc=_mean(_ratio(right, annotated)),
            aacc=float(_ratio(right.sum(), annotated.sum())),
            fwiou=float((share[share > 0] * iou[share > 0]).sum()) if annotated.any() else np.nan,
            iou=iou,
        )


def boundary(labels: Labels, ratio: float = BOUNDARY) -> NDArray[np.bool_]:
    """Return which pixels (H, W) lie within a few pixels of another label, or of the edge of the image.

    Args:
        ratio: how near, in diagonals of the image; by square distance, as repeated 3 x 3 erosion gives it.

    Source: Cheng et al. 2021 (arXiv:2103.16562), section 4; github.com/bowenc0221/boundary-iou-api.
    """
    reach = max(1, round(ratio * float(np.hypot(*labels.shape))))
    # Two borders of different values make everything near an edge differ from something.
    low = _extreme(np.pad(labels, reach, constant_values=0), reach, np.minimum)
    high = _extreme(np.pad(labels, reach, constant_values=LEVELS - 1), reach, np.maximum)
    near: NDArray[np.bool_] = low != high
    return near


def _extreme(padded: Labels, reach: int, better: Any) -> Labels:
    """The least or greatest value of each window of side 2 * reach + 1: (H + 2 r, W + 2 r) to (H, W)."""
    for axis in (0, 1):
        here = np.moveaxis(padded, axis, 0)
        width = 1
        while width < 2 * reach + 1:
            step = min(width, 2 * reach + 1 - width)
            here = better(here[:-step], here[step:])
            width += step
        padded = np.moveaxis(here, 0, axis)
    return padded


def _ratio(part: Any, whole: Any) -> Any:
    """Part over whole; NaN where there is no whole."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN where nothing is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")
