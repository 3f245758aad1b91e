"""What semantic segmentation reports: a confusion matrix, its boundary, and a row for each image and class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.journal import Kept
from harness.metric import Row
from tasks.metrics.confusion import LEVELS, Confusion, Counts, Labels, boundary


class Segmentation:
    """Takes in labels image by image.

    Args:
        classes: how many; labels from 1 to this number are classes, and 0 is none.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._pixels = Confusion(classes)
        self._edges = Confusion(classes)
        self.rows: list[Row] = []

    def update(self, name: str, prediction: Labels, annotation: Labels) -> None:
        """Count the pixels of one image, (H, W) both, and those of its boundaries."""
        self.add(self.count(name, prediction, annotation))

    def add(self, entry: Kept) -> None:
        """Take in what was counted of one image."""
        name, pixels, edges = entry[0], *map(_dense, entry[1:])
        self._pixels.matrix += pixels
        self._edges.matrix += edges
        counted = self._pixels.areas(pixels) + self._edges.areas(edges)
        for label in np.flatnonzero(counted[1] + counted[2]).tolist():
            self.rows.append((name, label + 1, *(int(areas[label]) for areas in counted)))

    def count(self, name: str, prediction: Labels, annotation: Labels) -> Kept:
        """Return the name of an image, and how often each pair of labels occurs in it and at its boundaries."""
        pixels = self._pixels.count(prediction, annotation)
        # Inside its boundary a label is kept, outside it is none; pixels that do not count are in no boundary.
        counts = (annotation > 0) & (annotation <= self.classes)
        drawn, found = (np.where(counts, labels, 0).astype(np.uint8) for labels in (annotation, prediction))
        drawn, found = (np.where(boundary(labels), labels, 0).astype(np.uint8) for labels in (drawn, found))
        near = np.where(counts & (drawn == 0), self.classes + 1, drawn).astype(np.uint8)
        return name, _sparse(pixels), _sparse(self._edges.count(found, near))

    def values(self) -> dict[str, float]:
        """Return the scores by name, in 0..1; NaN where no pixel was annotated."""
        scores, edges = self._pixels.compute(), self._edges.compute()
        return {
            "miou": scores.miou,
            "macc": scores.macc,
            "aacc": scores.aacc,
            "fwiou": scores.fwiou,
            "boundary_iou": edges.miou,
        }

    def by_class(self) -> NDArray[np.float64]:
        """Return the intersection over union of each class; NaN for those that do not occur."""
        return self._pixels.compute().iou

    def check_origin(self) -> None:
        """Raise DataError where predictions count classes from 0: one up, far more of them are right."""
        matrix = self._pixels.matrix[1 : self.classes + 1]
        total = max(int(matrix.sum()), 1)
        given = int(matrix.diagonal(1).sum()) / total
        shifted = int(matrix.diagonal(0).sum()) / total
        if shifted > 0.2 and shifted > 3 * given:
            raise DataError(
                f"The predicted labels seem to count classes from 0: {given:.0%} of the pixels are right as they are, "
                f"{shifted:.0%} with 1 added. Expected 1 to {self.classes} as in the annotations, 0 for none. Add 1."
            )


def _sparse(matrix: Counts) -> list[list[int]]:
    """The places in a matrix that are not 0, and what is there."""
    places = np.flatnonzero(matrix)
    return [places.tolist(), matrix.ravel()[places].tolist()]


def _dense(sparse: list[list[int]]) -> Counts:
    """The matrix that `_sparse` was given."""
    matrix: Counts = np.zeros((LEVELS, LEVELS), np.int64)
    matrix.ravel()[sparse[0]] = sparse[1]
    return matrix
