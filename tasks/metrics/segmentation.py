"""What semantic segmentation reports: a confusion matrix, its boundary, and a row for each image and class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.metric import Row
from tasks.metrics.confusion import Confusion, Labels, boundary


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
        counted = self._pixels.areas(self._pixels.update(prediction, annotation))
        # Inside its boundary a label is kept, outside it is none; pixels that do not count are in no boundary.
        counts = (annotation > 0) & (annotation <= self.classes)
        drawn, found = (np.where(counts, labels, 0).astype(np.uint8) for labels in (annotation, prediction))
        drawn, found = (np.where(boundary(labels), labels, 0).astype(np.uint8) for labels in (drawn, found))
        near = np.where(counts & (drawn == 0), self.classes + 1, drawn).astype(np.uint8)
        counted += self._edges.areas(self._edges.update(found, near))
        for label in np.flatnonzero(counted[1] + counted[2]).tolist():
            self.rows.append((name, label + 1, *(int(areas[label]) for areas in counted)))

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
